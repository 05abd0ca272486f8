"""verl's PPO loss with bonus and shaped advantages, and two policy losses that verl lacks or gets wrong.

Clip-Cov and KL-Cov (arXiv 2505.22617) are in verl's policy-loss registry: ``policy_loss.loss_mode=aent_clip_cov``.
verl's own entries choose tokens within each micro-batch, at random without a seed, and let the ratio overflow. Here the
choice is made over the mini-batch and all ranks (`minibatch_stats`) and arrives through the config; verl's settings
``policy_loss.{clip_cov_ratio, clip_cov_lb, clip_cov_ub, kl_cov_ratio, ppo_kl_coef}`` keep their meaning.
"""

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss, register_policy_loss
from verl.utils.torch_functional import masked_mean
from verl.workers.config import ActorConfig
from verl.workers.utils.losses import ppo_loss

from aent_verl.core import policy_losses
from aent_verl.plugin import measurements
from aent_verl.plugin.actor_config import CLIP_COV, KL_COV, EntropyControlActorConfig
from aent_verl.plugin.micro_batch import CHOSEN, VerlMicroBatch, minibatch_stats, step_values
from aent_verl.plugin.token_dump import TokenDump


def entropy_control_loss(
    config: EntropyControlActorConfig,
    model_output: dict[str, Tensor],
    data: TensorDict,
    dp_group: Any = None,
    *,
    dump: TokenDump | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Compute ``L = L_verl(shaped A) + agg(bonus)`` with verl's ``agg_loss``; for AEnt ``L_verl - lambda * agg(H)``.

    Tokens outside the response mask have no part in it, whatever their numbers are: not even NaN.

    Args:
        config: the actor's config with the parsed axes; its ``loss_agg_mode`` holds for the bonus unless that has one.
        model_output: nested ``[B, j]`` tensors: ``log_probs``, and what our engine adds, ``aent_entropy`` (nats, with
            gradient), ``aent_entropy_full``, ``aent_removed_mass``.
        data: a micro-batch with the step's values in its metadata, and the mini-batch's statistics where needed.
        dp_group: data-parallel group; part of verl's interface.
        dump: writes some responses out token by token.

    Returns:
        The loss to differentiate, and verl's metrics with ours among them.

    Raises:
        RuntimeError: no step values in ``data``, or no entropy in ``model_output``: part of the plug-in is not active.
    """
    control, step, stats = config.control, step_values(data), minibatch_stats(data)
    batch = VerlMicroBatch.of(model_output, data)

    shaped = control.advantages.shaping.shape(batch, step, stats)
    log_probs, data = batch.for_policy_loss(shaped)
    config.chosen_tokens = batch.chosen if CHOSEN in data else None
    # verl's own entropy term and metric would be of our functional.
    policy_output = {key: value for key, value in model_output.items() if key != "entropy"} | {"log_probs": log_probs}
    loss, metrics = ppo_loss(config=config, model_output=policy_output, data=data, dp_group=dp_group)

    weigh = control.bonus.weigh(batch)
    term = batch.log_prob.new_zeros(())
    # A coefficient of zero adds no term: the loss is then verl's own. The entropy is measured all the same.
    if step.bonus_coefficient != 0.0:
        term = batch.aggregate_bonus(control.bonus.form.term(batch, weigh, step, stats), config)
        loss = loss + term
    with torch.no_grad():
        bonus_weight = weigh(torch.ones_like(batch.entropy))
    metrics |= measurements.of_micro_batch(
        batch, shaped=shaped, bonus_weight=bonus_weight, bonus_loss=term, step=step, stats=stats
    )
    if dump is not None:
        dump.write(batch, shaped=shaped, bonus_weight=bonus_weight, step=step.step)
    return loss, metrics


def clip_range(config: ActorConfig) -> tuple[float, float]:
    """Return how far the ratio may go below and above 1."""
    low, high = config.clip_ratio_low, config.clip_ratio_high
    return config.clip_ratio if low is None else low, config.clip_ratio if high is None else high


def _clip_cov(
    config: EntropyControlActorConfig, log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, dropped: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute PPO's loss of each token but the ``dropped``; see `core.policy_losses.clip_cov`."""
    low, high = clip_range(config)
    losses = policy_losses.clip_cov(log_prob, old_log_prob, advantages, dropped, clip_low=low, clip_high=high)
    ratio = policy_losses.log_ratio(log_prob, old_log_prob).exp()
    return losses, {"actor/pg_clipfrac": policy_losses.clipped(ratio, advantages, low=low, high=high).float()}


def _kl_cov(
    config: EntropyControlActorConfig, log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, penalised: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute ``-A r`` with a penalty on the ``penalised`` tokens; see `core.policy_losses.kl_cov`."""
    coefficient = config.policy_loss.ppo_kl_coef
    return policy_losses.kl_cov(log_prob, old_log_prob, advantages, penalised, coefficient=coefficient), {}


def _policy_loss(mode: str, per_token: Callable[..., tuple[Tensor, dict[str, Tensor]]]) -> Callable[..., Any]:
    """Make the function of verl's registry from the losses and metrics of each token, ``[B, T]``."""

    def policy_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        chosen = getattr(config, "chosen_tokens", None)
        if chosen is None:
            raise RuntimeError(
                f"policy_loss.loss_mode={mode} found no chosen tokens: it runs only with aent_verl's actor worker; "
                "set trainer.v1.trainer_mode=aent_sync"
            )
        losses, measured = per_token(config, log_prob, old_log_prob, advantages, chosen)
        if rollout_is_weights is not None:
            losses = losses * rollout_is_weights
        loss = agg_loss(
            loss_mat=losses, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info
        )
        measured["actor/ppo_kl"] = -policy_losses.log_ratio(log_prob.detach(), old_log_prob)
        return loss, {name: masked_mean(values, response_mask).item() for name, values in measured.items()}

    return policy_loss


POLICY_LOSSES = {CLIP_COV: _policy_loss(CLIP_COV, _clip_cov), KL_COV: _policy_loss(KL_COV, _kl_cov)}


def register() -> None:
    """Put the policy losses into verl's registry; a second call has no effect.

    Raises:
        RuntimeError: another package has taken one of the names.
    """
    for name, function in POLICY_LOSSES.items():
        taken = POLICY_LOSS_REGISTRY.get(name)
        if taken not in (None, function):
            raise RuntimeError(f"policy loss {name!r} is registered by {taken.__module__} already; uninstall it")
        register_policy_loss(name)(function)
