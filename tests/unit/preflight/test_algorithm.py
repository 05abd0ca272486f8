"""Settings of the algorithm against what verl's v1 trainers compute."""

import pytest
import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est

from aent_verl.preflight import algorithm, schema
from tests.unit.preflight.finding import config, findings, stops, stops_and_warns

ESTIMATOR, N = "algorithm.adv_estimator", "actor_rollout_ref.rollout.n"
ACTOR = "actor_rollout_ref.actor"
KL_IN_REWARD, KL_LOSS = "algorithm.use_kl_in_reward", f"{ACTOR}.use_kl_loss"
# They need rewards or statistics that no v1 trainer computes.
FAULTY = {"gdpo", "remax", "optimal_token_baseline", "tir_optimal_token_baseline"}


def of(*overrides):
    return config(f"{N}=4", *overrides)


def keys(*overrides):
    return stops_and_warns(algorithm.check, of(*overrides))


@pytest.mark.parametrize("name", sorted(ADV_ESTIMATOR_REGISTRY))
def test_every_estimator_of_the_registry_tells_scores_apart_or_stops(name):
    cfg = of(f"{ESTIMATOR}={name}")
    assert stops(algorithm.check, cfg) == ({ESTIMATOR} if name in FAULTY else set())
    if name not in FAULTY:
        tried = algorithm.trial(cfg, name)
        assert torch.isfinite(tried.advantages).all()
        assert tried.mean(1.0) > tried.mean(0.0) + 0.1


@pytest.mark.parametrize("name", sorted(ADV_ESTIMATOR_REGISTRY))
def test_resampling_stops_with_every_estimator(name):
    assert "algorithm.use_pf_ppo" in keys("algorithm.use_pf_ppo=true", f"{ESTIMATOR}={name}")[0]


def test_what_resampling_does():
    """Rows that scored 0 get the advantages of rows that scored 1."""
    cfg = of(f"{ESTIMATOR}=gae")
    assert algorithm.trial(cfg, "gae").mean(0.0) < 0
    assert algorithm.trial(cfg, "gae", use_pf_ppo=True).mean(0.0) > 0.9


def test_an_estimator_of_another_package_that_ignores_the_scores():
    @register_adv_est("ignores_scores")
    def ignores_scores(token_level_rewards, response_mask, config, **kwargs):
        return response_mask.float(), response_mask.float()

    try:
        cfg = of(f"{ESTIMATOR}=ignores_scores")
        assert "answers that score 1 and 0 get the advantages 1 and 1" in str(findings(algorithm.check, cfg)[ESTIMATOR])
    finally:
        del ADV_ESTIMATOR_REGISTRY["ignores_scores"]


def test_one_sample_a_prompt():
    one = f"{N}=1"
    assert keys(one) == (set(), {N})
    assert keys(one, f"{ESTIMATOR}=rloo_vectorized")[0] == {ESTIMATOR}  # its advantages are all 0
    assert keys(one, f"{ESTIMATOR}=grpo_passk")[0] == {ESTIMATOR}
    assert keys(one, f"{ESTIMATOR}=reinforce_plus_plus") == (set(), set())


@pytest.mark.parametrize(
    ("overrides", "stop", "warn"),
    [
        (("algorithm.norm_adv_by_std_in_grpo=false",), set(), set()),
        # verl's trainers pass it to grpo alone, though these two have the parameter.
        (
            ("algorithm.norm_adv_by_std_in_grpo=false", f"{ESTIMATOR}=grpo_vectorized"),
            {"algorithm.norm_adv_by_std_in_grpo"},
            set(),
        ),
        (("algorithm.norm_adv_by_std_in_grpo=false", f"{ESTIMATOR}=grpo_passk"), set(), set()),
        (
            ("algorithm.norm_adv_by_std_in_grpo=false", f"{ESTIMATOR}=rloo"),
            set(),
            {"algorithm.norm_adv_by_std_in_grpo"},
        ),
        (("algorithm.lam=0.95", "algorithm.gamma=0.9"), set(), {"algorithm.lam", "algorithm.gamma"}),
        (("algorithm.lam=0.95", "algorithm.gamma=0.9", f"{ESTIMATOR}=gae"), set(), set()),
        (
            ("algorithm.lam=0.95", "algorithm.gamma=0.9", f"{ESTIMATOR}=reinforce_plus_plus"),
            set(),
            {"algorithm.lam"},
        ),
        (("trainer.critic_warmup=5",), {"trainer.critic_warmup"}, set()),
        (("trainer.critic_warmup=1",), set(), set()),  # steps are counted from 1
        (("trainer.critic_warmup=5", f"{ESTIMATOR}=gae"), set(), set()),
        (
            ("trainer.critic_warmup=5", f"{ESTIMATOR}=gae", "trainer.total_training_steps=4"),
            {"trainer.critic_warmup"},
            set(),
        ),
        (("critic.optim.lr=2e-5", "critic.ppo_epochs=2"), set(), {"critic.optim.lr"}),
        (("critic.optim.lr=2e-5", f"{ESTIMATOR}=gae"), set(), set()),
        (("critic.enable=true",), set(), {"critic.enable"}),
        (("critic.enable=false", f"{ESTIMATOR}=gae"), {ESTIMATOR}, {"critic.enable"}),
        ((f"{KL_IN_REWARD}=true", f"{KL_LOSS}=true"), set(), {KL_IN_REWARD}),
        ((f"{KL_IN_REWARD}=true", "algorithm.kl_ctrl.type=adaptive"), set(), {"algorithm.kl_ctrl.type"}),
        ((f"{KL_IN_REWARD}=true", "algorithm.kl_ctrl.target_kl=0.2"), set(), {"algorithm.kl_ctrl.target_kl"}),
        ((f"{KL_IN_REWARD}=true", "algorithm.kl_ctrl.kl_coef=0"), set(), {"algorithm.kl_ctrl.kl_coef"}),
        ((f"{KL_LOSS}=true", f"{ACTOR}.kl_loss_coef=0"), set(), {f"{ACTOR}.kl_loss_coef"}),
        (
            ("algorithm.kl_ctrl.kl_coef=0.1", "algorithm.kl_penalty=abs", f"{ACTOR}.kl_loss_coef=0.01"),
            set(),
            {"algorithm.kl_ctrl.kl_coef", "algorithm.kl_penalty", f"{ACTOR}.kl_loss_coef"},
        ),
        (
            ("actor_rollout_ref.ref.fsdp_config.param_offload=true",),
            set(),
            {"actor_rollout_ref.ref.fsdp_config.param_offload"},
        ),
        (("actor_rollout_ref.ref.fsdp_config.param_offload=true", f"{KL_LOSS}=true"), set(), set()),
        # The reference's budget follows the actor's by interpolation.
        ((f"{ACTOR}.ppo_max_token_len_per_gpu=8192",), set(), set()),
        ((f"{ACTOR}.clip_ratio=0.3",), {f"{ACTOR}.clip_ratio"}, set()),
        ((f"{ACTOR}.clip_ratio=0.3", "entropy_control=clip_higher"), set(), {f"{ACTOR}.clip_ratio"}),
        ((f"{ACTOR}.clip_ratio=0.3", f"{ACTOR}.clip_ratio_low=0.3", f"{ACTOR}.clip_ratio_high=0.3"), set(), set()),
        (
            (f"{ACTOR}.clip_ratio=0.3", f"{ACTOR}.clip_ratio_low=null", f"{ACTOR}.clip_ratio_high=null"),
            set(),
            set(),
        ),
    ],
)
def test_settings_that_do_something_else_or_nothing(overrides, stop, warn):
    assert keys(*overrides) == (stop, warn)


GROUPS = "algorithm.filter_groups"


@pytest.mark.parametrize(
    ("overrides", "stop", "warn"),
    [
        ((f"{GROUPS}.enable=true",), set(), set()),
        ((f"{GROUPS}.enable=true", f"{GROUPS}.metric=null"), {f"{GROUPS}.metric"}, set()),
        ((f"{GROUPS}.enable=true", "reward.reward_model.enable=true"), {f"{GROUPS}.enable"}, set()),
        ((f"{GROUPS}.metric=acc",), set(), {f"{GROUPS}.metric"}),
    ],
)
def test_filtering_of_groups(overrides, stop, warn):
    assert keys(*overrides) == (stop, warn)


@pytest.mark.parametrize("platform", [(), ("platform=cpu",)])
def test_the_default_config_gives_no_finding(platform):
    assert keys(*platform) == (set(), set())


def test_one_look_names_every_key():
    stop, warn = keys(
        "algorithm.use_pf_ppo=true", f"{ESTIMATOR}=remax", f"{ACTOR}.clip_ratio=0.3", "critic.ppo_epochs=2"
    )
    assert stop == {"algorithm.use_pf_ppo", ESTIMATOR, f"{ACTOR}.clip_ratio"}
    assert warn == {"critic.ppo_epochs"}


def test_a_resolved_config_changes_no_setting():
    cfg = config(f"{ACTOR}.use_dynamic_bsz=true")
    OmegaConf.resolve(cfg)
    assert schema.changed(cfg, "actor_rollout_ref.ref.log_prob_use_dynamic_bsz") == {}
    assert schema.changed(cfg, ACTOR)[f"{ACTOR}.use_dynamic_bsz"] is True
