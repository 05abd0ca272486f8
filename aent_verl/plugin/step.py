"""What the driver sends with the batch of a training step, and what a pre-pass finds out about a whole mini-batch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

STEP = "aent_step"
WHOLE_BATCH = "aent_whole_batch"
# Per-sample fields that the driver adds where a method needs them, and the per-token choice of the pre-pass.
SAMPLE = "aent_sample"
ACCURACY = "aent_accuracy"
CHOSEN = "aent_chosen"
# Asks the engine for the configured entropy in the old-log-prob pass, too.
MEASURE_INITIAL = "aent_measure_initial"


@dataclass(frozen=True)
class StepValues:
    """One step, one value: every rank, micro-batch and epoch of a training step uses these.

    Attributes:
        step: the training step, counted from 1.
        total_steps: how many steps the run has.
        bonus: coefficient of the entropy bonus.
        advantages: coefficient of the advantage shaping (PAR's mu).
        initial_entropy: measured before the first update, nats; None if nothing needs it.
        entropy_mean: mean of the entropies of all steps so far, nats; None before the first.
    """

    step: int
    total_steps: int
    bonus: float
    advantages: float = 1.0
    initial_entropy: float | None = None
    entropy_mean: float | None = None


@dataclass(frozen=True)
class WholeBatch:
    """Statistics of one mini-batch over all its micro-batches and ranks, at the weights before its update.

    Attributes:
        aggregate: the weighted average entropy of the tokens of the mask, nats; None if no token has a part in it.
        share: what the aggregation makes of the weights, by which that average and its gradient are divided.
        largest_change: the largest absolute entropy change of STEER.
        report: metrics about the mini-batch as a whole.
    """

    aggregate: float | None = None
    share: float = 1.0
    largest_change: float | None = None
    report: Mapping[str, float] = field(default_factory=dict)


def step_values(data: TensorDict) -> StepValues:
    """The values that the driver sent with this batch.

    Raises:
        RuntimeError: the batch carries none, so the driver does not run our trainer.
    """
    values = tu.get_non_tensor_data(data=data, key=STEP, default=None)
    if values is None:
        raise RuntimeError(
            "this batch carries no entropy coefficient: the driver does not run an aent_verl trainer; "
            "set trainer.v1.trainer_mode=aent_sync"
        )
    assert isinstance(values, StepValues)
    return values


def whole_batch(data: TensorDict) -> WholeBatch:
    """What the pre-pass found out about the mini-batch of this micro-batch; empty where no method needs it."""
    found = tu.get_non_tensor_data(data=data, key=WHOLE_BATCH, default=None)
    return WholeBatch() if found is None else found
