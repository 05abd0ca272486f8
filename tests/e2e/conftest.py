"""A comparison of two real runs that is killed, resumed, evaluated and reported, once for all tests.

Two FSDP2 ranks and vLLM on the CPU. The kill comes while the second run trains, between two of its checkpoints. Kills
at other moments are those of tests/unit/comparison/grid, on a stand-in for the trainer.
"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from aent_verl.core.controllers import BandController, Controller, ControllerState, EntropyGuidedController
from aent_verl.plugin import saved_state
from aent_verl.runs import metrics
from tests.e2e.raylets import Raylets, cluster
from tests.e2e.stack import finish, kill, start

START_SECONDS = 420
RANKS = 2
STEPS = 4
KILL_AFTER_STEP = 3
PROBLEMS = 64
SAMPLES = 16
# Not 1: log-probabilities before temperature and top-p, which are the wrong ones, are here 30 standard errors away.
TEMPERATURE, TOP_P = 0.7, 0.9
BAND = {"init": 0.01, "low": 4.0, "high": 5.0, "lr": 0.001, "warmup_steps": 2, "min": 0.0, "max": 0.1}
GUIDED = {"init": 0.5, "target": 2.0, "step_size": 0.125, "smoothing": 0.25}
CONTROLLERS: dict[str, Controller] = {"bonus": BandController(**BAND), "advantages": EntropyGuidedController(**GUIDED)}
# AEnt, PAR and AEPO at once: two controllers and a shaping of rewards, three states. A threshold that never moves is
# the same before and after a resume, and another if it is measured again.
AENT = [
    "entropy_control=aent",
    *(f"entropy_control.bonus.controller.{key}={value}" for key, value in BAND.items()),
    "entropy_control/advantages=positive_reweight",
    "entropy_control/advantages_controller=entropy_guided",
    *(f"entropy_control.advantages.controller.{key}={value}" for key, value in GUIDED.items()),
    *("entropy_control/rewards=ares", "entropy_control.rewards.decay=1.0"),
    "entropy_control.token_dump=2",
]


def overrides(task: Path) -> list[str]:
    """What both runs get."""
    return [
        *("experiment=cpu_arithmetic", "run.task=null", f"actor_rollout_ref.model.path={task}/model"),
        *(f"data.train_files={task}/train.parquet", f"data.val_files={task}/validation.parquet"),
        *(
            f"trainer.n_gpus_per_node={RANKS}",
            "data.train_batch_size=8",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4",
        ),
        *("trainer.test_freq=2", "trainer.save_freq=2", f"trainer.total_training_steps={STEPS}"),
    ]


@dataclass(frozen=True)
class Grid:
    """What the comparison left behind, and what its second run had written when it was killed."""

    results: Path
    terminal: str
    killed: dict[int, dict[str, float]]
    resumed: dict[int, dict[str, float]]
    saved: dict[str, ControllerState]
    saved_rewards: dict[str, float]
    final: dict[str, ControllerState]
    reports: list[dict[str, Any]]

    @property
    def aent(self) -> Path:
        """The folder of the run that was killed."""
        return self.results / "runs" / "aent_seed1"


@pytest.fixture(scope="session")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small task, and a model that is right about four times in ten.

    One that is hardly ever right, or nearly always, has batches without any advantage: then GRPO has no gradient, and
    `clip_cov` nothing to choose from.
    """
    from aent_verl.data.tasks import arithmetic

    folder = tmp_path_factory.mktemp("task") / "arithmetic"
    warm = arithmetic.prepare(str(folder), train_size=64, validation_size=PROBLEMS, warm_start_loss=1.4)["warm_start"]
    assert 0.3 < warm["accuracy"] < 0.6
    return folder


@pytest.fixture(scope="session")
def short_ray_folder() -> Iterator[str]:
    """A cluster of its own, whatever else runs here; the path is short because sockets lie in it."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield folder


@pytest.fixture(scope="session")
def raylets() -> Iterator[Raylets]:
    """A head without accelerators, two nodes with one each for the trainer, and a third for rollouts of their own."""
    with cluster(1, 1, 1) as nodes:
        yield nodes


@pytest.fixture(scope="session")
def grid(task: Path, short_ray_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Grid:
    folder = tmp_path_factory.mktemp("compare")
    results = folder / "results"
    aent = results / "runs" / "aent_seed1"
    checkpoints = aent / "checkpoints"
    arguments = [
        *(sys.executable, "-m", "aent_verl.commands.main", "compare", *overrides(task), f"results={results}"),
        *("methods=[grpo,aent]", "seeds=[1]", f"methods.aent=[{','.join(map(repr, AENT))}]"),
        *(f"evaluation.n={SAMPLES}", f"evaluation.temperature={TEMPERATURE}", f"evaluation.top_p={TOP_P}"),
        *("evaluation.gpus=1", "evaluation.scorers=1"),
    ]

    def trouble() -> str:
        logs = [folder / "killed.out", aent / "train.console.log", aent / "train.log"]
        return "\n".join(log.read_text(errors="replace")[-6000:] for log in logs if log.exists())

    process = start(arguments, folder / "killed.out", RAY_TMPDIR=short_ray_folder)
    tail = metrics.MetricsTail(aent / metrics.METRICS_FILE)
    deadline = time.monotonic() + 3 * START_SECONDS
    try:
        while not any(step >= KILL_AFTER_STEP for step, _ in tail.read_new()):
            assert process.poll() is None, trouble()
            assert time.monotonic() < deadline, "no third step in time: " + trouble()
            time.sleep(0.05)
    finally:
        kill(process)
    killed = metrics.read_run(aent)
    assert int((checkpoints / "latest_checkpointed_iteration.txt").read_text()) == 2
    saved = saved_states(checkpoints / "global_step_2")
    saved_rewards = json.loads((checkpoints / "global_step_2" / saved_state.NAME).read_text())["rewards"]["state"]

    process = start(arguments, folder / "finished.out", RAY_TMPDIR=short_ray_folder)
    terminal = finish(process, folder / "finished.out", 3 * START_SECONDS)
    resumed = tmp_path_factory.mktemp("resumed")
    (resumed / metrics.METRICS_FILE).write_text((aent / metrics.METRICS_FILE).read_text())
    return Grid(
        results=results,
        terminal=terminal,
        killed=killed,
        resumed=metrics.read_run(resumed),
        saved=saved,
        saved_rewards=saved_rewards,
        final=saved_states(checkpoints / f"global_step_{STEPS}"),
        reports=json.loads((checkpoints / "entropy_control_report.json").read_text()),
    )


def saved_states(folder: Path) -> dict[str, ControllerState]:
    content = json.loads((folder / saved_state.NAME).read_text())
    assert content["bonus"]["controller"] == "band"
    assert content["advantages"]["controller"] == "entropy_guided"
    return {axis: each.state_class.from_dict(content[axis]["state"]) for axis, each in CONTROLLERS.items()}
