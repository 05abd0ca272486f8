"""What a training step tells every method: the driver's values, and the statistics of the mini-batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class StepValues:
    """One step, one value: every rank, micro-batch and epoch of a training step uses these.

    Attributes:
        step: the training step, counted from 1.
        total_steps: how many steps the run has.
        bonus_coefficient: coefficient of the entropy bonus.
        advantages_coefficient: coefficient of the advantage shaping (PAR's mu).
        initial_entropy: measured before the first update, nats; None if nothing needs it.
        entropy_mean: mean of the entropies of all steps so far, nats; None before the first.
    """

    step: int
    total_steps: int
    bonus_coefficient: float
    advantages_coefficient: float = 1.0
    initial_entropy: float | None = None
    entropy_mean: float | None = None


@dataclass(frozen=True)
class MiniBatchStats:
    """Statistics of one mini-batch over all its micro-batches and ranks, at the weights before its update.

    Attributes:
        aggregate: the weighted average entropy of the tokens of the mask, nats; None if no token takes part.
        share: the aggregate of the weights, by which that average and its gradient are divided.
        shaping: the numbers that the advantage shaping asked for, see `axes.Shaping.minibatch_stats`.
        report: metrics of the mini-batch.
    """

    aggregate: float | None = None
    share: float = 1.0
    shaping: Mapping[str, float] = field(default_factory=dict)
    report: Mapping[str, float] = field(default_factory=dict)


class Ranks(Protocol):
    """Reductions over all data-parallel ranks; every rank makes the same calls in the same order."""

    def sum(self, values: Tensor) -> Tensor:
        """Add up the tensors of all ranks, element by element."""

    def max(self, values: Tensor) -> Tensor:
        """Take the largest of all ranks, element by element."""
