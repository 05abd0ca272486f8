"""One sentence on whether a method is better than its baseline, or that the data cannot tell."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from aent_verl.comparison.stats import CONFIDENCE, Target
from aent_verl.comparison.stats.crossed import MIN_PROBLEMS, check_confidence, check_target
from aent_verl.comparison.stats.differences import Difference, difference, holm
from aent_verl.comparison.stats.power import MOST_PROBLEMS, MOST_SEEDS, POWER, Plan, plan
from aent_verl.comparison.stats.scores import score_matrices

# "refused": the data allow no statement at all, not even an interval.
State = Literal["better", "worse", "not resolved", "refused"]


@dataclass(frozen=True)
class Verdict:
    """What the data say about one method against the baseline.

    Attributes:
        method: the method's name.
        baseline: the baseline's name.
        metric: name of the score, higher is better.
        state: better or worse (resolved), not resolved, or refused.
        reason: why it is refused; None if it is not.
        difference: the difference with its interval; None if refused.
        p_adjusted: p-value after Holm over all comparisons of the call; None if refused.
        comparisons: how many those were.
        more: what would resolve it; None unless it is not resolved and differs at all.
        notes: what else a reader should know, in sentences.
    """

    method: str
    baseline: str
    metric: str
    state: State
    reason: str | None
    difference: Difference | None
    p_adjusted: float | None
    comparisons: int
    more: Plan | None
    notes: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The verdict in words, complete in itself; the notes are apart."""
        if self.difference is None or self.p_adjusted is None:
            return f"refused: {self.reason}"
        found = self.difference
        value, low, high = found.estimate.value, found.estimate.low, found.estimate.high
        # One number per seed, such as a length, has no problems of its own.
        where = f"in {self.metric}" + (f" on {found.target}" if found.problems > 1 else "")
        if not found.variance.seeds_vary:
            return f"not resolved: {self.method} and {self.baseline} have the same mean score in every run {where}"
        family = f" after Holm for {self.comparisons} comparisons" if self.comparisons > 1 else ""
        basis = (
            f"({found.confidence:.0%}, {_seeds(found.seeds)}, "
            f"{f'{found.problems} problems, ' if found.problems > 1 else ''}{_p(self.p_adjusted)}{family})"
        )
        if self.state != "not resolved":
            if self.state == "worse":
                value, low, high = -value, -high, -low
            return (
                f"resolved: {self.method} is {self.state} than {self.baseline} by {_number(value)} "
                f"[{_number(low)}, {_number(high)}] {where} {basis}"
            )
        words = (
            f"not resolved: the difference of {self.method} to {self.baseline} is {_number(value, sign=True)} "
            f"[{_number(low)}, {_number(high)}] {where} {basis}"
        )
        if found.p_value < 1 - found.confidence:
            words += f"; alone it would be ({_p(found.p_value)}), as one of {self.comparisons} comparisons it is not"
        return f"{words}; {_advice(found, self.more)}"


def verdicts(
    scores: Mapping[str, np.ndarray],
    baseline: str,
    *,
    metric: str = "score",
    target: Target = "problems like these",
    confidence: float = CONFIDENCE,
) -> dict[str, Verdict]:
    """Return the verdict on every method but the baseline.

    Args:
        scores: ``[S, P]`` or ``[S, P, n]`` by method, the same problems in the same order; higher is better. The
            number of seeds may differ.
        baseline: the name of one of them.
        metric: what the scores are, for the sentences.
        target: what is claimed. The default draws new problems too, because the question is whether a method helps on
            a task and the problems are a sample of it; methods share them, so this costs little.
        confidence: level of the intervals, each on its own; the states keep it for all comparisons together (Holm).

    Raises:
        ValueError: no such baseline, nothing to compare with it, or see `scores.score_matrices`.
    """
    if baseline not in scores or len(scores) < 2:
        raise ValueError(f"baseline={baseline!r}: must be one of {sorted(scores)}, with another method to compare")
    check_confidence(confidence)
    check_target(target)
    matrices = score_matrices(scores)
    others = [name for name in matrices if name != baseline]
    compared = {name: _compare(matrices, name, baseline, target, confidence) for name in others}
    found = {name: each for name, each in compared.items() if isinstance(each, Difference)}
    adjusted = dict(zip(found, holm([each.p_value for each in found.values()]), strict=True))
    given = {}
    for name in others:
        state, more = _decide(found[name], adjusted[name], len(found)) if name in found else ("refused", None)
        given[name] = Verdict(
            method=name,
            baseline=baseline,
            metric=metric,
            state=state,
            reason=None if name in found else str(compared[name]),
            difference=found.get(name),
            p_adjusted=adjusted.get(name),
            comparisons=len(found),
            more=more,
            notes=_notes(matrices, name, baseline),
        )
    return given


def refusal(method: str, baseline: str, metric: str, reason: str, comparisons: int) -> Verdict:
    """Return the verdict on a method that is not compared for this reason, alongside so many that are."""
    return Verdict(method, baseline, metric, "refused", reason, None, None, comparisons, more=None, notes=())


def _compare(
    matrices: Mapping[str, np.ndarray], method: str, baseline: str, target: Target, confidence: float
) -> Difference | str:
    """Return the difference, or the reason why there is none."""
    ours, theirs = matrices[method], matrices[baseline]
    single = [name for name in (method, baseline) if len(matrices[name]) == 1]
    if single:
        return (
            f"one seed of {' and of '.join(single)}: nothing can be claimed about {method} against {baseline}; another "
            "seed might reverse it. Train at least 3 seeds of each, better 5"
        )
    if target == "problems like these" and ours.shape[1] < MIN_PROBLEMS:
        return (
            f"{ours.shape[1]} problems are too few to speak of problems like these (at least {MIN_PROBLEMS}): evaluate "
            "on more, or ask about these problems only"
        )
    found = difference(ours, theirs, target=target, confidence=confidence)
    # Whatever the target: how the problems vary says nothing about another seed.
    if not found.variance.seeds_vary and found.estimate.value != 0:
        return (
            f"all seeds of {method} have the same mean score, and so have all of {baseline} ({_number(ours.mean())} "
            f"and {_number(theirs.mean())}): nothing varies between seeds, so no uncertainty can be estimated. Check "
            "that the runs are different ones, or evaluate on more problems"
        )
    return found


def _notes(matrices: Mapping[str, np.ndarray], method: str, baseline: str) -> tuple[str, ...]:
    notes = []
    for name in (method, baseline):
        matrix = matrices[name]
        distinct = len(np.unique(matrix, axis=0))
        # One number per seed is soon the same in two of them.
        if distinct < len(matrix) and matrix.shape[1] > 1 and not _is_constant(matrix):
            notes.append(
                f"{name}: only {distinct} of {len(matrix)} seeds differ in any score. If one run was counted twice, "
                "the interval is too narrow."
            )
    return tuple(notes)


def _decide(found: Difference, p_adjusted: float, comparisons: int) -> tuple[State, Plan | None]:
    alpha = 1 - found.confidence
    if found.estimate.value == 0:
        return "not resolved", None
    if p_adjusted < alpha:
        return ("better" if found.estimate.value > 0 else "worse"), None
    # Holm's first step, which is the strictest: what the smallest p-value of the family has to pass.
    return "not resolved", plan(found, alpha=alpha / comparisons)


def _advice(found: Difference, more: Plan | None) -> str:
    if more is None:
        return "a difference of 0 gives no number of seeds that would resolve it"
    if more.more_seeds is not None:
        seeds = "1 more seed" if more.more_seeds == 1 else f"{more.more_seeds} more seeds"
        return f"if it is really that large, about {seeds} a method would resolve it ({POWER:.0%} power)"
    if more.problems is not None:
        return (
            f"more seeds would not resolve a difference of that size, the problems differ too much: at least "
            f"{more.problems:,} problems like these are needed, {found.problems:,} were used ({POWER:.0%} power)"
        )
    if more.seeds_suffice:
        return f"even if it is really that large, more than {MOST_SEEDS} more seeds a method would be needed"
    return (
        f"no number of seeds would resolve a difference of that size, nor would {MOST_PROBLEMS:,} problems like these"
    )


def _is_constant(matrix: np.ndarray) -> bool:
    return math.isclose(matrix.min(), matrix.max(), rel_tol=1e-12, abs_tol=1e-12)


def _seeds(seeds: tuple[int, int]) -> str:
    return f"{seeds[0]} seeds each" if seeds[0] == seeds[1] else f"{seeds[0]} and {seeds[1]} seeds"


def _p(p_value: float) -> str:
    return "p < .001" if p_value < 0.001 else f"p = {_number(p_value)}"


def _number(value: float, sign: bool = False) -> str:
    """Format with three decimals, without the zero before the point; four significant digits from 10 on."""
    plus = "+" if sign else ""
    if abs(value) >= 10:
        return f"{value:{plus}.4g}"
    words = f"{round(value, 3) + 0.0:{plus}.3f}"  # no minus before a zero
    return words.replace("0.", ".", 1) if abs(value) < 1 else words
