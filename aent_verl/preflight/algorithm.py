"""Settings of the algorithm that verl 0.9.1's v1 trainers compute otherwise than one would think, or drop."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight import estimators, rollout_correction
from aent_verl.preflight.defaults import changed, listed, shipped
from aent_verl.preflight.errors import Finding, PreflightError, PreflightWarning
from aent_verl.preflight.schema import has_critic

ACTOR = "actor_rollout_ref.actor"
ESTIMATOR = "algorithm.adv_estimator"
# Settings of the estimator: does this one react to them?
OF_ESTIMATOR = ("gamma", "lam", "norm_adv_by_std_in_grpo")


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Find settings of the algorithm that stop the run, compute something else, or do nothing."""
    yield from rollout_correction.check(cfg)
    yield from _resampling(cfg)
    yield from _estimator(cfg)
    yield from _critic(cfg)
    yield from _kl(cfg)
    yield from _filter_groups(cfg)
    yield from _clip_ratio(cfg)


def _resampling(cfg: DictConfig) -> Iterator[Finding]:
    if not OmegaConf.select(cfg, "algorithm.use_pf_ppo"):
        return
    name = cfg.algorithm.adv_estimator
    yield PreflightError(
        "algorithm.use_pf_ppo",
        True,
        "verl draws the rows of the batch anew, by their scores, after their advantages are computed, and its v1 "
        "trainers write advantages and returns alone back under the keys of the old rows: a response gets the "
        "advantages of another one"
        if name == "gae"
        else f"verl looks at it with {ESTIMATOR}=gae only, so that with {name} nothing is reweighted",
        hint="Set algorithm.use_pf_ppo=false",
    )


def _estimator(cfg: DictConfig) -> Iterator[Finding]:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    name, values = cfg.algorithm.adv_estimator, has_critic(cfg)
    if name not in ADV_ESTIMATOR_REGISTRY:
        return  # a misspelt name is another check's finding
    fault = estimators.fault(cfg, name, values=values)
    if fault is not None:
        yield PreflightError(
            ESTIMATOR,
            name,
            fault,
            expected=f"one of {', '.join(estimators.usable(cfg, values=values))}",
            hint="Set critic.enable=true" if name == "gae" and not values else f"Set {ESTIMATOR}=grpo",
        )
        return
    n = OmegaConf.select(cfg, "actor_rollout_ref.rollout.n")
    if n == 1 and estimators.groups_samples(name):
        yield PreflightWarning(
            "actor_rollout_ref.rollout.n",
            n,
            f"{ESTIMATOR}={name} compares the samples of one prompt: with one sample the score itself is the advantage",
            hint=f"Set actor_rollout_ref.rollout.n=8 or so, or {ESTIMATOR}=reinforce_plus_plus",
        )
    for setting in OF_ESTIMATOR:
        yield from _of_estimator(cfg, name, setting, values=values)


def _of_estimator(cfg: DictConfig, name: str, setting: str, *, values: bool) -> Iterator[Finding]:
    default, value = shipped().algorithm[setting], cfg.algorithm.get(setting)
    if value == default:
        return
    tried = estimators.trial(cfg, name, values=values)
    if not tried.same_as(estimators.trial(cfg, name, values=values, **{setting: default})):
        return
    if setting in inspect.signature(estimators.function(name)).parameters:
        yield PreflightError(
            f"algorithm.{setting}",
            value,
            f"verl does not hand it on to {ESTIMATOR}={name}, which computes with {default!r}",
            hint=f"Set {ESTIMATOR}=grpo, or algorithm.{setting}={default}".replace("True", "true"),
        )
    else:
        yield PreflightWarning(
            f"algorithm.{setting}",
            value,
            f"it has no effect: {ESTIMATOR}={name} gives the same advantages with {default!r}",
            hint="Leave it out",
        )


def _critic(cfg: DictConfig) -> Iterator[Finding]:
    key, warm_up = "trainer.critic_warmup", cfg.trainer.critic_warmup
    name, steps = cfg.algorithm.adv_estimator, cfg.trainer.total_training_steps
    if not has_critic(cfg):
        if warm_up > 1:
            yield PreflightError(
                key,
                warm_up,
                f"there is no critic to warm up, and the actor is first updated at step {warm_up}: the steps before "
                "would train nothing",
                hint=f"Set {key}=0",
            )
        yield from _unused(cfg, "critic", f"there is no critic with {ESTIMATOR}={name}")
        return
    if steps is not None and warm_up > steps:
        yield PreflightError(
            key,
            warm_up,
            f"the actor is first updated at step {warm_up}, and the run ends after step {steps}",
            expected=f"at most {steps}",
            hint=f"Set {key} below trainer.total_training_steps",
        )
    yield from _critic_budgets(cfg)
    if name == "gae" or estimators.fault(cfg, name, values=True) is not None:
        return
    if estimators.trial(cfg, name).same_as(estimators.trial(cfg, name, flip=True)):
        yield PreflightWarning(
            "critic.enable",
            cfg.critic.enable,
            f"a critic is trained and nothing uses its values: {ESTIMATOR}={name} gives the same advantages whatever "
            "they are",
            hint=f"Set critic.enable=null, or {ESTIMATOR}=gae",
        )


def _critic_budgets(cfg: DictConfig) -> Iterator[Finding]:
    """The v1 trainers read one budget of the critic, which is in no YAML file, and always pack by tokens."""
    ignored = ("ppo_max_token_len_per_gpu", "forward_max_token_len_per_gpu", "use_dynamic_bsz")
    given = changed(cfg, "critic")
    found = {f"critic.{name}": given[f"critic.{name}"] for name in ignored if f"critic.{name}" in given}
    if found:
        key = next(iter(found))
        yield PreflightWarning(
            key,
            found[key],
            f"verl's v1 trainers do not read {', '.join(found)}: the critic's micro-batches hold up to "
            "critic.ppo_infer_max_token_len_per_gpu tokens, in training, too",
            hint="Set +critic.ppo_infer_max_token_len_per_gpu instead",
        )


def _kl(cfg: DictConfig) -> Iterator[Finding]:
    in_reward, in_loss = bool(cfg.algorithm.use_kl_in_reward), bool(cfg.actor_rollout_ref.actor.use_kl_loss)
    if in_reward and in_loss:
        yield PreflightWarning(
            "algorithm.use_kl_in_reward",
            True,
            f"with {ACTOR}.use_kl_loss=true the KL divergence is penalised twice, in the rewards and in the loss",
            hint="Set one of the two to false",
        )
    for switch, on, settings, kind, weight in (
        ("algorithm.use_kl_in_reward", in_reward, ("algorithm.kl_ctrl", "algorithm.kl_penalty"), 1, "kl_ctrl.kl_coef"),
        (f"{ACTOR}.use_kl_loss", in_loss, (f"{ACTOR}.kl_loss_coef", f"{ACTOR}.kl_loss_type"), 1, "kl_loss_coef"),
    ):
        if not on:
            for setting in settings:
                for key, value in changed(cfg, setting).items():
                    yield PreflightWarning(
                        key, value, f"it has no effect: {switch}=false", hint=f"Set {switch}=true, or leave it out"
                    )
            continue
        yield from _kl_estimator(cfg, settings[kind])
        coefficient = f"{switch.rpartition('.')[0]}.{weight}"
        if OmegaConf.select(cfg, coefficient) == 0:
            yield PreflightWarning(
                coefficient,
                0,
                f"{switch}=true runs the reference policy in every step, for a penalty of 0",
                hint=f"Set {switch}=false",
            )
    if in_reward:
        yield from _kl_controller(cfg)
    elif not in_loss:
        yield from _unused(cfg, "actor_rollout_ref.ref", "no KL penalty is on, so that there is no reference policy")


def _kl_estimator(cfg: DictConfig, key: str) -> Iterator[Finding]:
    import torch
    from verl.trainer.ppo.core_algos import kl_penalty

    name = OmegaConf.select(cfg, key)
    try:
        kl_penalty(torch.zeros(1), torch.zeros(1), name)
    except NotImplementedError:
        yield PreflightError(
            key,
            name,
            "verl has no such estimate of the KL divergence and would fail at the first step",
            expected="one of kl, abs, mse, low_var_kl (k1, k2, k3), with or without a + at the end",
            hint=f"Set {key}=low_var_kl",
        )


def _kl_controller(cfg: DictConfig) -> Iterator[Finding]:
    key, kind = "algorithm.kl_ctrl", cfg.algorithm.kl_ctrl.type
    if kind == "adaptive":
        yield PreflightWarning(
            f"{key}.type",
            kind,
            f"verl's v1 trainers do not save the coefficient: a run that resumes starts again at {key}.kl_coef",
            hint=f"Set {key}.type=fixed where runs may be interrupted",
        )
    else:
        for setting, value in changed(cfg, key).items():
            if setting in (f"{key}.horizon", f"{key}.target_kl"):
                yield PreflightWarning(
                    setting, value, f"it has no effect: {key}.type={kind}", hint=f"Set {key}.type=adaptive"
                )


def _filter_groups(cfg: DictConfig) -> Iterator[Finding]:
    key = "algorithm.filter_groups"
    block = OmegaConf.select(cfg, key)
    if block is None:
        return
    if not block.get("enable"):
        for setting, value in changed(cfg, key).items():
            yield PreflightWarning(
                setting, value, f"it has no effect: {key}.enable=false", hint=f"Set {key}.enable=true, or leave it out"
            )
        return
    if not block.get("metric"):
        yield PreflightError(f"{key}.metric", block.get("metric"), "verl needs one", hint=f"Set {key}.metric=reward")
    model = cfg.reward.reward_model
    if model.enable and not model.enable_resource_pool:
        yield PreflightError(
            f"{key}.enable",
            True,
            "groups are filtered as they are sampled, and a reward model that shares the actor's devices scores later",
            hint="Set reward.reward_model.enable_resource_pool=true",
        )
    limit = block.get("max_num_gen_batches", 0)
    if limit > 0:
        yield PreflightWarning(
            f"{key}.max_num_gen_batches",
            limit,
            "verl's v1 trainers do not read it: prompts are drawn until the batch is full, however many that takes",
            hint=f"Leave it out; {key}.max_inflight_gen_batches bounds what is generated at one time",
        )
    if OmegaConf.select(cfg, "actor_rollout_ref.rollout.n") == 1:
        yield PreflightWarning(
            f"{key}.enable",
            True,
            "it has no effect: a group of one sample is never filtered, and actor_rollout_ref.rollout.n=1",
            hint="Set actor_rollout_ref.rollout.n=2 or higher",
        )


def _clip_ratio(cfg: DictConfig) -> Iterator[Finding]:
    """``clip_ratio`` stands in for the other two where they are null, which verl's own YAML file never lets them be."""
    given, actor = changed(cfg, ACTOR), cfg.actor_rollout_ref.actor
    ends = {f"{ACTOR}.clip_ratio_{end}": actor[f"clip_ratio_{end}"] for end in ("low", "high")}
    used = {key: value for key, value in ends.items() if value is not None and value != actor.clip_ratio}
    if f"{ACTOR}.clip_ratio" not in given or not used:
        return
    both = " ".join(f"{key}={actor.clip_ratio}" for key in ends)
    problem = f"verl's losses clip at {listed(used)} instead"
    if any(key in given for key in ends):
        yield PreflightWarning(f"{ACTOR}.clip_ratio", actor.clip_ratio, problem, hint="Leave it out")
    else:
        yield PreflightError(f"{ACTOR}.clip_ratio", actor.clip_ratio, problem, hint=f"Set {both}")


def _unused(cfg: DictConfig, block: str, why: str) -> Iterator[Finding]:
    """One warning for a block that nothing reads; what follows the actor's own setting is not counted."""
    given = {key: value for key, value in changed(cfg, block).items() if not _follows_actor(cfg, block, key, value)}
    if given:
        key = next(iter(given))
        yield PreflightWarning(
            key, given[key], f"it has no effect: {why}{_rest(given)}", hint="Leave it out, or switch it on"
        )


def _follows_actor(cfg: DictConfig, block: str, key: str, value: Any) -> bool:
    name = key.removeprefix(block)
    places = (f"{ACTOR}{name}", f"actor_rollout_ref{name}", f"{ACTOR}.fsdp_config{name.removeprefix('.fsdp')}")
    return any(OmegaConf.select(cfg, place) == value for place in places)


def _rest(given: dict[str, Any]) -> str:
    more = listed(dict(list(given.items())[1:]))
    return f"; nor have {more}" if more else ""
