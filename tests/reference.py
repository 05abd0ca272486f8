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


def tre_set(logits: list[float], top_p: float) -> list[int]:
    """TRE: the likeliest tokens until they have ``top_p`` together, and those tied with the last."""
    p = softmax_of(logits)
    order = sorted(range(len(p)), key=lambda v: -p[v])
    mass, last = 0.0, order[-1]
    for v in order:
        mass += p[v]
        if mass >= top_p:
            last = v
            break
    return [v for v in range(len(p)) if logits[v] >= logits[last]]


def tre_entropy_row(logits: list[float], top_p: float) -> float:
    kept = tre_set(logits, top_p)
    if len(kept) == 1:
        return 0.0
    return math.log(len(logits)) / math.log(len(kept)) * entropy_of(softmax_of([logits[v] for v in kept]))


def topk_clamped_entropy(logits: Tensor, clamp_p: float) -> Tensor:
    """AEnt's entropy as its authors compute it: top-k of a copy on the CPU, a Boolean mask, a softmax; [N, V] -> [N].

    Right where nothing is tied at the boundary; kept to compare costs.
    """
    kept = logits.shape[-1] - int(logits.shape[-1] * clamp_p)
    index = logits.detach().cpu().topk(kept, dim=-1).indices.to(logits.device)
    mask = torch.zeros_like(logits, dtype=torch.bool).scatter_(-1, index, True)
    log_q = logits.masked_fill(~mask, -torch.inf).log_softmax(-1)
    return -(log_q.exp() * log_q.masked_fill(~mask, 0.0)).sum(-1)


def linear(entropies: list[float], coefficient: float) -> list[float]:
    return [-coefficient * h for h in entropies]


def anchored(entropies: list[float], coefficient: float, target: float) -> float:
    """SIREN: the squared distance of the mean entropy to its anchor, for the whole list at once."""
    return coefficient * (math.fsum(entropies) / len(entropies) - target) ** 2


def anchored_gradient(entropies: list[float], coefficient: float, target: float) -> list[float]:
    """The chain rule: 2 c (mean - target) times 1 / n."""
    n = len(entropies)
    return [2 * coefficient * (math.fsum(entropies) / n - target) / n] * n


def smoothed(
    entropies: list[float], coefficient: float, mean: float, low: float, high: float, beta: float
) -> list[float]:
    """EPO: the bonus less beta times the amount by which an entropy leaves [low, high] * mean."""
    losses = []
    for h in entropies:
        amount = 0.0
        if h < low * mean:
            amount = low * mean - h
        elif h > high * mean:
            amount = h - high * mean
        losses.append(-(coefficient * h - coefficient * beta * amount))
    return losses


def smoothed_gradient(
    entropies: list[float], coefficient: float, mean: float, low: float, high: float, beta: float
) -> list[float]:
    """-c inside the range and on its edges, -c (1 + beta) below, c (beta - 1) above."""
    gradient = []
    for h in entropies:
        slope = -1 if h < low * mean else (1 if h > high * mean else 0)
        gradient.append(-coefficient * (1 - beta * slope))
    return gradient


def smoothing_weight(step_index: int, total_steps: int, gamma: float) -> float:
    half = math.floor(total_steps / 2)
    return 1 + math.exp(-gamma * step_index / (half if half >= 1 else 1))


def quantile_of(values: list[float], quantile: float) -> float:
    """Linear interpolation between order statistics, the first at 0 and the last at 1."""
    ordered = sorted(values)
    position = quantile * (len(ordered) - 1)
    left = math.floor(position)
    if left + 1 == len(ordered):
        return ordered[left]
    return ordered[left] + (position - left) * (ordered[left + 1] - ordered[left])


def peak_mask(entropies: list[list[float]], mask: list[list[bool]], quantile: float) -> list[list[bool]]:
    """SIREN: tokens strictly above the quantile of their own response; NaN neither counts nor is a peak."""
    peaks = []
    for row, row_mask in zip(entropies, mask, strict=True):
        counted = [h for h, m in zip(row, row_mask, strict=True) if m and not math.isnan(h)]
        threshold = quantile_of(counted, quantile) if counted else math.inf
        peaks.append([bool(m and h > threshold) for h, m in zip(row, row_mask, strict=True)])
    return peaks


def linear_difficulty(accuracy: list[float]) -> list[float]:
    return [1 - a for a in accuracy]


def threshold_difficulty(accuracy: list[float], threshold: float) -> list[float]:
    return [0.0 if a > threshold else 1.0 for a in accuracy]


def weighted(
    terms: list[list[float]], mask: list[list[bool]], peaks: list[list[bool]], weights: list[float]
) -> list[list[float]]:
    """A term counts by its sample's weight if it is a peak of the response; NaN of the response stays."""
    result = []
    for row, row_mask, row_peaks, weight in zip(terms, mask, peaks, weights, strict=True):
        new = []
        for term, m, peak in zip(row, row_mask, row_peaks, strict=True):
            new.append(0.0 if not m else (math.nan if math.isnan(term) else (weight * term if peak else 0.0)))
        result.append(new)
    return result


def log_ratio(new: float, old: float) -> float:
    return min(20.0, max(-20.0, new - old))


def positive_reweight(advantages: list[float], mu: float) -> list[float]:
    return [mu * a if a > 0 else a for a in advantages]


def repo_r(advantage: float, log_p: float, zeta: float) -> float:
    """REPO-R, as its two cases are written."""
    if advantage > 0:
        return max(0.0, advantage * (1 - zeta * log_p))
    return min(0.0, advantage * (1 + zeta * log_p))


def steer_change(new: float, old: float, advantage: float, entropy: float) -> float:
    """STEER: (A / pi_old) pi (1 - pi) (ln pi + H); 0 where that is not finite."""
    change = advantage * math.exp(log_ratio(new, old)) * (1 - math.exp(new)) * (new + entropy)
    return change if math.isfinite(change) else 0.0


def steer_weight(changes: list[float], w_min: float, floor: float) -> list[float]:
    """The largest change is the list's own."""
    k = -math.log(w_min) / max([floor, *(abs(c) for c in changes)])
    return [min(1.0, max(w_min, math.exp(-k * abs(c)))) for c in changes]


def entropy_advantage(advantages: list[float], entropies: list[float], scale: float, kappa: float) -> list[float]:
    return [a + min(scale * h, abs(a) / kappa) for a, h in zip(advantages, entropies, strict=True)]


def confidence(log_probs: list[float], share: float) -> float:
    """ARM: the geometric mean probability of the least likely tokens of one response; 1 for an empty one."""
    if not log_probs:
        return 1.0
    least = sorted(log_probs)[: max(1, int(share * len(log_probs)))]
    return math.prod(math.exp(x) for x in least) ** (1 / len(least))


def progrpo(
    advantages: list[list[float]], responses: list[float], prompts: list[float], mixed: list[bool], scale: float
) -> list[list[float]]:
    rows = zip(advantages, responses, prompts, mixed, strict=True)
    return [[a + scale * (q - o) if m else a for a in row] for row, o, q, m in rows]


def covariance(advantages: list[float], log_probs: list[float]) -> list[float]:
    mean_a, mean_l = math.fsum(advantages) / len(advantages), math.fsum(log_probs) / len(log_probs)
    return [(a - mean_a) * (x - mean_l) for a, x in zip(advantages, log_probs, strict=True)]


def clipped(ratio: float, advantage: float, low: float, high: float) -> bool:
    """PPO's clip changes the loss of a good token that has become too likely, of a bad one too unlikely."""
    return (advantage > 0 and ratio > 1 + high) or (advantage < 0 and ratio < 1 - low)


def clip_cov(new: float, old: float, advantage: float, dropped: bool, low: float, high: float) -> tuple[float, float]:
    """Loss of one token and its derivative by ``new``."""
    if dropped:
        return 0.0, 0.0
    ratio = math.exp(log_ratio(new, old))
    if clipped(ratio, advantage, low, high):
        return -advantage * (1 + high if advantage > 0 else 1 - low), 0.0
    return -advantage * ratio, -advantage * ratio if abs(new - old) <= 20 else 0.0


def kl_cov(new: float, old: float, advantage: float, penalised: bool, coefficient: float) -> tuple[float, float]:
    """Loss of one token and its derivative by ``new``."""
    x = log_ratio(new, old)
    loss, slope = -advantage * math.exp(x), -advantage * math.exp(x)
    if penalised:
        loss, slope = loss + coefficient * abs(x), slope + coefficient * ((x > 0) - (x < 0))
    return loss, slope if abs(new - old) <= 20 else 0.0


def splitmix64(seed: int, index: int) -> int:
    """Number ``index`` of the stream from ``seed``, on integers modulo 2^64."""
    whole = (1 << 64) - 1
    x = (seed + (index + 1) * 0x9E3779B97F4A7C15) & whole
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & whole
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & whole
    return x ^ (x >> 31)


def priority(step: int, sample: int, position: int) -> int:
    """The hash of (step, sample, position), read as a signed number."""
    x = splitmix64(splitmix64(splitmix64(0, step), sample), position)
    return x - (1 << 64) if x >> 63 else x


def choose_largest(values: list[float], priorities: list[int], eligible: list[bool], count: int) -> list[bool]:
    """Largest value first, of equal ones the smaller priority; NaN never."""
    candidates = [i for i, ok in enumerate(eligible) if ok and not math.isnan(values[i])]
    chosen = sorted(candidates, key=lambda i: (-values[i], priorities[i]))[:count]
    return [i in chosen for i in range(len(values))]


def choose_random(priorities: list[int], eligible: list[bool], count: int) -> list[bool]:
    chosen = sorted((p, i) for i, (p, ok) in enumerate(zip(priorities, eligible, strict=True)) if ok)[:count]
    return [any(i == j for _, j in chosen) for i in range(len(priorities))]


def sampled_entropy_row(logits: list[float], top_k: int, top_p: float) -> float:
    """What vLLM samples from: top-k with all ties, then top-p with the token that crosses."""
    ordered = sorted(logits, reverse=True)
    if top_k > 0:
        ordered = [z for z in ordered if z >= ordered[min(top_k, len(ordered)) - 1]]
    kept, mass = 0, 0.0
    for p in softmax_of(ordered):
        if mass >= top_p:
            break
        mass += p
        kept += 1
    return entropy_of(softmax_of(ordered[:kept]))
