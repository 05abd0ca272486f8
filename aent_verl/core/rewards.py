"""AEPO's shaping of rewards by how often a response deliberates (ARES, arXiv 2510.08457). Arithmetic without gradient.

A response deliberates where a trigger token is followed by a window of high entropy. Correct answers to easy prompts
lose reward for doing that more often than others, those to hard prompts gain, and wrong answers gain for it everywhere.
The formulas and constants are those of the authors' public code; `docs/mathematics.md` writes them down.
"""

import torch
from torch import Tensor

# By difficulty, easy, medium, hard: tolerance as a share of the target, width of Huber's parabola, softness of the
# gain, largest change as a multiple of alpha, and the share of it for wrong answers.
_MARGIN = (0.15, 0.25, 0.35)
_KAPPA = (2.0, 3.0, 4.0)
_SOFTNESS = (2.0, 2.5, 3.0)
_CAP = (1.0, 1.0, 1.2)
_WRONG = (0.6, 0.8, 1.0)
DIFFICULTIES = ("easy", "medium", "hard")
EASY, MEDIUM, HARD = range(3)


def window_entropy(entropy: Tensor, mask: Tensor, window: int) -> Tensor:
    """Average the entropies of the ``window`` tokens that follow each token; ``[B, T], [B, T] -> [B, T]``, nats.

    NaN where fewer follow in the response: at its end, before a gap in the mask, and outside the mask.
    """
    means = torch.full_like(entropy, torch.nan)
    starts = entropy.shape[1] - window
    if starts > 0:
        # Shifted copies are added: a reduction over overlapping windows takes twice as long.
        total, inside = entropy[:, 1 : starts + 1].clone(), mask[:, :starts].bool() & mask[:, 1 : starts + 1].bool()
        for shift in range(2, window + 1):
            total += entropy[:, shift : starts + shift]
            inside &= mask[:, shift : starts + shift].bool()
        means[:, :starts] = (total / window).masked_fill(~inside, torch.nan)
    return means


def typical_high(windows: Tensor, quantile: float) -> float | None:
    """Take the median over the responses of the ``quantile`` of each one's windows; ``[B, T]`` in nats, NaN for none.

    Both interpolate linearly. None if no response has a window.
    """
    ordered = windows.masked_fill(windows.isnan(), torch.inf).sort(-1).values
    counts = ordered.isfinite().sum(-1)
    ordered, counts = ordered[counts > 0], counts[counts > 0]
    if len(counts) == 0:
        return None
    place = (quantile * (counts - 1).double()).unsqueeze(-1)
    low, high = (ordered.gather(-1, end.long()).double() for end in (place.floor(), place.ceil()))
    return float(torch.lerp(low, high, place - place.floor()).quantile(0.5))


def difficulty(accuracy: Tensor) -> Tensor:
    """Sort prompts by their group's accuracy in ``[0, 1]``: easy from 2/3 on, medium from 1/3, else hard; ``[G]``."""
    # 2 of 3 in fp32 may lie below two thirds.
    thirds = 3.0 * accuracy.double() + 1e-6
    return torch.where(thirds >= 2.0, EASY, torch.where(thirds >= 1.0, MEDIUM, HARD))


def aepo(count: Tensor, target: Tensor, correct: Tensor, difficulty: Tensor, alpha: Tensor) -> Tensor:
    """Compute what is added to each response's reward; ``[B]`` each, no gradient.

    Args:
        count: how often the response deliberates.
        target: how often it is expected to.
        correct: whether the answer is right, Boolean.
        difficulty: index into `DIFFICULTIES`.
        alpha: largest change of an easy or medium prompt's reward.
    """

    def of(table: tuple[float, ...]) -> Tensor:
        return torch.tensor(table, dtype=torch.float64, device=count.device)[difficulty]

    kappa, softness, cap = of(_KAPPA), of(_SOFTNESS), alpha.double() * of(_CAP)
    excess = count.double() - target.double()
    margin = (of(_MARGIN) * target.double().clamp(min=1.0)).clamp(min=1.0)

    def penalty(beyond: Tensor, scale: float = 1.0) -> Tensor:
        x = beyond.clamp(min=0.0)
        huber = torch.where(x <= kappa, x.square() / (2.0 * kappa), x - kappa / 2.0)
        return -torch.minimum(cap, scale * cap * huber / (margin + kappa))

    gain = cap * torch.sigmoid((excess + margin) / softness)
    right_if_hard = torch.where(excess >= -margin, gain, penalty(-excess - margin, 0.5))
    right = torch.where(difficulty == EASY, penalty(excess - margin), penalty(excess.abs() - margin))
    right = torch.where(difficulty == HARD, right_if_hard, right)
    wrong = of(_WRONG) * cap * torch.sigmoid((excess - margin).clamp(min=0.0) / softness)
    return torch.where(correct, right, wrong)
