"""Every shipped YAML composes and means what it says; every illegal value fails with key, value and range."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from aent_verl.core.controllers import BandController, ConstantController
from aent_verl.integration.config import (
    EntropyControlActorConfig,
    EntropyControlConfig,
    FunctionalConfig,
    NoEffectWarning,
)

CONFIG = Path(__file__).parents[2] / "config"
PRESETS = sorted(p.stem for p in (CONFIG / "entropy_control").glob("*.yaml") if p.stem != "base")
EXPERIMENTS = sorted(p.stem for p in (CONFIG / "experiment").glob("*.yaml"))
MICRO_BATCHES = [
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1",
]


def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        return compose("aent_trainer", overrides=list(overrides))


def actor_config(cfg: DictConfig) -> EntropyControlActorConfig:
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(cfg.actor_rollout_ref.actor)


def control(*overrides: str) -> EntropyControlConfig:
    """Through verl's own conversion of the actor's config, as in the workers."""
    parsed = actor_config(composed(*MICRO_BATCHES, *overrides)).entropy_control
    assert parsed is not None
    return parsed


def test_presets_are_what_the_docs_promise() -> None:
    assert {"grpo", "entreg", "aent"} <= set(PRESETS)
    assert {"cpu_arithmetic", "qwen2.5_math_1.5b_math", "r1_distill_qwen_1.5b_openr1"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_preset_works_with_every_experiment_without_a_warning(preset: str, experiment: str) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    cfg = composed(f"experiment={experiment}", f"entropy_control={preset}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        parsed = actor_config(cfg).entropy_control
    assert parsed is not None
    assert parsed.method == preset
    validate_config(cfg, use_reference_policy=need_reference_policy(cfg), use_critic=need_critic(cfg))


@pytest.mark.parametrize("path", sorted((CONFIG / "entropy_control").glob("*.yaml")), ids=lambda p: p.stem)
def test_presets_are_short_and_start_with_what_they_are(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# ")
    if path.stem != "base":
        assert len(lines) <= 20
        assert f"entropy_control={path.stem}" in "\n".join(lines[:4])


def test_grpo_is_no_control() -> None:
    parsed = control("entropy_control=grpo")
    assert parsed.controller == ConstantController(init=0.0)
    assert parsed.functional == FunctionalConfig("full")


def test_aent_defaults_to_the_papers_first_setting() -> None:
    parsed = control("entropy_control=aent")
    assert parsed.functional == FunctionalConfig("clamped", 0.33)
    assert parsed.controller == BandController(
        init=0.002, low=0.15, high=0.24, lr=0.002, warmup_steps=30, min=0.0006, max=0.009, reg=0.0
    )


@pytest.mark.parametrize(
    ("experiment", "clamp_p", "controller", "batch"),
    [
        (
            "qwen2.5_math_1.5b_math",
            0.33,
            {"init": 0.002, "low": 0.15, "high": 0.24, "lr": 0.002, "warmup_steps": 30, "min": 0.0006, "max": 0.009},
            (512, 128, 16, 2e-6, 1024, 3072, 30, 20),
        ),
        (
            "r1_distill_qwen_1.5b_openr1",
            0.25,
            {"init": 3e-4, "low": 0.35, "high": 0.62, "lr": 1e-4, "warmup_steps": 156, "min": 4e-5, "max": 1e-3},
            (256, 64, 8, 1e-6, 1024, 7168, 6, -1),
        ),
    ],
)
def test_published_numbers(experiment: str, clamp_p: float, controller: dict[str, Any], batch: tuple[Any, ...]) -> None:
    cfg = composed(f"experiment={experiment}", "entropy_control=aent")
    parsed = actor_config(cfg).entropy_control
    assert parsed is not None
    assert parsed.functional == FunctionalConfig("clamped", clamp_p)
    assert parsed.controller == BandController(**controller, reg=0.0)
    actor, rollout = cfg.actor_rollout_ref.actor, cfg.actor_rollout_ref.rollout
    assert batch == (
        cfg.data.train_batch_size,
        actor.ppo_mini_batch_size,
        rollout.n,
        actor.optim.lr,
        cfg.data.max_prompt_length,
        cfg.data.max_response_length,
        cfg.trainer.total_epochs,
        rollout.val_kwargs.top_k,
    )
    assert (rollout.val_kwargs.temperature, rollout.val_kwargs.top_p, rollout.val_kwargs.n) == (0.6, 0.95, 4)
    assert rollout.val_kwargs.do_sample
    assert not actor.use_kl_loss
    assert not cfg.algorithm.use_kl_in_reward
    assert cfg.algorithm.norm_adv_by_std_in_grpo
    assert actor.clip_ratio == 0.2


def test_axes_can_be_combined() -> None:
    parsed = control("entropy_control=entreg", "entropy_control/controller=band", "entropy_control/functional=clamped")
    assert isinstance(parsed.controller, BandController)
    assert parsed.functional.name == "clamped"


def test_verl_overrides_work_beside_ours() -> None:
    cfg = composed("actor_rollout_ref.actor.optim.lr=3e-5", "entropy_control.bonus.controller.low=0.1", *MICRO_BATCHES)
    parsed = actor_config(cfg)
    assert parsed.optim.lr == 3e-5
    assert parsed.entropy_control is not None
    assert parsed.entropy_control.controller.low == 0.1  # type: ignore[union-attr]


KEY = "entropy_control.bonus.controller"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["entropy_control.functional.clamp_p=1.0"], r"entropy_control\.functional\.clamp_p=1\.0 .*\[0, 1\)"),
        (["entropy_control.functional.clamp_p=-0.1"], r"entropy_control\.functional\.clamp_p=-0\.1 .*\[0, 1\)"),
        (["entropy_control.functional.clamp_p=null"], r"entropy_control\.functional\.clamp_p=None .*\[0, 1\)"),
        (["entropy_control.functional.clamp_p=abc"], r"entropy_control\.functional\.clamp_p='abc' .*\[0, 1\)"),
        (["entropy_control.functional.name=other"], r"entropy_control\.functional\.name='other' .*full, clamped"),
        (["entropy_control.bonus.name=other"], r"entropy_control\.bonus\.name='other' .*linear"),
        ([f"{KEY}.low=0.5"], rf"{KEY}\.high=0\.24 .*>= low=0\.5"),
        ([f"{KEY}.min=1"], rf"{KEY}\.max=0\.009 .*>= min=1"),
        ([f"{KEY}.init=1"], rf"{KEY}\.init=1 .*in \[min, max\] = \[0\.0006, 0\.009\]"),
        ([f"{KEY}.lr=-1"], rf"{KEY}\.lr=-1 .*>= 0"),
        ([f"{KEY}.lr=null"], rf"{KEY}\.lr=None .*needs a number"),
        ([f"{KEY}.warmup_steps=2.5"], rf"{KEY}\.warmup_steps=2\.5 .*integer >= 0"),
        ([f"{KEY}.name=pid"], rf"{KEY}\.name='pid' .*constant, band"),
        ([f"+{KEY}.gain=1"], rf"{KEY}\.gain is not a known key"),
        (["entropy_control.restart_controller=maybe"], r"entropy_control\.restart_controller='maybe' .*true or false"),
        (["trainer.use_v1=false"], r"trainer\.use_v1=False .*v1 trainers"),
        (["trainer.v1.trainer_mode=sync"], r"trainer\.v1\.trainer_mode='sync' .*aent_sync"),
        (["trainer.v1.trainer_mode=colocate_async"], r"trainer\.v1\.trainer_mode='colocate_async' .*aent_sync"),
        (["distillation.enabled=true"], r"distillation\.enabled=True"),
        (["actor_rollout_ref.actor.strategy=megatron"], r"actor\.strategy='megatron' .*fsdp or fsdp2"),
        (["model_engine=megatron"], r"actor\.strategy='megatron' .*fsdp or fsdp2"),
        (["actor_rollout_ref.actor.entropy_coeff=0.001"], r"actor\.entropy_coeff=0\.001 .*must be 0"),
        (["platform=cpu", "entropy_control.kernel=triton"], r"entropy_control\.kernel='triton' .*use auto or torch"),
        (["entropy_control.kernel=cuda"], r"entropy_control\.kernel='cuda' .*auto, triton, torch"),
        (
            ["actor_rollout_ref.actor.ulysses_sequence_parallel_size=2"],
            r"ulysses_sequence_parallel_size=2 .*without flash-attn",
        ),
        (
            ["actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size=2"],
            r"ulysses_sequence_parallel_size=2 .*without flash-attn",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_illegal_settings_name_key_value_and_range(overrides: list[str], message: str) -> None:
    """Both ways in: our own entry parses the block; verl's main_ppo builds the actor's config."""
    with pytest.raises(Exception, match=message) as caught:
        control(*overrides)
    assert not isinstance(caught.value, HydraException) or "Error in call to target" in str(caught.value)


def test_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(HydraException, match=r"(?s)Could not find 'entropy_control/nothing'.*aent"):
        composed("entropy_control=nothing")


def test_unknown_key_is_refused_when_composing() -> None:
    with pytest.raises(HydraException, match="gain"):
        composed("entropy_control.bonus.controller.gain=1")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["entropy_control=grpo", "entropy_control.functional.clamp_p=0.3"], r"clamp_p=0\.3 has no effect"),
        (["entropy_control=entreg", f"{KEY}.low=0.1"], rf"{KEY}\.low=0\.1 has no effect"),
        (["actor_rollout_ref.actor.calculate_entropy=true"], r"calculate_entropy=True has no effect"),
    ],
    ids=str,
)
def test_settings_without_effect_warn(overrides: list[str], message: str) -> None:
    with pytest.warns(NoEffectWarning, match=message):
        control(*overrides)


def test_presets_reach_verls_own_entry() -> None:
    """``python -m verl.trainer.main_ppo hydra.searchpath=[pkg://aent_verl._config] +entropy_control=aent``."""
    with initialize_config_module("verl.trainer.config", version_base=None):
        cfg = compose(
            "ppo_trainer",
            overrides=["hydra.searchpath=[pkg://aent_verl._config]", "+entropy_control=aent", *MICRO_BATCHES],
        )
    assert cfg.trainer.v1.trainer_mode == "aent_sync"
    parsed = actor_config(cfg).entropy_control
    assert parsed is not None
    assert parsed.method == "aent"


def test_the_block_reaches_the_workers_resolved() -> None:
    cfg = composed(*MICRO_BATCHES)
    OmegaConf.resolve(cfg)
    block = OmegaConf.to_container(cfg.actor_rollout_ref.actor.entropy_control)
    assert isinstance(block, dict)
    assert block["host"] == {
        "use_v1": True,
        "trainer_mode": "aent_sync",
        "distillation": False,
        "device": "cuda",
        "attention": "flash_attention_2",
    }
    assert EntropyControlConfig.parse(block).method == "aent"
