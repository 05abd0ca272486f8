import pytest

from aent_verl.data.prepare import checks
from aent_verl.data.prepare.rows import Item, normalise


def items(*pairs):
    return [Item(index, problem, answer, normalise(problem)) for index, (problem, answer) in enumerate(pairs)]


def check(found, split="train", held_out=None, keep_unscorable=False):
    kept, findings = checks.check(found, split=split, held_out=held_out or {}, keep_unscorable=keep_unscorable)
    return [item.index for item in kept], {one.what: (one.count, one.left_out) for one in findings}, findings


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Find  $x$.", "find $x$."),
        ("Find $x + 1$.\n", "Find $x+1$."),
        (r"$\left( a,\, b \right)$", "$(a, b)$"),
        (r"$\dfrac{1}{2}\ \text{m}$", r"$\frac{1}{2} \text{m}$"),
        (r"$a \quad b$", "$a~b$"),
    ],
)
def test_spacing_and_case_do_not_make_another_problem(one, other):
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"), [("Add 1 2.", "Add 12."), ("$x-1$", "$x+1$"), (r"$\leftarrow a$", "$a$"), (r"\lefty", "y")]
)
def test_other_problems_stay_apart(one, other):
    assert normalise(one) != normalise(other)


def test_rows_without_problem_or_answer_are_left_out_and_counted():
    found = items(("", "1"), ("A?", ""), ("B?", "proof"), ("C?", "NotFound"), ("D?", "4"))
    kept, counts, findings = check(found)
    assert kept == [4]
    assert counts == {"no problem text": (1, True), "no answer": (3, True)}
    assert findings[1].examples == ["row 1: A?", "row 2: B?", "row 3: C?"]


def test_a_training_split_keeps_the_first_of_the_same_problems():
    kept, counts, _ = check(items(("Find $x$.", "1"), ("Find $x$.", "1"), ("find  $x$.", "1"), ("Find $y$.", "1")))
    assert kept == [0, 3]
    assert counts == {
        "the same problem again": (1, True),
        "the same problem again but for spacing or case": (1, True),
    }


def test_a_test_split_stays_as_published_but_repeats_and_conflicts_are_named():
    kept, counts, _ = check(items(("Find $x$.", "1"), ("Find $x$.", "1"), ("find $x$.", "2")), split="test")
    assert kept == [0, 1, 2]
    assert counts == {
        "the same problem with different answers": (3, False),
        "the same problem again": (1, False),
        "the same problem again but for spacing or case": (1, False),
    }


def test_all_copies_of_a_problem_with_different_answers_are_left_out():
    kept, counts, findings = check(items(("Find $x$.", "1"), ("Find $y$.", "3"), ("Find  $x$.", "2")))
    assert kept == [1]
    assert counts == {"the same problem with different answers": (2, True)}
    assert findings[0].examples == ["row 0: Find $x$. -> 1", "row 2: Find $x$. -> 2"]


def test_answers_that_the_reward_holds_equal_are_no_conflict():
    kept, counts, _ = check(items(("Find $x$.", "\\frac12"), ("Find $x$.", "0.5"), ("Find $x$.", "\\dfrac{1}{2}")))
    assert kept == [0]
    assert counts == {"the same problem again": (2, True)}


def test_what_is_held_out_is_not_trained_on_and_each_place_is_named():
    held_out = {normalise("Find $x$."): "math500-test", normalise("Find $y$."): "other.parquet"}
    found = items(("find  $x$ .", "1"), ("Find $y$.", "1"), ("Find $z$.", "1"))
    kept, counts, findings = check(found, held_out=held_out)
    assert kept == [2]
    assert counts == {
        "held out: it is in math500-test": (1, True),
        "held out: it is in other.parquet": (1, True),
    }
    assert findings[0].examples == ["row 0: find $x$ ."]
    assert check(found, split="test", held_out=held_out)[:2] == ([0, 1, 2], {})


def test_answers_that_the_reward_cannot_score_are_left_out_unless_asked_for():
    found = items(("A?", "}{"), ("B?", "1"))
    what = "the reward cannot score the ground truth"
    assert check(found)[:2] == ([1], {what: (1, True)})
    assert check(found, split="test")[:2] == ([1], {what: (1, True)})
    assert check(found, keep_unscorable=True)[:2] == ([0, 1], {what: (1, False)})
    assert check(found)[2][0].examples == ["'}{' (the reward can make nothing of it): row 0: A?"]


def test_a_sample_is_drawn_by_seed_keeps_the_order_and_counts_the_rest():
    found = items(*((f"{number}?", "1") for number in range(100)))
    first, (rest,) = checks.sample(found, 10, seed=0)
    assert [item.index for item in first] == sorted(item.index for item in first)
    assert (len(first), rest.count, rest.what) == (10, 90, "not drawn (--limit 10 --seed 0)")
    assert first == checks.sample(found, 10, seed=0)[0]
    assert first != checks.sample(found, 10, seed=1)[0]
    assert checks.sample(found, None, seed=0) == (found, [])
    with pytest.raises(ValueError, match=r"--limit 101: only 100 problems are left"):
        checks.sample(found, 101, seed=0)
