"""Statistics of a mini-batch before its first backward pass, from a pass without gradient over all of it.

A method's formula may hold a maximum, a mean or a choice over the mini-batch. Micro-batches and ranks see parts of it,
so that a value formed from a part would change with their size and number. Here the engine runs the model once over
the rank's mini-batch without gradient, the ranks exchange sums, maxima and counts, and the results travel with the
data. It costs one forward pass, only where the method needs it, and holds for every mini-batch and epoch of a step, in
verl's bypass mode too. What the ranks exchange does not grow with the number of tokens.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils import tensordict_utils as tu

from aent_verl.core import policy_losses, token_choice
from aent_verl.core.bonus import weighted
from aent_verl.methods.settings import ROOT, EntropyControlConfig
from aent_verl.methods.step import MiniBatchStats, StepValues
from aent_verl.plugin.actor_config import CLIP_COV, KL_COV, EntropyControlActorConfig
from aent_verl.plugin.losses import clip_range
from aent_verl.plugin.micro_batch import ACCURACY, CHOSEN, MINIBATCH_STATS, SAMPLE, VerlMicroBatch, step_values

QUANTILES = (0.01, 0.5, 0.99)


class StatsPass:
    """The statistics that a configuration needs of each mini-batch, and how they are computed.

    Attributes:
        needed: whether any part of the configuration needs a pass.
        needs_samples: whether the batch must carry an index of each sample.
    """

    def __init__(self, config: EntropyControlActorConfig) -> None:
        self._config = config
        self._bonus, self._advantages = config.control.bonus, config.control.advantages
        self._loss_mode = config.policy_loss.get("loss_mode", "vanilla")
        self.needs_samples: bool = self._loss_mode in (CLIP_COV, KL_COV)
        self.needed = self._bonus.form.anchored or self._advantages.measures_minibatch or self.needs_samples

    def __call__(self, model_output: dict[str, Tensor], data: TensorDict, group: Any) -> None:
        """Put the statistics into ``data``, the rank's mini-batch, on all ranks of ``group``.

        Args:
            model_output: what our engine returns for all of ``data``, at the weights before the update.
            data: as verl hands it to the engine; gets `MINIBATCH_STATS`, and `CHOSEN` where tokens are chosen.
            group: data-parallel group.
        """
        batch = VerlMicroBatch.of(model_output, _on_device(data, model_output["log_probs"].device))
        found: dict[str, Any] = {}
        report: dict[str, float] = {}
        if self._bonus.form.anchored:
            found = self._aggregate(batch, group)
            report["bonus_aggregate"] = found["aggregate"] or 0.0
        if self._advantages.measures_minibatch:
            with torch.no_grad():
                found["shaping"] = self._advantages.shaping.minibatch_stats(batch, GroupRanks(group))
            report |= found["shaping"]
        if self.needs_samples:
            chosen, report_of_choice = self._choose(batch, step_values(data), MiniBatchStats(**found), group)
            data[CHOSEN] = batch.nested(chosen).to(data["response_mask"].device)
            report |= report_of_choice
        tu.assign_non_tensor(data, **{MINIBATCH_STATS: MiniBatchStats(**found, report=report)})

    def _aggregate(self, batch: VerlMicroBatch, group: Any) -> dict[str, Any]:
        """Compute the average entropy of the bonus, None if no token takes part, and the share that divides it.

        The divisors of verl's aggregations count all response tokens, and samples without a token in the loss, of which
        one mini-batch has some and another none. Divided by the aggregate of the weights it is an average of the
        tokens that take part, and those of mini-batches and of the first batch compare.
        """
        weigh = self._bonus.weigh(batch)
        terms = batch.entropy, torch.ones_like(batch.entropy)
        parts = [batch.aggregate_bonus(weigh(term), self._config) for term in terms]
        value, share = summed(torch.stack(parts).double(), group).tolist()
        if share == 0:
            return {"aggregate": None}
        # Each rank's part carries the factor dp_size, because verl averages gradients over ranks.
        return {"aggregate": value / share, "share": share / dist.get_world_size(group)}

    def _choose(
        self, batch: VerlMicroBatch, step: StepValues, stats: MiniBatchStats, group: Any
    ) -> tuple[Tensor, dict[str, float]]:
        """Choose the tokens that the covariance loss treats differently, ``[B, T]``; with metrics of the choice."""
        settings = self._config.policy_loss
        advantages = self._advantages.shaping.shape(batch, step, stats)
        log_prob = batch.log_prob.detach()
        # One token that is not finite would make the means, and so all covariances, NaN or infinite.
        finite = batch.mask & advantages.isfinite() & log_prob.isfinite()
        a, p = (x.double().masked_fill(~finite, 0.0) for x in (advantages, log_prob))
        n, sum_a, sum_p = summed(torch.stack([finite.sum().double(), a.sum(), p.sum()]), group).tolist()
        cov = policy_losses.covariance(a, p, mean_advantage=sum_a / max(n, 1.0), mean_log_prob=sum_p / max(n, 1.0))

        priority = token_choice.priorities(step=step.step, sample=batch.sample, length=batch.mask.shape[1])
        add = partial(summed, group=group)
        if self._loss_mode == KL_COV:
            eligible = finite
            count = max(1, int(settings.kl_cov_ratio * n))
            chosen = token_choice.choose_largest(cov, priority, eligible, count, add)
        else:
            ratio = policy_losses.log_ratio(log_prob, batch.old_log_prob).exp()
            low, high = clip_range(self._config)
            # A NaN of the old log-prob is an error, and must reach the loss.
            left_alone = ~policy_losses.clipped(ratio, advantages, low=low, high=high) & ~ratio.isnan()
            eligible = finite & left_alone & (cov > settings.clip_cov_lb) & (cov < settings.clip_cov_ub)
            count = max(1, int(settings.clip_cov_ratio * n))
            chosen = token_choice.choose_random(priority, eligible, count, add)
        totals = torch.stack([chosen.sum().double(), eligible.sum().double(), cov.masked_fill(~finite, 0.0).sum()])
        chosen_tokens, eligible_tokens, covariance = summed(totals, group).tolist()
        report = {"chosen_tokens": chosen_tokens, "eligible_tokens": eligible_tokens}
        if n > 0:
            report["covariance_tokens"] = covariance / n
            places = [math.floor(q * (n - 1)) for q in QUANTILES]
            quantiles = token_choice.order_statistics(cov, finite, places, add).tolist()
            report |= {f"covariance_q{100 * q:02.0f}": found for q, found in zip(QUANTILES, quantiles, strict=True)}
        return chosen, report


def initial_entropy(
    control: EntropyControlConfig,
    entropy: Tensor,
    mask: Tensor,
    *,
    accuracy: Tensor | None,
    loss_agg_mode: str,
    loss_scale_factor: int | None,
) -> float:
    """Average the entropy before the first update, nats: as an anchored bonus does, else over all tokens.

    Args:
        control: the run's settings.
        entropy: the configured functional of all tokens of the step, ``[B, T]``.
        mask: the response mask, ``[B, T]``.
        accuracy: the groups' accuracies, ``[B]``, if the bonus weighs samples by them.
        loss_agg_mode: the run's aggregation.
        loss_scale_factor: its divisor, for ``seq-mean-token-sum-norm``.

    Raises:
        ValueError: no token takes part in an anchored bonus, so that there is nothing to tie it to.
    """
    bonus = control.bonus
    if not bonus.form.anchored:
        return float(entropy[mask].mean())
    weights = bonus.weights(entropy, mask, lambda: accuracy)
    over = bonus.averaged_tokens(entropy, mask)
    mode = bonus.loss_agg_mode or loss_agg_mode
    value, share = (
        float(agg_loss(weighted(term, mask, *weights), over, mode, loss_scale_factor=loss_scale_factor))
        for term in (entropy, torch.ones_like(entropy))
    )
    if not share > 0:
        raise ValueError(
            f"{ROOT}.bonus.name={bonus.form_name} has no initial entropy to hold: of the {int(mask.sum())} "
            f"response tokens of the first step none takes part in it ({control.functional}, {bonus.token_mask}, "
            f"{bonus.sample_weight}); where nearly all of these entropies are 0, raise {ROOT}.functional.top_p"
        )
    return value / share


def _on_device(data: TensorDict, device: torch.device) -> TensorDict:
    """Copy what is needed of ``data``: verl moves a mini-batch to the device one micro-batch at a time."""
    needed = ("response_mask", "old_log_probs", "advantages", "prompts", "responses", SAMPLE, ACCURACY)
    keys = [key for key in data.keys() if key in needed or not isinstance(data.get(key), Tensor)]  # noqa: SIM118
    return data.select(*keys).to(device)


@dataclass(frozen=True)
class GroupRanks:
    """Reduces over the ranks of a process group, see `methods.step.Ranks`."""

    group: Any

    def sum(self, values: Tensor) -> Tensor:
        """Add up the tensors of all ranks."""
        return summed(values.clone(), self.group)

    def max(self, values: Tensor) -> Tensor:
        """Take the largest of all ranks."""
        values = values.clone()
        dist.all_reduce(values, op=dist.ReduceOp.MAX, group=self.group)
        return values


def summed(values: Tensor, group: Any) -> Tensor:
    """Sum in place over the ranks of ``group``, on all of them."""
    dist.all_reduce(values, op=dist.ReduceOp.SUM, group=group)
    return values
