"""Experiments whose truth is known, and how often each interval holds it: for the tests and `benchmarks.statistics`.

The accuracy of seed s on problem p is b_p + 4 b_p (1 - b_p) (method + seed + method on problem + seed on problem), with
b_p ~ Beta: problems that are always or never solved stay so, and the mean over seeds is known exactly.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from aent_verl.comparison.stats.crossed import Variance, interval, variance_parts
from aent_verl.comparison.stats.differences import holm


@dataclass(frozen=True)
class Setting:
    """Standard deviations are in accuracy, at a problem that is solved half of the time."""

    seeds: tuple[int, ...] = (5, 5)
    problems: int = 200
    samples: int = 8
    seed_sd: tuple[float, ...] = (0.02, 0.02)
    problem_sd: float = 0.05
    interaction_sd: float = 0.05
    effects: tuple[float, ...] = (0.03, 0.0)
    difficulty: tuple[float, float] = (0.6, 0.6)
    collapses: float = 0.0  # share of seeds that lose .15
    touched: float = 1.0  # share of problems that the effect is on, which is that much larger on them


@dataclass(frozen=True)
class Experiments:
    scores: list[np.ndarray]  # by method, [experiments, S, P]
    these_problems: np.ndarray  # true means, [methods, experiments]
    like_these: np.ndarray  # true means, [methods]


def simulate(setting: Setting, experiments: int, seed: int) -> Experiments:
    rng = np.random.default_rng(seed)
    solved = rng.beta(*setting.difficulty, size=(experiments, 1, setting.problems))
    room = 4 * solved * (1 - solved)
    first, second = setting.difficulty
    mean_room = 4 * first * second / ((first + second) * (first + second + 1))
    touched = (rng.random(solved.shape) < setting.touched) / setting.touched
    scores, fixed, general = [], [], []
    for seeds, seed_sd, effect in zip(setting.seeds, setting.seed_sd, setting.effects, strict=True):
        of_seed = seed_sd * rng.standard_normal((experiments, seeds, 1))
        of_seed -= 0.15 * ((rng.random(of_seed.shape) < setting.collapses) - setting.collapses)
        of_problem = setting.problem_sd * rng.standard_normal((experiments, 1, setting.problems))
        both = setting.interaction_sd * rng.standard_normal((experiments, seeds, setting.problems))
        shift = np.clip(effect * touched + of_seed + of_problem + both, -0.25, 0.25)
        right = rng.binomial(setting.samples, np.clip(solved + room * shift, 0, 1))
        scores.append(right / setting.samples)
        fixed.append((solved + room * (effect * touched + of_problem)).mean(axis=(1, 2)))
        general.append(first / (first + second) + mean_room * effect)
    return Experiments(scores, np.array(fixed), np.array(general))


def crossed_interval(ours, theirs, target, confidence=0.95):
    """Ours: [experiments, S, P] each -> difference, low, high."""
    per_problem = ours.mean(axis=-2) - theirs.mean(axis=-2)
    value = per_problem.mean(axis=-1)
    low, high, _, _ = interval(value, variance_parts([ours, theirs], per_problem), target, confidence)
    return value, low, high


def p_value(ours, theirs, target):
    per_problem = ours.mean(axis=-2) - theirs.mean(axis=-2)
    total, degrees = variance_parts([ours, theirs], per_problem).of_mean(target)
    return 2 * stats.t.sf(np.abs(per_problem.mean(axis=-1)) / np.sqrt(total), degrees)


def satterthwaite_p_value(ours, theirs, target):
    """As `p_value`, with the degrees of freedom that Welch and Satterthwaite give, and nothing for unequal numbers."""
    per_problem = ours.mean(axis=-2) - theirs.mean(axis=-2)
    variance = variance_parts([ours, theirs], per_problem)
    parts = [part / seeds for part, seeds in zip(variance.seed_variances, variance.seeds, strict=True)]
    known = [seeds - 1 for seeds in variance.seeds]
    if target == "problems like these":
        parts.append(variance.problem_excess / variance.problems)
        known.append(variance.problems - 1)
    total = np.sum(parts, axis=0)
    degrees = total**2 / np.sum([part**2 / each for part, each in zip(parts, known, strict=True)], axis=0)
    return 2 * stats.t.sf(np.abs(per_problem.mean(axis=-1)) / np.sqrt(total), degrees)


def share_found(value, variance: Variance, residual_sd, target, alpha, experiments, seed=0) -> float:
    """Share of normal experiments that find a true difference of ``value`` with its sign, at the level ``alpha``.

    Their variance has the given parts; ``residual_sd`` of a single score is contained in those of the seeds.
    """
    rng = np.random.default_rng(seed)
    problem_sd = math.sqrt(variance.problem_excess) if target == "problems like these" else 0.0
    # In parts: the scores of all would not fit into a small machine.
    rounds, found = -(-experiments // 2000), 0
    for count in (len(part) for part in np.array_split(np.arange(experiments), rounds)):
        pair = []
        for seeds, seed_variance in zip(map(int, variance.seeds), variance.seed_variances, strict=True):
            seed_sd = math.sqrt(seed_variance - residual_sd**2 / variance.problems)
            noise = residual_sd * rng.standard_normal((count, seeds, variance.problems))
            pair.append(noise + seed_sd * rng.standard_normal((count, seeds, 1)))
        ours, theirs = pair
        ours += value + problem_sd * rng.standard_normal((count, 1, variance.problems))
        above = ours.mean(axis=(1, 2)) > theirs.mean(axis=(1, 2))
        found += int(((p_value(ours, theirs, target) < alpha) & above).sum())
    return found / experiments


def percentile_over_seeds(ours, theirs, reps=400, seed=0):
    """The naive bootstrap of the few per-seed means."""
    rng = np.random.default_rng(seed)
    drawn = []
    for matrix in (ours, theirs):
        means = matrix.mean(axis=-1)
        picks = rng.integers(means.shape[1], size=(reps, means.shape[1]))
        drawn.append(means[:, picks].mean(axis=-1))
    return np.quantile(drawn[0] - drawn[1], [0.025, 0.975], axis=1)


def problems_as_runs_bootstrap(ours, theirs, reps=500, seed=0):
    """The stratified bootstrap of Agarwal et al. 2021 with problems as tasks, for a difference of means.

    The runs of each problem are drawn apart. One experiment, [S, P] each.
    """
    rng = np.random.default_rng(seed)
    drawn = []
    for matrix in (ours, theirs):
        seeds, problems = matrix.shape
        picks = rng.integers(seeds, size=(reps, seeds, problems))
        drawn.append(matrix[picks, np.arange(problems)].mean(axis=(1, 2)))
    return np.quantile(drawn[0] - drawn[1], [0.025, 0.975])


def problems_only(ours, theirs):
    """A t-interval over the problems' differences: the runs taken as given."""
    per_problem = ours.mean(axis=-2) - theirs.mean(axis=-2)
    half = stats.sem(per_problem, axis=-1) * stats.t.ppf(0.975, per_problem.shape[-1] - 1)
    return per_problem.mean(axis=-1) - half, per_problem.mean(axis=-1) + half


def covered(low, high, truth) -> float:
    return float(np.mean((low <= truth) & (truth <= high)))


REFERENCE = Setting()
# The normal approximation at its worst: hardly any noise, and the effect on 1 problem in 20.
FEW_MOVED = replace(
    REFERENCE,
    touched=0.05,
    effects=(0.0125, 0.0),
    samples=64,
    seed_sd=(0.002, 0.002),
    problem_sd=0.0,
    interaction_sd=0.0,
)
SETTINGS = {
    "reference": REFERENCE,
    "one sample": replace(REFERENCE, samples=1),
    "no seed effect": replace(REFERENCE, seed_sd=(0.0, 0.0), problem_sd=0.0, interaction_sd=0.0),
    "large seed effect": replace(REFERENCE, seed_sd=(0.05, 0.05)),
    "seed sd .01 and .05": replace(REFERENCE, seed_sd=(0.01, 0.05)),
    "large problem effect": replace(REFERENCE, problem_sd=0.12),
    "hard problems (mean .09)": replace(REFERENCE, difficulty=(0.2, 2.0)),
    "30 problems": replace(REFERENCE, problems=30),
    "20 hard problems": replace(REFERENCE, problems=20, difficulty=(0.2, 2.0)),
    "10 hard problems": replace(REFERENCE, problems=10, difficulty=(0.2, 2.0)),
    "500 problems": replace(REFERENCE, problems=500),
    "few problems moved": replace(FEW_MOVED, problems=200),
    "few problems moved, of 30": replace(FEW_MOVED, problems=30),
    "1 seed in 5 collapses": replace(REFERENCE, collapses=0.2),
}


def any_claimed(p_values: np.ndarray) -> float:
    """Share of experiments with a claim after Holm, [methods, experiments]."""
    return float(np.mean([min(holm(column)) < 0.05 for column in p_values.T]))
