"""Scores as the statistics take them: one row per training seed, one column per problem."""

from collections.abc import Mapping, Sequence

import numpy as np


def score_matrix(scores: np.ndarray, name: str) -> np.ndarray:
    """Return scores of one method as floats, ``[S, P, n]`` or ``[S, P]`` -> ``[S, P]``; n samples are averaged.

    Raises:
        ValueError: another number of axes, an empty axis, or a score that is NaN or infinite.
    """
    matrix = np.asarray(scores, dtype=float)
    if matrix.ndim not in (2, 3) or matrix.size == 0:
        raise ValueError(
            f"scores[{name!r}] have shape {matrix.shape}: expected [seeds, problems] or [seeds, problems, samples], "
            "each at least 1"
        )
    bad = ~np.isfinite(matrix)
    if bad.any():
        seed, problem = np.argwhere(bad)[0][:2]
        raise ValueError(
            f"scores[{name!r}] hold {int(bad.sum())} values that are not finite, first at seed {seed}, problem "
            f"{problem}: evaluate that run again, or leave it out"
        )
    return matrix.mean(axis=2) if matrix.ndim == 3 else matrix


def score_matrices(scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the `score_matrix` of every method; all must have the same number of problems, in the same order.

    Raises:
        ValueError: see `score_matrix`; or the numbers of problems differ.
    """
    matrices = {name: score_matrix(values, name) for name, values in scores.items()}
    counts = {name: matrix.shape[1] for name, matrix in matrices.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"methods were scored on different numbers of problems, {_counts(counts)}: {_ADVICE}")
    return matrices


def shared_problems(problems: Mapping[str, Sequence[str]], *, intersect: bool = False) -> dict[str, np.ndarray]:
    """Find columns that bring all methods' scores into one order of problems: ``scores[name][:, columns[name]]``.

    Args:
        problems: ids of the problems of each method, in the order of its scores.
        intersect: keep the problems that all methods have, where the sets differ. The comparison then says nothing
            about the rest, so this is never done unasked.

    Raises:
        ValueError: an id occurs twice; the sets differ and ``intersect`` is not set; or they share nothing.
    """
    for name, ids in problems.items():
        if len(set(ids)) < len(ids):
            twice = next(problem for problem in ids if list(ids).count(problem) > 1)
            raise ValueError(f"problem {twice!r} occurs more than once in the scores of {name!r}: keep it once")
    sets = [set(ids) for ids in problems.values()]
    shared = set.intersection(*sets) if sets else set()
    counts = {name: len(ids) for name, ids in problems.items()}
    if not shared:
        raise ValueError(f"methods share no problem, {_counts(counts)}: evaluate all of them on the same data")
    if not intersect and any(ids != shared for ids in sets):
        raise ValueError(
            f"methods were scored on different problems, {_counts(counts)}, {len(shared)} shared by all: {_ADVICE}"
        )
    order = [problem for problem in next(iter(problems.values())) if problem in shared]
    columns = {}
    for name, ids in problems.items():
        place = {problem: column for column, problem in enumerate(ids)}
        columns[name] = np.array([place[problem] for problem in order])
    return columns


_ADVICE = "evaluate all methods on the same data, or ask for the problems that all share (intersect=True)"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())
