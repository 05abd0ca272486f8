"""Whoever asks for entropy control gets our trainer, or a run that stops with the line to type."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from omegaconf import OmegaConf

from aent_verl.commands import main
from aent_verl.plugin import guard
from aent_verl.plugin.guard import PlugInNotActiveError, check_config
from tests.config.composing import MICRO_BATCHES, actor_config, composed

STOCK = {"trainer": {"v1": {"trainer_mode": "sync"}}, "data": {}}


def build(*overrides: str) -> None:
    """verl's own entry up to its trainer, without Ray: what `python -m verl.trainer.main_ppo` composes."""
    from hydra import compose, initialize_config_module
    from verl.utils.config import omega_conf_to_dataclass

    with initialize_config_module("verl.trainer.config", version_base=None):
        config = compose("ppo_trainer", [*MICRO_BATCHES, *overrides])
    omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    # Only now: it resolves the platform, which without our plug-in may be an unknown one.
    from verl.trainer.ppo.v1 import get_trainer_cls

    trainer = get_trainer_cls(config.trainer.v1.trainer_mode)
    print("trainer", trainer.__name__)
    OmegaConf.resolve(config)
    trainer(config=config)
    print("built")


def start(*overrides: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"VERL_PLATFORM": "cpu", **os.environ, **environment}
    code = "import sys; from tests.unit.plugin.test_guard import build; build(*sys.argv[1:])"
    arguments = [sys.executable, "-c", code, *overrides]
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


def test_the_actors_config_asks_for_the_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, guard.PLUGIN)
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", "none")
    with pytest.raises(InstantiationException, match="verl has not loaded aent_verl's plug-in in this process"):
        actor_config(composed(*MICRO_BATCHES))


@pytest.mark.parametrize(
    ("policy", "cure"),
    [
        ("none", "VERL_USE_EXTERNAL_PLUGINS='none' leaves it out: add aent_verl to it"),
        ("other", "VERL_USE_EXTERNAL_PLUGINS='other' leaves it out"),
        (" Auto", "install aent_verl in this environment, or set VERL_USE_EXTERNAL_MODULES=aent_verl.plugin.entry_poi"),
        ("other,aent_verl", "install aent_verl in this environment"),
        (None, "install aent_verl in this environment"),
    ],
)
def test_a_plug_in_that_verl_has_not_loaded(policy: str | None, cure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, guard.PLUGIN)
    if policy is None:
        monkeypatch.delenv("VERL_USE_EXTERNAL_PLUGINS", raising=False)
    else:
        monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", policy)
    with pytest.raises(PlugInNotActiveError, match="verl has not loaded aent_verl's plug-in") as error:
        guard.require()
    assert cure in str(error.value)


def test_a_plug_in_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    guard.require()
    monkeypatch.delitem(sys.modules, guard.PLUGIN)
    monkeypatch.setitem(sys.modules, "wrapt", None)
    message = r"plug-in cannot be loaded \(ModuleNotFoundError: import of wrapt"
    with pytest.raises(PlugInNotActiveError, match=message):
        guard.require()


def test_where_it_is_switched_off_nothing_that_needs_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AENT_VERL_DISABLE", "1")
    with pytest.raises(PlugInNotActiveError, match=r"AENT_VERL_DISABLE=1 switches aent_verl off, and entropy_control"):
        guard.require()


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "evaluate",
        "doctor",
        # Its runs are checked in processes of their own.
        pytest.param("compare methods=[grpo] seeds=[1]", marks=pytest.mark.slow),
    ],
)
def test_no_command_of_ours_runs_where_it_is_switched_off(
    command: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("AENT_VERL_DISABLE", "1")
    monkeypatch.chdir(tmp_path)
    assert main.main([*command.split(), "experiment=cpu_arithmetic"]) == 1
    assert "AENT_VERL_DISABLE=1 switches aent_verl off" in " ".join("".join(capfd.readouterr()).split())


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
def test_verls_own_entry_stops_where_hydra_has_not_found_our_configuration(
    overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PlugInNotActiveError) as error:
        build(*overrides)
    assert message in str(error.value)
    assert capsys.readouterr().out == "trainer PPOTrainerSync\n"


@pytest.mark.slow
def test_verls_own_entry_loads_the_guard_by_itself() -> None:
    done = start("+entropy_control=aent")
    assert "trainer PPOTrainerSync" in done.stdout
    assert done.returncode != 0
    assert "built" not in done.stdout
    assert "+entropy_control=aent" in done.stderr


@pytest.mark.slow
def test_the_actors_config_refuses_where_verl_has_not_loaded_the_plug_in() -> None:
    done = start(*guard.LINE.split(), VERL_USE_EXTERNAL_PLUGINS="none")
    assert done.returncode != 0
    assert "verl has not loaded aent_verl's plug-in in this process" in done.stderr
    assert "VERL_USE_EXTERNAL_PLUGINS='none' leaves it out" in done.stderr


@pytest.mark.slow
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


@pytest.mark.slow
def test_it_can_be_switched_off_and_says_so() -> None:
    done = start(AENT_VERL_DISABLE="1", VERL_PLATFORM="")
    assert "aent_verl is switched off by AENT_VERL_DISABLE" in done.stderr
    assert "built" in done.stdout, done.stderr
    done = start(*guard.LINE.split(), AENT_VERL_DISABLE="1", VERL_PLATFORM="")
    assert done.returncode != 0
    assert "AENT_VERL_DISABLE=1 switches aent_verl off, and entropy_control asks for it" in done.stderr
