import json
import math
import subprocess
import sys

import pytest

from aent_verl.runs.metrics import MetricsTail, read_run, rotate, validation_accuracy, validation_sources


def line(step, **data):
    return json.dumps({"step": step, "data": data}) + "\n"


def test_steps_are_merged_and_sorted(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(line(2, a=2.0) + line(1, a=1.0) + line(2, b=5))
    assert list(read_run(tmp_path).items()) == [(1, {"a": 1.0}), (2, {"a": 2.0, "b": 5.0})]


@pytest.mark.parametrize(
    "cut", ['{"step": 2, "da', '{"step": 2, "data": {"a": 0.1', "\x00\x00", '{"step": 2, "data": {"\n']
)
def test_an_incomplete_last_line_is_left_out(tmp_path, cut):
    (tmp_path / "metrics.jsonl").write_text(line(1, a=1) + cut)
    assert read_run(tmp_path) == {1: {"a": 1.0}}


def test_a_last_line_cut_inside_a_character_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(line(1, a=1).encode() + '{"step": 2, "é'.encode()[:-1])
    assert read_run(tmp_path) == {1: {"a": 1.0}}


def test_each_file_of_a_killed_and_resumed_run_may_end_early(tmp_path):
    (tmp_path / "metrics.1.jsonl").write_text(line(1, a=1) + '{"step"')
    (tmp_path / "metrics.jsonl").write_text(line(2, a=2) + '{"step"')
    assert sorted(read_run(tmp_path)) == [1, 2]


@pytest.mark.parametrize(
    "bad", ["nonsense", "[1]", '{"step": "1", "data": {}}', '{"step": true, "data": {}}', '{"step": 1}']
)
def test_a_corrupt_line_before_the_last_names_file_and_line(tmp_path, bad):
    (tmp_path / "metrics.jsonl").write_text(line(1, a=1) + bad + "\n" + line(3, a=1))
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 of 3 .*remove the line"):
        read_run(tmp_path)


@pytest.mark.parametrize("folder", [".", "missing"])
def test_no_file_names_the_folder_and_what_to_do(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / folder}.*trainer.logger"):
        read_run(tmp_path / folder)


def test_no_step_names_the_files(tmp_path):
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ValueError, match=rf"no step in {tmp_path}/metrics\.jsonl"):
        read_run(tmp_path)


def test_null_is_nan_and_what_is_not_a_number_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "data": {"a": null, "b": "x", "c": [1], "d": 3}}\n')
    data = read_run(tmp_path)[1]
    assert math.isnan(data.pop("a"))
    assert data == {"d": 3.0}
    assert type(data["d"]) is float


def test_the_later_file_wins_and_discards_what_the_earlier_start_had_beyond_it(tmp_path):
    (tmp_path / "metrics.1.jsonl").write_text("".join(line(step, a=1, old=1) for step in range(6)))
    (tmp_path / "metrics.2.jsonl").write_text(line(2, a=2) + line(3, a=2) + line(4, a=2))
    (tmp_path / "metrics.10.jsonl").write_text(line(4, a=10))
    (tmp_path / "metrics.jsonl").write_text(line(5, a=11))
    run = read_run(tmp_path)
    assert {step: data["a"] for step, data in run.items()} == {0: 1, 1: 1, 2: 2, 3: 2, 4: 10, 5: 11}
    assert [step for step, data in run.items() if "old" in data] == [0, 1]


def test_validation_at_the_start_of_a_resumed_run_is_added_to_its_step(tmp_path):
    (tmp_path / "metrics.1.jsonl").write_text(
        line(1, a=1) + line(2, a=1, **{"val-core/x/acc/mean@4": 0.1}) + line(3, a=1)
    )
    (tmp_path / "metrics.jsonl").write_text(line(2, **{"val-core/x/acc/mean@4": 0.2}))
    assert read_run(tmp_path) == {1: {"a": 1.0}, 2: {"a": 1.0, "val-core/x/acc/mean@4": 0.2}}


def test_a_start_that_logged_nothing_discards_nothing(tmp_path):
    (tmp_path / "metrics.1.jsonl").write_text(line(1, a=1))
    (tmp_path / "metrics.jsonl").touch()
    assert read_run(tmp_path) == {1: {"a": 1.0}}


def test_rotation_numbers_the_starts_in_order(tmp_path):
    for start in range(11):
        (tmp_path / "metrics.jsonl").write_text(str(start))
        rotate(tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()
    assert [(tmp_path / f"metrics.{n}.jsonl").read_text() for n in range(1, 12)] == [str(n) for n in range(11)]


def test_rotation_never_fills_a_gap_and_never_overwrites(tmp_path):
    (tmp_path / "metrics.3.jsonl").write_text("third")
    (tmp_path / "metrics.jsonl").write_text("newest")
    rotate(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.3.jsonl", "metrics.4.jsonl"]
    assert (tmp_path / "metrics.4.jsonl").read_text() == "newest"


def test_rotation_leaves_nothing_to_save_alone(tmp_path):
    rotate(tmp_path / "missing")
    rotate(tmp_path)
    (tmp_path / "metrics.jsonl").touch()
    rotate(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_the_tail_waits_for_the_file_and_for_whole_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert tail.read_new() == []
    with open(path, "w", encoding="utf-8") as file:
        file.write(line(0, a=1) + line(1, a=2)[:7])
        file.flush()
        assert tail.read_new() == [(0, {"a": 1.0})]
        assert tail.read_new() == []
        file.write(line(1, a=2)[7:])
        file.flush()
        assert tail.read_new() == [(1, {"a": 2.0})]
        assert tail.read_new() == []


def test_the_tail_skips_a_corrupt_line(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, a=1) + "nonsense\n" + line(2, a=2))
    assert [step for step, _ in MetricsTail(path).read_new()] == [1, 2]
    assert str(path) in caplog.text


@pytest.mark.parametrize("new", [line(7, a=1), "".join(line(step, a=1) for step in range(7, 60))])
def test_the_tail_starts_over_when_the_file_was_emptied(tmp_path, new):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1, a=1) + line(2, a=1))
    tail = MetricsTail(path)
    assert len(tail.read_new()) == 2
    path.write_text(new)
    assert tail.read_new()[0] == (7, {"a": 1.0})
    path.write_text("")
    assert tail.read_new() == []


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, None),
        ({"critic/score/mean": 1.0, "val-aux/x/acc/mean@4": 1.0}, None),
        ({"val-core/x/acc/mean@4": 0.25, "val-core/x/acc/best@4/mean": 0.9, "val-core/x/acc/maj@4/mean": 0.8}, 0.25),
        ({"val-core/x/reward/mean@1": 0.5}, 0.5),
        ({"val-core/x/reward/mean@4": 0.9, "val-core/x/acc/mean@4": 0.25}, 0.25),
        ({"val-core/openai/gsm8k/acc/mean@16": 0.2, "val-core/aime/acc/mean@16": 0.4}, pytest.approx(0.3)),
    ],
)
def test_validation_accuracy(data, expected):
    assert validation_accuracy(data) == expected


def test_validation_sources_are_those_that_the_accuracy_is_of():
    data = {"val-core/x/acc/mean@4": 0.25, "val-core/openai/gsm8k/acc/mean@4": 0.5, "val-core/y/reward/mean@4": 0.9}
    assert validation_sources(data) == {"x", "openai/gsm8k"}
    assert validation_accuracy(data) == 0.375
    assert validation_sources({"val-core/x/reward/mean@1": 0.5}) == {"x"}
    assert validation_sources({"critic/score/mean": 1.0}) == set()


@pytest.mark.parametrize("module", ["runs.metrics", "viewing.progress", "viewing.plot"])
def test_reports_need_no_training_stack(module):
    code = f"import sys, aent_verl.{module}; print({{'verl', 'ray', 'torch'}} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
