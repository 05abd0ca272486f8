"""Every shipped YAML composes and means what it says; every invalid value fails with key, value and range."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from omegaconf import OmegaConf

from aent_verl.core.controllers import (
    AnchoredTargetController,
    BandController,
    ConstantController,
    Controller,
    DoublingController,
    EntropyGuidedController,
    EpochController,
    LinearDecayController,
    StageController,
    StepToTargetController,
)
from aent_verl.methods.axes import (
    Anchored,
    EntropyAdvantage,
    Linear,
    LinearDifficulty,
    PeakTokens,
    PositiveReweight,
    ProGRPO,
    RepoR,
    Smoothed,
    Steer,
    Unchanged,
)
from aent_verl.methods.parsing import NoEffectWarning, parse
from aent_verl.methods.settings import FunctionalConfig
from tests.config.composing import MICRO_BATCHES, actor_config, composed, control

CONFIG = Path(__file__).parents[2] / "config"
PRESETS = sorted(p.stem for p in (CONFIG / "entropy_control").glob("*.yaml") if p.stem != "base")
EXPERIMENTS = sorted(p.stem for p in (CONFIG / "experiment").glob("*.yaml"))


def test_what_these_tests_compose_is_a_copy_of_what_hydra_composes(monkeypatch: pytest.MonkeyPatch) -> None:
    """See tests/hydra_cache.py, and tests/config/composing.py for values that are set afterwards."""
    overrides = ("experiment=cpu_arithmetic", "trainer.nnodes=2", "entropy_control=siren", "+run.extra={a: [1, b]}")
    remembered = composed(*overrides)
    remembered.trainer.device = "changed"
    remembered = composed(*overrides)
    source: Any = SourcesRegistry.instance().resolve("pkg")
    for place, name in ((ConfigLoaderImpl, "load_configuration"), (source, "load_config")):
        monkeypatch.setattr(place, name, getattr(place, name).__wrapped__)
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        plain = compose("aent_trainer", overrides=list(overrides))
    assert OmegaConf.to_yaml(remembered) == OmegaConf.to_yaml(plain)
    assert OmegaConf.is_struct(remembered.trainer) == OmegaConf.is_struct(plain.trainer)


def test_presets_are_what_the_docs_promise() -> None:
    family = "grpo entreg aent skywork aer par_stage par_epoch par_entropy clip_cov kl_cov siren steer epo entropy_adv"
    assert set(PRESETS) == set(family.split()) | {"progrpo", "clip_higher", "linear_decay", "repo_r", "tre", "ares"}
    assert {"cpu_arithmetic", "qwen2.5_math_1.5b_math", "r1_distill_qwen_1.5b_openr1"} <= set(EXPERIMENTS)


# Each experiment is in a fast pair, and the tests below compose each preset; the others compose, and so take, as long.
PAIRS = [
    pytest.param(experiment, preset, marks=[pytest.mark.slow] * (preset != "aent"))
    for experiment in EXPERIMENTS
    for preset in PRESETS
]


@pytest.mark.parametrize(("experiment", "preset"), PAIRS)
def test_every_preset_works_with_every_experiment_without_a_warning(experiment: str, preset: str) -> None:
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    overrides = [f"experiment={experiment}", f"entropy_control={preset}"]
    if preset in ("kl_cov", "clip_higher", "progrpo", "steer") and experiment.startswith("cpu"):
        # One mini-batch a step is strictly on-policy there: KL-Cov and clip ranges say that they have no effect.
        overrides.append("actor_rollout_ref.actor.ppo_mini_batch_size=2")
    cfg = composed(*overrides)
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
        assert "arXiv" in lines[1] or path.stem in ("grpo", "entreg", "linear_decay")
    if path.stem in ("aer", "progrpo", "repo_r"):
        assert "reconstructed" in lines[1]


def test_grpo_controls_nothing() -> None:
    parsed = control("entropy_control=grpo")
    assert parsed.bonus.controller == ConstantController(init=0.0)
    assert parsed.functional == FunctionalConfig("full")
    assert parsed.bonus.form == Linear()
    assert parsed.advantages.shaping == Unchanged()


OFF = ConstantController(init=0.0)


@pytest.mark.parametrize(
    ("preset", "functional", "form", "controller"),
    [
        ("entreg", "full", Linear(), ConstantController(init=0.001)),
        ("tre", "aent_verl.core.entropy:tre_entropy(top_p=0.99)", Linear(), ConstantController(init=0.001)),
        ("skywork", "full", Linear(), StepToTargetController(init=0.0, target=0.2, step_size=1e-4, min=0.0, max=0.005)),
        ("aer", "full", Linear(), AnchoredTargetController(init=0.0, tau=0.4, eta=1e-3, min=0.0, max=0.01)),
        ("siren", "nucleus(top_p=0.8)", Anchored(), ConstantController(init=0.005)),
        ("epo", "full", Smoothed(low=0.0, high=2.0, gamma=3.0), ConstantController(init=0.001)),
        ("linear_decay", "full", Linear(), LinearDecayController(init=0.001, final=0.0)),
    ],
)
def test_bonus_of_the_presets_is_the_published_one(
    preset: str, functional: str, form: Any, controller: Controller
) -> None:
    parsed = control(f"entropy_control={preset}")
    assert str(parsed.functional) == functional
    assert parsed.bonus.form == form
    assert parsed.bonus.controller == controller
    assert parsed.advantages.shaping == Unchanged()
    assert isinstance(parsed.bonus.sample_weight, LinearDifficulty) == (preset == "aer")
    assert (parsed.bonus.token_mask == PeakTokens(quantile=0.8)) == (preset == "siren")
    assert parsed.bonus.loss_agg_mode == ("seq-mean-token-mean" if preset == "siren" else None)


@pytest.mark.parametrize(
    ("preset", "shaping", "controller"),
    [
        ("par_stage", PositiveReweight(), StageController()),
        ("par_epoch", PositiveReweight(), EpochController()),
        ("par_entropy", PositiveReweight(), EntropyGuidedController(init=0.0, target=0.2, step_size=0.05)),
        ("steer", Steer(w_min=0.8, floor=0.02), ConstantController(init=1.0)),
        ("repo_r", RepoR(), DoublingController(init=0.01, target=0.2, min=0.001, max=0.1)),
        ("entropy_adv", EntropyAdvantage(scale=0.4, kappa=1.0), ConstantController(init=1.0)),
        ("progrpo", ProGRPO(scale=0.1, share=0.2), ConstantController(init=1.0)),
    ],
)
def test_advantages_of_the_presets_are_the_published_ones(preset: str, shaping: Any, controller: Controller) -> None:
    parsed = control(f"entropy_control={preset}")
    assert parsed.advantages.shaping == shaping
    assert parsed.advantages.controller == controller
    assert (parsed.bonus.form, parsed.bonus.controller) == (Linear(), OFF)


@pytest.mark.parametrize(
    ("preset", "mode", "clip", "settings"),
    [
        ("clip_cov", "aent_clip_cov", (1.0, 1.0), {"clip_cov_ratio": 2e-4, "clip_cov_lb": 1.0, "clip_cov_ub": 5.0}),
        ("kl_cov", "aent_kl_cov", (0.2, 0.2), {"kl_cov_ratio": 2e-3, "ppo_kl_coef": 1.0}),
        ("clip_higher", "vanilla", (0.2, 0.28), {}),
        ("progrpo", "vanilla", (0.2, 0.28), {}),
        ("steer", "vanilla", (0.2, 0.28), {}),
    ],
)
def test_policy_losses_of_the_presets_are_the_published_ones(
    preset: str, mode: str, clip: tuple[float, float], settings: dict[str, float]
) -> None:
    actor = actor_config(composed(*MICRO_BATCHES, f"entropy_control={preset}"))
    assert actor.policy_loss.loss_mode == mode
    assert (actor.clip_ratio_low, actor.clip_ratio_high) == clip
    assert actor.clip_ratio_c == (10.0 if preset == "steer" else 3.0)
    assert {key: actor.policy_loss.get(key) for key in settings} == settings
    assert actor.entropy_control is not None
    assert actor.entropy_control.bonus.controller == OFF


def test_aent_defaults_to_the_papers_first_setting() -> None:
    parsed = control("entropy_control=aent")
    assert parsed.functional == FunctionalConfig("clamped", 0.33)
    assert parsed.bonus.controller == BandController(
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
    assert parsed.bonus.controller == BandController(**controller, reg=0.0)
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
    assert isinstance(parsed.bonus.controller, BandController)
    assert parsed.functional.name == "clamped"


def test_verl_overrides_work_alongside_ours() -> None:
    cfg = composed("actor_rollout_ref.actor.optim.lr=3e-5", "entropy_control.bonus.controller.low=0.1", *MICRO_BATCHES)
    parsed = actor_config(cfg)
    assert parsed.optim.lr == 3e-5
    assert parsed.entropy_control is not None
    assert parsed.entropy_control.bonus.controller.low == 0.1  # type: ignore[union-attr]


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
        "bypass_mode": False,
        "train_batch_size": 1024,
        "rollout_n": 1,
        "token_dump_dir": "outputs/aent_verl/run_aent/tokens",
    }
    assert parse(block).method == "aent"


@pytest.mark.parametrize("experiment", [None, *EXPERIMENTS])
def test_two_methods_never_share_a_folder_by_default(experiment: str | None) -> None:
    chosen = [] if experiment is None else [f"experiment={experiment}"]
    # A preset's method is its name, which another test says of each.
    folders = {composed(*chosen, f"entropy_control={preset}").run.dir for preset in ("grpo", "entreg")}
    assert len(folders) == 2
