"""The whole command with servers that answer from a list."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from aent_verl.commands import evaluate as command
from aent_verl.evaluation import checkpoint, generation, settings
from aent_verl.evaluation import evaluate as evaluation
from aent_verl.evaluation.records import Response, entropy_of
from aent_verl.preflight import PreflightError
from aent_verl.runs.problems import read_evaluation

LOG_PROBS = {"0": -0.5, "1": -1.0, "2": -2.0}


class FakeServers:
    """Answers every prompt with "0", "1", "2" and silence in turn, in an order of its own."""

    capacity = 3
    started = 0
    broken = False

    def __init__(self) -> None:
        self.count = dict[tuple[int, ...], int]()
        self.at_once = self.most_at_once = 0

    async def respond(self, prompt: Any) -> Response:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        index = self.count.get(tuple(prompt), 0)
        self.count[tuple(prompt)] = index + 1
        await asyncio.sleep(0.01 * (3 - index))
        self.at_once -= 1
        if self.broken and index == 2:
            raise RuntimeError("the engine died")
        text = ("0", "1", "2", "")[index % 4]
        log_probs = [LOG_PROBS[text]] * 2 if text else []
        return Response(text, len(log_probs), truncated=text == "2", entropy=entropy_of(log_probs))


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> type[FakeServers]:
    made: list[FakeServers] = []

    class Fake(FakeServers):
        @classmethod
        async def start(cls, cfg: DictConfig, model: Any) -> FakeServers:
            cls.started += 1
            made.append(cls())
            return made[-1]

    Fake.made = made  # type: ignore[attr-defined]
    monkeypatch.setattr(generation, "Servers", Fake)
    monkeypatch.setattr(evaluation, "start_ray", lambda cfg: None)
    monkeypatch.setattr(generation, "accelerators", lambda needed: needed)
    monkeypatch.setattr(evaluation, "choose_platform", lambda cfg: "cpu")
    monkeypatch.setattr("aent_verl.platforms.cpu.cluster_to_join", lambda address=None: None)
    return Fake


def evaluate(cfg: DictConfig) -> str:
    terminal = io.StringIO()
    cfg = cfg.copy()
    evaluation.evaluate(cfg, checkpoint.locate(cfg.actor_rollout_ref.model.path), set(), terminal)
    return terminal.getvalue()


@pytest.mark.slow
def test_from_the_question_to_the_files(cfg: DictConfig, servers: Any) -> None:
    terminal = evaluate(cfg)
    folder = Path(cfg.evaluation.output)
    found = read_evaluation(folder.parent)
    assert found is not None
    assert found.scores.shape == (6, 4)
    lines = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
    texts = [json.loads(line) for line in (folder / "responses.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "evaluation.json").read_text())
    assert [line["data_source"] for line in lines] == ["sums of 0"] * 3 + ["sums of 1"] * 3
    for line, text, truth in zip(lines, texts, ["0", "1", "2", "1", "2", "3"], strict=True):
        assert line["problem"] == text["problem"]
        assert text["ground_truth"] == truth
        assert sorted(text["responses"]) == ["", "0", "1", "2"]
        for k, response in enumerate(text["responses"]):
            assert line["scores"][k] == float(response == truth)
            assert line["answers"][k] == (response or None)
            assert line["response_tokens"][k] == (2 if response else 0)
            assert line["truncated"][k] == (response == "2")
            assert line["entropy"][k] == -LOG_PROBS.get(response, 0.0)
    both = summary["summary"]["all"]
    assert both["problems"] == 6
    assert both["mean@n"] == 5 / 24
    assert both["pass@k"]["4"] == 5 / 6
    assert both["entropy"] == pytest.approx((0.5 + 1 + 2) / 3)
    assert summary["seconds"] > 0
    assert summary["versions"]["verl"]
    assert servers.made[0].most_at_once == FakeServers.capacity
    for part in (
        "24 of 24 responses, 0 s left",
        "sums of 1",
        "pass@4",
        f"results in {folder}",
        "6 of 24 responses were cut",
    ):
        assert part in terminal


@pytest.mark.slow
def test_the_same_evaluation_is_not_made_twice(cfg: DictConfig, servers: Any) -> None:
    evaluate(cfg)
    again = evaluate(cfg)
    assert "this evaluation is complete" in again
    assert "pass@4" in again
    assert servers.started == 1
    cfg.evaluation.overwrite = True
    evaluate(cfg)
    assert servers.started == 2


@pytest.mark.slow
def test_another_evaluation_is_not_overwritten_unless_that_is_asked(cfg: DictConfig, servers: Any) -> None:
    evaluate(cfg)
    cfg.actor_rollout_ref.rollout.val_kwargs.n = 2
    with pytest.raises(PreflightError, match=r"another evaluation in it \(sampling: .*'n': 4.*overwrite=true"):
        evaluate(cfg)
    cfg.evaluation.overwrite = True
    evaluate(cfg)
    summary = json.loads((Path(cfg.evaluation.output) / "evaluation.json").read_text())
    assert summary["sampling"]["n"] == 2
    assert list(summary["summary"]["all"]["pass@k"]) == ["1", "2"]


def test_a_server_that_fails_ends_the_evaluation_and_leaves_no_results(
    cfg: DictConfig, servers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "broken", True)
    with pytest.raises(RuntimeError, match="the engine died"):
        evaluate(cfg)
    assert not Path(cfg.evaluation.output).exists()


def test_too_few_accelerators_are_named(cfg: DictConfig, servers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "accelerators", lambda needed: 0.0)
    with pytest.raises(PreflightError, match=r"gpus=1: .*at most the 0 that Ray has"):
        evaluate(cfg)


def test_settings_without_effect_are_named(cfg: DictConfig, servers: Any) -> None:
    cfg.actor_rollout_ref.rollout.val_kwargs.temperature = 0
    assert "warning: temperature=0 with n=4" in evaluate(cfg)


@pytest.mark.slow
def test_scorers_that_fail_are_counted_and_named(cfg: DictConfig, servers: Any, tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(
        "import time\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    if solution_str == '2' and ground_truth == '3': raise KeyError('three')\n"
        "    if solution_str == '1' and ground_truth == '3': time.sleep(60)\n"
        "    return float(solution_str == ground_truth)\n"
    )
    cfg.evaluation.score_timeout = 5
    terminal = evaluate(cfg)
    assert "warning: 2 of 24 responses have no score and count as 0: " in terminal
    assert "1 x KeyError: 'three'" in terminal
    assert "1 x no score after 5 s" in terminal
    summary = json.loads((Path(cfg.evaluation.output) / "evaluation.json").read_text())["summary"]
    assert (summary["sums of 0"]["errors"], summary["sums of 1"]["errors"]) == (0, 2)


def test_help_is_shown_without_loading_anything(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for key in settings.SHORT_KEYS:
        assert key in shown
    assert max(map(len, shown.splitlines())) <= 120


def test_an_error_is_one_line_in_the_users_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("aent_verl.platforms.cpu.joined_cluster_resources", lambda address=None: None)
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    with pytest.raises(SystemExit) as raised:
        command.main(["model=some/model", "data=nowhere.parquet", "platform=cpu"])
    assert raised.value.code == 1
    error = capfd.readouterr().err
    assert "\nerror: data='nowhere.parquet': there is no such file" in error
    assert "(PreflightError; the full log is " in error
    assert (tmp_path / "outputs/evaluation/some--model/evaluation.log").is_file()
