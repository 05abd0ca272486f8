"""A run on two nodes in each trainer mode is killed after step 3 and started again; ``make test-cluster``."""

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from aent_verl.core.controllers import BandController, ControllerState
from aent_verl.plugin import saved_state
from aent_verl.runs import checkpoints, metrics
from tests.e2e import witness
from tests.e2e.raylets import TWO_NODES, Raylets
from tests.e2e.stack import finish, kill, start
from tests.e2e.test_modes import MODES

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SECONDS = 600
STEPS, KILL_AFTER_STEP, SAVE_FREQ = 5, 3, 2
# Above any entropy of this model, so that the coefficient moves in each step.
BAND = {"init": 0.02, "low": 2.5, "high": 3.0, "lr": 0.02, "warmup_steps": 1, "min": 0.0, "max": 0.5}
CONTROLLER = BandController(**BAND)  # type: ignore[arg-type]
MORE = {
    # Responses so long, and so few at a time, that an update of the weights cuts some of them; and importance weights.
    "colocate_async": (
        *("actor_rollout_ref.rollout.ignore_eos=true", "data.max_response_length=90", "actor_rollout_ref.rollout.n=8"),
        *("actor_rollout_ref.rollout.max_num_seqs=16", "trainer.v1.colocate_async.num_warmup_batches=2"),
        "algorithm.rollout_correction.rollout_is=token",
    ),
    # Rollouts on the third node alone: those on the trainer's are in test_modes.
    "separate_async": ("actor_rollout_ref.hybrid_engine=false",),
}


@dataclass(frozen=True)
class Killed:
    """A killed and resumed run: its mode and folder, the step it resumed from, and both starts' metrics."""

    mode: str
    folder: Path
    done: int
    before: dict[int, dict[str, float]]
    after: dict[int, dict[str, float]]


@pytest.fixture(scope="module", params=MODES)
def run(
    request: pytest.FixtureRequest, task: Path, raylets: Raylets, tmp_path_factory: pytest.TempPathFactory
) -> Killed:
    mode: str = request.param
    folder = tmp_path_factory.mktemp(f"killed_{mode}") / "run"
    arguments = [
        *(sys.executable, "-m", "aent_verl.commands.main", "train", "experiment=cpu_arithmetic", "run.task=null"),
        *(f"data.train_files={task}/train.parquet", f"data.val_files={task}/validation.parquet", *TWO_NODES),
        *(f"actor_rollout_ref.model.path={task}/model", f"run.dir={folder}", "entropy_control=aent"),
        *(f"entropy_control.bonus.controller.{key}={value}" for key, value in BAND.items()),
        *(f"trainer.v1.trainer_mode={mode}", *MODES[mode], *MORE.get(mode, ())),
        *("data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=8"),
        *(f"trainer.save_freq={SAVE_FREQ}", "trainer.test_freq=-1", "trainer.val_before_train=false"),
        f"trainer.total_training_steps={STEPS}",
    ]
    variables = {**raylets.environment, "VERL_USE_EXTERNAL_MODULES": witness.NAME}
    logs = folder.with_name("killed.out"), folder.with_name("resumed.out")

    raylets.wait(gpus=3)
    process = start(arguments, logs[0], **variables)
    tail = metrics.MetricsTail(folder / metrics.METRICS_FILE)
    deadline = time.monotonic() + SECONDS
    try:
        while not any(step >= KILL_AFTER_STEP for step, _ in tail.read_new()):
            assert process.poll() is None, logs[0].read_text(errors="replace")[-6000:]
            assert time.monotonic() < deadline, logs[0].read_text(errors="replace")[-6000:]
            time.sleep(0.05)
    finally:
        kill(process)
    # The cluster lives on, and ends the actors of a driver that is gone, some of which may train on until then.
    raylets.wait(gpus=3)
    before, done = metrics.read_run(folder), checkpoints.latest_step(folder / "checkpoints")
    terminal = finish(start(arguments, logs[1], **variables), logs[1], SECONDS)
    assert "resuming from" in terminal
    return Killed(mode, folder, done, before, metrics.read_file(folder / metrics.METRICS_FILE))


def replayed(steps: dict[int, dict[str, float]], state: ControllerState) -> ControllerState:
    for step, data in steps.items():
        assert data["aent/coefficient"] == state.coefficient, step
        state = CONTROLLER.update(state, entropy=data["aent/entropy"], step=step)
        assert data["aent/coefficient_next"] == state.coefficient, step
    return state


def saved(run: Killed, step: int) -> ControllerState:
    content = json.loads((checkpoints.step_folder(run.folder / "checkpoints", step) / saved_state.NAME).read_text())
    return CONTROLLER.state_class.from_dict(content["bonus"]["state"])


def test_no_step_is_missing_or_twice(run: Killed) -> None:
    assert list(run.before)[:KILL_AFTER_STEP] == [1, 2, 3]
    assert run.done in (SAVE_FREQ, 2 * SAVE_FREQ)
    assert list(run.after) == list(range(run.done + 1, STEPS + 1))
    lines = (run.folder / metrics.METRICS_FILE).read_text().splitlines()
    assert len(lines) == len(run.after)


def test_coefficients_are_a_replay_over_the_logged_entropies(run: Killed) -> None:
    kept = {step: data for step, data in run.before.items() if step <= run.done}
    state = replayed(kept, CONTROLLER.initial_state())
    assert saved(run, run.done) == state
    # What the killed start had done after its checkpoint, and the resumed one again.
    replayed({step: data for step, data in run.before.items() if step > run.done}, state)
    last = replayed(run.after, state)
    assert saved(run, STEPS) == last
    assert len({data["aent/coefficient"] for data in (kept | run.after).values()}) >= STEPS - 1


def test_responses_of_several_weights_are_trained_and_weighed(run: Killed) -> None:
    if run.mode != "colocate_async":
        pytest.skip("its responses are not cut")
    steps = [*run.before.values(), *run.after.values()]
    assert max(data["training/off_policy/trajectory_spans/max"] for data in steps) > 1
    assert all(0 < data["rollout_corr/rollout_is_mean"] < 2 for data in steps)
    assert max(abs(data["rollout_corr/rollout_is_max"] - 1) for data in steps) > 1e-4


def test_both_ranks_used_the_coefficient_of_each_step(run: Killed) -> None:
    seen = witness.notes(run.folder, "loss")
    assert {each["rank"] for each in seen} == {0, 1}
    # After the resume a rank may be on the node that the other was on.
    assert len({each["node"] for each in seen}) >= 2
    for steps in (run.before, run.after):
        logged = {(step, data["aent/coefficient"]) for step, data in steps.items()}
        for rank in (0, 1):
            assert logged <= {(each["step"], each["coefficient"]) for each in seen if each["rank"] == rank}


def test_each_state_file_is_written_once(run: Killed) -> None:
    written = Counter((each["pid"], each["folder"]) for each in witness.notes(run.folder, "state"))
    assert set(written.values()) == {1}
    assert len({pid for pid, _ in written}) == 2
    names = {f"global_step_{step}" for step in (SAVE_FREQ, 2 * SAVE_FREQ, STEPS)}
    assert {folder for _, folder in written} == names
    assert all((run.folder / "checkpoints" / name / saved_state.NAME).is_file() for name in names)
