"""The whole loss of every preset by its definition: loops over responses and tokens, in fp64, on one batch at once.

Written from the papers' formulas with the published constants. A choice or a weight that carries no gradient is made of
plain floats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from aent_verl.methods.step import StepValues
from tests import reference
from tests.preset_harness import Sequence


@dataclass(frozen=True)
class Token:
    """A token in the loss, with the row of logits that predicts it."""

    row: Tensor  # [V], with gradient
    label: int
    old: float
    advantage: float
    position: int
    of: Sequence

    @property
    def log_p(self) -> Tensor:
        top = max(self.row.tolist())
        return self.row[self.label] - top - (self.row - top).exp().sum().log()

    @property
    def log_ratio(self) -> Tensor:
        return self.log_p - self.old

    def entropy(self, kept: list[int] | None = None) -> Tensor:
        """Of the distribution restricted to the ``kept`` tokens; 0 if there are none."""
        z = self.row if kept is None else self.row[kept]
        if len(z) == 0:
            return z.sum()
        weights = (z - max(z.tolist())).exp()
        p = weights / weights.sum()
        return -(p * p.log()).sum()

    @property
    def full(self) -> float:
        return reference.full_entropy_row(self.row.tolist())

    @property
    def clamped(self) -> Tensor:
        """AEnt: without the int(V * .33) smallest."""
        order = sorted(range(len(self.row)), key=lambda v: self.row[v].item())
        return self.entropy(order[int(len(order) * 0.33) :])

    @property
    def nucleus(self) -> Tensor:
        """SIREN: while the mass including the token is below .8."""
        p = reference.softmax_of(self.row.tolist())
        kept, mass = [], 0.0
        for v in sorted(range(len(p)), key=lambda v: -p[v]):
            mass += p[v]
            if mass >= 0.8:
                break
            kept.append(v)
        return self.entropy(kept)


Responses = list[list[Token]]
Loss = Callable[[Responses, StepValues], Tensor]


def responses(sequences: list[Sequence], logits: list[Tensor]) -> Responses:
    """The tokens in the loss of each response; none of one that is masked out."""
    result = []
    for s, rows in zip(sequences, logits, strict=True):
        every = [
            Token(
                rows[s.prompt + t - 1], s.tokens[s.prompt + t], s.old_log_probs[t].item(), s.advantages[t].item(), t, s
            )
            for t in range(len(s.mask))
        ]
        result.append([token for token in every if s.mask[token.position] == 1])
    return result


def token_mean(batch: Responses, value: Callable[[Token], Tensor]) -> Tensor:
    values = [value(token) for tokens in batch for token in tokens]
    return torch.stack(values).sum() / len(values)


def ppo(token: Token, a: float, low: float = 0.2, high: float = 0.2, c: float = 3.0) -> Tensor:
    """A good token pulls up to 1 + high, a bad one pushes between 1 - low and c (dual clip)."""
    ratio = token.log_ratio.exp()
    if a > 0 and ratio > 1 + high:
        return ratio.new_tensor(-a * (1 + high))
    if a < 0 and ratio < 1 - low:
        return ratio.new_tensor(-a * (1 - low))
    if a < 0 and ratio > c:
        return ratio.new_tensor(-a * c)
    return -a * ratio


def grpo(batch: Responses, step: StepValues) -> Tensor:
    return token_mean(batch, lambda t: ppo(t, t.advantage))


def clip_higher(batch: Responses, step: StepValues) -> Tensor:
    return token_mean(batch, lambda t: ppo(t, t.advantage, high=0.28))


def dual_clip(batch: Responses, step: StepValues) -> Tensor:
    return token_mean(batch, lambda t: ppo(t, t.advantage, c=1.5))


def gspo(batch: Responses, step: StepValues) -> Tensor:
    """The ratio is the geometric mean over the response; a token's own carries the gradient (GSPO-token)."""
    losses = []
    for tokens in batch:
        for t in tokens:
            s = math.exp(math.fsum(u.log_ratio.item() for u in tokens) / len(tokens))
            stopped = (t.advantage > 0 and s > 1.2) or (t.advantage < 0 and s < 0.8)
            clipped = t.row.new_tensor(-t.advantage * min(max(s, 0.8), 1.2))
            losses.append(clipped if stopped else -t.advantage * s * (t.log_p - t.log_p.item()).exp())
    return torch.stack(losses).sum() / len(losses)


def cispo(batch: Responses, step: StepValues) -> Tensor:
    def loss(t: Token) -> Tensor:
        return -min(max(math.exp(t.log_ratio.item()), 0.8), 1.2) * t.advantage * t.log_p

    return token_mean(batch, loss)


def par(batch: Responses, step: StepValues) -> Tensor:
    return token_mean(batch, lambda t: (step.advantages_coefficient if t.advantage > 0 else 1.0) * ppo(t, t.advantage))


def repo_r(batch: Responses, step: StepValues) -> Tensor:
    def shaped(t: Token) -> float:
        return reference.repo_r(t.advantage, t.log_p.item(), step.advantages_coefficient)

    return token_mean(batch, lambda t: ppo(t, shaped(t)))


def steer(batch: Responses, step: StepValues, high: float = 0.28, c: float = 10.0) -> Tensor:
    """The loss of each token times a weight of .8 to 1."""
    tokens = [t for each in batch for t in each]
    changes = [reference.steer_change(t.log_p.item(), t.old, t.advantage, t.full) for t in tokens]
    weights = reference.steer_weight(changes, 0.8, 0.02)
    losses = [w * ppo(t, t.advantage, high=high, c=c) for w, t in zip(weights, tokens, strict=True)]
    return torch.stack(losses).sum() / len(losses)


def with_entropy(t: Token, kappa: float = 1.0) -> Token:
    return replace(t, advantage=t.advantage + min(0.4 * t.full, abs(t.advantage) / kappa))


def entropy_adv(batch: Responses, step: StepValues, kappa: float = 1.0, then: Loss = grpo) -> Tensor:
    return then([[with_entropy(t, kappa) for t in tokens] for tokens in batch], step)


def progrpo(batch: Responses, step: StepValues) -> Tensor:
    """Confidence: geometric mean of the 20% least likely tokens; the prompt's first token has no probability."""
    losses = []
    for tokens in batch:
        answer = reference.confidence([t.log_p.item() for t in tokens], 0.2)
        for t in tokens:
            s = t.of
            question = [reference.softmax_of(s.logits[i].tolist())[s.tokens[i + 1]] for i in range(s.prompt - 1)]
            gap = reference.confidence([math.log(p) for p in question], 0.2) - answer
            losses.append(ppo(t, t.advantage + (0.1 * gap if 0 < s.accuracy < 1 else 0.0), high=0.28))
    return torch.stack(losses).sum() / len(losses)


def covariances(batch: Responses) -> tuple[list[Token], list[float], list[int]]:
    """Tokens in the loss, their covariances and their reproducible random numbers."""
    tokens = [t for each in batch for t in each]
    values = reference.covariance([t.advantage for t in tokens], [t.log_p.item() for t in tokens])
    return tokens, values, [reference.priority(3, t.of.sample, t.position) for t in tokens]


def dropped_by_clip_cov(batch: Responses) -> tuple[list[bool], list[bool]]:
    """Eligible tokens, and the random choice among them; the batch is small, so from .1 on and one in twenty."""
    tokens, values, priorities = covariances(batch)
    eligible = [
        0.1 < value < 5 and not reference.clipped(math.exp(t.log_ratio.item()), t.advantage, 1.0, 1.0)
        for t, value in zip(tokens, values, strict=True)
    ]
    return eligible, reference.choose_random(priorities, eligible, max(1, int(0.05 * len(tokens))))


def clip_cov(batch: Responses, step: StepValues) -> Tensor:
    tokens, (_, dropped) = [t for each in batch for t in each], dropped_by_clip_cov(batch)
    losses = [
        ppo(t, t.advantage, 1.0, 1.0, math.inf) * (0.0 if out else 1.0) for t, out in zip(tokens, dropped, strict=True)
    ]
    return torch.stack(losses).sum() / len(losses)


def penalised_by_kl_cov(batch: Responses) -> list[bool]:
    """The tenth of largest covariance."""
    tokens, values, priorities = covariances(batch)
    return reference.choose_largest(values, priorities, [True] * len(tokens), max(1, int(0.1 * len(tokens))))


def kl_cov(batch: Responses, step: StepValues) -> Tensor:
    tokens, chosen = [t for each in batch for t in each], penalised_by_kl_cov(batch)
    losses = [
        -t.advantage * t.log_ratio.exp() + (t.log_ratio.abs() if penalty else 0.0)
        for t, penalty in zip(tokens, chosen, strict=True)
    ]
    return torch.stack(losses).sum() / len(losses)


def no_bonus(batch: Responses, step: StepValues) -> Tensor:
    return torch.zeros((), dtype=torch.float64)


def full_bonus(batch: Responses, step: StepValues) -> Tensor:
    return -step.bonus_coefficient * token_mean(batch, lambda t: t.entropy())


def clamped_bonus(batch: Responses, step: StepValues) -> Tensor:
    return -step.bonus_coefficient * token_mean(batch, lambda t: t.clamped)


def tre_bonus(batch: Responses, step: StepValues) -> Tensor:
    def entropy(t: Token) -> Tensor:
        kept = reference.tre_set(t.row.tolist(), 0.99)
        return t.entropy(kept) * math.log(len(t.row)) / math.log(max(2, len(kept)))

    return -step.bonus_coefficient * token_mean(batch, entropy)


def peaks(entropies: list[Tensor]) -> list[bool]:
    values = [h.item() for h in entropies]
    return reference.peak_mask([values], [[True] * len(values)], 0.8)[0]


def clamped_bonus_of_peaks(batch: Responses, step: StepValues) -> Tensor:
    entropies = [[t.clamped for t in tokens] for tokens in batch]
    kept = [h for each in entropies for h, peak in zip(each, peaks(each), strict=True) if peak]
    return -step.bonus_coefficient * torch.stack(kept).sum() / sum(len(each) for each in entropies)


def bonus_by_difficulty(batch: Responses, step: StepValues) -> Tensor:
    return -step.bonus_coefficient * token_mean(batch, lambda t: (1 - t.of.accuracy) * t.entropy())


Weight = Callable[[Token], float]


def equal(token: Token) -> float:
    return 1.0


def aggregate_of_peaks(batch: Responses, weight: Weight = equal) -> Tensor:
    """Weighted mean over the responses with a peak of the mean over their peaks."""
    means, weights = [], []
    for tokens in batch:
        entropies = [t.nucleus for t in tokens]
        kept = [h for h, peak in zip(entropies, peaks(entropies), strict=True) if peak]
        if kept:
            means.append(weight(tokens[0]) * torch.stack(kept).sum() / len(kept))
            weights.append(weight(tokens[0]))
    return torch.stack(means).sum() / math.fsum(weights)


def distance_to_anchor(batch: Responses, step: StepValues, weight: Weight = equal) -> Tensor:
    return step.bonus_coefficient * (aggregate_of_peaks(batch, weight) - step.initial_entropy) ** 2


def bonus_in_window(batch: Responses, step: StepValues, weight: Weight = equal) -> Tensor:
    """EPO: less what leaves [0, 2] times the past mean; k counts steps from 0."""
    beta = 1 + math.exp(-3 * (step.step - 1) / max(1, step.total_steps // 2))
    highest = 2 * step.entropy_mean

    def term(t: Token) -> Tensor:
        h = t.entropy()
        return h - beta * (h - highest) if h > highest else h

    return -step.bonus_coefficient * token_mean(batch, lambda t: weight(t) * term(t))


PRESETS: dict[str, tuple[Loss, Loss]] = {
    "grpo": (grpo, no_bonus),
    "entreg": (grpo, full_bonus),
    "aent": (grpo, clamped_bonus),
    "tre": (grpo, tre_bonus),
    # Its rewards are shaped before there are advantages: tests/unit/methods/test_rewards.py.
    "ares": (grpo, no_bonus),
    "skywork": (grpo, full_bonus),
    "aer": (grpo, bonus_by_difficulty),
    "par_stage": (par, no_bonus),
    "par_epoch": (par, no_bonus),
    "par_entropy": (par, no_bonus),
    "clip_cov": (clip_cov, no_bonus),
    "kl_cov": (kl_cov, no_bonus),
    "siren": (grpo, distance_to_anchor),
    "steer": (steer, no_bonus),
    "repo_r": (repo_r, no_bonus),
    "epo": (grpo, bonus_in_window),
    "entropy_adv": (entropy_adv, no_bonus),
    "progrpo": (progrpo, no_bonus),
    "clip_higher": (clip_higher, no_bonus),
    "linear_decay": (grpo, full_bonus),
    "aent+gspo": (gspo, clamped_bonus),
    "aent+cispo": (cispo, clamped_bonus),
    "aent+dual_clip": (dual_clip, clamped_bonus),
    "aent+par": (par, clamped_bonus),
    "aent+peaks": (grpo, clamped_bonus_of_peaks),
    "aent+steer": (partial(steer, high=0.2, c=3.0), clamped_bonus),
    "siren+difficulty": (grpo, partial(distance_to_anchor, weight=lambda t: 1 - t.of.accuracy)),
    "aent+entropy_adv": (partial(entropy_adv, kappa=2.0), clamped_bonus),
    "clip_cov+entropy_adv": (partial(entropy_adv, then=clip_cov), no_bonus),
    "epo+difficulty": (grpo, partial(bonus_in_window, weight=lambda t: 1 - t.of.accuracy)),
}


def loss_and_gradients(name: str, sequences: list[Sequence], step: StepValues) -> tuple[float, list[Tensor]]:
    """Loss of the whole batch, and its gradient by each sequence's logits."""
    logits = [s.logits.detach().clone().requires_grad_() for s in sequences]
    batch = responses(sequences, logits)
    policy, bonus = PRESETS[name]
    loss = policy(batch, step) + bonus(batch, step)
    loss.backward()
    return loss.item(), [torch.zeros_like(z) if z.grad is None else z.grad for z in logits]
