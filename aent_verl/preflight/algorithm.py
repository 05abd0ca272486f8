"""Settings of the algorithm that verl 0.9.1's v1 trainers drop, or compute in an unexpected way.

Advantage estimators of verl's registry are tried on a few rows, with only what a v1 trainer passes to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from aent_verl.preflight import rollout_correction
from aent_verl.preflight.findings import Finding, Setting, at, without_effect
from aent_verl.preflight.schema import changed, has_critic, stock, value

if TYPE_CHECKING:
    from torch import Tensor

ACTOR = "actor_rollout_ref.actor"
ESTIMATOR = "algorithm.adv_estimator"
N = "actor_rollout_ref.rollout.n"
# Settings of the estimator: does this one react to them?
OF_ESTIMATOR = ("gamma", "lam", "norm_adv_by_std_in_grpo")
# Of the rows on which estimators are tried.
WIDTH = 6


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Find settings of the algorithm that stop the run, compute something else, or do nothing."""
    for part in (rollout_correction.check, _resampling, _estimator, _critic, _kl, _filter_groups, _clip_ratio):
        yield from part(cfg)


def _resampling(cfg: DictConfig) -> Iterator[Finding]:
    key, name = "algorithm.use_pf_ppo", cfg.algorithm.adv_estimator
    if not value(cfg, key):
        return
    problem = f"verl reads it with {ESTIMATOR}=gae only; with {name} nothing is reweighted"
    if name == "gae":
        problem = "verl's v1 trainers write the advantages of resampled rows to the old ones, so to other responses"
    yield at(cfg, key).error(problem, f"Set {key}=false")


def _estimator(cfg: DictConfig) -> Iterator[Finding]:
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    name, values = cfg.algorithm.adv_estimator, has_critic(cfg)
    if name not in ADV_ESTIMATOR_REGISTRY:
        return  # a misspelt name is another check's finding
    if (problem := fault(cfg, name, values=values)) is not None:
        hint = "Set critic.enable=true" if name == "gae" and not values else f"Set {ESTIMATOR}=grpo"
        usable = [each for each in ADV_ESTIMATOR_REGISTRY if fault(cfg, each, values=values) is None]
        yield at(cfg, ESTIMATOR).error(problem, hint, f"one of {', '.join(sorted(usable))}")
        return
    if value(cfg, N) == 1 and "index" in parameters(name):
        yield at(cfg, N).warning(
            f"{ESTIMATOR}={name} compares the samples of one prompt: with one sample the score itself is the advantage",
            f"Set {N}=8, for example, or {ESTIMATOR}=reinforce_plus_plus",
        )
    for setting in OF_ESTIMATOR:
        yield from _of_estimator(cfg, name, setting, values=values)


def _of_estimator(cfg: DictConfig, name: str, setting: str, *, values: bool) -> Iterator[Finding]:
    key = f"algorithm.{setting}"
    default = value(stock(cfg), key)
    if value(cfg, key) == default:
        return
    tried = trial(cfg, name, values=values)
    if not tried.same_as(trial(cfg, name, values=values, **{setting: default})):
        return
    if setting in parameters(name):
        yield at(cfg, key).error(
            f"verl does not pass it to {ESTIMATOR}={name}, which computes with {default!r}",
            f"Set {ESTIMATOR}=grpo, or {key}={default}".replace("True", "true"),
        )
    else:
        yield at(cfg, key).warning(f"has no effect: {ESTIMATOR}={name} computes the same with {default!r}", "Remove it")


def _critic(cfg: DictConfig) -> Iterator[Finding]:
    key = "trainer.critic_warmup"
    warm_up, steps, name = value(cfg, key), cfg.trainer.total_training_steps, cfg.algorithm.adv_estimator
    if not has_critic(cfg):
        if warm_up > 1:
            yield at(cfg, key).error(
                f"there is no critic to warm up; verl would train nothing before step {warm_up}", f"Set {key}=0"
            )
        yield from _unused(cfg, "critic", f"there is no critic with {ESTIMATOR}={name}")
        return
    if steps is not None and warm_up > steps:
        yield at(cfg, key).error(
            f"the actor is first updated at step {warm_up}, but the run ends after step {steps}",
            f"Set {key} below trainer.total_training_steps",
            f"at most {steps}",
        )
    usable = name != "gae" and fault(cfg, name, values=True) is None
    if usable and trial(cfg, name).same_as(trial(cfg, name, flip=True)):
        yield at(cfg, "critic.enable").warning(
            f"trains a critic whose values nothing uses: {ESTIMATOR}={name} gives the same advantages with any",
            f"Set critic.enable=null, or {ESTIMATOR}=gae",
        )


def _kl(cfg: DictConfig) -> Iterator[Finding]:
    in_reward, in_loss, control = "algorithm.use_kl_in_reward", f"{ACTOR}.use_kl_loss", "algorithm.kl_ctrl"
    if value(cfg, in_reward) and value(cfg, in_loss):
        yield at(cfg, in_reward).warning(
            f"with {in_loss}=true the KL divergence is penalised twice", "Set one of the two to false"
        )
    for switch, settings, weight in (
        (in_reward, (control, "algorithm.kl_penalty"), f"{control}.kl_coef"),
        (in_loss, (f"{ACTOR}.kl_loss_coef", f"{ACTOR}.kl_loss_type"), f"{ACTOR}.kl_loss_coef"),
    ):
        if not value(cfg, switch):
            yield from without_effect(cfg, settings, f"{switch}=false", f"Set {switch}=true, or remove it")
        elif value(cfg, weight) == 0:
            yield at(cfg, weight).warning(
                f"{switch}=true runs the reference policy in every step, for a penalty of 0", f"Set {switch}=false"
            )
    if not value(cfg, in_reward):
        if not value(cfg, in_loss):
            yield from _unused(cfg, "actor_rollout_ref.ref", "without a KL penalty there is no reference policy")
    elif (kind := value(cfg, f"{control}.type")) == "adaptive":
        yield at(cfg, f"{control}.type").warning(
            f"verl's v1 trainers do not save the coefficient: a resumed run starts again at {control}.kl_coef",
            f"Set {control}.type=fixed if runs may be interrupted",
        )
    else:
        adaptive = (f"{control}.horizon", f"{control}.target_kl")
        yield from without_effect(cfg, adaptive, f"{control}.type={kind}", f"Set {control}.type=adaptive")


def _filter_groups(cfg: DictConfig) -> Iterator[Finding]:
    key = "algorithm.filter_groups"
    if value(cfg, key) is None:
        return
    enable, metric = at(cfg, f"{key}.enable"), at(cfg, f"{key}.metric")
    if not enable.value:
        yield from without_effect(cfg, [key], f"{enable.key}=false", f"Set {enable.key}=true, or remove it")
        return
    if not metric.value:
        yield metric.error("verl needs one", f"Set {metric.key}=reward")
    model = cfg.reward.reward_model
    if model.enable and not model.enable_resource_pool:
        yield enable.error(
            "groups are filtered as they are sampled, but a reward model that shares the actor's devices scores later",
            "Set reward.reward_model.enable_resource_pool=true",
        )
    if value(cfg, N) == 1:
        yield enable.warning(f"has no effect: {N}=1, and a group of one is never filtered", f"Set {N}=2 or higher")


def _clip_ratio(cfg: DictConfig) -> Iterator[Finding]:
    """Check ``clip_ratio``, which counts only where the other two are null, as in no YAML file of verl's."""
    key = f"{ACTOR}.clip_ratio"
    ratio, given, ends = value(cfg, key), changed(cfg, ACTOR), (f"{key}_low", f"{key}_high")
    used = {end: found for end in ends if (found := value(cfg, end)) not in (None, ratio)}
    if key not in given or not used:
        return
    problem = f"verl's losses clip at {_listed(used)} instead"
    if any(end in given for end in ends):
        yield at(cfg, key).warning(problem, "Remove it")
    else:
        yield at(cfg, key).error(problem, f"Set {' '.join(f'{end}={ratio}' for end in ends)}")


def _unused(cfg: DictConfig, block: str, why: str) -> Iterator[Finding]:
    """Warn once of a block that nothing reads; what follows the actor's own setting is not counted."""
    given = {key: found for key, found in changed(cfg, block).items() if not _follows_actor(cfg, block, key, found)}
    if given:
        first, *rest = given
        more = f"; neither do {_listed({key: given[key] for key in rest})}" if rest else ""
        yield Setting(first, given[first]).warning(f"has no effect: {why}{more}", "Remove it, or switch it on")


def _follows_actor(cfg: DictConfig, block: str, key: str, found: object) -> bool:
    name = key.removeprefix(block)
    places = (f"{ACTOR}{name}", f"actor_rollout_ref{name}", f"{ACTOR}.fsdp_config{name.removeprefix('.fsdp')}")
    return any(value(cfg, place) == found for place in places)


def _listed(settings: dict[str, object]) -> str:
    return ", ".join(f"{key}={found!r}" for key, found in settings.items())


@dataclass(frozen=True)
class Trial:
    """What an estimator made of rows that score 0 or 1.

    Attributes:
        advantages: ``[B, T]``, 0 outside the responses.
        mask: response mask ``[B, T]``.
        scores: ``[B]``.
    """

    advantages: Tensor
    mask: Tensor
    scores: Tensor

    def mean(self, score: float) -> float:
        """Return the mean advantage of the response tokens of rows with this score."""
        tokens = self.mask.bool() & (self.scores == score).unsqueeze(-1)
        return float(self.advantages[tokens].mean())

    def same_as(self, other: Trial) -> bool:
        """Return whether both give the same advantages but for rounding and the epsilons of a division."""
        return self.advantages.allclose(other.advantages, rtol=0.0, atol=1e-4)


def parameters(name: str) -> Collection[str]:
    """Name the estimator's parameters; those that compare the samples of one prompt have an ``index``.

    Raises:
        ValueError: verl's registry has no estimator of that name.
    """
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    return inspect.signature(get_adv_estimator_fn(name)).parameters


def trial(cfg: DictConfig, name: str, *, values: bool = True, flip: bool = False, **settings: Any) -> Trial:
    """Run the estimator ``name`` as ``_compute_advantage`` of verl's v1 trainers does.

    Args:
        cfg: the composed config; gives the number of samples of a prompt and the block `algorithm`.
        name: in verl's registry.
        values: whether there is a critic.
        flip: other values of the critic.
        settings: values of the block `algorithm` to use instead.

    Raises:
        Exception: whatever the estimator raises.
    """
    import torch
    from verl.protocol import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    algorithm = cfg.algorithm.copy()
    with open_dict(algorithm):
        # Resampling is random, and wrong for every estimator.
        algorithm.update({"use_pf_ppo": False, **settings})
    n = max(1, int(value(cfg, N)))
    rows = torch.arange(2 * n if n > 1 else 4)
    lengths = WIDTH - rows % 3
    mask = (torch.arange(WIDTH) < lengths.unsqueeze(1)).long()
    # One right answer in each group, and in every second one where a group is a single sample.
    scores = (rows % max(n, 2) == 1).float()
    rewards = torch.zeros(len(rows), WIDTH)
    rewards[rows, lengths - 1] = scores
    fields = {
        "response_mask": mask,
        "rm_scores": rewards,
        "token_level_scores": rewards,
        "token_level_rewards": rewards.clone(),
        "rollout_log_probs": torch.full((len(rows), WIDTH), -1.0),
        "old_log_probs": torch.full((len(rows), WIDTH), -1.0),
    }
    if values:
        ramp = torch.linspace(0.1, 0.6, WIDTH).expand(len(rows), WIDTH)
        fields["values"] = ramp.flip(-1) ** 2 if flip else ramp.clone()
    result = compute_advantage_for_multi_trajectories(
        DataProto.from_dict(fields, {"uid": [f"prompt{row // n}" for row in rows.tolist()]}),
        batch_keys=[f"prompt{row // n}_{row % n}_0" for row in rows.tolist()],
        adv_estimator=name,
        gamma=algorithm.gamma,
        lam=algorithm.lam,
        num_repeat=n,
        norm_adv_by_std_in_grpo=algorithm.get("norm_adv_by_std_in_grpo", True),
        config=algorithm,
    )
    return Trial(result.batch["advantages"] * mask, mask, scores)


def fault(cfg: DictConfig, name: str, *, values: bool) -> str | None:
    """Explain why the estimator cannot be used with a v1 trainer; None if it can."""
    try:
        tried = trial(cfg, name, values=values)
    except Exception as error:
        return f"verl's v1 trainers do not give it what it needs ({type(error).__name__}: {error})"
    wrong, right = tried.mean(0.0), tried.mean(1.0)
    if not (tried.advantages.isfinite().all() and right - wrong > 1e-4):
        return f"answers that score 1 and 0 get the advantages {right:.3g} and {wrong:.3g}"
    return None
