"""Other tests of the same difference, shown alongside the verdict. What each takes as given is part of its name.

None of them decides. `docs/statistics.md` has how often each is wrong on simulated experiments.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from aent_verl.comparison.stats import CONFIDENCE
from aent_verl.comparison.stats.differences import difference
from aent_verl.comparison.stats.scores import score_matrices


@dataclass(frozen=True)
class CrossChecks:
    """Other answers to the question of the verdict.

    Attributes:
        welch_p: Welch's t-test over the means of the seeds: these problems, new seeds; with the verdict's degrees of
            freedom where the numbers of seeds differ. None with one seed in either, and where the seeds' means differ
            between the methods only.
        wilcoxon_p: Wilcoxon's signed-rank test over the problems' differences: these very runs, new problems. Says
            nothing about another training seed.
        bootstrap_low: lower end of `paired_bootstrap`.
        bootstrap_high: upper end of it.
    """

    welch_p: float | None
    wilcoxon_p: float
    bootstrap_low: float
    bootstrap_high: float


def cross_checks(scores: np.ndarray, baseline: np.ndarray, *, confidence: float = CONFIDENCE) -> CrossChecks:
    """Run all of them for a method and its baseline, ``[S, P]`` or ``[S, P, n]`` each."""
    ours, theirs = score_matrices({"method": scores, "baseline": baseline}).values()
    low, high = paired_bootstrap(ours, theirs, confidence=confidence)
    enough = min(len(ours), len(theirs)) > 1
    welch_p = difference(ours, theirs, target="these problems").p_value if enough else math.nan
    return CrossChecks(
        welch_p=None if math.isnan(welch_p) else welch_p,
        wilcoxon_p=wilcoxon_over_problems(ours, theirs),
        bootstrap_low=low,
        bootstrap_high=high,
    )


def paired_bootstrap(
    scores: np.ndarray, baseline: np.ndarray, *, confidence: float = CONFIDENCE, reps: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Bootstrap a percentile interval of the difference over two levels (pigeonhole; Owen 2007, Ann. Appl. Stat. 1).

    Each replication draws seeds of the method, seeds of the baseline, and problems, the same problems for both. It
    counts the interaction more than once, which widens, and has no t-quantile for few seeds, which narrows.
    """
    matrices = score_matrices({"method": scores, "baseline": baseline}).values()
    generator = np.random.default_rng(seed)
    problems = next(iter(matrices)).shape[1]
    by_problem = generator.multinomial(problems, np.full(problems, 1 / problems), size=reps) / problems
    means = []
    for matrix in matrices:
        seeds = len(matrix)
        by_seed = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=reps) / seeds
        means.append(((by_problem @ matrix.T) * by_seed).sum(axis=1))
    low, high = np.quantile(means[0] - means[1], [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def wilcoxon_over_problems(scores: np.ndarray, baseline: np.ndarray) -> float:
    """Return Wilcoxon's two-sided signed-rank p-value over the problems' seed means; 1 where no problem differs."""
    ours, theirs = score_matrices({"method": scores, "baseline": baseline}).values()
    # Means of the same scores in another order differ by rounding, which ranks would count as a difference.
    differences = np.round(ours.mean(axis=0) - theirs.mean(axis=0), 12)
    if not differences.any():
        return 1.0
    return float(stats.wilcoxon(differences).pvalue)
