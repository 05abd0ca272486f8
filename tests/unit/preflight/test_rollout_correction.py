"""Rollout correction against what verl's v1 trainers and policy losses do with it."""

import inspect

import pytest
import torch
from hydra.errors import InstantiationException
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, get_policy_loss_fn
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.workers.engine.fsdp.transformer_impl import FSDPEngine

from aent_verl.plugin import losses
from aent_verl.preflight import rollout_correction
from aent_verl.preflight.rollout_correction import BY_HAND, BYPASS_LOSS, KEY, LOG_PROBS, POLICY_LOSS
from tests.config.composing import MICRO_BATCHES, actor_config
from tests.unit.preflight.finding import config, findings, stops, stops_and_warns

losses.register()

check = rollout_correction.check
BYPASS = f"{KEY}.bypass_mode=true"
LOSS = f"{POLICY_LOSS}.loss_mode={BYPASS_LOSS}"
HAND = [word.strip("'") for word in BY_HAND.split()]


def shorthand(*settings):
    return config(*(setting if "actor_rollout_ref" in setting else f"{KEY}.{setting}" for setting in settings))


@pytest.mark.parametrize(
    ("settings", "key", "says"),
    [
        (("bypass_mode=true", "loss_type=reinforce"), f"{KEY}.loss_type", "do not read it.*loss_mode=vanilla"),
        (
            ("bypass_mode=true", "rollout_rs=token_k1", "rollout_rs_threshold=2.0"),
            f"{KEY}.rollout_rs",
            "reject nothing",
        ),
        (("bypass_mode=true", f"{LOG_PROBS}=false"), LOG_PROBS, "first step would fail"),
        (("rollout_is=token", f"{LOG_PROBS}=false"), f"{KEY}.rollout_is", f"silently dropped: with {LOG_PROBS}=false"),
        (
            ("rollout_rs=seq_mean_k3", "rollout_rs_threshold=0.01", f"{LOG_PROBS}=false"),
            f"{KEY}.rollout_rs",
            "silently dropped",
        ),
        (("rollout_is=token", "rollout_is_threshold=null"), f"{KEY}.rollout_is_threshold", "leaves .* out"),
        (("rollout_rs=token_k1",), f"{KEY}.rollout_rs_threshold", "needs one"),
        (("rollout_is=tokens",), f"{KEY}.rollout_is", "verl refuses it"),
        (("rollout_rs=token_k2", "rollout_rs_threshold=0.5_2.0"), f"{KEY}.rollout_rs", "verl refuses it"),
        (("loss_type=reinforce",), f"{KEY}.loss_type", "belongs to .*bypass_mode=true"),
        (("loss_type=pg",), f"{KEY}.loss_type", "no such loss"),
        ((LOSS,), f"{POLICY_LOSS}.loss_mode", "drop the weights"),
    ],
)
def test_what_would_be_dropped_or_replaced_stops(settings, key, says):
    cfg = shorthand(*settings)
    assert stops(check, cfg) == {key}
    with pytest.raises(ValueError, match=says):
        raise findings(check, cfg)[key]


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (("rollout_is_threshold=3.0",), "rollout_is_threshold"),
        (("rollout_is_batch_normalize=true",), "rollout_is_batch_normalize"),
        (("rollout_rs_threshold=0.5",), "rollout_rs_threshold"),
        (("bypass_mode=true", "rollout_is=token"), "rollout_is"),
        (("rollout_rs=token_k1", "rollout_rs_threshold=2.0"), "rollout_rs"),
    ],
)
def test_what_does_less_than_one_may_think_warns(settings, key):
    cfg = shorthand(*settings)
    assert stops_and_warns(check, cfg) == (set(), {f"{KEY}.{key}"})


@pytest.mark.parametrize(
    "settings",
    [(), ("rollout_is=token",), ("rollout_is=sequence", "rollout_is_threshold=0.5_5.0"), ("bypass_mode=true",)],
)
def test_what_works_gives_no_finding(settings):
    assert findings(check, shorthand(*settings)) == {}


def test_rejected_tokens_stay_in_the_number_that_the_loss_is_divided_by():
    """The engine counts loss_mask; the trainer writes a rejection to response_mask."""
    assert 'batch_num_tokens = data["loss_mask"].sum()' in inspect.getsource(FSDPEngine.forward_backward_batch)
    trainer = inspect.getsource(PPOTrainer._compute_advantage)
    assert 'fields.append("response_mask")' in trainer
    assert "loss_mask" not in trainer


def test_no_rollout_correction_at_all():
    assert findings(check, config("algorithm.rollout_correction=null")) == {}


def loss_of(mode, actor, weights=None):
    generator = torch.Generator().manual_seed(0)
    old, new = (-torch.rand(2, 5, generator=generator) for _ in range(2))
    advantages = torch.tensor([[1.0], [-0.5]]).expand(2, 5)
    actor.chosen_tokens = torch.zeros(2, 5, dtype=torch.bool)
    mask = torch.ones(2, 5, dtype=torch.bool)
    loss, _ = get_policy_loss_fn(mode)(
        old_log_prob=old, log_prob=new, advantages=advantages, response_mask=mask, config=actor,
        loss_agg_mode="token-mean", rollout_is_weights=weights,
    )  # fmt: skip
    return float(loss), new, advantages


@pytest.mark.parametrize("mode", sorted(POLICY_LOSS_REGISTRY))
def test_every_policy_loss_uses_the_weights_but_the_one_that_the_check_knows(mode):
    """Ours for Clip-Cov and KL-Cov are in the registry, too."""
    actor = actor_config(config(*MICRO_BATCHES, f"{POLICY_LOSS}.loss_mode={mode}", f"+{POLICY_LOSS}.dro_beta=0.1"))
    plain, halved = loss_of(mode, actor)[0], loss_of(mode, actor, torch.full((2, 5), 0.5))[0]
    assert (plain == halved) == (mode == BYPASS_LOSS)


def test_both_losses_of_ours_are_walked():
    assert {"aent_clip_cov", "aent_kl_cov"} <= set(POLICY_LOSS_REGISTRY)


def test_in_bypass_mode_the_loss_does_not_find_the_block_by_itself():
    """What the check says of it, and that what it tells users to type makes verl compute REINFORCE."""
    wanted = [BYPASS, f"{KEY}.loss_type=reinforce", f"{KEY}.rollout_is=token"]
    alone = config(*wanted, LOSS)
    assert stops(check, alone) == {f"{KEY}.loss_type", f"{KEY}.rollout_is"}
    told = config(*MICRO_BATCHES, *wanted, *HAND)
    assert findings(check, told) == {}
    loss, log_prob, advantages = loss_of(BYPASS_LOSS, actor_config(told))
    found = actor_config(told).policy_loss.rollout_correction
    assert (found.get("loss_type"), found.get("rollout_is")) == ("reinforce", "token")
    ppo = loss_of("vanilla", actor_config(told))[0]
    assert loss != pytest.approx(ppo)
    # -A w log p with the weight w = p / p_rollout, truncated at 2.
    generator = torch.Generator().manual_seed(0)
    weight = (log_prob + torch.rand(2, 5, generator=generator)).exp().clamp(max=2.0)
    assert loss == pytest.approx(float((-advantages * weight * log_prob).mean()), rel=1e-5)


TRAINERS = (PPOTrainerSync, PPOTrainerColocateAsync, PPOTrainerSeparateAsync)
ASYNC = (pytest.param("aent_colocate_async", marks=pytest.mark.slow), "aent_separate_async")
# A bonus, the initial entropy in a bonus and in a controller, the mini-batch pass, a choice of tokens, rewards.
PRESETS = ("aent", "siren", "aer", "steer", "clip_cov", "ares")
INITIAL = {"siren", "aer"}
IS = {kind: f"{KEY}.rollout_is={kind}" for kind in ("token", "sequence")}
RS = (f"{KEY}.rollout_rs=token_k1", f"{KEY}.rollout_rs_threshold=2.0")


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_mode_applies_the_block_as_the_check_says(trainer):
    """The asynchronous modes inherit what applies it, and none hands it to the policy loss."""
    assert trainer._compute_advantage is PPOTrainer._compute_advantage
    assert trainer._update_actor is PPOTrainer._update_actor
    for each in (trainer, PPOTrainer):
        assert "apply_bypass_mode" not in inspect.getsource(inspect.getmodule(each))
    if trainer is PPOTrainerSeparateAsync:
        own = inspect.getsource(trainer._compute_old_log_prob)
        assert "if bypass_recomputing_logprobs:\n            return super()._compute_old_log_prob" in own
    else:
        assert trainer._compute_old_log_prob is PPOTrainer._compute_old_log_prob


def beside(preset, mode, *settings):
    mode = f"trainer.v1.trainer_mode={mode}"
    return config(*MICRO_BATCHES, f"entropy_control={preset}", mode, "actor_rollout_ref.rollout.n=4", *settings)


@pytest.mark.parametrize("mode", ASYNC)
@pytest.mark.parametrize("preset", PRESETS)
def test_weights_and_rejections_beside_each_kind_of_preset(preset, mode):
    for kind in IS.values():
        cfg = beside(preset, mode, kind)
        assert findings(check, cfg) == {}
        actor_config(cfg)
    found = findings(check, beside(preset, mode, *RS))
    assert set(found) == {f"{KEY}.rollout_rs"}
    text = str(found[f"{KEY}.rollout_rs"])
    assert ("measured before the first rejection" in text) == (preset in INITIAL)
    assert "shrink together by the accepted share" in text


@pytest.mark.parametrize("mode", ASYNC)
@pytest.mark.parametrize("preset", PRESETS)
def test_bypass_mode_beside_each_kind_of_preset(preset, mode):
    cfg = beside(preset, mode, BYPASS)
    assert findings(check, cfg) == {}
    if preset in INITIAL | {"ares"}:
        with pytest.raises(InstantiationException, match=r"bypass_mode=True is not allowed"):
            actor_config(cfg)
    else:
        actor_config(cfg)
    assert stops(check, beside(preset, mode, BYPASS, *RS)) == {f"{KEY}.rollout_rs"}
    assert stops_and_warns(check, beside(preset, mode, BYPASS, IS["token"])) == (set(), {f"{KEY}.rollout_is"})


def test_rejections_without_a_count_in_the_divisor_still_warn_of_the_initial_entropy():
    mean = "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean"
    assert findings(check, beside("aent", "aent_sync", *RS, mean)) == {}
    text = str(findings(check, beside("aer", "aent_sync", *RS, mean))[f"{KEY}.rollout_rs"])
    assert "measured before the first rejection" in text
    assert "shrink" not in text


@pytest.mark.parametrize("preset", ["clip_cov", "kl_cov"])
def test_a_method_that_is_a_policy_loss_is_not_replaced_by_another(preset):
    assert stops(check, beside(preset, "aent_sync", BYPASS, *HAND)) == {f"{POLICY_LOSS}.loss_mode"}
    for settings in ((BYPASS, f"{KEY}.loss_type=reinforce"), (BYPASS, *RS), (f"{KEY}.loss_type=reinforce",)):
        (error,) = findings(check, beside(preset, "aent_sync", *settings)).values()
        assert BYPASS_LOSS not in str(error).replace(BYPASS, "").replace(f"{KEY}.bypass_mode", "")


@pytest.mark.parametrize("mode", ["aent_sync", *ASYNC])
def test_rejections_inside_the_policy_loss_do_not_reach_the_bonus(mode):
    cfg = beside("aent", mode, BYPASS, *RS, *HAND)
    assert stops_and_warns(check, cfg) == (set(), {f"{POLICY_LOSS}.rollout_correction.rollout_rs"})
    assert findings(check, beside("aent", mode, BYPASS, IS["token"], *HAND)) == {}
    assert findings(check, beside("grpo", mode, BYPASS, *RS, *HAND)) == {}
