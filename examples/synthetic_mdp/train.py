"""Policy gradient with sampled episodes and an entropy bonus, for many runs at once.

Each step samples ``GROUP`` episodes per run. The advantage of an episode is its return less the mean return of the
others of its group, one number for all its actions, as in GRPO without the division by the standard deviation. So the
step follows an unbiased estimate of the gradient of ``J + lambda * sum_t H_t``, ``J`` the expected return.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from aent_verl.core.controllers import BandController
from examples.synthetic_mdp.mdp import ACTIONS, POSITIONS, Problem, Start, entropy, problem

GROUP = 16
STEP_SIZE = 10.0


@dataclass(frozen=True)
class Method:
    """One way to train.

    Attributes:
        coefficient: of the entropy bonus; the first one if there is a controller.
        clamp_p: share of the actions that the clamped entropy leaves out; 0 is the full entropy.
        step_size: of gradient ascent.
        controller: moves the coefficient of each run; None keeps it.
    """

    coefficient: float = 0.0
    clamp_p: float = 0.0
    step_size: float = STEP_SIZE
    controller: BandController | None = None


@dataclass(frozen=True)
class Curves:
    """What was measured every ``every`` steps, before the step; ``[M, S, N]`` for methods, seeds, measurements.

    Attributes:
        steps: ``[N]``.
        reward: expected reward per position under the policy, in ``[0, 1]``.
        entropy: full entropy per position, nats.
    """

    steps: Tensor
    reward: Tensor
    entropy: Tensor


def advantages(rewards: Tensor) -> Tensor:
    """Leave-one-out advantages of episodes; ``[runs, T, G]`` rewards to ``[runs, 1, G]``, summing to 0 over ``G``."""
    returns = rewards.sum(1, keepdim=True)
    group = returns.shape[-1]
    return (returns - returns.mean(-1, keepdim=True)) * (group / (group - 1))


def objective(
    logits: Tensor, size: Tensor, sampled: Tensor, advantage: Tensor, coefficient: Tensor, keep: Tensor
) -> tuple[Tensor, Tensor]:
    """What a step climbs, summed over rows, and the entropy of each row ``[R]``.

    Args:
        logits: ``[R, C]``.
        size: ``[R, C]``.
        sampled: class of each sampled action, ``[R, G]``.
        advantage: ``[R, G]``.
        coefficient: ``[R]``.
        keep: actions that the entropy looks at, ``[R, 1]``.
    """
    log_probs = logits.gather(-1, sampled) - (logits + size.log()).logsumexp(-1, keepdim=True)
    bonus = entropy(logits, size, keep)
    return ((advantage * log_probs).mean(-1) + coefficient * bonus).sum(), bonus


def train(
    optimal_actions: int,
    methods: list[Method],
    seeds: list[int],
    *,
    steps: int,
    every: int,
    start: Start,
) -> Curves:
    """Train every method with every seed; a seed has the same MDP under all methods.

    Args:
        optimal_actions: per position.
        methods: trained side by side.
        seeds: one run each.
        steps: of gradient ascent.
        every: steps from one measurement to the next; a divisor of ``steps``.
        start: the initial policy.
    """
    shape = (len(methods), len(seeds), POSITIONS)
    tables = [problem(optimal_actions, seed, start) for seed in seeds]
    given = Problem(*(torch.cat(column).repeat(len(methods), 1) for column in zip(*tables, strict=True)))
    logits, size, optimal = given.logits.clone().requires_grad_(), given.size, given.optimal.float()
    keep = _per_row([float(ACTIONS - int(ACTIONS * m.clamp_p)) for m in methods], shape).unsqueeze(-1)
    step_size = _per_row([m.step_size for m in methods], shape).unsqueeze(-1)
    coefficients = _Coefficients(methods, len(seeds))
    generator = torch.Generator().manual_seed(seeds[0])
    measured: list[tuple[Tensor, Tensor]] = []
    for step in range(steps + 1):
        with torch.no_grad():
            weight = size * (logits - logits.amax(-1, keepdim=True)).exp()
            cumulative = weight.cumsum(-1)
            if step % every == 0:
                reward = (weight * optimal).sum(-1) / cumulative[:, -1]
                full = entropy(logits, size, torch.full_like(keep, ACTIONS))
                measured.append((reward.view(shape).mean(-1), full.view(shape).mean(-1)))
            if step == steps:
                break
            point = torch.rand(len(logits), GROUP, generator=generator) * cumulative[:, -1:]
            sampled = torch.searchsorted(cumulative, point).clamp(max=logits.shape[1] - 1)
            rewards = optimal.gather(-1, sampled).view(-1, POSITIONS, GROUP)
            advantage = advantages(rewards).expand_as(rewards).reshape(sampled.shape)
        climbed, bonus = objective(logits, size, sampled, advantage, coefficients.rows(shape), keep)
        (gradient,) = torch.autograd.grad(climbed, logits)
        with torch.no_grad():
            # The gradient of a class is the sum over its actions; each of them moves by the mean. A class may be empty.
            logits += step_size * gradient / size.clamp(min=1)
        coefficients.update(bonus.detach().view(shape).mean(-1), step + 1)
    reward, full = (torch.stack(column, -1) for column in zip(*measured, strict=True))
    return Curves(torch.arange(0, steps + 1, every), reward, full)


def _per_row(values: list[float], shape: tuple[int, int, int]) -> Tensor:
    """One value per method, repeated for all its rows; ``[R]``."""
    return torch.tensor(values).view(-1, 1, 1).expand(shape).reshape(-1)


class _Coefficients:
    """The coefficient of each run; those of methods with a controller move, each run's by its own state."""

    def __init__(self, methods: list[Method], seeds: int) -> None:
        self._values = torch.tensor([method.coefficient for method in methods]).unsqueeze(-1).repeat(1, seeds)
        self._controlled = [
            (row, seed, method.controller, method.controller.initial_state())
            for row, method in enumerate(methods)
            if method.controller is not None
            for seed in range(seeds)
        ]

    def rows(self, shape: tuple[int, int, int]) -> Tensor:
        """The coefficient of each row, ``[R]``."""
        return self._values.unsqueeze(-1).expand(shape).reshape(-1)

    def update(self, measured: Tensor, step: int) -> None:
        """One step of every controller with its run's entropy; ``[M, S]``."""
        for index, (row, seed, controller, state) in enumerate(self._controlled):
            state = controller.update(state, entropy=float(measured[row, seed]), step=step)
            self._values[row, seed] = state.coefficient
            self._controlled[index] = (row, seed, controller, state)
