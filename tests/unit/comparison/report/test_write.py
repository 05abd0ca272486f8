import json
import math
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup, escape

pytest.importorskip("matplotlib")

from aent_verl.comparison.report import answer, write, write_report
from aent_verl.comparison.report.accuracy import Accuracy
from aent_verl.comparison.report.contents import build
from aent_verl.comparison.report.curves import bare
from aent_verl.comparison.report.write import as_json, render
from aent_verl.comparison.stats.verdict import Verdict
from aent_verl.runs.run import load_run
from aent_verl.viewing.pages import decimal
from tests.unit.comparison.report.html_check import Page, squeeze
from tests.unit.comparison.report.synthetic import (
    AENT,
    GRPO,
    PROTOCOL,
    Method,
    draw_scores,
    make_runs,
    metrics,
    write_evaluation,
    write_metrics,
    write_run,
)

EVIL = '<script>alert(1)</script></div><img src="http://evil.example/x"> \u202e\x07 {{ 7 * 7 }} ' + chr(0xD800)


def page_of(runs, **options):
    """The report's page and its numbers, without pictures; every page is well-formed and loads nothing."""
    report = build(runs, **{"baseline": "grpo", "title": "Test", **options})
    # As written to a file: a lone surrogate could not be.
    text, numbers = render(report).encode(), as_json(report).encode()
    return check(text.decode()), json.loads(numbers)


def check(text):
    page = Page(text)
    assert page.loads() == []
    assert len(page.ids) == len(set(page.ids))
    return page


@pytest.fixture
def undrawn(monkeypatch):
    """Charts are made but not written, which is what takes time; what is drawn is tested with `whole`."""
    svg = Markup("<svg>{}</svg>")
    monkeypatch.setattr(write, "inline_svg", lambda figure, name, label: svg.format(escape(label)))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, path, **_: Path(path).touch())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A usual comparison: page, numbers, folder."""
    folder = tmp_path_factory.mktemp("whole")
    runs = make_runs(folder / "runs", (GRPO, AENT, Method("entreg", 0.52)), seeds=3)
    written = write_report(
        build(runs, baseline="grpo", title="Test", commands=["aent-verl compare a=1 b='x y'"]), folder / "out"
    )
    page = check(written.read_text(encoding="utf-8"))
    return page, json.loads((folder / "out" / "report.json").read_text(encoding="utf-8")), folder


def test_the_page_gives_the_answer_and_the_numbers(whole):
    page, numbers, _ = whole
    scores = {m: np.stack([draw_scores(m, seed, 40, 8) for seed in (1, 2, 3)]) for m in (GRPO, AENT)}
    (row, behaviour, *_) = page.rows("aent")
    assert row[1] == "3"
    assert row[2].startswith(decimal(scores[AENT].mean()))
    assert row[3].startswith(decimal(scores[AENT].mean() - scores[GRPO].mean(), signed=True))
    assert row[4].startswith(decimal(scores[AENT].max(axis=2).mean()))
    ends = [metrics(AENT, seed, 40) for seed in (1, 2, 3)]
    last = np.mean([[run[step]["aent/entropy_full"] for step in range(37, 41)] for run in ends])
    assert behaviour[3].startswith(decimal(last))
    assert behaviour[1].startswith(decimal(np.mean([run[40]["val-core/digits/acc/mean@4"] for run in ends])))
    for verdict in numbers["verdicts"].values():
        assert verdict["sentence"] + "." in page.text
    assert "aent is better than grpo; not resolved: entreg." in page.text
    assert "3 methods · 3 seeds each · 40 steps · 40 problems, 8 responses each · baseline grpo" in page.text


def test_every_estimate_of_the_table_is_in_the_json_and_on_the_page(whole):
    page, numbers, _ = whole
    for method, found in numbers["accuracy"]["methods"].items():
        row = page.rows(method)[0]
        for estimate in (found["mean"], found["pass_at_k"][-1], found["majority"], found["interquartile_mean"]):
            ends = f"[{decimal(estimate['low'])}, {decimal(estimate['high'])}]"
            assert any(squeeze(cell) == f"{decimal(estimate['value'])} {ends}" for cell in row)
    cost = numbers["costs"]["aent"]
    assert f"{cost['steps']:,}" in page.rows("aent")[3]


def test_pictures_lie_next_to_the_page(whole):
    _, numbers, folder = whole
    pictures = {file.stem for file in (folder / "out" / "figures").iterdir()}
    assert pictures == {*numbers["charts"], "differences"}
    for file in (folder / "out" / "figures").iterdir():
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_curves_in_the_json_are_those_drawn(whole):
    _, numbers, _ = whole
    line = numbers["charts"]["reward"]["lines"]["aent"]
    values = [[metrics(AENT, seed, 40)[step]["critic/score/mean"] for step in range(1, 41)] for seed in (1, 2, 3)]
    assert line["x"] == list(range(1, 41))
    assert line["mean"] == pytest.approx(np.mean(values, axis=0).tolist())
    assert numbers["charts"]["controlled_entropy"]["levels"] == {"aent": list(AENT.band)}


def test_it_says_how_to_make_it_again_and_under_what(whole):
    page, _, _ = whole
    for text in (
        "aent-verl compare a=1 b='x y'",
        "aent-verl train entropy_control=aent data.seed=2",
        "verl 0.9.1",
        "x86_64, 2 cores",
        "tiny 0123456789ab",
        "entropy_control.functional.name",
        "0123456789ab",
    ):
        assert text in page.text
    # The same for all.
    assert page.rows("actor_rollout_ref.actor.optim.lr") == []
    assert page.rows("entropy_control.functional.name") == [
        ["entropy_control.functional.name", *["full"] * 1, "clamped", "full"]
    ]


def test_it_does_not_say_where_it_was_made(whole):
    _, _, folder = whole
    for file in ("report.html", "report.json"):
        assert str(folder) not in (folder / "out" / file).read_text()


def test_nothing_runs_and_nothing_is_loaded(whole):
    _, _, folder = whole
    text = (folder / "out" / "report.html").read_text()
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert re.findall(r"url\((?!#)", text) == []
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_every_section_that_is_linked_is_there(whole):
    page, _, _ = whole
    links = {attributes["href"][1:] for tag, attributes in page.tags if tag == "a"}
    assert links <= set(page.ids)
    assert "samples" in links


def test_methods_can_be_hidden_without_a_script(whole):
    _, _, folder = whole
    text = (folder / "out" / "report.html").read_text()
    for place in range(3):
        assert f'id="show{place}"' in text
        assert f":has(#show{place}:not(:checked)) .charts figure .s{place} {{ display: none }}" in text
    assert text.count('class="s2"') > 10


@pytest.mark.slow
def test_the_same_runs_give_the_same_page(whole):
    _, _, folder = whole
    runs = [load_run(path) for path in sorted((folder / "runs").iterdir())]
    again = render(build(runs, baseline="grpo", title="Test", commands=["aent-verl compare a=1 b='x y'"]))
    assert again == (folder / "out" / "report.html").read_text(encoding="utf-8")


def test_text_of_others_is_only_text(tmp_path):
    evil = Method(EVIL[:40], 0.6)
    runs = []
    for number, method in enumerate((GRPO, evil)):
        folder = write_run(tmp_path / f"{number}", method, 1, problems=25)
        write_evaluation(folder, draw_scores(method, 1, 25, 2), [[EVIL, EVIL]] * 25, source=EVIL)
        runs.append(load_run(folder))
    page, numbers = page_of(runs, title=EVIL, commands=[EVIL])
    assert "script" not in {tag for tag, _ in page.tags}
    assert "img" not in {tag for tag, _ in page.tags}
    # Escaped, its control characters named, and no template of ours.
    assert (
        '<script>alert(1)</script></div><img src="http://evil.example/x"> ⟨U+202E⟩␇ {{ 7 * 7 }} ⟨U+D800⟩' in page.text
    )
    assert not set("\u202e\x07").intersection(page.text)
    assert numbers["title"].startswith("<script>")


def test_different_protocols_are_refused_or_said_first(tmp_path, undrawn):
    runs = make_runs(tmp_path / "runs", seeds=3)
    runs.append(load_run(write_run(tmp_path / "x", AENT, 4, protocol=PROTOCOL | {"data.train_files": "other <b>"})))
    with pytest.raises(ValueError, match="not made under the same protocol"):
        write_report(build(runs, baseline="grpo", title="Test"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    page, numbers = page_of(runs, allow_different=True)
    (line,) = numbers["differences_of_protocol"]
    assert line in page.text
    assert page.text.index("These runs were not made under the same protocol") < page.text.index("better than grpo")
    recorded = ", ".join(f"{method} seed {seed}" for method in ("grpo", "aent") for seed in (1, 2, 3))
    assert f"not recorded ({recorded}); other <b> (aent seed 4)" in page.text


def test_one_seed_claims_nothing(tmp_path, undrawn):
    page, numbers = page_of(make_runs(tmp_path, seeds=1))
    assert "No claim: aent." in page.text
    assert "One seed of grpo, aent: its numbers have no interval" in page.text
    assert "refused: one seed of aent and of grpo" in page.text
    assert numbers["verdicts"]["aent"]["state"] == "refused"
    assert numbers["accuracy"]["methods"]["aent"]["mean"]["low"] is None
    assert "[" not in page.rows("aent")[0][2]


@pytest.mark.parametrize("method", [GRPO, AENT])
def test_one_run_of_one_step_is_readable(tmp_path, method, request):
    if method is GRPO:
        request.getfixturevalue("undrawn")
    page, _ = page_of(make_runs(tmp_path, (method,), seeds=1, steps=1, problems=20))
    assert "Nothing is compared" in page.text
    assert "1 method · 1 seed · 1 step" in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower()


def test_without_an_evaluation_the_page_says_so(tmp_path, undrawn):
    page, numbers = page_of(make_runs(tmp_path, seeds=3, evaluate=False))
    assert "in final validation accuracy" in page.text
    assert "Only the last validation of each run is compared" in page.text
    assert "pass_at_k" not in numbers["charts"]
    assert "responses" not in page.ids


def test_missing_metrics_leave_gaps_and_no_charts(tmp_path, undrawn):
    runs = []
    for method in (GRPO, AENT):
        folder = write_run(tmp_path / method.name, method, 1, evaluate=False)
        write_metrics(folder, {step: {"critic/score/mean": 0.5} for step in range(1, 6)})
        runs.append(load_run(folder))
    page, numbers = page_of(runs)
    assert list(numbers["charts"]) == ["reward"]
    assert "Nothing can be said about accuracy" in page.text
    assert "grpo seed 1 was never validated" in page.text


def test_nan_is_null_in_the_json_and_named_on_the_page(tmp_path, undrawn):
    folder = write_run(tmp_path / "runs", GRPO, 1)
    run = metrics(GRPO, 1, 40)
    for step in range(20, 41):
        run[step]["aent/entropy_full"] = None
    write_metrics(folder, run)
    page, numbers = page_of([load_run(folder)])
    assert "grpo seed 1: aent/entropy_full is NaN or infinite at 21 of 40 steps." in page.text
    assert numbers["charts"]["entropy"]["lines"]["grpo"]["x"] == list(range(1, 20))


def test_runs_of_stock_verl(tmp_path, undrawn):
    writer_of = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    for seed in (1, 2):
        with writer_of(str(tmp_path / f"tb{seed}")) as writer:
            for step in range(1, 11):
                writer.add_scalar("critic/score/mean", 0.1 * seed + step / 100, step)
                writer.add_scalar("actor/entropy", 1 / step, step)
            writer.add_scalar("val-core/openai/gsm8k/acc/mean@1", 0.3 + seed / 100, 10)
    write_metrics(tmp_path / "plain", metrics(AENT, 1, 10))
    (tmp_path / "plain" / "metrics.jsonl").rename(tmp_path / "plain.jsonl")
    runs = [load_run(tmp_path / f"tb{seed}", method="grpo", seed=seed) for seed in (1, 2)]
    runs.append(load_run(tmp_path / "plain.jsonl", method="aent", seed=1))
    page, numbers = page_of(runs, allow_different=True)
    assert "the protocol of grpo seed 1, grpo seed 2, aent seed 1 is not known" in page.text
    entropy = numbers["charts"]["entropy"]["lines"]["grpo"]
    assert entropy["mean"] == pytest.approx([1 / step for step in range(1, 11)])
    assert numbers["end_of_training"]["grpo"]["validation"]["value"] == pytest.approx(0.315)
    assert "Not known: the runs have neither a record nor a config." in page.text


def test_an_older_report_is_replaced(tmp_path, undrawn):
    (tmp_path / "figures").mkdir()
    for name in ("figures/pass_at_k.png", "figures/mine.png", "report.html"):
        (tmp_path / name).write_text("old")
    (tmp_path / "report.json").write_text('{"charts": {"pass_at_k": {}}}')
    runs = make_runs(tmp_path / "runs", (GRPO,), seeds=1, steps=5, evaluate=False)
    write_report(build(runs, baseline="grpo", title="New"), tmp_path)
    names = {file.name for file in (tmp_path / "figures").iterdir()}
    assert "pass_at_k.png" not in names
    assert {"reward.png", "mine.png"} < names
    assert "<title>New</title>" in (tmp_path / "report.html").read_text()


def test_the_printed_answer_says_what_the_page_says_before_its_numbers(tmp_path, undrawn):
    runs = make_runs(tmp_path / "runs", (GRPO,), seeds=2, evaluate=False)
    runs += make_runs(tmp_path / "runs", (AENT,), seeds=2)
    runs[0].metrics[40]["val-core/digits/acc/mean@4"] = math.nan
    written = write_report(build(runs, baseline="grpo", title="Test"), tmp_path / "out")
    page, lines = check(written.read_text(encoding="utf-8")), answer(written)
    notes = json.loads((tmp_path / "out" / "report.json").read_text())["accuracy"]["notes"]
    assert notes[0].startswith("Scores of single problems exist for aent only")
    assert {f"- {note}" for note in notes} < set(lines)
    assert all(squeeze(line.removeprefix("- ")) in squeeze(page.text) for line in lines)
    assert "refused: the last validation of grpo seed 1 is NaN or infinite" in page.text
    # Its mean without that seed would be another method's.
    assert page.rows("grpo")[0][1] == "—"


def test_costs_that_are_not_known_are_dashes_with_a_note(tmp_path, undrawn):
    folder = write_run(tmp_path, GRPO, 1)
    write_metrics(folder, {step: data for step, data in metrics(GRPO, 1, 40).items() if step > 20})
    page, numbers = page_of([load_run(folder)])
    assert numbers["costs"]["grpo"]["seconds"] is None
    assert numbers["runs"][0]["seconds"] is None
    assert len(numbers["cost_notes"]) == 2
    assert all(note in page.text for note in numbers["cost_notes"])
    assert "first at step 1," in numbers["cost_notes"][0]


def test_without_training_again_no_test_over_seeds_is_shown(tmp_path, undrawn):
    """Copies of one run of each method."""
    runs = []
    for method in (GRPO, AENT):
        for seed in (1, 2, 3):
            folder = write_run(tmp_path / f"{method.name}{seed}", method, seed)
            write_evaluation(folder, draw_scores(method, 1, 40, 8))
            runs.append(load_run(folder))
    page, numbers = page_of(runs)
    assert numbers["verdicts"]["aent"]["state"] == "refused"
    (checks,) = [row for row in page.rows("aent") if len(row) == 4]
    assert checks[1] == "—"


def test_runs_that_failed_are_on_the_page(tmp_path, undrawn):
    page, numbers = page_of(make_runs(tmp_path, seeds=2), failed=["aent seed 3 failed: <out of memory>"])
    assert "aent seed 3 failed: <out of memory>." in page.text
    assert "none is left out for its result" in page.text
    assert numbers["notices"][0] == "aent seed 3 failed: <out of memory>."


def test_a_wrong_target_is_refused(tmp_path):
    with pytest.raises(ValueError, match="target='all' is not allowed"):
        build(make_runs(tmp_path, seeds=1, evaluate=False), baseline="grpo", title="x", target="all")


def test_ends_of_an_interval():
    assert write.ends(bare(0.5, 0.4, 0.6)) == "[.400, .600]"
    assert write.ends(bare(0.5)) == ""
    assert write.ends(None) == ""


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(2.34, "2 s"), (60, "1 min"), (95, "1 min 35 s"), (3600, "1 h"), (3 * 3600 + 1230, "3 h 20 min"), (None, "—")],
)
def test_durations(seconds, said):
    assert write.duration(seconds) == said


def test_headline():
    verdict = Verdict("", "grpo", "mean@8", "better", None, None, None, 1, None, ())
    states = {"a": "better", "b": "better", "c": "worse", "d": "not resolved", "e": "refused"}
    accuracy = Accuracy("mean@8", "", "these problems", {}, ())

    def said(methods):
        found = {m: replace(verdict, method=m, state=states[m]) for m in methods}
        return write.headline(replace(accuracy, verdicts=found), "grpo")

    assert said("abcde") == "a and b are better than grpo; c is worse than grpo; not resolved: d; no claim: e."
    assert said("d") == "Not resolved: d."
    assert said("e") == "No claim: e."
    assert said("").startswith("Nothing is compared")
    assert write.headline(None, "grpo").startswith("Nothing can be said about accuracy")


@pytest.mark.slow
def test_25_runs_of_1000_steps_take_less_than_30_seconds_and_5_megabytes(tmp_path):
    methods = (GRPO, AENT, Method("entreg", 0.55), Method("siren", 0.6), Method("clip_higher", 0.5))
    make_runs(tmp_path / "runs", methods, seeds=5, steps=1000, problems=500)
    # Processor time: the machine may be busy with other things.
    started = time.process_time()
    runs = [load_run(path) for path in sorted((tmp_path / "runs").iterdir())]
    page = write_report(build(runs, baseline="grpo", title="Large"), tmp_path / "out")
    assert time.process_time() - started < 30
    assert page.stat().st_size < 5_000_000
    drawn = json.loads((tmp_path / "out" / "report.json").read_text())["charts"]["reward"]["lines"]["aent"]
    assert len(drawn["x"]) == 200
    assert math.isfinite(drawn["low"][0])
