"""Clip-Cov and KL-Cov (arXiv 2505.22617) in verl's policy-loss registry: ``policy_loss.loss_mode=aent_clip_cov``.

verl's own entries choose tokens within each micro-batch, at random without a seed, and let the ratio overflow. Here the
choice is made by the pre-pass over the whole mini-batch and all ranks and arrives through the config; verl's settings
``policy_loss.{clip_cov_ratio, clip_cov_lb, clip_cov_ub, kl_cov_ratio, ppo_kl_coef}`` keep their meaning.
"""

from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss, register_policy_loss
from verl.utils.torch_functional import masked_mean
from verl.workers.config import ActorConfig

from aent_verl.core import policy_losses
from aent_verl.methods.combinations import CLIP_COV, KL_COV

CHOSEN = "chosen"


def clip_range(config: ActorConfig) -> tuple[float, float]:
    """How far the ratio may go below and above 1."""
    low, high = config.clip_ratio_low, config.clip_ratio_high
    return config.clip_ratio if low is None else low, config.clip_ratio if high is None else high


def clip_cov(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """PPO's loss without the tokens that the pre-pass chose; see `core.policy_losses.clip_cov`."""
    low, high = clip_range(config)
    dropped = _chosen(config, CLIP_COV)
    losses = policy_losses.clip_cov(log_prob, old_log_prob, advantages, dropped, clip_low=low, clip_high=high)
    ratio = policy_losses.log_ratio(log_prob, old_log_prob).exp()
    clipped = policy_losses.clipped(ratio, advantages, low=low, high=high)
    metrics = {"actor/pg_clipfrac": masked_mean(clipped.float(), response_mask).item()}
    return _aggregate(losses, old_log_prob, log_prob, response_mask, loss_agg_mode, config, rollout_is_weights, metrics)


def kl_cov(
    old_log_prob: Tensor,
    log_prob: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """``-A r`` with a penalty on the tokens that the pre-pass chose; see `core.policy_losses.kl_cov`."""
    penalised = _chosen(config, KL_COV)
    coefficient = config.policy_loss.ppo_kl_coef
    losses = policy_losses.kl_cov(log_prob, old_log_prob, advantages, penalised, coefficient=coefficient)
    return _aggregate(losses, old_log_prob, log_prob, response_mask, loss_agg_mode, config, rollout_is_weights, {})


def _chosen(config: Any, mode: str) -> Tensor:
    chosen = getattr(config, "chosen_tokens", {}).get(CHOSEN)
    if chosen is None:
        raise RuntimeError(
            f"policy_loss.loss_mode={mode} found no chosen tokens: it runs only with aent_verl's actor worker; "
            "set trainer.v1.trainer_mode=aent_sync"
        )
    return chosen


def _aggregate(
    losses: Tensor,
    old_log_prob: Tensor,
    log_prob: Tensor,
    response_mask: Tensor,
    loss_agg_mode: str,
    config: Any,
    rollout_is_weights: Tensor | None,
    metrics: dict[str, Any],
) -> tuple[Tensor, dict[str, Any]]:
    if rollout_is_weights is not None:
        losses = losses * rollout_is_weights
    loss = agg_loss(loss_mat=losses, loss_mask=response_mask, loss_agg_mode=loss_agg_mode, **config.global_batch_info)
    with torch.no_grad():
        kl = masked_mean(-policy_losses.log_ratio(log_prob, old_log_prob), response_mask)
    return loss, metrics | {"actor/ppo_kl": kl.item()}


def register() -> None:
    """Put both into verl's registry; a second call does nothing.

    Raises:
        RuntimeError: another package has taken one of the names.
    """
    for name, function in ((CLIP_COV, clip_cov), (KL_COV, kl_cov)):
        taken = POLICY_LOSS_REGISTRY.get(name)
        if taken not in (None, function):
            raise RuntimeError(f"policy loss {name!r} is registered by {taken.__module__} already; uninstall it")
        register_policy_loss(name)(function)
