import base64
import hashlib
import math
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from aent_verl.runs.token_records import write_records
from aent_verl.viewing.palette import DIVERGING_LEVELS, LEVELS
from aent_verl.viewing.tokens.page import Scales, percentile, render, summarise, visible, write_page
from tests.unit.runs.test_token_records import ODD, record


class Page(HTMLParser):
    """Checks that tags are balanced and collects what the page says of its tokens."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.responses, self.text = [], [], [], [], ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag in ("meta", "input"):
            return
        self.open.append((tag, dict(attributes)))
        classes = (dict(attributes).get("class") or "").split()
        if tag == "div" and "t" in classes:
            self.responses.append([])
        if self.in_response() and tag == "i":
            self.responses[-1].append({"classes": classes, "title": dict(attributes)["title"], "text": ""})
        self.ids += [dict(attributes)["id"]] if "id" in dict(attributes) else []

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] not in ("script", "style"):
            self.text += data
        if self.in_response() and self.open[-1][0] == "i":
            self.responses[-1][-1]["text"] += data

    def in_response(self):
        return any(tag == "div" and (a.get("class") or "").split()[:1] == ["t"] for tag, a in self.open)


def page_of(*records):
    return Page(render(list(records)))


# Summary


def test_percentile():
    assert percentile(range(1, 101), 0.99) == 99
    assert percentile([3.0, math.nan, math.inf, 1.0], 0.99) == 3.0
    assert percentile([], 0.99) == 0
    # 7.000000000000001 and 28.999999999999996 of 100 in fp64.
    assert [percentile(range(1, 101), p / 100) for p in range(1, 101)] == list(range(1, 101))


def test_summary_by_part_and_text():
    first = record(
        count=5,
        tokens=["a", "b", "a", "c", "out"],
        entropy=[2.0, 0.5, 1.0, 0.5, 9.0],
        policy_weight=[1.5, None, 0.5, 1.0, 9.0],
        bonus_weight=[1.0, 0.0, 1.0, 0.0, 9.0],
        in_loss=[True] * 4 + [False],
    )
    second = record(count=2, tokens=["c", "d"], entropy=[0.0, math.nan])
    (top, others), texts = summarise([first, second])
    assert (top.count, top.share, top.mean_entropy, top.policy_weight, top.bonus_weight) == (1, 0.5, 2.0, 1.5, 1.0)
    assert (others.count, others.share, others.mean_entropy) == (4, 0.5, 0.5)
    assert [(g.name, g.count, g.share) for g in texts] == [("a", 2, 0.75), ("b", 1, 0.125), ("c", 2, 0.125)]
    assert [(g.policy_weight, g.bonus_weight) for g in texts] == [(1.0, 1.0), (None, 0.0), (1.0, 0.5)]


def test_summary_of_nothing_and_of_no_entropy():
    assert summarise([record(in_loss=[False] * 4)]) == ([], [])
    assert math.isnan(summarise([record(count=1)])[0][0].share)


# Page


def test_the_page_says_what_it_shows():
    page = page_of(record(1), record(1, 1, score=None), record(20, 7, tokens=["a", "\n", "b", "c"]))
    assert [i for i in page.ids if i.startswith("step-")] == ["step-1", "step-20"]
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert links == ["#step-1", "#step-20"]
    assert [[t["text"] for t in r] for r in page.responses][2] == ["a", "↵\n", "b", "c"]
    for text in ("aent: tokens by entropy, 2 steps, 1 to 20", "3 responses", "Sample 7", "1 + 1 = ?", "no score"):
        assert text in page.text
    for text in ("score 1", "mean entropy 0.375", "advantage +0.75", "policy weight 1", "bonus weight 1", "4 tokens"):
        assert text in re.sub(r"\s+", " ", page.text)
    assert "Ends at the steps' largest 99th percentile." in page.text
    assert "Ends at the 99th percentile." in page_of(record()).text
    assert "rank 0" not in page.text


def test_a_token_tells_its_values():
    page = page_of(
        record(
            entropy=[0.1234567, 0, 0, 0],
            log_prob=[math.log(0.25), 0, 0, 0],
            advantage=[-0.5] * 4,
            policy_weight=[1.25, None, 1, 1],
            bonus_weight=[0.5, 0, 0, 0],
        )
    )
    (first, second, *_) = page.responses[0]
    assert first["title"] == "H 0.123 p 0.25 logp -1.39 A -0.5 w 1.25 b 0.5"
    assert second["title"] == "H 0 p 1 logp 0 A -0.5 w — b 0"


def test_levels_follow_the_values():
    page = page_of(
        record(
            count=100,
            entropy=[0.0, 0.5, 1.0, *[1.0] * 95, 50.0, -0.5],
            advantage=[1.0, -1.0, 0.0, *[1.0] * 97],
            policy_weight=[1.0, 0.5, 1.5, *[1.5] * 96, None],
        )
    )
    (response,) = page.responses
    assert [a["class"] for tag, a in page.tags if tag == "div" and a.get("class", "").startswith("t ")] == ["t a30"]
    assert [t["classes"] for t in response[:3]] == [[], ["e16", "a0", "w0"], ["e31", "a15", "w30"]]
    assert response[98]["classes"] == ["e31", "w30"]
    assert response[99]["classes"] == []


def test_every_class_has_its_style():
    text = render([record()])
    for level in range(LEVELS):
        assert f".e{level}{{--e:var(--s{level})}}" in text
        assert text.count(f"--s{level}:#") == 2
    for level in range(DIVERGING_LEVELS):
        assert f".a{level}{{--a:var(--d{level})}}.w{level}{{--w:var(--d{level})}}" in text
        assert text.count(f"--d{level}:#") == 2
    assert all(f".{name}x {{ --{name}: var(--x) }}" in text for name in "eaw")


def test_scales_end_at_the_largest_percentile_of_a_step():
    early = record(
        1, count=200, entropy=[3.0] * 197 + [4.0, 5.0, 5.0], advantage=[-2.0] * 200, policy_weight=[0.25] * 200
    )
    late = record(2, count=4000, entropy=[0.001] * 4000)
    assert Scales.of([early, late]) == Scales(entropy=4.0, advantage=2.0, policy_weight=0.75)
    outside = replace(early, in_loss=[False] * 200)
    assert Scales.of([outside]) == Scales(entropy=0.01, advantage=0.01, policy_weight=0.1)
    text = re.sub(r"\s+", " ", page_of(early, late).text)
    assert "Entropy, nats 02≥ 4" in text
    assert "Advantage ≤ -20≥ +2" in text
    assert "Policy weight ≤ 0.251≥ 1.75" in text


def test_what_is_not_finite_is_shown_as_such():
    page = page_of(
        record(
            entropy=[math.nan, 1.0, math.inf, 1.0],
            log_prob=[math.nan, -math.inf, 0.1, -1.0],
            advantage=[1.0, math.nan, math.inf, 1.0],
            policy_weight=[1.0, math.nan, 1.0, 1.0],
        )
    )
    tokens = page.responses[0]
    assert [t["classes"] for t in tokens] == [["ex"], ["e31", "ax", "wx"], ["ex", "ax"], ["e31"]]
    assert [t["title"].split(" A ")[0] for t in tokens] == [
        "H NaN p NaN logp NaN",
        "H 1 p 0 logp -inf",
        "H inf p 1 logp 0.1",
        "H 1 p 0.368 logp -1",
    ]
    text = re.sub(r"\s+", " ", page.text)
    assert "mean entropy NaN" in text
    assert "advantage +1 to +inf and NaN" in text
    assert "policy weight 1 and NaN" in text


def test_tokens_outside_the_loss_fade_and_count_for_nothing():
    page = page_of(record(entropy=[1.0, 1.0, 5.0, 5.0], in_loss=[True, True, False, False]))
    assert ["o" in t["classes"] for t in page.responses[0]] == [False, False, True, True]
    assert "mean entropy 1 " in re.sub(r"\s+", " ", page.text)


def test_bonus_tokens_are_underlined_where_bonus_differs():
    alike = record(1, bonus_weight=[0.5] * 4)
    masked = record(1, 1, bonus_weight=[0.0, 0.5, 1.0, 1.0], in_loss=[True, True, True, False])
    assert not any("b" in t["classes"] for t in page_of(alike, record(1, 1)).responses[0])
    responses = page_of(alike, masked).responses
    assert [["b" in t["classes"] for t in r] for r in responses] == [[True] * 4, [False, True, True, False]]
    outside = replace(masked, bonus_weight=[1.0, 1.0, 1.0, 0.0])
    assert not any("b" in t["classes"] for t in page_of(outside).responses[0])


def test_everything_is_escaped():
    evil = "</div><script>alert(1)</script><i title=\"x\" onclick='y'>&lt;"
    text = render([record(tokens=[evil] * 4, prompt=evil, method=evil, functional=evil), record(2, method="b")])
    page = Page(text)
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert [t["text"] for t in page.responses[0]] == [evil] * 4


def test_the_page_asks_no_network_and_runs_its_own_script_only():
    text = render([record()])
    page = Page(text)
    assert not re.findall(r"https?:|//[a-z]+\.|url\(|@import", text)
    assert not any({"src", "style"} & attributes.keys() for _, attributes in page.tags)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    (policy,) = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_several_methods_and_ranks_are_told_apart():
    page = page_of(record(), record(method="grpo", functional="full", rank=1))
    text = re.sub(r"\s+", " ", page.text)
    for part in ("aent, grpo: tokens by entropy", "rank 0", "rank 1", " full entropy", "clamped, full, in nats"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain 答 é", "plain 答 é"),
        ("\n\n", "↵\n↵\n"),
        ("a\tb", "a⇥\tb"),
        ("\r\x00\x1b", "␍␀␛"),
        ("\x7f\x85", "⟨U+007F⟩⟨U+0085⟩"),
        ("x\u202ey\u2066", "x⟨U+202E⟩y⟨U+2066⟩"),
        ("\u2028\ud800", "⟨U+2028⟩⟨U+D800⟩"),
        ("\u200b", "⟨U+200B⟩"),
        ("a\u200bb", "a\u200bb"),
        ("", "∅"),
    ],
)
def test_visible(text, shown):
    assert visible(text) == shown


def test_odd_tokens_survive_the_file_and_the_page(tmp_path):
    write_records(tmp_path / "step_1.jsonl", [record(count=len(ODD), tokens=ODD)])
    page, _ = write_page([tmp_path])
    text = page.read_bytes().decode()
    assert [t["text"] for t in Page(text).responses[0]] == [visible(token) for token in ODD]
    assert not re.findall("[\x00-\x08\x0b-\x1f\x7f]", text)


def test_a_response_without_tokens_has_a_place():
    page = page_of(record(count=0))
    assert page.responses == [[]]
    assert "mean entropy —" in re.sub(r"\s+", " ", page.text)


def test_a_long_run_is_a_page_of_a_few_megabytes_in_seconds():
    count = 1000
    values = [math.sin(i) ** 2 * 1.2345 for i in range(count)]
    long = record(
        count=count,
        log_prob=[-value / 7 for value in values],
        entropy=values,
        advantage=[value - 0.5 for value in values],
        policy_weight=[1 + value / 9 for value in values],
        bonus_weight=[value / 3 for value in values],
    )
    records = [replace(long, step=step, sample=sample) for step in range(40) for sample in range(4)]
    # Processor time: the machine may be busy with other things.
    start = time.process_time()
    text = render(records)
    assert time.process_time() - start < 20
    assert len(text.encode()) < 15_500_000
    assert text.count("<i ") > 160_000
