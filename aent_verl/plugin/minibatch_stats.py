"""Statistics of a whole mini-batch before its first backward pass, from a pass without gradient over all of it.

A method's formula may hold a maximum, a mean or a choice over the mini-batch. Micro-batches and ranks see parts of it,
so that a value formed from a part would change with their size and number. Here the engine runs the model once over
the rank's mini-batch without gradient, the ranks exchange sums, maxima and candidates, and the results travel with the
data. It costs one forward pass, only where the method needs it, and holds for every mini-batch and epoch of a step, in
verl's bypass mode too.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils as tu

from aent_verl.core import policy_losses, token_choice
from aent_verl.methods.axes import Steer
from aent_verl.methods.combinations import CLIP_COV, KL_COV
from aent_verl.methods.settings import EntropyControlActorConfig
from aent_verl.plugin.micro_batch import MicroBatch
from aent_verl.plugin.policy_losses import clip_range
from aent_verl.plugin.step import ACCURACY, CHOSEN, SAMPLE, WHOLE_BATCH, StepValues, WholeBatch, step_values

QUANTILES = (0.01, 0.5, 0.99)


@dataclass(frozen=True)
class PrePass:
    """What a configuration needs to know about a whole mini-batch, and how to find it out."""

    config: EntropyControlActorConfig

    @property
    def needed(self) -> bool:
        """Whether any part of the configuration needs it."""
        return bool(self._aggregates or self._steers or self._chooses)

    @property
    def _aggregates(self) -> bool:
        return _control(self.config).bonus.form.anchored

    @property
    def _steers(self) -> bool:
        return _control(self.config).advantages.shaping.needs_largest_change

    @property
    def _chooses(self) -> bool:
        return _loss_mode(self.config) in (CLIP_COV, KL_COV)

    @property
    def needs_samples(self) -> bool:
        """Whether the batch must carry an index of each sample."""
        return self._chooses

    def __call__(self, model_output: dict[str, Tensor], data: TensorDict, group: Any) -> None:
        """Put the statistics into ``data``, the rank's whole mini-batch, on all ranks of ``group``.

        Args:
            model_output: what our engine returns for all of ``data``, at the weights before the update.
            data: as verl hands it to the engine; gets `WHOLE_BATCH`, and `CHOSEN` where tokens are chosen.
            group: data-parallel group.
        """
        batch = MicroBatch.of(model_output, _on_device(data, model_output["log_probs"].device))
        found: dict[str, Any] = {}
        report: dict[str, float] = {}
        if self._aggregates:
            found = self._aggregate(batch, group)
            report["bonus_aggregate"] = found["aggregate"] or 0.0
        if self._steers:
            found["largest_change"] = report["largest_change"] = self._largest_change(batch, group)
        if self._chooses:
            chosen, report_of_choice = self._choose(batch, step_values(data), group)
            data[CHOSEN] = batch.nested(chosen).to(data["response_mask"].device)
            report |= report_of_choice
        tu.assign_non_tensor(data, **{WHOLE_BATCH: WholeBatch(**found, report=report)})

    def _aggregate(self, batch: MicroBatch, group: Any) -> dict[str, Any]:
        """The average entropy of the bonus, None if no token has a part in it, and the share that it is divided by.

        The divisors of verl's aggregations count all response tokens, and samples without a token in the loss, of which
        one mini-batch has some and another none. Divided by the aggregate of the weights it is an average of the
        tokens that take part, and those of mini-batches and of the first batch compare.
        """
        bonus = _control(self.config).bonus
        weigh, over = bonus.weigh(batch), bonus.averaged_tokens(batch.entropy, batch.mask)
        parts = [
            batch.aggregate(weigh(term), self.config, bonus.loss_agg_mode, over=over)
            for term in (batch.entropy, torch.ones_like(batch.entropy))
        ]
        value, share = summed(torch.stack(parts).double(), group).tolist()
        if share == 0:
            return {"aggregate": None}
        # Each rank's part carries the factor dp_size, because verl averages gradients over ranks.
        return {"aggregate": value / share, "share": share / dist.get_world_size(group)}

    def _largest_change(self, batch: MicroBatch, group: Any) -> float:
        shaping = _control(self.config).advantages.shaping
        assert isinstance(shaping, Steer)
        largest = shaping.change(batch).abs().amax()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        return float(largest)

    def _choose(self, batch: MicroBatch, step: StepValues, group: Any) -> tuple[Tensor, dict[str, float]]:
        """Tokens that the covariance loss treats differently, ``[B, T]``, and what is to be said about the choice."""
        settings = self.config.policy_loss
        advantages = _control(self.config).advantages.shaping.shape(batch, step, WholeBatch())
        log_prob = batch.log_prob.detach()
        # One token that is not finite would make the means, and so all covariances, NaN or infinite.
        finite = batch.mask & advantages.isfinite() & log_prob.isfinite()
        a, p = (x.double().masked_fill(~finite, 0.0) for x in (advantages, log_prob))
        n, sum_a, sum_p = summed(torch.stack([finite.sum().double(), a.sum(), p.sum()]), group).tolist()
        cov = policy_losses.covariance(a, p, mean_advantage=sum_a / max(n, 1.0), mean_log_prob=sum_p / max(n, 1.0))

        priority = token_choice.priorities(step=step.step, sample=batch.sample, length=batch.mask.shape[1])
        gather = partial(gathered, group=group)
        if _loss_mode(self.config) == KL_COV:
            eligible = finite
            count = max(1, int(settings.kl_cov_ratio * n))
            chosen = token_choice.choose_largest(cov, priority, eligible, count, gather)
        else:
            ratio = policy_losses.log_ratio(log_prob, batch.old_log_prob).exp()
            low, high = clip_range(self.config)
            # A NaN of the old log-prob is an error, and must reach the loss.
            left_alone = ~policy_losses.clipped(ratio, advantages, low=low, high=high) & ~ratio.isnan()
            eligible = finite & left_alone & (cov > settings.clip_cov_lb) & (cov < settings.clip_cov_ub)
            count = max(1, int(settings.clip_cov_ratio * n))
            chosen = token_choice.choose_random(priority, eligible, count, gather)
        report = self._report(cov, finite, group)
        counts = summed(torch.stack([chosen.sum().double(), eligible.sum().double()]), group).tolist()
        return chosen, report | {"chosen_tokens": counts[0], "eligible_tokens": counts[1]}

    def _report(self, cov: Tensor, mask: Tensor, group: Any) -> dict[str, float]:
        values = gathered_of_any_length(cov[mask], group).sort().values
        if len(values) == 0:
            return {}
        quantiles = {
            f"covariance_q{100 * q:02.0f}": float(values[math.floor(q * (len(values) - 1))]) for q in QUANTILES
        }
        return {"covariance_tokens": float(values.mean())} | quantiles


def _on_device(data: TensorDict, device: torch.device) -> TensorDict:
    """What is needed of ``data`` here: verl moves a mini-batch to the device one micro-batch at a time."""
    needed = ("response_mask", "old_log_probs", "advantages", "prompts", "responses", SAMPLE, ACCURACY)
    keys = [key for key in data.keys() if key in needed or not isinstance(data.get(key), Tensor)]  # noqa: SIM118
    return data.select(*keys).to(device)


def summed(values: Tensor, group: Any) -> Tensor:
    """The sum over the ranks of ``group``, on all of them."""
    dist.all_reduce(values, op=dist.ReduceOp.SUM, group=group)
    return values


def gathered(values: Tensor, group: Any) -> Tensor:
    """The tensors of all ranks, of equal size, one after the other; ``[k] -> [ranks * k]``."""
    parts = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, values.contiguous(), group=group)
    return torch.cat(parts)


def gathered_of_any_length(values: Tensor, group: Any) -> Tensor:
    """As `gathered`, for tensors whose sizes may differ between ranks."""
    size = torch.tensor(len(values), device=values.device)
    sizes = gathered(size.reshape(1), group)
    padded = values.new_zeros(int(sizes.max()))
    padded[: len(values)] = values
    rows = gathered(padded, group).reshape(len(sizes), -1)
    return rows[torch.arange(rows.shape[1], device=rows.device) < sizes.unsqueeze(1)]


def _control(config: EntropyControlActorConfig) -> Any:
    assert config.entropy_control is not None
    return config.entropy_control


def _loss_mode(config: EntropyControlActorConfig) -> str:
    return str(config.policy_loss.get("loss_mode", "vanilla"))
