"""A method of another package, installed with pip, trains through the whole stack and resumes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from aent_verl.plugin import saved_state
from aent_verl.runs import metrics
from tests import lab
from tests.e2e.stack import finish, start

pytestmark = pytest.mark.slow

SECONDS = 420


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip has installed the package."""
    project, site = lab.write(tmp_path_factory.mktemp("lab")), tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(site)]
    subprocess.run([*pip, str(project)], check=True, timeout=120)
    return site


def path(site: Path) -> str:
    return os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))


def train(task: Path, site: Path, folder: Path, steps: int, ray: str) -> str:
    arguments = [
        *(sys.executable, "-m", "aent_verl.commands.main", "train"),
        *("experiment=cpu_arithmetic", "entropy_control=lab", "run.task=null"),
        *(f"data.train_files={task}/train.parquet", f"data.val_files={task}/validation.parquet"),
        *(f"actor_rollout_ref.model.path={task}/model", f"run.dir={folder}", f"trainer.total_training_steps={steps}"),
        *("data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=4", "trainer.save_freq=2"),
        *("trainer.test_freq=-1", "trainer.val_before_train=false"),
    ]
    log = folder.with_name(f"{folder.name}.{steps}.out")
    return finish(start(arguments, log, RAY_TMPDIR=ray, PYTHONPATH=path(site)), log, SECONDS)


def swing(top: float, size: float, updates: int) -> list[float]:
    coefficient, direction, found = size, 1, [size]
    for _ in range(updates):
        if 0 <= coefficient + direction * size <= top:
            coefficient += direction * size
        else:
            direction = -direction
        found.append(coefficient)
    return found


def test_it_trains_resumes_and_logs_its_numbers(task: Path, site: Path, short_ray_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train(task, site, folder, 2, short_ray_folder)
    terminal = train(task, site, folder, 4, short_ray_folder)
    assert "resuming from" in terminal
    steps = metrics.read_run(folder)
    assert sorted(steps) == [1, 2, 3, 4]
    for key, expected in (
        ("aent/coefficient", swing(0.35, 0.1, 3)),
        ("aent/advantages_coefficient", swing(1.0, 0.25, 3)),
        ("aent/swing_direction", [1.0, 1.0, 1.0, -1.0]),
    ):
        assert [steps[step][key] for step in range(1, 5)] == pytest.approx(expected, abs=1e-12), key
    assert all("aent/mean_advantage" in data and "aent/advantages_swing_direction" in data for data in steps.values())
    # What the shaping of rewards remembers is resumed, too; eight prompts, four responses each.
    assert [steps[step]["aent/responses_seen"] for step in range(1, 5)] == [32, 64, 96, 128]
    assert all(0 < data["aent/rewards_added"] < 0.5 * 1.61 for data in steps.values())
    # The entropy of five tokens is at most log 5, and the others have some mass.
    assert all(0 < data["aent/entropy"] < 1.61 for data in steps.values())
    assert all(0 < data["aent/removed_mass"] < 1 for data in steps.values())
    saved = json.loads((folder / "checkpoints" / "global_step_4" / saved_state.NAME).read_text())
    assert saved["bonus"]["controller"] == "entropy_lab:Swing"
    assert saved["bonus"]["state"]["last_turn"] == "step 3"


@pytest.mark.parametrize("first", ["entropy_lab", "aent_verl.methods.parsing", "verl"])
def test_whichever_is_imported_first_the_other_works(site: Path, first: str) -> None:
    code = f"import {first}, entropy_lab, verl, aent_verl.plugin.trainers; print(entropy_lab.Swing(top=1.0).size)"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path(site), "PATH": ""}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "0.1", done.stderr[-2000:]
