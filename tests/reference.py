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


def nucleus_entropy_row(logits: list[float], top_p: float, most: int) -> float:
    """SIREN: keep tokens while the cumulative probability including them is below ``top_p``, at most ``most``."""
    ordered = sorted(logits, reverse=True)
    kept, mass = 0, 0.0
    for p in softmax_of(ordered):
        mass += p
        if mass >= top_p or kept == most:
            break
        kept += 1
    return entropy_of(softmax_of(ordered[:kept])) if kept else 0.0


def topk_clamped_entropy(logits: Tensor, clamp_p: float) -> Tensor:
    """AEnt's entropy as its authors compute it: top-k of a copy on the CPU, a Boolean mask, a softmax; [N, V] -> [N].

    Right where nothing is tied at the boundary; kept to compare costs.
    """
    kept = logits.shape[-1] - int(logits.shape[-1] * clamp_p)
    index = logits.detach().cpu().topk(kept, dim=-1).indices.to(logits.device)
    mask = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, index, True)
    log_q = logits.masked_fill(~mask, -torch.inf).log_softmax(-1)
    return -(log_q.exp() * log_q.masked_fill(~mask, 0.0)).sum(-1)
