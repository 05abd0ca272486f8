"""Whoever asks for entropy control gets our trainer, or a run that stops with the line to type."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from aent_verl.plugin import guard
from aent_verl.plugin.guard import PlugInNotActiveError, check_config
from tests.config.composing import MICRO_BATCHES, composed

STOCK = {"trainer": {"v1": {"trainer_mode": "sync"}}, "data": {}}
# verl's own entry up to its trainer, without Ray: what `python -m verl.trainer.main_ppo` composes is built or refused.
COMPOSE = """
import sys
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
with initialize_config_module("verl.trainer.config", version_base=None):
    config = compose("ppo_trainer", sys.argv[1:])
from verl.utils.config import omega_conf_to_dataclass
omega_conf_to_dataclass(config.actor_rollout_ref.actor)
from verl.trainer.ppo.v1 import get_trainer_cls
print("trainer", get_trainer_cls(config.trainer.v1.trainer_mode).__name__)
OmegaConf.resolve(config)
get_trainer_cls(config.trainer.v1.trainer_mode)(config=config)
print("built")
"""


def start(*overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"VERL_PLATFORM": "cpu", **os.environ, **environment}
    arguments = [sys.executable, "-c", COMPOSE, *MICRO_BATCHES, *overrides]
    return subprocess.run(arguments, capture_output=True, text=True, env=variables, check=False, timeout=300)


def test_a_config_that_asks_for_nothing_passes() -> None:
    check_config(OmegaConf.create(STOCK))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"entropy_control": "aent"},
            r"bare word.*\n  hydra\.searchpath=\[pkg://aent_verl\._config\] \+entropy_control=aent",
        ),
        ({"entropy_control": "siren"}, r"\+entropy_control=siren"),
        ({"entropy_control": None}, "entropy_control=None names no method"),
        ({"entropy_control": {"bonus": 1}}, r"names no method.*\n.*\+entropy_control=aent"),
        ({"entropy_control": {"method": "aent"}}, r"trainer\.v1\.trainer_mode='sync' would train without it"),
        ({"entropy_contol": "aent"}, "entropy_contol=aent: nothing reads it.*did you mean entropy_control"),
        ({"entropycontrol": "aent"}, "did you mean entropy_control"),
    ],
)
def test_a_config_that_asks_for_entropy_control_stops_a_trainer_that_is_not_ours(asked: dict, message: str) -> None:
    with pytest.raises(PlugInNotActiveError, match=message):
        check_config(OmegaConf.create(STOCK | asked))


def test_our_own_trainer_is_asked_about_blocks_that_nothing_reads(caplog: pytest.LogCaptureFixture) -> None:
    config = OmegaConf.create(STOCK | {"entropy_control": {"method": "aent"}, "aent": {"clamp_p": 0.3}, "run": {}})
    check_config(config, ours=True)
    assert [record.getMessage() for record in caplog.records] == [
        "aent={'clamp_p': 0.3}: nothing in verl or aent_verl reads this block"
    ]
    with pytest.raises(
        PlugInNotActiveError, match=r"entropy_contrl=.*: nothing reads it; did you mean entropy_control"
    ):
        check_config(OmegaConf.create(STOCK | {"entropy_contrl": {"bonus": 1}}), ours=True)


def test_no_block_of_our_own_configs_is_unread(caplog: pytest.LogCaptureFixture) -> None:
    check_config(composed("experiment=cpu_arithmetic"), ours=True)
    assert not caplog.records


@pytest.mark.parametrize("module", guard.TRAINERS)
def test_each_of_verls_trainers_asks_before_it_is_built(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    trainer = getattr(importlib.import_module(module), guard.TRAINERS[module])
    config = OmegaConf.create(STOCK | {"entropy_control": "aent"})
    theirs = type("Theirs", (trainer,), {"on_sample_end": print, "on_step_end": print})
    instance = object.__new__(theirs)
    with pytest.raises(PlugInNotActiveError, match="bare word"):
        instance.__init__(config)
    with pytest.raises(PlugInNotActiveError, match="bare word"):
        instance.__init__(config=config)


def test_every_registered_trainer_of_verls_is_watched() -> None:
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    stock = {name: kind for name, kind in TRAINER_REGISTRY.items() if not name.startswith("aent_")}
    assert {"sync", "colocate_async", "separate_async"} <= set(stock)
    config = composed(
        "data.train_batch_size=64",
        "trainer.v1.separate_async.parameter_sync_step=1",
        "actor_rollout_ref.actor.ppo_mini_batch_size=64",
        "actor_rollout_ref.rollout.nnodes=1",
        "actor_rollout_ref.rollout.checkpoint_engine.backend=nccl",
    )
    config.entropy_control = "aent"
    for kind in stock.values():
        with pytest.raises(PlugInNotActiveError, match="bare word"):
            kind(config)


def test_our_trainer_without_a_method_names_the_line() -> None:
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    cfg = composed(*MICRO_BATCHES)
    OmegaConf.set_struct(cfg, False)
    cfg.actor_rollout_ref.actor._target_ = "verl.workers.config.FSDPActorConfig"
    del cfg.actor_rollout_ref.actor["entropy_control"]
    with pytest.raises(PlugInNotActiveError, match=r"trainer_mode=aent_sync has no method.*\n  hydra\.searchpath"):
        TRAINER_REGISTRY["aent_sync"](config=cfg)


def test_the_actors_config_refuses_where_verl_has_not_loaded_the_plug_in() -> None:
    searched = guard.LINE.split()
    done = start(*searched, VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode != 0
    assert "verl has not loaded aent_verl's plug-in in this process" in done.stderr
    assert "VERL_USE_EXTERNAL_PLUGINS='none' leaves it out" in done.stderr


def test_the_actors_config_says_why_the_plug_in_failed(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nsys.modules['aent_verl.platforms.vllm_cpu'] = None  # its import raises\n"
    )
    done = start(*guard.LINE.split(), PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert done.returncode != 0
    assert (
        "aent_verl's plug-in cannot be loaded (ModuleNotFoundError: import of aent_verl.platforms.vllm_cpu"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+entropy_control=aent"], "+entropy_control=aent"),
        (
            ["hydra.searchpath=[pkg://aent_verl._confg]", "+entropy_control=aent"],
            "hydra.searchpath=[pkg://aent_verl._config]",
        ),
        (["+entropy_control=grpo", "trainer.use_v1=true"], "+entropy_control=grpo"),
    ],
)
def test_verls_own_entry_stops_where_hydra_has_not_found_our_configuration(overrides: list[str], message: str) -> None:
    done = start(*overrides)
    assert "trainer PPOTrainerSync" in done.stdout
    assert done.returncode != 0
    assert "built" not in done.stdout
    assert message in done.stderr


def test_it_can_be_switched_off_and_says_so() -> None:
    done = start(AENT_VERL_DISABLE="1", VERL_PLATFORM="")
    assert "aent_verl is switched off by AENT_VERL_DISABLE" in done.stderr
    assert "built" in done.stdout, done.stderr
    done = start(*guard.LINE.split(), AENT_VERL_DISABLE="1", VERL_PLATFORM="")
    assert done.returncode != 0
    assert "AENT_VERL_DISABLE=1 switches aent_verl off, and entropy_control asks for it" in done.stderr


@pytest.mark.parametrize("command", ["train", "evaluate", "doctor", "compare"])
def test_no_command_of_ours_runs_where_it_is_switched_off(command: str) -> None:
    arguments = [sys.executable, "-m", "aent_verl.commands.main", command, "experiment=cpu_arithmetic"]
    variables = os.environ | {"AENT_VERL_DISABLE": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, env=variables, check=False, timeout=300)
    assert done.returncode == 1
    assert "AENT_VERL_DISABLE=1 switches aent_verl off" in " ".join((done.stdout + done.stderr).split())
