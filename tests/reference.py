"""Definitions in the plainest form: loops and float64, to compare everything else against."""

import math

import torch
from torch import Tensor


def entropy_of(probabilities: list[float]) -> float:
    return -math.fsum(p * math.log(p) for p in probabilities if p > 0)


def softmax_of(logits: list[float]) -> list[float]:
    top = max(logits)
    weights = [math.exp(z - top) for z in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


def full_entropy_row(logits: list[float]) -> float:
    return entropy_of(softmax_of(logits))


def clamped_entropy_row(logits: list[float], clamp_p: float) -> float:
    """AEnt: drop the int(V * clamp_p) lowest logits and renormalise. It is the same whichever of equal logits goes."""
    kept = sorted(logits)[int(len(logits) * clamp_p) :]
    return entropy_of(softmax_of(kept))


def clamped_entropy(logits: Tensor, clamp_p: float) -> Tensor:
    """[N, V] -> [N] in float64."""
    rows = [clamped_entropy_row(row, clamp_p) for row in logits.double().tolist()]
    return torch.tensor(rows, dtype=torch.float64)


def clamped_gradient_row(logits: list[float], clamp_p: float) -> list[float]:
    """``-share_v q_v (log q_v + H)``, where a token tied at the boundary has share r / n and q_v = exp(z_v) / Z."""
    removed = int(len(logits) * clamp_p)
    boundary = sorted(logits)[removed - 1] if removed else -math.inf
    tied = sum(z == boundary for z in logits)
    needed = len(logits) - removed - sum(z > boundary for z in logits)
    share = [1.0 if z > boundary or not removed else (needed / tied if z == boundary else 0.0) for z in logits]
    top = max(logits)
    normaliser = math.fsum(s * math.exp(z - top) for s, z in zip(share, logits, strict=True))
    entropy = clamped_entropy_row(logits, clamp_p)
    gradient = []
    for s, z in zip(share, logits, strict=True):
        q = math.exp(z - top) / normaliser
        gradient.append(-s * q * (math.log(q) + entropy) if q > 0 else 0.0)
    return gradient
