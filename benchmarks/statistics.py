"""Coverage, false alarms and power of the statistics, nominal and simulated: the tables of docs/statistics.md.

    python -m benchmarks.statistics --markdown

The experiments are those of the tests (`tests.unit.comparison.stats.simulation`), only more of them. All are seeded.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy import optimize, stats

from aent_verl.comparison.stats import Target
from aent_verl.comparison.stats.cross_checks import paired_bootstrap
from aent_verl.comparison.stats.crossed import Variance
from aent_verl.comparison.stats.power import POWER, power_of
from benchmarks.report import Report, add_output_options, progress, stamp
from tests.unit.comparison.stats.simulation import (
    REFERENCE,
    SETTINGS,
    Setting,
    any_claimed,
    covered,
    crossed_interval,
    p_value,
    percentile_over_seeds,
    problems_as_runs_bootstrap,
    problems_only,
    satterthwaite_p_value,
    share_found,
    simulate,
)

# In the order of the columns.
TARGETS: tuple[Target, ...] = ("these problems", "problems like these")
EQUAL = (3, 5, 10)
# Of the method with fewer seeds, as a multiple of the other's.
SPREADS = (1.0, 3.0, 1 / 3)
RESIDUAL_SD = 0.3
HOLM_OF_4 = 0.0125

Cells = list[str]


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        title: above it.
        columns: their heads; the first is of the rows' names.
        experiments: as many for each number, unless fewer are asked for.
        rows: by name, the cells for a number of experiments.
    """

    title: str
    columns: tuple[str, ...]
    experiments: int
    rows: dict[str, Callable[[int], Cells]]


def coverage(setting: Setting, experiments: int) -> Cells:
    """Share of 95% intervals that hold the truth: ours for both targets, then the two naive ones."""
    rows = []
    for seeds in EQUAL:
        made = simulate(replace(setting, seeds=(seeds, seeds)), experiments, seed=1)
        here, like = made.these_problems[0] - made.these_problems[1], made.like_these[0] - made.like_these[1]
        _, *fixed = crossed_interval(*made.scores, "these problems")
        _, *general = crossed_interval(*made.scores, "problems like these")
        rows.append(
            (
                covered(*fixed, here),
                covered(*general, like),
                covered(*problems_only(*made.scores), like),
                covered(*percentile_over_seeds(*made.scores), here),
            )
        )
    return _cells(zip(*rows, strict=True))


def bootstraps(setting: Setting, experiments: int) -> Cells:
    """The bootstraps that take one experiment at a time, and ours on the same experiments."""
    rows = []
    for seeds in EQUAL:
        made = simulate(replace(setting, seeds=(seeds, seeds)), experiments, seed=1)
        here, like = made.these_problems[0] - made.these_problems[1], made.like_these[0] - made.like_these[1]
        pairs = list(zip(*made.scores, strict=True))
        naive = np.array([problems_as_runs_bootstrap(*pair) for pair in pairs]).T
        two_level = np.array([paired_bootstrap(*pair) for pair in pairs]).T
        _, *general = crossed_interval(*made.scores, "problems like these")
        rows.append((covered(*naive, here), covered(*two_level, like), covered(*general, like)))
    return _cells(zip(*rows, strict=True))


def false_alarms(seeds: tuple[int, int], problems: int, experiments: int) -> Cells:
    """Share of experiments without a difference that are called better or worse, at 5%, at each of `SPREADS`."""
    ours: list[list[float]] = []
    plain: list[list[float]] = []
    for target in TARGETS:
        ours.append([])
        plain.append([])
        for times in SPREADS:
            scores = without_difference(seeds, target, experiments, times=times, problems=problems)
            ours[-1].append(float(np.mean(p_value(*scores, target) < 0.05)))
            plain[-1].append(float(np.mean(satterthwaite_p_value(*scores, target) < 0.05)))
    return _cells([*ours, *plain])


def without_difference(
    seeds: Sequence[int], target: Target, experiments: int, *, times: float = 1.0, problems: int = 128
) -> list[np.ndarray]:
    """Scores of methods that are equal in what the target asks about, ``[experiments, S, P]`` each; 16 samples.

    The seeds of the first differ ``times`` as much as those of the others.
    """
    setting = replace(
        REFERENCE,
        seeds=tuple(seeds),
        problems=problems,
        samples=16,
        seed_sd=(0.02 * times, *(0.02,) * (len(seeds) - 1)),
        # About these problems, they may not differ on any of them either.
        problem_sd=0.05 if target == "problems like these" else 0.0,
        effects=(0.0,) * len(seeds),
    )
    return simulate(setting, experiments, seed=2).scores


def family(seeds: Sequence[int], experiments: int) -> Cells:
    """Share of experiments in which any method equal to the baseline, which is the first, is called different."""
    baseline, *others = without_difference(seeds, "problems like these", experiments, problems=200)
    ours = np.array([p_value(each, baseline, "problems like these") for each in others])
    wilcoxon = stats.wilcoxon(np.array([each.mean(axis=1) - baseline.mean(axis=1) for each in others]), axis=-1)
    return _cells([[any_claimed(ours)], [float(np.mean(ours.min(axis=0) < 0.05))], [any_claimed(wilcoxon.pvalue)]])


def power(seeds: tuple[int, int], experiments: int) -> Cells:
    """Where `power_of` says 80%: the share found, by level and target; then what a plain noncentral t says there."""
    found = []
    for alpha in (0.05, HOLM_OF_4):
        for target in TARGETS:
            variance, value = difference_of_power(seeds, target, alpha)
            found.append([share_found(value, variance, RESIDUAL_SD, target, alpha, experiments)])
    variance, value = difference_of_power(seeds, "these problems", 0.05)
    total, degrees = variance.of_mean("these problems")
    plain = stats.nct.sf(stats.t.ppf(0.975, degrees), degrees, value / np.sqrt(total))
    return _cells([*found, [float(plain)]])


def difference_of_power(seeds: tuple[int, int], target: Target, alpha: float) -> tuple[Variance, float]:
    """True parts of a variance at 128 problems, and the difference that `power_of` promises to find in 80%."""
    seed_variance = np.float64(0.02**2 + RESIDUAL_SD**2 / 128)
    variance = Variance((seed_variance,) * 2, np.float64(0.1**2), (float(seeds[0]), float(seeds[1])), 128)
    value = optimize.brentq(lambda value: power_of(value, variance, target, alpha) - POWER, 0, 10)
    return variance, float(value)


def _cells(rows: "Sequence[Sequence[float]] | zip[tuple[float, ...]]") -> Cells:
    return [" ".join(f"{share:.3f}".lstrip("0") or "0" for share in row) for row in rows]


def _words(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} each" if len(set(seeds)) == 1 else " and ".join(map(str, seeds))


PAIRS = [(2, 2), (3, 3), (5, 5), (2, 3), (2, 5), (2, 10), (3, 5), (3, 10), (5, 10)]
FAMILIES = {
    "3 each": (3,) * 5,
    "5 each": (5,) * 5,
    "10 each": (10,) * 5,
    "baseline 10; 2, 3, 5, 10": (10, 2, 3, 5, 10),
    "baseline 10; 3 each": (10, 3, 3, 3, 3),
    "baseline 3; 10 each": (3, 10, 10, 10, 10),
    "baseline 2; 10 each": (2, 10, 10, 10, 10),
}
TABLES = {
    "coverage": Table(
        "Coverage: share of 95% intervals that hold the truth, at 3, 5, 10 seeds each",
        ("experiment", *TARGETS, "naive: runs as given", "naive: percentile over seeds"),
        3000,
        {name: partial(coverage, setting) for name, setting in SETTINGS.items()},
    ),
    "bootstraps": Table(
        "Coverage of bootstraps, at 3, 5, 10 seeds each",
        ("experiment", "problems as tasks", "two-level", "problems like these"),
        600,
        {name: partial(bootstraps, SETTINGS[name]) for name in ("reference", "large seed effect")},
    ),
    "false alarms": Table(
        "False alarms, nominal .050: equal methods called better or worse. The method with fewer seeds has the same, "
        "3 times and a third of the other's standard deviation of seeds",
        ("seeds", *TARGETS, *(f"Welch and Satterthwaite, {target}" for target in TARGETS)),
        3000,
        {_words(pair): partial(false_alarms, pair, 128) for pair in PAIRS}
        | {f"{_words(pair)}, 20 problems": partial(false_alarms, pair, 20) for pair in ((3, 3), (2, 10), (3, 10))},
    ),
    "family": Table(
        "False alarms among four methods equal to the baseline, nominal .050: any is called different",
        ("seeds", "verdict, with Holm", "without Holm", "Wilcoxon over problems, with Holm"),
        3000,
        {name: partial(family, seeds) for name, seeds in FAMILIES.items()},
    ),
    "power": Table(
        "Power: share of experiments that find the difference of which it is said to be .800; with Holm for 4, at "
        "the strictest level",
        (
            "seeds",
            *TARGETS,
            *(f"{target}, Holm for 4" for target in TARGETS),
            "noncentral t of the true variances, these problems",
        ),
        6000,
        {_words(pair): partial(power, pair) for pair in ((3, 3), (4, 4), *PAIRS[2:3], (10, 10), *PAIRS[5:])},
    ),
}


def main() -> None:
    """Print all tables, or those that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=TABLES, nargs="+", default=list(TABLES), help="tables, all if not given")
    add_output_options(parser)
    options = parser.parse_args()
    report = Report(options, stamp("cpu"), "statistics")
    numbers = {}
    for name in options.only:
        table, rows = TABLES[name], []
        for row, cells in table.rows.items():
            progress(f"{name}: {row}")
            rows.append([row, *cells(table.experiments)])
        report.table(table.title, list(table.columns), rows)
        numbers[name] = rows
    report.save(tables=numbers)


if __name__ == "__main__":
    main()
