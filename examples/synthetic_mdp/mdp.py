"""The MDP, the initial policy, and the entropies of a policy in which many actions share a logit.

An episode visits positions ``1..T`` whatever the actions are. Each position has a softmax over ``V`` actions of its own
and ``K`` optimal actions; an optimal action gives reward 1, every other 0.

The logits start as a function of an action's rank. Ranks that start alike and never pay are one *class*, stored as one
logit and a size, so that 100,000 actions take about 80 numbers. `train` moves all actions of a class alike.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor

from aent_verl.core.entropy import restricted_entropy

ACTIONS = 100_000
POSITIONS = 25
# The ranks behind the head are cut into so many classes, of equal width in log-rank.
TAIL = 32

INITIAL_LOGITS: dict[str, Callable[[Tensor], Tensor]] = {
    "zipf": lambda rank: -1.5 * rank.log(),
    "flat-zipf": lambda rank: -rank.log(),
    "gaussian": lambda rank: 3.0 * torch.from_numpy(norm.isf((rank.numpy() - 0.5) / ACTIONS)),
    "uniform": torch.zeros_like,
}


@dataclass(frozen=True)
class Start:
    """Where training starts.

    Attributes:
        logits: shape of the initial logits, a key of `INITIAL_LOGITS`.
        first_rank: of the ranks among which the optimal actions lie.
        last_rank: the last of them.
        head: ranks up to here are classes of one action.
    """

    logits: str = "zipf"
    first_rank: int = 101
    last_rank: int = 1000
    head: int = 32


class Problem(NamedTuple):
    """``R`` rows, one a position of a run, of ``C`` classes of actions each.

    Attributes:
        logits: logit of each action of the class before training, ``[R, C]``, fp32.
        size: how many actions are in the class, ``[R, C]``; 0 where all of them turned out to be optimal.
        optimal: whether they are optimal, ``[R, C]`` bool; those classes have one action.
    """

    logits: Tensor
    size: Tensor
    optimal: Tensor


def problem(optimal_actions: int, seed: int, start: Start) -> Problem:
    """All positions of one run: the initial logits, and ``optimal_actions`` drawn at each position by ``seed``."""
    edges = np.unique(np.geomspace(start.head + 1, ACTIONS + 1, TAIL + 1).round())
    edges = np.concatenate([np.arange(1, start.head + 1), edges])
    middle = torch.from_numpy((edges[:-1] + edges[1:] - 1) / 2)
    logits = INITIAL_LOGITS[start.logits](middle)
    generator = np.random.default_rng([seed, optimal_actions])
    ranks = np.arange(start.first_rank, start.last_rank + 1)
    drawn = np.stack([generator.choice(ranks, optimal_actions, replace=False) for _ in range(POSITIONS)])
    home = torch.from_numpy(np.searchsorted(edges, drawn, side="right") - 1)
    others = torch.from_numpy(np.diff(edges)).repeat(POSITIONS, 1)
    others.scatter_add_(1, home, -torch.ones_like(home, dtype=others.dtype))
    is_optimal = torch.arange(len(middle) + optimal_actions) >= len(middle)
    return Problem(
        torch.cat([logits.repeat(POSITIONS, 1), logits[home]], 1).float(),
        torch.cat([others, torch.ones(POSITIONS, optimal_actions)], 1).float(),
        is_optimal.repeat(POSITIONS, 1),
    )


def kept_actions(logits: Tensor, size: Tensor, keep: Tensor) -> Tensor:
    """How many actions of each class the clamp keeps, ties as in `aent_verl.core.entropy`.

    Args:
        logits: ``[R, C]``, without gradient.
        size: ``[R, C]``.
        keep: how many actions stay, ``[R, 1]``.

    Returns:
        ``[R, C]``, each row summing to ``keep``: ``size`` above the boundary, a share of it on it, 0 below.
    """
    ordered, order = logits.sort(-1, descending=True)
    enough = size.gather(-1, order).cumsum(-1) >= keep
    boundary = ordered.gather(-1, enough.int().argmax(-1, keepdim=True))
    above, tied = size * (logits > boundary), size * (logits == boundary)
    return above + tied * ((keep - above.sum(-1, keepdim=True)) / tied.sum(-1, keepdim=True))


def entropy(logits: Tensor, size: Tensor, keep: Tensor) -> Tensor:
    """Full or clamped entropy of each row in nats, differentiable in ``logits``; ``[R, C], [R, C], [R, 1] -> [R]``.

    Equal to `full_entropy` or `clamped_entropy` of the row with all its actions written out.

    Args:
        logits: one logit a class.
        size: actions of each class.
        keep: actions that the clamp keeps; all of them for the full entropy.
    """
    weight = size.clone()
    clamped = (keep < size.sum(-1, keepdim=True)).squeeze(-1)
    if bool(clamped.any()):
        weight[clamped] = kept_actions(logits.detach()[clamped], size[clamped], keep[clamped])
    return restricted_entropy(logits, weight)


def largest_useful_coefficient(optimal_actions: int, kept: int) -> float:
    """The coefficient at which half of the regularised optimum's probability is on wrong actions.

    At one position ``E[r] + lambda H`` over ``kept`` actions is largest at ``pi ~ exp(r / lambda)``, that is where the
    optimal ones have ``K / (K + (kept - K) exp(-1 / lambda))``; this is one half at ``1 / log((kept - K) / K)``.
    """
    return 1 / math.log((kept - optimal_actions) / optimal_actions)
