"""Bonus forms: how per-token entropies become a loss term. The caller aggregates it with the run's loss aggregation."""

from torch import Tensor


def linear(entropy: Tensor, coefficient: float) -> Tensor:
    """``-coefficient * H`` per token: the entropy bonus of AEnt and of the plain entropy regulariser, as a loss.

    Args:
        entropy: ``[...]``, nats.
        coefficient: lambda >= 0 rewards entropy.

    Returns:
        ``[...]``, to be averaged over all response tokens and added to the policy loss.
    """
    return -coefficient * entropy
