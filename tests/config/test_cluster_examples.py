"""examples/cluster: what the files start, with the programs of a cluster replaced by stand-ins, composes."""

import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.config.composing import actor_config, composed

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
# What each program does; "$0" of a stand-in is in the folder where it notes how it was called.
STAND_INS = {
    "aent-verl": 'echo "$*" >> "${0%/*}/aent-verl.txt"; pwd > "${0%/*}/pwd.txt"; [[ $1 != "$FAILS" ]]',
    "ray": 'printf "%s\\n" "$@" > "${0%/*}/ray.txt"',
    "srun": 'printf "%s\\n" "$@" > "${0%/*}/srun.txt"; [[ $FAILS == srun ]] && echo "no Ray here" && exit 1; sleep 60',
    # Says its address; or, given their number, waits for the nodes.
    "python": "(($# == 2)) && echo 127.0.0.1 && exit; until [[ -s ${0%/*}/srun.txt ]]; do sleep .05; done",
}


class Node:
    """The first node of a job, where files of examples/cluster run; a port is open where Ray's head would listen."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        (folder / "examples").symlink_to(CLUSTER.parent)
        for name, does in STAND_INS.items():
            (folder / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
            (folder / name).chmod(0o755)
        self.environment = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "HOME": str(folder),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "given",
            "FAILS": "",
            "SLURM_JOB_ID": str(port - 20000),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "8",
        }

    def run(self, file: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", f"examples/cluster/{file}", *arguments],
            cwd=self.folder,
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=30,
        )

    def noted(self, name: str) -> list[str]:
        file = self.folder / f"{name}.txt"
        return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    for port in range(20000, 30000):
        with socket.socket() as head:
            try:
                head.bind(("127.0.0.1", port))
            except OSError:
                continue
            head.listen()
            yield Node(tmp_path, port)
            return


def test_slurm_trains_the_papers_first_setting_on_the_nodes_of_the_job(node: Node):
    done = node.run("slurm.sbatch", "entropy_control=grpo", "trainer.total_training_steps=7", SLURM_GPUS_ON_NODE="4")
    assert done.returncode == 0, done.stderr
    doctor, train = node.noted("aent-verl")
    assert doctor == f"doctor --cluster {train.removeprefix('train ')}"
    cfg = composed(*shlex.split(train)[1:])
    assert (cfg.trainer.nnodes, cfg.trainer.n_gpus_per_node, cfg.trainer.total_training_steps) == (2, 4, 7)
    assert cfg.actor_rollout_ref.model.path == "Qwen/Qwen2.5-Math-1.5B"
    assert "wandb" in cfg.trainer.logger
    assert actor_config(cfg).entropy_control.method == "grpo"
    assert {"--num-gpus=4", "--num-cpus=32"} <= set(node.noted("srun"))


def test_without_gpus_slurm_gives_a_node_one_logical_one(node: Node):
    done = node.run("slurm.sbatch", "experiment=cpu_arithmetic")
    assert done.returncode == 0, done.stderr
    assert node.noted("aent-verl")[1] == "train trainer.nnodes=2 trainer.n_gpus_per_node=1 experiment=cpu_arithmetic"
    assert {"--num-gpus=1", '--resources={"aent_cpu_platform": 1}'} <= set(node.noted("srun"))


@pytest.mark.slow
def test_slurm_does_not_train_where_a_check_fails_or_ray_does_not_start(node: Node):
    assert node.run("slurm.sbatch", FAILS="doctor").returncode == 1
    assert [line.split()[0] for line in node.noted("aent-verl")] == ["doctor"]
    elsewhere = str(int(node.environment["SLURM_JOB_ID"]) + 1)
    done = node.run("slurm.sbatch", FAILS="srun", SLURM_JOB_ID=elsewhere)
    assert (done.returncode, done.stdout) == (1, "no Ray here\n")


def test_a_grid_has_each_method_with_each_seed(node: Node):
    for task in range(6):
        assert node.run("slurm_grid.sbatch", "experiment=cpu_arithmetic", SLURM_ARRAY_TASK_ID=str(task)).returncode == 0
    runs = [line for line in node.noted("aent-verl") if line.startswith("train")]
    found = [re.findall(r"entropy_control=(\w+) .*experiment_name=grid_(\w+)_seed(\d) ", line)[0] for line in runs]
    assert found == [(method, method, str(seed)) for seed in (1, 2, 3) for method in ("grpo", "aent")]
    cfg = composed(*shlex.split(runs[-1])[1:])
    assert {cfg.data.seed, cfg.actor_rollout_ref.actor.data_loader_seed, cfg.actor_rollout_ref.rollout.seed} == {3}
    beyond = node.run("slurm_grid.sbatch", SLURM_ARRAY_TASK_ID="6")
    assert beyond.returncode == 1
    assert "--array=0-5" in beyond.stderr


def test_a_ray_job_trains_in_this_folder(node: Node):
    assert "name the cluster" in node.run("ray_job.sh").stderr
    done = node.run("ray_job.sh", "trainer.nnodes=2", "entropy_control=aent", RAY_ADDRESS="http://head:8265")
    assert done.returncode == 0, done.stderr
    words = node.noted("ray")
    assert words[:3] == ["job", "submit", "--no-wait"]
    file = words[3].removeprefix("--runtime-env=")
    assert yaml.safe_load((node.folder / file).read_text())["env_vars"] == {"RAY_OVERRIDE_JOB_RUNTIME_ENV": "1"}
    job = words[words.index("--") + 1 :]
    subprocess.run(job, cwd="/", env=node.environment, check=True)
    (train,) = node.noted("aent-verl")
    assert node.noted("pwd") == [str(node.folder)]
    cfg = composed(*shlex.split(train)[1:])
    assert (cfg.trainer.nnodes, cfg.data.train_files) == (2, "data/math/math-train.parquet")


def test_the_rayjob_asks_for_the_machines_that_it_has():
    spec = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())["spec"]
    shell, flag, script = shlex.split(spec["entrypoint"])
    assert (shell, flag) == ("bash", "-c")
    cfg = composed(*shlex.split(script)[shlex.split(script).index("train") + 1 :])
    (workers,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert cfg.trainer.nnodes == workers["replicas"]
    assert str(cfg.trainer.n_gpus_per_node) == container["resources"]["limits"]["nvidia.com/gpu"]
    assert container["image"] == "aent-verl:latest"


def test_keys_come_from_the_environment_or_a_secret():
    job = yaml.safe_load((CLUSTER / "rayjob.yaml").read_text())["spec"]["rayClusterSpec"]
    for group in (job["headGroupSpec"], *job["workerGroupSpecs"]):
        given = {variable["name"]: variable for variable in group["template"]["spec"]["containers"][0]["env"]}
        assert [set(given[name]) for name in ("WANDB_API_KEY", "HF_TOKEN")] == [{"name", "valueFrom"}] * 2
    services = yaml.safe_load((CLUSTER / "compose.yaml").read_text())["services"]
    assert set(services) == {"head", "worker"}
    for service in services.values():
        # Without a value: that of the shell.
        assert [service["environment"][name] for name in ("WANDB_API_KEY", "HF_TOKEN")] == [None, None]
        assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
