"""The command line of `aent-verl compare` over runs that are there."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from markupsafe import Markup

from aent_verl._util import exclusive_folder
from aent_verl.commands.main import main
from aent_verl.comparison.compare import find_runs
from aent_verl.comparison.grid import plan
from tests.unit.comparison.report.synthetic import AENT, GRPO, make_runs


@pytest.fixture
def without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare a test the drawing of a report that it only reads."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
    monkeypatch.setattr("aent_verl.comparison.report.write.inline_svg", lambda *_: Markup())


def compare(*arguments: object) -> int:
    return main(["compare", *map(str, arguments)])


def numbers(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.slow
def test_a_results_folder_gives_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_runs(tmp_path / "results" / "runs", (GRPO, AENT), seeds=3)
    assert compare("--from", tmp_path / "results", "--output", tmp_path / "out") == 0
    headline, verdict, page = capsys.readouterr().out.splitlines()
    assert headline == "aent is better than grpo."
    assert verdict == f"- {numbers(tmp_path / 'out')['verdicts']['aent']['sentence']}."
    assert page == f"report: {tmp_path}/out/report.html"
    assert headline in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.usefixtures("without_charts")
def test_runs_made_elsewhere_are_named_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_runs(tmp_path / "runs", (GRPO,), seeds=3)
    logs = []
    for seed in (1, 2, 3):
        folder = next(path for path in sorted((tmp_path / "runs").iterdir()) if str(seed) in path.name)
        logs.append(tmp_path / f"stock{seed}.jsonl")
        (folder / "metrics.jsonl").rename(logs[-1])
    given = [f"{method}:{seed}={log}" for method in ("grpo", "mine") for seed, log in enumerate(logs, start=1)]
    assert compare("--from", *given, "--output", tmp_path / "out") == 1
    error = capsys.readouterr().err
    assert "--allow-different" in error
    assert "not known" in error
    assert compare("--from", *given, "--output", tmp_path / "out", "--allow-different") == 0
    assert "- not made under the same protocol: " in capsys.readouterr().out
    assert "not known" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from", "missing"], "missing is not there"),
        (["--from", "grpo:1=missing"], "missing is not there"),
        (["methods=[grpo]", "seeds=[]"], "seeds"),
        (["entropy_control=aent"], "methods="),
    ],
)
def test_errors_are_one_line_and_the_status_is_1(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert compare(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error


@pytest.mark.usefixtures("without_charts")
def test_a_run_that_is_not_finished_is_left_out_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs = make_runs(tmp_path / "runs", (GRPO, AENT), seeds=3)
    for run in runs:
        file = run.path / "run.json"
        state = "started" if run.name == "aent seed 2" else "complete"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"state": state}))
    assert compare("--from", tmp_path, "-o", tmp_path / "out") == 0
    assert "aent seed 2" in (tmp_path / "out" / "report.html").read_text()
    compared = [(run["method"], run["seed"]) for run in numbers(tmp_path / "out")["runs"]]
    assert compared == [("grpo", 1), ("grpo", 2), ("grpo", 3), ("aent", 1), ("aent", 3)]


@pytest.mark.usefixtures("without_charts")
def test_the_report_again_asks_what_the_grid_asked(tmp_path: Path):
    make_runs(tmp_path / "runs", (GRPO, AENT), seeds=3)
    (tmp_path / "grid.yaml").write_text("baseline: aent\ntitle: the other way round\n")
    assert compare("--from", tmp_path, "-o", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "grpo is worse than aent" in page
    assert "the other way round" in page


@pytest.mark.usefixtures("without_charts")
def test_the_report_of_a_results_folder_goes_into_it(tmp_path: Path):
    make_runs(tmp_path / "runs", (GRPO, AENT), seeds=3)
    (tmp_path / "grid.yaml").write_text("methods: {grpo: [], aent: []}\nseeds: [1, 2, 3, 4, 5]\n")
    assert compare("--from", tmp_path) == 0
    notices = numbers(tmp_path)["notices"]
    assert "grpo seeds 4, 5: not started." in notices
    assert "aent seeds 4, 5: not started." in notices


@pytest.mark.usefixtures("without_charts")
def test_runs_from_elsewhere_have_a_place_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    make_runs(tmp_path / "mine", (GRPO, AENT), seeds=3)
    assert compare("--from", *sorted((tmp_path / "mine").iterdir())) == 0
    assert (tmp_path / "outputs" / "compare" / "report" / "report.html").is_file()


def test_a_run_may_have_a_folder_runs_as_tensorboard_makes_it(tmp_path: Path):
    run = make_runs(tmp_path, (GRPO,), seeds=1)[0].path
    (run / "runs").mkdir()
    assert find_runs(run) == [run]


def test_a_damaged_grid_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_runs(tmp_path / "runs", (GRPO, AENT), seeds=3)
    (tmp_path / "grid.yaml").write_text("methods: {grpo: [")
    assert compare("--from", tmp_path) == 1
    assert "grid.yaml is not readable YAML" in capsys.readouterr().err


def test_runs_side_by_side_would_share_gpus_without_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    asked = ["experiment=qwen2.5_math_1.5b_math", "methods=[grpo]", "parallel=2", "results=out"]
    assert compare(*asked) == 1
    error = capsys.readouterr().err
    assert "parallel=2 with launcher=local: all runs would use the same GPUs" in error
    assert "launcher=ray" in error

    # One at a time, or in a cluster, each gets its own; what comes next is the check of the grid.
    def check(grid: object) -> None:
        raise ValueError("so far so good")

    monkeypatch.setattr(plan, "check", check)
    assert compare(*asked, "parallel=1") == 1
    assert capsys.readouterr().err == "error: so far so good\n"
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    assert compare(*asked) == 1
    assert capsys.readouterr().err == "error: so far so good\n"


def test_what_the_report_needs_is_missed_before_anything_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    assert compare("experiment=cpu_arithmetic", f"results={tmp_path}") == 1
    assert re.search(r"aent-verl compare needs matplotlib: pip install .*\[compare\]", capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_two_comparisons_do_not_share_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(plan, "check", lambda grid: None)
    with exclusive_folder(tmp_path, "", AssertionError()):
        assert compare("experiment=cpu_arithmetic", "methods=[grpo]", "seeds=[1]", f"results={tmp_path}") == 1
    assert f"results={tmp_path}: another comparison is running in it" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.usefixtures("without_charts")
def test_another_baseline(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    make_runs(tmp_path / "runs", (GRPO, AENT), seeds=3)
    assert compare("--from", tmp_path, "-o", tmp_path / "out", "--baseline", "aent") == 0
    assert "grpo is worse than aent" in (tmp_path / "out" / "report.html").read_text()
    assert compare("--from", tmp_path, "-o", tmp_path / "out", "--baseline", "skywork") == 1
    assert "no run of it; there are" in capsys.readouterr().err


def test_help_names_every_key_of_its_own(capsys: pytest.CaptureFixture[str]):
    from aent_verl.comparison.grid.settings import _KEYS

    assert compare("--help") == 0
    text = capsys.readouterr().out
    assert [key for key in _KEYS - {"overrides"} if f"{key}=" not in text and f"{key}." not in text] == []
    assert max(map(len, text.splitlines())) <= 120
