"""Experiments whose truth is known, and how often each interval holds it. Prints the tables of docs/statistics.md:

    python -m tests.unit.statistics.simulation [experiments]

The accuracy of seed s on problem p is b_p + 4 b_p (1 - b_p) (method + seed + method on problem + seed on problem), with
b_p ~ Beta: problems that are always or never solved stay so, and the mean over seeds is known exactly.
"""

import sys
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from aent_verl.statistics.cross_checks import paired_bootstrap
from aent_verl.statistics.crossed import interval, variance_parts
from aent_verl.statistics.differences import holm


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
    """What rliable does with problems as tasks, for a difference of means: the runs of each problem drawn apart.

    One experiment, [S, P] each; compared with rliable itself in the tests.
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


def coverage_table(experiments: int) -> None:
    """Ours for both targets, then the two that need no loop over experiments; for 3, 5 and 10 seeds each."""
    print(f"{'coverage at 3, 5, 10 seeds':28s}{'these problems':24s}{'problems like these':24s}", end="")
    print(f"{'runs taken as given':24s}percentile over seeds")
    for name, setting in SETTINGS.items():
        rows = np.zeros((4, 3))
        for column, seeds in enumerate((3, 5, 10)):
            made = simulate(replace(setting, seeds=(seeds, seeds)), experiments, seed=1)
            here, like = made.these_problems[0] - made.these_problems[1], made.like_these[0] - made.like_these[1]
            _, *fixed = crossed_interval(*made.scores, "these problems")
            _, *general = crossed_interval(*made.scores, "problems like these")
            rows[:, column] = (
                covered(*fixed, here),
                covered(*general, like),
                covered(*problems_only(*made.scores), like),
                covered(*percentile_over_seeds(*made.scores), here),
            )
        print(f"{name:28s}" + "".join(f"{' '.join(f'{share:.3f}' for share in row):24s}" for row in rows), flush=True)


def bootstrap_table(experiments: int) -> None:
    """The bootstraps that take one experiment at a time, and ours on the same experiments."""
    print(f"\n{'coverage at 3, 5, 10 seeds':28s}{'problems as tasks':24s}{'two-level':24s}problems like these")
    for name in ("reference", "large seed effect"):
        rows = np.zeros((3, 3))
        for column, seeds in enumerate((3, 5, 10)):
            made = simulate(replace(SETTINGS[name], seeds=(seeds, seeds)), experiments, seed=1)
            here, like = made.these_problems[0] - made.these_problems[1], made.like_these[0] - made.like_these[1]
            pairs = list(zip(*made.scores, strict=True))
            naive = np.array([problems_as_runs_bootstrap(*pair) for pair in pairs]).T
            two_level = np.array([paired_bootstrap(*pair) for pair in pairs]).T
            _, *general = crossed_interval(*made.scores, "problems like these")
            rows[:, column] = covered(*naive, here), covered(*two_level, like), covered(*general, like)
        print(f"{name:28s}" + "".join(f"{' '.join(f'{share:.3f}' for share in row):24s}" for row in rows), flush=True)


def false_claims_table(experiments: int) -> None:
    """Experiments in which any of four methods equal to the baseline is called different, at 5%."""
    print("\nany of 4 equal methods called different, at 3, 5, 10 seeds")
    rows: dict[str, list[float]] = {"ours with Holm": [], "ours without": [], "Wilcoxon over problems with Holm": []}
    for seeds in (3, 5, 10):
        setting = replace(REFERENCE, seeds=(seeds,) * 5, seed_sd=(0.02,) * 5, effects=(0.0,) * 5)
        baseline, *others = simulate(setting, experiments, seed=2).scores
        ours = np.array([p_value(each, baseline, "problems like these") for each in others])
        wilcoxon = stats.wilcoxon(np.array([each.mean(axis=1) - baseline.mean(axis=1) for each in others]), axis=-1)
        rows["ours with Holm"].append(any_claimed(ours))
        rows["ours without"].append(float(np.mean(ours.min(axis=0) < 0.05)))
        rows["Wilcoxon over problems with Holm"].append(any_claimed(wilcoxon.pvalue))
    for name, shares in rows.items():
        print(f"{name:36s}" + " ".join(f"{share:.3f}" for share in shares))


def any_claimed(p_values: np.ndarray) -> float:
    """Share of experiments with a claim after Holm, [methods, experiments]."""
    return float(np.mean([min(holm(column)) < 0.05 for column in p_values.T]))


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    coverage_table(count)
    bootstrap_table(count // 5)
    false_claims_table(count)
