"""Every invalid value fails with key, value and range; pairs without meaning are refused; no effect warns."""

import sys
import warnings

import pytest
from hydra.errors import HydraException, InstantiationException

from aent_verl.core.controllers import (
    BandController,
    LinearDecayController,
    StageController,
)
from aent_verl.methods.axes import Linear, PeakTokens, ThresholdDifficulty
from aent_verl.methods.parsing import NoEffectWarning
from tests.config.composing import MICRO_BATCHES, actor_config, composed, control

KEY = "entropy_control.bonus.controller"
ACTOR = "actor_rollout_ref.actor"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["entropy_control.functional.clamp_p=1.0"], r"entropy_control\.functional\.clamp_p=1\.0 .*\[0, 1\)"),
        (["entropy_control.functional.clamp_p=-0.1"], r"entropy_control\.functional\.clamp_p=-0\.1 .*\[0, 1\)"),
        (["entropy_control.functional.clamp_p=null"], r"entropy_control\.functional\.clamp_p=None .*\[0, 1\)"),
        (["entropy_control.functional.clamp_p=abc"], r"entropy_control\.functional\.clamp_p='abc' .*\[0, 1\)"),
        (
            ["entropy_control.functional.name=other"],
            r"entropy_control\.functional\.name='other' .*full, clamped, nucleus",
        ),
        (
            ["entropy_control/functional=nucleus", "entropy_control.functional.top_p=1"],
            r"entropy_control\.functional\.top_p=1\.0 .*\(0, 1\)",
        ),
        (["entropy_control.bonus.name=other"], r"entropy_control\.bonus\.name='other' .*linear, anchored, smoothed"),
        (["entropy_control=epo", "entropy_control.bonus.low=abc"], r"entropy_control\.bonus\.low='abc' .*>= 0"),
        (["entropy_control=epo", "entropy_control.bonus.low=-1"], r"entropy_control\.bonus\.low=-1 .*>= 0"),
        (["entropy_control=epo", "entropy_control.bonus.high=-1"], r"entropy_control\.bonus\.high=-1 .*>= low=0\.0"),
        (["entropy_control=epo", "entropy_control.bonus.gamma=-1"], r"entropy_control\.bonus\.gamma=-1 .*>= 0"),
        (["entropy_control=epo", "entropy_control.bonus.gamma=null"], r"entropy_control\.bonus\.gamma=None .*a number"),
        (["entropy_control.bonus.loss_agg_mode=mean"], r"entropy_control\.bonus\.loss_agg_mode='mean' .*token-mean"),
        (["entropy_control.bonus.token_mask.name=few"], r"bonus\.token_mask\.name='few' .*all, peak"),
        (
            ["entropy_control/token_mask=peak", "entropy_control.bonus.token_mask.quantile=1"],
            r"bonus\.token_mask\.quantile=1 .*in \[0, 1\)",
        ),
        (["entropy_control.bonus.sample_weight.name=x"], r"sample_weight\.name='x' .*uniform, difficulty_linear"),
        (
            ["entropy_control/sample_weight=difficulty_threshold", "entropy_control.bonus.sample_weight.threshold=2"],
            r"bonus\.sample_weight\.threshold=2 .*in \[0, 1\]",
        ),
        (["entropy_control.advantages.name=x"], r"entropy_control\.advantages\.name='x' .*none, positive_reweight"),
        (
            ["entropy_control=repo_r", "entropy_control.advantages.controller.min=0"],
            r"advantages\.controller\.min=0 .*> 0",
        ),
        (["entropy_control=steer", "entropy_control.advantages.w_min=0"], r"advantages\.w_min=0 .*in \(0, 1\]"),
        (["entropy_control=steer", "entropy_control.advantages.floor=0"], r"advantages\.floor=0 .*> 0"),
        (["entropy_control=entropy_adv", "entropy_control.advantages.scale=-1"], r"advantages\.scale=-1 .*>= 0"),
        (["entropy_control=entropy_adv", "entropy_control.advantages.kappa=0"], r"advantages\.kappa=0 .*> 0"),
        (["entropy_control=progrpo", "entropy_control.advantages.scale=-1"], r"advantages\.scale=-1 .*>= 0"),
        (["entropy_control=progrpo", "entropy_control.advantages.share=0"], r"advantages\.share=0 .*in \(0, 1\]"),
        (
            ["entropy_control=par_entropy", "entropy_control.advantages.controller.max=2"],
            r"advantages\.controller\.max=2 .*<= 1",
        ),
        (
            ["entropy_control.advantages.controller.name=band"],
            r"advantages\.controller\.name='band' .*constant, linear_",
        ),
        (["entropy_control.token_dump=-1"], r"entropy_control\.token_dump=-1 .*whole number from 0"),
        ([f"{KEY}.low=0.5"], rf"{KEY}\.high=0\.24 .*>= low=0\.5"),
        ([f"{KEY}.min=1"], rf"{KEY}\.max=0\.009 .*>= min=1"),
        ([f"{KEY}.init=1"], rf"{KEY}\.init=1 .*in \[min, max\] = \[0\.0006, 0\.009\]"),
        ([f"{KEY}.lr=-1"], rf"{KEY}\.lr=-1 .*>= 0"),
        ([f"{KEY}.lr=null"], rf"{KEY}\.lr=None .*needs a number"),
        ([f"{KEY}.warmup_steps=2.5"], rf"{KEY}\.warmup_steps=2\.5 .*integer >= 0"),
        ([f"{KEY}.name=pid"], rf"{KEY}\.name='pid' .*constant, band, step_to_target"),
        ([f"+{KEY}.gain=1"], rf"{KEY}\.gain is not a known key"),
        (["entropy_control.restart_controller=maybe"], r"entropy_control\.restart_controller='maybe' .*true or false"),
        (["trainer.use_v1=false"], r"trainer\.use_v1=False .*v1 trainers"),
        (["trainer.v1.trainer_mode=aent_synch"], r"trainer\.v1\.trainer_mode='aent_synch' .*aent_sync"),
        (["trainer.v1.trainer_mode=async"], r"trainer\.v1\.trainer_mode='async' .*separate_async, aent_separate_async"),
        (["distillation.enabled=true"], r"distillation\.enabled=True"),
        (["actor_rollout_ref.actor.strategy=megatron"], r"actor\.strategy='megatron' .*fsdp or fsdp2"),
        (["platform=cpu", "actor_rollout_ref.actor.strategy=fsdp"], r"actor\.strategy='fsdp' .*set it to fsdp2"),
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
def test_invalid_settings_name_key_value_and_range(overrides: list[str], message: str) -> None:
    """Both ways in: our own entry parses the block; verl's main_ppo builds the actor's config."""
    with pytest.raises(Exception, match=message) as caught:
        control(*overrides)
    assert not isinstance(caught.value, HydraException) or "Error in call to target" in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        *(
            ([f"entropy_control={p}", f"actor_rollout_ref.actor.policy_loss.loss_mode={mode}"], "weight on the loss")
            for p in ("par_stage", "steer")
            for mode in ("aent_clip_cov", "aent_kl_cov", "clip_cov", "kl_cov", "geo_mean", "dro")
        ),
        *(
            (["entropy_control=siren", f"entropy_control/controller={name}"], "pulls down as well as up")
            for name in ("band", "step_to_target", "anchored_target")
        ),
        *(
            ([f"entropy_control={p}", "algorithm.rollout_correction.bypass_mode=true"], "which that mode leaves out")
            for p in ("siren", "aer", "ares")
        ),
        (
            [
                "entropy_control=siren",
                "entropy_control.bonus.loss_agg_mode=null",
                "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
            ],
            "width of each padded micro-batch",
        ),
        (
            ["entropy_control=aent", "entropy_control.bonus.loss_agg_mode=seq-mean-token-sum-norm"],
            "loss_agg_mode='seq-mean-token-sum-norm' is not allowed with .*linear unless .*loss_scale_factor is set",
        ),
    ],
    ids=str,
)
def test_combinations_without_meaning_are_refused_with_the_reason(overrides: list[str], reason: str) -> None:
    with pytest.raises(HydraException, match=reason):
        control(*overrides)


PAR = ["entropy_control/advantages=positive_reweight", "entropy_control/advantages_controller=stage"]


@pytest.mark.parametrize("mode", ["vanilla", "gspo", "cispo", "sapo", "gpg"])
def test_aent_works_with_every_loss_and_with_par(mode: str) -> None:
    loss = f"actor_rollout_ref.actor.policy_loss.loss_mode={mode}"
    parsed = control("entropy_control=aent", loss, *PAR)
    assert isinstance(parsed.bonus.controller, BandController)
    assert parsed.advantages.controller == StageController()


def test_axes_of_the_bonus_can_be_typed() -> None:
    peaks = control("entropy_control=aent", "entropy_control/token_mask=peak").bonus
    assert (peaks.form, peaks.token_mask) == (Linear(), PeakTokens(quantile=0.8))
    hard = control("entropy_control=aent", "entropy_control/sample_weight=difficulty_threshold").bonus
    assert hard.sample_weight == ThresholdDifficulty(threshold=0.5)
    anchored = control("entropy_control=siren", "entropy_control/controller=linear_decay").bonus
    assert isinstance(anchored.controller, LinearDecayController)


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
        (
            ["entropy_control=grpo", "entropy_control/advantages_controller=stage"],
            r"advantages\.controller.* no effect",
        ),
        (["entropy_control=siren", "entropy_control.functional.clamp_p=0.3"], r"clamp_p=0\.3 has no effect"),
        (["entropy_control=grpo", "entropy_control/advantages=positive_reweight"], "keeps its coefficient at 1"),
        (["entropy_control=grpo", "entropy_control/token_mask=peak"], r"bonus\.token_mask=.*adds no bonus to the loss"),
        (["entropy_control=grpo", "entropy_control/bonus=smoothed"], r"bonus\.name=.*adds no bonus to the loss"),
        (
            ["entropy_control=par_stage", "entropy_control/sample_weight=difficulty_linear"],
            r"bonus\.sample_weight=.*adds no bonus to the loss",
        ),
        (
            ["entropy_control=grpo", "entropy_control.bonus.loss_agg_mode=token-sum"],
            r"loss_agg_mode='token-sum' has no",
        ),
        (["entropy_control=par_stage", "entropy_control/controller=linear_decay"], r"controller\.final=0\.0 has no"),
        (["entropy_control=aer", "actor_rollout_ref.rollout.n=1"], r"rollout\.n=1 makes every group a single sample"),
        *(
            ([f"entropy_control={preset}", "data.train_batch_size=64", f"{ACTOR}.ppo_mini_batch_size={size}"], message)
            for preset, message in (
                ("kl_cov", "loss_mode='aent_kl_cov' has no effect.*strictly on-policy"),
                ("clip_higher", r"clip_ratio_high=0\.28 has no effect.*strictly on-policy"),
                ("progrpo", r"clip_ratio_high=0\.28 has no effect.*strictly on-policy"),
            )
            # verl fills a larger mini-batch with empty rows.
            for size in (64, 65, 256)
        ),
        (
            [
                *("entropy_control=kl_cov", "trainer.v1.trainer_mode=aent_colocate_async"),
                *("data.train_batch_size=64", f"{ACTOR}.ppo_mini_batch_size=64"),
            ],
            "loss_mode='aent_kl_cov' has no effect.*old log-probs are of the weights that are updated",
        ),
        (
            ["entropy_control=aent", f"{KEY}.lr=0"],
            r"controller\.lr=0\.0 has no effect.*never moves",
        ),
        (["entropy_control=skywork", f"{KEY}.step_size=0"], r"step_size=0\.0 has no effect"),
        (
            ["entropy_control=par_entropy", "entropy_control.advantages.controller.step_size=0"],
            r"step_size=0\.0 has no",
        ),
        (["entropy_control=aent", f"{KEY}.min=0.002", f"{KEY}.max=0.002"], r"max=0\.002 has no"),
        (
            [
                *("entropy_control=aent", "entropy_control/token_mask=peak"),
                *(f"{KEY}.{name}=0" for name in ("init", "min", "max")),
            ],
            r"bonus\.token_mask=.*adds no bonus",
        ),
        (["actor_rollout_ref.actor.calculate_entropy=true"], r"calculate_entropy=True has no effect"),
    ],
    ids=str,
)
def test_settings_without_effect_warn(overrides: list[str], message: str) -> None:
    with pytest.warns(NoEffectWarning, match=message):
        control(*overrides)


@pytest.mark.parametrize(
    "off_policy",
    [
        [f"{ACTOR}.ppo_mini_batch_size=32"],
        [f"{ACTOR}.ppo_mini_batch_size=64", f"{ACTOR}.ppo_epochs=2"],
        [f"{ACTOR}.ppo_mini_batch_size=64", "algorithm.rollout_correction.bypass_mode=true"],
    ],
    ids=str,
)
@pytest.mark.parametrize("preset", ["kl_cov", "clip_higher", "progrpo"])
def test_with_ratios_other_than_one_they_have_an_effect(preset: str, off_policy: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        control(f"entropy_control={preset}", "data.train_batch_size=64", "actor_rollout_ref.rollout.n=4", *off_policy)


def test_methods_that_act_through_more_than_the_ratio_say_nothing() -> None:
    """Clip-Cov drops tokens whatever the ratio; its clip range of 1 on both sides is not a range to miss."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NoEffectWarning)
        for preset in ("clip_cov", "entropy_adv", "par_stage", "aent"):
            control(f"entropy_control={preset}", "data.train_batch_size=64", f"{ACTOR}.ppo_mini_batch_size=64")


def test_a_plug_in_that_lacks_a_package_stops_the_run_by_name(monkeypatch: pytest.MonkeyPatch):
    """verl only logs at DEBUG that a plug-in cannot be imported."""
    cfg = composed(*MICRO_BATCHES)
    monkeypatch.setitem(sys.modules, "wrapt", None)
    with pytest.raises(InstantiationException, match=r"entropy control needs wrapt: pip install .*\[verl\]"):
        actor_config(cfg)
