"""The launcher's decisions that need neither Ray nor a model."""

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from ray.exceptions import RayTaskError

from aent_verl.core.controllers import ConstantController, ControllerState
from aent_verl.launch import environment, training
from aent_verl.methods.axes import Linear
from aent_verl.methods.settings import BonusConfig, EntropyControlConfig, FunctionalConfig
from aent_verl.platforms import cpu, weight_sockets
from aent_verl.plugin import saved_state
from aent_verl.preflight import findings

CONTROL = EntropyControlConfig("entreg", FunctionalConfig("full"), BonusConfig(Linear(), ConstantController(init=0.1)))


def config(folder: Path, **trainer: Any) -> DictConfig:
    settings = {
        "default_local_dir": str(folder),
        "resume_mode": "auto",
        "resume_from_path": None,
        "total_training_steps": 4,
        "n_gpus_per_node": 2,
        "nnodes": 1,
        "device": "cpu",
        "val_before_train": True,
        "v1": {"trainer_mode": "sync"},
    }
    return OmegaConf.create(
        {
            "run": {"dir": str(folder), "task": None, "threads": 3},
            "trainer": settings | trainer,
            "reward": {"reward_model": {"enable_resource_pool": False}},
            "actor_rollout_ref": {"rollout": {"nnodes": 1, "n_gpus_per_node": 3}},
            "ray_kwargs": {"ray_init": {"num_cpus": 16, "num_gpus": 2, "runtime_env": {}}},
        }
    )


def checkpoint(folder: Path, step: int) -> Path:
    (folder / "latest_checkpointed_iteration.txt").write_text(str(step))
    path = folder / f"global_step_{step}"
    saved_state.write(
        path,
        control=CONTROL,
        states={"bonus": ControllerState(0.1, step=step), "advantages": ControllerState(1.0, step=step)},
    )
    return path


def test_root_cause_takes_off_what_hydra_and_ray_put_around_an_error_and_nothing_else() -> None:
    ours = ValueError("ours")
    ours.__cause__ = KeyError("why")
    assert findings.root_cause(ours) is ours
    wrapped = InstantiationException("layer")
    wrapped.__cause__ = ours
    assert findings.root_cause(wrapped) is ours
    task = RayTaskError("run", "traceback", ours)
    assert findings.root_cause(task) is ours
    assert findings.root_cause(task.as_instanceof_cause()) is ours


def test_a_fresh_start_has_no_folder_to_resume_from(tmp_path: Path) -> None:
    assert training.resume_folder(config(tmp_path)) is None
    path = checkpoint(tmp_path, 2)
    assert training.resume_folder(config(tmp_path)) == path
    assert training.resume_folder(config(tmp_path, resume_mode="disable")) is None
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    assert training.resume_folder(config(tmp_path)) is None, "verl starts from scratch where the folder is gone"


def test_resume_path_must_be_a_folder(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 2)
    assert training.resume_folder(config(tmp_path, resume_mode="resume_path", resume_from_path=str(path))) == path
    for missing in (None, str(tmp_path / "no")):
        with pytest.raises(environment.LaunchError, match=r"trainer\.resume_from_path="):
            training.resume_folder(config(tmp_path, resume_mode="resume_path", resume_from_path=missing))


def test_complete_only_at_the_last_step(tmp_path: Path) -> None:
    terminal = io.StringIO()
    assert not training.is_complete(config(tmp_path), CONTROL, terminal)
    checkpoint(tmp_path, 2)
    assert not training.is_complete(config(tmp_path), CONTROL, terminal)
    assert not training.is_complete(config(tmp_path, total_training_steps=None), CONTROL, terminal)
    checkpoint(tmp_path, 4)
    assert training.is_complete(config(tmp_path), CONTROL, terminal)
    assert "step 4 of 4" in terminal.getvalue()


def test_a_last_step_that_was_saved_and_not_validated_is_gone_back_to(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4)
    log = tmp_path / "metrics.jsonl"
    log.write_text('{"step": 3, "data": {"a": 1.0}}\n')
    terminal = io.StringIO()
    assert not training.is_complete(config(tmp_path), CONTROL, terminal)
    assert "to validate it" in terminal.getvalue()
    assert training.is_complete(config(tmp_path, val_before_train=False), CONTROL, terminal)
    log.write_text('{"step": 4, "data": {"a": 1.0}}\n')
    assert training.is_complete(config(tmp_path), CONTROL, terminal)


def test_a_missing_state_stops_unless_the_controller_is_restarted(tmp_path: Path) -> None:
    from dataclasses import replace

    (checkpoint(tmp_path, 2) / saved_state.NAME).unlink()
    with pytest.raises(saved_state.StateFileError, match="restart_controller=true"):
        training.is_complete(config(tmp_path), CONTROL, io.StringIO())
    assert not training.is_complete(config(tmp_path), replace(CONTROL, restart_controller=True), io.StringIO())


@pytest.mark.parametrize(
    ("platform", "device", "message"),
    [("cpu", "cuda", "platform=cpu"), (None, "cpu", "VERL_PLATFORM=cpu")],
)
def test_device_must_fit_the_platform(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str | None, device: str, message: str
) -> None:
    monkeypatch.setattr(cpu, "detect_platform", lambda address: platform)
    monkeypatch.setattr(cpu, "runtime_env_vars", lambda processes, threads: {})
    with pytest.raises(environment.LaunchError, match=message):
        environment.choose_platform(config(tmp_path, device=device))


def test_workers_are_told_about_plug_in_logs_and_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cluster_to_join", lambda address: None)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cfg = config(tmp_path)
    cfg.ray_kwargs.ray_init.runtime_env = {"env_vars": {"MINE": "1", "VERL_USE_EXTERNAL_MODULES": "mine"}}
    cfg.ray_kwargs.ray_init.resources = {"disk": 1}
    environment.hand_to_workers(cfg, "cpu")
    variables = cfg.ray_kwargs.ray_init.runtime_env.env_vars
    assert variables["MINE"] == "1"
    assert variables["VERL_USE_EXTERNAL_MODULES"] == "mine,aent_verl.plugin.entry_point"
    assert variables["VERL_FILE_LOGGER_PATH"] == str(tmp_path / "metrics.jsonl")
    assert variables["VERL_PLATFORM"] == "cpu"
    assert variables["OMP_NUM_THREADS"] == "3"
    assert variables["AENT_VERL_RUN"] == weight_sockets.mark_of(tmp_path)
    assert cfg.ray_kwargs.ray_init.resources == {"disk": 1, "aent_cpu_platform": 2}


def test_rollouts_of_their_own_have_logical_accelerators_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cluster_to_join", lambda address: None)
    cfg = config(tmp_path, v1={"trainer_mode": "separate_async"})
    environment.hand_to_workers(cfg, "cpu")
    assert cfg.ray_kwargs.ray_init.num_gpus == 5


@pytest.mark.parametrize("threads", [0, -1, 1.5, "all", True])
def test_threads_are_a_number(tmp_path: Path, threads: Any) -> None:
    cfg = config(tmp_path)
    cfg.run.threads = threads
    with pytest.raises(
        environment.LaunchError, match=rf"run\.threads={threads!r}: must be a whole number from 1, or null"
    ):
        environment.hand_to_workers(cfg, "cpu")


@pytest.mark.parametrize("platform", ["cpu", None])
def test_a_list_of_allowed_vllm_plug_ins_gets_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str | None
) -> None:
    monkeypatch.setattr(cpu, "cluster_to_join", lambda address: None)
    monkeypatch.setenv("VLLM_PLUGINS", "other")
    cfg = config(tmp_path)
    environment.hand_to_workers(cfg, platform)
    assert cfg.ray_kwargs.ray_init.runtime_env.env_vars["VLLM_PLUGINS"] == "other,aent_verl"
    cfg.ray_kwargs.ray_init.runtime_env = {"env_vars": {"VLLM_PLUGINS": "mine"}}
    environment.hand_to_workers(cfg, platform)
    assert cfg.ray_kwargs.ray_init.runtime_env.env_vars["VLLM_PLUGINS"] == "mine,aent_verl"


def test_a_cluster_that_is_joined_keeps_its_slots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cluster_to_join", lambda address: "10.0.0.1:6379")
    cfg = config(tmp_path)
    environment.hand_to_workers(cfg, None)
    assert set(cfg.ray_kwargs.ray_init) == {"runtime_env"}
    assert "VERL_PLATFORM" not in cfg.ray_kwargs.ray_init.runtime_env.env_vars


def test_terminal_and_log_get_what_is_theirs(tmp_path: Path) -> None:
    log = tmp_path / "new" / "train.log"
    code = f"""
import os, pathlib, subprocess
from aent_verl.launch.terminal import redirected_output
try:
    with redirected_output(pathlib.Path({str(log)!r})) as terminal:
        print("library")
        os.write(2, b"C code\\n")
        subprocess.run(["echo", "child"])
        print("person", file=terminal)
        raise KeyError
except KeyError:
    print("after")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("person\nafter\n", "")
    assert sorted(log.read_text().splitlines()) == ["C code", "child", "library"]


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    refused = pytest.raises(environment.LaunchError, match=r"run\.dir='.*run': another process trains in it")
    with training.exclusive_run(folder), refused, training.exclusive_run(folder):
        pass
    with training.exclusive_run(folder):
        pass


def test_a_file_system_without_locks_is_warned_of_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with training.exclusive_run(tmp_path / "run"):
        error = capsys.readouterr().err
    assert f"run.dir='{tmp_path}/run' cannot be locked ([Errno 38] Function not implemented)" in error
