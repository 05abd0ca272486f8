import pytest

from aent_verl.data.prepare.table import after_hashes, automatic, boxed, whole


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So $x = \boxed{5}$.", "5"),
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (
            r"\boxed{\left\{\frac{a}{\sqrt{b}}, 2^{3^{4}}\right\}} and so on",
            r"\left\{\frac{a}{\sqrt{b}}, 2^{3^{4}}\right\}",
        ),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\fbox{3}", "3"),
        (r"\boxed 7$", "7"),
        (r"\boxed   {8}", "8"),
        (r"\boxed{\text{a } \} b}", r"\text{a } \} b"),
        (r"\boxed{$9$}", "9"),
        (r"\boxedness{4}", ""),
        (r"\boxed{1", ""),
        ("no box", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_last_box_is_taken_with_its_inner_braces(text, answer):
    assert boxed(text) == answer


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (" 5 ", "5"),
        (5, "5"),
        (27.0, "27"),
        (0.5, "0.5"),
        (float("nan"), ""),
        (None, ""),
        (["$\\frac{1}{2}$"], "\\frac{1}{2}"),
        (["1", "2"], "1, 2"),
        ("$x$", "x"),
        ("$$x$$", "x"),
        ("\\(x\\)", "x"),
        ("\\[x\\]", "x"),
        ("$x$ and $y$", "$x$ and $y$"),
        ("$", "$"),
    ],
)
def test_a_bare_answer_loses_only_its_wrapping(value, answer):
    assert whole(value) == answer


def test_gsm8k_answers_stand_after_the_last_hashes():
    assert after_hashes("#### 1\nmore\n#### 1,234 ") == "1234"
    assert after_hashes("no hashes, 5") == ""


def test_automatic_sees_how_an_answer_is_written():
    assert automatic("so \\boxed{5}") == "5"
    assert automatic("so\n#### 6") == "6"
    assert automatic("7") == "7"
