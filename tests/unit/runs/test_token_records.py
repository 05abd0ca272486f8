import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from aent_verl.commands.main import main
from aent_verl.runs.token_records import TokenRecord, dump_file, read_records, write_records

ROOT = Path(__file__).parents[3]
ODD = [
    "<script>alert(1)</script>",
    "&amp;",
    '"',
    "'",
    "\x00\x1b[0m",
    "\ud800",
    "\u2028",
    "\u202e",
    "π 答案 👍",
    "\r\n\t",
    "",
]


def record(step=1, sample=0, count=4, **changes):
    values = {
        "step": step,
        "sample": sample,
        "rank": 0,
        "method": "aent",
        "functional": "clamped",
        "prompt": "1 + 1 = ?",
        "tokens": [f" w{i}" for i in range(count)],
        "log_prob": [-0.5] * count,
        "entropy": [0.25 * i for i in range(count)],
        "advantage": [0.75] * count,
        "policy_weight": [1.0] * count,
        "bonus_weight": [1.0] * count,
        "in_loss": [True] * count,
        "score": 1.0,
    }
    return TokenRecord(**values | changes)


def strict(line):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(line, parse_constant=refuse)


def test_round_trip():
    odd = record(
        count=len(ODD),
        tokens=ODD,
        prompt="a\nb \x07 \U0001f600",
        log_prob=[-math.inf, *[-1e-9] * 10],
        entropy=[math.inf, 1 / 3, *[0.0] * 9],
        policy_weight=[None, 0.0, -1.5, *[2.0] * 8],
        in_loss=[False, *[True] * 10],
        score=None,
    )
    line = odd.to_json()
    assert "\n" not in line
    assert line.isascii()
    assert strict(line)["log_prob"][0] == "-Infinity"
    assert TokenRecord.from_json(line) == odd


def test_nan_stays_nan_and_is_not_the_null_of_no_weight():
    line = record(count=2, advantage=[math.nan, 1.0], policy_weight=[math.nan, None], score=math.nan).to_json()
    assert strict(line)["policy_weight"] == ["NaN", None]
    back = TokenRecord.from_json(line)
    assert math.isnan(back.advantage[0])
    assert math.isnan(back.policy_weight[0])
    assert back.policy_weight[1] is None
    assert math.isnan(back.score)


def test_numbers_of_other_libraries_are_written():
    numpy = pytest.importorskip("numpy")
    values = numpy.array([0.5, numpy.nan], dtype=numpy.float32)
    line = record(count=2, entropy=values, in_loss=values > 0).to_json()
    assert strict(line)["entropy"] == [0.5, "NaN"]
    assert strict(line)["in_loss"] == [True, False]


@pytest.mark.parametrize("name", ["log_prob", "entropy", "advantage", "policy_weight", "bonus_weight", "in_loss"])
def test_lists_of_another_length_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} has 3 entries for 4 tokens"):
        record(**{name: [1.0] * 3})


@pytest.mark.parametrize("name", ["step", "sample", "rank"])
def test_negative_indices_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}=-1 is not allowed"):
        record(**{name: -1})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": "1"}, "step: '1' is not an integer"),
        ({"step": True}, "step: True is not an integer"),
        ({"prompt": None}, "prompt: None is not a string"),
        ({"tokens": "ab"}, "tokens: 'ab' is not a list"),
        ({"tokens": [1]}, "tokens: 1 is not a string"),
        ({"entropy": [None] * 4}, "entropy: None is not a number"),
        ({"entropy": ["nan"] * 4}, "entropy: 'nan' is not a number"),
        ({"log_prob": [True] * 4}, "log_prob: True is not a number"),
        ({"advantage": [10**400] * 4}, "advantage: 1000.* is too large"),
        ({"in_loss": [1] * 4}, "in_loss: 1 is neither true nor false"),
        ({"in_loss": [True]}, "in_loss has 1 entries for 4 tokens"),
        ({"score": "high"}, "score: 'high' is not a number"),
    ],
)
def test_wrong_fields_are_named(tmp_path, changes, message):
    path = tmp_path / "step_1.jsonl"
    good = record().to_json()
    path.write_text(f"{good}\n{json.dumps(json.loads(good) | changes)}\n")
    with pytest.raises(ValueError, match=rf"step_1.jsonl, line 2 is damaged: {message}"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "no JSON: "),
        ("[1]", "not a JSON object"),
        ("{}", "without advantage, bonus_weight, .*tokens$"),
        (record().to_json().replace("-0.5", "NaN", 1), 'NaN is not JSON: write "NaN", in quotes'),
    ],
)
def test_damage_before_the_end_names_file_and_line(tmp_path, line, message):
    path = tmp_path / "step_1.jsonl"
    path.write_text(f"{record().to_json()}\n{line}\n")
    with pytest.raises(ValueError, match=rf"step_1.jsonl, line 2 is damaged: {message}"):
        read_records([path])


def test_unknown_fields_and_integers_for_numbers_are_read():
    line = json.dumps(json.loads(record().to_json()) | {"new": 1, "entropy": [0, 1, 2, 3]})
    read = TokenRecord.from_json(line)
    assert read == record(entropy=[0.0, 1.0, 2.0, 3.0])
    assert all(type(value) is float for value in read.entropy)


@pytest.mark.parametrize("cut", [1, 40, -2])
def test_an_incomplete_last_line_is_skipped_with_a_warning(tmp_path, caplog, cut):
    path = tmp_path / "step_1.jsonl"
    path.write_text(f"{record().to_json()}\n{record(sample=1).to_json()[:cut]}")
    assert read_records(path) == [record()]
    assert "step_1.jsonl, line 2 is incomplete" in caplog.text


def test_writing_appends_and_makes_folders(tmp_path, caplog):
    path = dump_file(tmp_path / "a" / "tokens", step=3, rank=1)
    assert path.name == "step_000003_rank_1.jsonl"
    write_records(path, [record(3, 0), record(3, 1)])
    write_records(path, [record(3, 2)])
    assert read_records(tmp_path / "a" / "tokens") == [record(3, 0), record(3, 1), record(3, 2)]
    assert not caplog.records


def test_each_line_is_in_the_file_at_once(tmp_path):
    path = tmp_path / "step_1.jsonl"
    seen = []

    def records():
        for sample in range(3):
            yield record(sample=sample)
            seen.append(len(read_records(path)))

    write_records(path, records())
    assert seen == [1, 2, 3]


def test_writing_continues_after_a_killed_run(tmp_path, caplog):
    path = tmp_path / "step_1.jsonl"
    path.write_text(f"{record().to_json()}\n{record(sample=1).to_json()[:50]}")
    write_records(path, [record(sample=2)])
    assert read_records(path) == [record(), record(sample=2)]
    assert "removed an incomplete last line" in caplog.text
    path.write_text("{")
    write_records(path, [record(sample=3)])
    assert read_records(path) == [record(sample=3)]


def test_files_and_folders_are_sorted_and_read_once(tmp_path):
    write_records(tmp_path / "step_2.jsonl", [record(2, 1), record(2, 0)])
    write_records(tmp_path / "step_10.jsonl", [record(10)])
    write_records(tmp_path / "other.jsonl", [record(5)])
    in_folder = [(2, 0), (2, 1), (10, 0)]
    assert [(r.step, r.sample) for r in read_records(tmp_path)] == in_folder
    assert [(r.step, r.sample) for r in read_records([tmp_path, tmp_path / "step_2.jsonl"])] == in_folder
    assert [r.step for r in read_records([tmp_path / "other.jsonl", str(tmp_path / "step_2.jsonl")])] == [2, 2, 5]


def test_the_folder_of_a_run_stands_for_its_dump(tmp_path):
    write_records(tmp_path / "tokens" / "step_1.jsonl", [record()])
    assert read_records(tmp_path) == [record()]


def test_a_resumed_run_replaces_what_it_repeats(tmp_path):
    write_records(tmp_path / "step_1.jsonl", [record(), record(sample=1), record(score=0.5), record(rank=1)])
    assert [(r.sample, r.rank, r.score) for r in read_records(tmp_path)] == [(0, 0, 0.5), (0, 1, 1.0), (1, 0, 1.0)]


def test_command_writes_the_page_and_says_where(tmp_path, capsys):
    write_records(tmp_path / "run" / "tokens" / "step_1.jsonl", [record(1), record(2), record(3)])
    assert main(["tokens", str(tmp_path / "run")]) == 0
    page = tmp_path / "run" / "tokens.html"
    assert capsys.readouterr().out == f"{page}: 3 responses\n"
    assert page.read_text(encoding="utf-8").count("<article>") == 3

    file = tmp_path / "run" / "tokens" / "step_1.jsonl"
    assert main(["tokens", str(file)]) == 0
    assert (tmp_path / "run" / "tokens" / "tokens.html").is_file()

    other = tmp_path / "new" / "page.html"
    assert main(["tokens", str(file), "-o", str(other), "--step", "3", "1"]) == 0
    assert re.findall('id="(step-.*?)"', other.read_text(encoding="utf-8")) == ["step-1", "step-3"]
    assert main(["tokens", str(file), "-o", str(other), "--step", "2"]) == 0
    assert capsys.readouterr().out.endswith(f"{other}: 1 response\n")


def test_command_errors(tmp_path, capsys):
    def error(*arguments):
        assert main(["tokens", *map(str, arguments)]) == 1
        output = capsys.readouterr()
        assert not output.out
        return output.err

    assert error(tmp_path / "x") == f"error: no such file or folder: {tmp_path / 'x'}\n"
    assert error(tmp_path) == f"error: no token dump in {tmp_path}: train with entropy_control.token_dump=4\n"
    file = tmp_path / "step_1.jsonl"
    file.write_text("")
    assert error(file) == f"error: no complete response in {file}: the run ended before it wrote one\n"
    write_records(file, [record(1), record(4)])
    assert error(file, "--step", 1, 2, 3) == f"error: no step 2, 3 in {file}: it has 1, 4\n"
    file.write_text("{}\n")
    assert error(file).startswith(f"error: {file}, line 1 is damaged: without advantage")
    assert not list(tmp_path.glob("*.html"))


@pytest.mark.slow
def test_command_tells_of_an_incomplete_line(tmp_path):
    file = tmp_path / "step_1.jsonl"
    file.write_text(f"{record().to_json()}\n{{")
    command = [sys.executable, "-m", "aent_verl.commands.main", "tokens", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.endswith("tokens.html: 1 response\n")
    assert f"{file}, line 2 is incomplete" in done.stderr


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["tokens", "--help"])
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert "aent-verl tokens outputs/aent_verl/cpu_arithmetic_aent --step 1 20 40" in text
    assert "entropy_control.token_dump=4" in text


@pytest.mark.slow
def test_writing_and_reading_need_no_framework():
    code = (
        "import sys; import aent_verl.runs.token_records; print('jinja2' in sys.modules);"
        "import aent_verl.viewing.tokens.page;"
        "print(bool({'torch', 'verl', 'ray', 'transformers'} & sys.modules.keys()))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "False"]


def test_the_wheel_takes_the_page_along():
    listed = re.search(r'"aent_verl.viewing.tokens" = \[(.*)\]', (ROOT / "pyproject.toml").read_text())[1]
    files = {
        path.name
        for path in (ROOT / "aent_verl" / "viewing" / "tokens").iterdir()
        if path.suffix in (".html", ".css", ".js")
    }
    assert set(re.findall(r'"(.*?)"', listed)) == files
