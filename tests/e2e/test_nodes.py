"""What is asked of each node before a run, one run in a folder, and a grid on several nodes; ``make test-cluster``."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import verl

import aent_verl
from aent_verl.runs import metrics
from aent_verl.runs.run import load_run
from tests.e2e import witness
from tests.e2e.raylets import REPOSITORY, TWO_NODES, Raylets
from tests.e2e.stack import end, finish, start

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

SECONDS = 300
VERL = Path(verl.__file__).parent


def overrides(task: Path, *more: str) -> list[str]:
    return [
        *("experiment=cpu_arithmetic", "run.task=null"),
        *(f"data.train_files={task}/train.parquet", f"data.val_files={task}/validation.parquet"),
        *(f"actor_rollout_ref.model.path={task}/model", "trainer.total_training_steps=2", "trainer.save_freq=2"),
        *("data.train_batch_size=16", "actor_rollout_ref.actor.ppo_mini_batch_size=8", "trainer.test_freq=2"),
        *("trainer.val_before_train=false", *more),
    ]


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "aent_verl.commands.main", name, *arguments]


def said(arguments: list[str], raylets: Raylets, folder: Path) -> tuple[int, str]:
    """Return the exit status of a command that joins the cluster, and what it printed, in long lines."""
    log = folder / "out"
    process = start(arguments, log, **raylets.environment, COLUMNS="500")
    try:
        return process.wait(SECONDS), log.read_text(errors="replace")
    finally:
        end(process)


def test_doctor_lists_each_node_by_name(raylets: Raylets, task: Path, tmp_path: Path) -> None:
    arguments = command("doctor", "--cluster", *overrides(task, *TWO_NODES, f"run.dir={tmp_path}/runs/one"))
    status, text = said(arguments, raylets, tmp_path)
    assert status == 0, text
    for name in ("head", "worker-1", "worker-2", "worker-3"):
        (line,) = [line for line in text.splitlines() if line.startswith(f"node {name} (")]
        assert f"plug-in loaded, aent_verl {aent_verl.__version__}, verl {verl.__version__}" in line
    assert f"nodes: 4 have aent_verl {aent_verl.__version__}, verl {verl.__version__}, and write in {tmp_path}" in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.fixture
def odd_nodes(raylets: Raylets, tmp_path: Path) -> Iterator[Path]:
    """Three more nodes: with another aent_verl, with another verl, and with another disk at the path that this yields.

    The last has a mount namespace of its own, in which an empty file system covers that path.
    """
    unshared = tmp_path / "disk"
    unshared.mkdir()
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(unshared)]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a file system can be mounted here by root alone")
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    shutil.copytree(REPOSITORY / "aent_verl", ours / "aent_verl")
    (ours / "aent_verl" / "_version.py").write_text('__version__ = "0.0.1"\n')
    (theirs / "verl" / "version").mkdir(parents=True)
    for part in VERL.iterdir():
        if part.name != "version":
            (theirs / "verl" / part.name).symlink_to(part)
    (theirs / "verl" / "version" / "version").write_text("0.9.0")
    (theirs / "verl-0.9.0.dist-info").mkdir()
    (theirs / "verl-0.9.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: verl\nVersion: 0.9.0\n")
    with ExitStack() as stack:
        stack.enter_context(raylets.one_more("old-aent", PYTHONPATH=str(ours)))
        stack.enter_context(raylets.one_more("old-verl", PYTHONPATH=f"{theirs}:{REPOSITORY}"))
        stack.enter_context(raylets.one_more("apart", *mount))
        yield unshared


def test_a_node_that_does_not_fit_is_named_before_anything_starts(
    raylets: Raylets, odd_nodes: Path, task: Path, tmp_path: Path
) -> None:
    run = odd_nodes / "run"
    arguments = overrides(task, *TWO_NODES, f"run.dir={run}")
    status, text = said(command("train", *arguments), raylets, tmp_path)
    assert status == 1, text
    ours, verls = aent_verl.__version__, verl.__version__
    for node, problem in (
        ("old-aent", f"has aent_verl 0.0.1, and this process {ours}: install the same versions on every node"),
        ("old-verl", f"has verl 0.9.0, and this process {verls}: install the same versions on every node"),
        ("apart", f"does not see what this machine writes in {run}"),
    ):
        (line,) = [line for line in text.splitlines() if f"node {node} (" in line]
        assert problem in line
    assert f"trainer.default_local_dir='{run}/checkpoints': node apart (" in text
    assert not list(run.rglob("*.jsonl"))
    assert not list(run.glob(".aent*"))
    assert raylets.ask()[1] == 6, "the accelerators are free: no worker was started"

    status, text = said(command("doctor", "--cluster", *arguments), raylets, tmp_path)
    assert status == 1, text
    lines = [line for line in text.splitlines() if line.startswith("node old-") and "FAILED" in line]
    assert [(line.split()[1], line.partition("has ")[2].split(",")[0]) for line in lines] == [
        ("old-aent", "aent_verl 0.0.1"),
        ("old-verl", "verl 0.9.0"),
    ]
    assert "node apart (" in text


def test_a_second_job_in_the_folder_of_one_that_runs_is_refused_in_a_line(
    raylets: Raylets, task: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    arguments = command("train", *overrides(task, *TWO_NODES, f"run.dir={run}"))
    first = start(arguments, tmp_path / "first.out", **raylets.environment)
    try:
        deadline = time.monotonic() + SECONDS
        while not (run / ".lock").exists():
            assert first.poll() is None, (tmp_path / "first.out").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        status, text = said(arguments, raylets, tmp_path)
        assert first.poll() is None, "the first ended too early to be in the way"
    finally:
        end(first)
    assert status == 1
    (line,) = [line for line in text.splitlines() if "another process trains in it" in line]
    assert f"run.dir={str(run)!r}: another process trains in it; wait until it ends, or give this run" in line


def test_a_grid_trains_two_runs_at_a_time_on_nodes_of_their_own(raylets: Raylets, task: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    arguments = command(
        *("compare", *overrides(task, "trainer.nnodes=1", "trainer.n_gpus_per_node=1"), f"results={results}"),
        *("methods=[grpo,aent]", "seeds=[1]", "launcher=ray", "parallel=2"),
    )
    raylets.wait(gpus=3)
    log = tmp_path / "out"
    variables = {**raylets.environment, "VERL_USE_EXTERNAL_MODULES": witness.NAME}
    text = finish(start(arguments, log, **variables), log, 2 * SECONDS)
    assert f"report: {results}/report.html" in text
    used = {}
    for method in ("grpo", "aent"):
        folder = results / "runs" / f"{method}_seed1"
        assert load_run(folder).record["state"] == "complete"
        assert sorted(step for step, data in metrics.read_run(folder).items() if "aent/entropy" in data) == [1, 2]
        used[method] = {each["node"] for each in witness.notes(folder, "loss")}
        assert len(used[method]) == 1
    assert used["grpo"].isdisjoint(used["aent"])
