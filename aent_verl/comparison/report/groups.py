"""The runs of a comparison by method, and what stands in the way of comparing them."""

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from aent_verl._util import first_few
from aent_verl.runs import metrics
from aent_verl.runs.metrics import validation_accuracy, validation_left_out, validation_sources
from aent_verl.runs.protocol import Protocol, differences
from aent_verl.runs.run import Run, by_method

# What is searched for NaN.
_CHECKED = (metrics.REWARD, metrics.ENTROPY, metrics.ENTROPY_FULL, metrics.COEFFICIENT)


@dataclass(frozen=True)
class Groups:
    """Runs that are compared.

    Attributes:
        runs: by method, the baseline first, each by ascending seed.
        baseline: a method that has runs; None if there is only one method and it is another.
        differences: a line for each part of the protocol in which runs differ; only where that was allowed.
        notices: what a reader should know about the runs before reading any number, in sentences.
    """

    runs: dict[str, list[Run]]
    baseline: str | None
    differences: tuple[str, ...]
    notices: tuple[str, ...]

    @property
    def methods(self) -> list[str]:
        """Names in the order of the report."""
        return list(self.runs)

    @property
    def all(self) -> list[Run]:
        """All runs in the order of the report."""
        return [run for group in self.runs.values() for run in group]


def group_runs(runs: Sequence[Run], baseline: str, allow_different: bool = False, failed: Sequence[str] = ()) -> Groups:
    """Group runs by method and check that they can be compared.

    Args:
        runs: in any order.
        baseline: the method that the others are compared with.
        allow_different: group them even if their protocols differ.
        failed: sentences without a full stop about runs that are missing.

    Raises:
        ValueError: no run; no run of the baseline among several methods; two runs of the same method and seed; or
            protocols that differ without ``allow_different``.
    """
    if not runs:
        raise ValueError(f"no run to report on: give the folders of finished runs{_missing(failed)}")
    present = list(dict.fromkeys(run.method for run in runs))
    if baseline not in present and len(present) > 1:
        raise ValueError(
            f"baseline={baseline!r}: no run of it; there are runs of {', '.join(present)}{_missing(failed)}"
        )
    known = baseline if baseline in present else None
    groups = by_method(runs, first=known)
    ordered = [run for group in groups.values() for run in group]
    found = differences({run.name: run.protocol for run in ordered}) if len(ordered) > 1 else []
    found += differences({run.name: _evaluation(run) for run in ordered if run.scores is not None})
    if found and not allow_different:
        raise ValueError(
            "these runs were not made under the same protocol, so a difference between methods could come from that:\n"
            + "\n".join(f"  {line}" for line in found)
            + "\nLeave some out, or allow it (--allow-different): the report then says so at its top"
        )
    return Groups(groups, known, tuple(found), tuple(_notices(groups, ordered, baseline, failed)))


def sentences(found: Iterable[tuple[str, str]]) -> list[str]:
    """Write one sentence for each reason, with the names of the runs that it holds for."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in found:
        by_reason.setdefault(reason, []).append(name)
    return [f"{first_few(names)}: {reason}." for reason, names in by_reason.items()]


def _missing(failed: Sequence[str]) -> str:
    return f" ({'; '.join(failed)})" if failed else ""


def _evaluation(run: Run) -> Protocol:
    assert run.scores is not None
    problems = hashlib.sha256("\0".join(sorted(run.scores.problems)).encode()).hexdigest()[:12]
    return {
        "evaluation.problems": f"{len(run.scores.problems)} problems {problems}",
        "evaluation.n": str(run.scores.samples),
        **run.scores.protocol,
    }


def _notices(groups: dict[str, list[Run]], runs: list[Run], baseline: str, failed: Sequence[str]) -> Iterator[str]:
    yield from (f"{sentence}." for sentence in failed)
    if failed:
        yield "Those runs are missing because they failed or are not finished; none is left out for its result."
    if baseline not in groups:
        yield f"There is no run of the baseline {baseline}, so nothing is compared."
    if single := [method for method, group in groups.items() if len(group) == 1]:
        yield (
            f"One seed of {first_few(single)}: its numbers have no interval, and nothing is claimed from them. Another "
            "seed might reverse them."
        )
    furthest = max(run.last_step for run in runs)
    if short := [f"{run.name} ends at step {run.last_step}" for run in runs if run.last_step < furthest]:
        yield (
            f"Not all runs are equally long; the longest end at step {furthest:,}: {first_few(short)}. Where a seed is "
            "missing, its method's curves stop."
        )
    for method, group in groups.items():
        yield from _seed_notices(method, group)
    sources = max(len(validation_sources(data)) for run in runs for data in run.metrics.values())
    if sources > 1:
        yield (
            f"Validation accuracy is the mean over {sources} data sources, each of which counts the same, however "
            "many problems it has."
        )
    yield from _left_out(runs)
    yield from sentences((run.name, reason) for run in runs for reason in _not_final(run))


def _left_out(runs: list[Run]) -> list[str]:
    """Name the data sources of the validation that do not count, and the runs in which they do not."""
    left_out = {run.name: set().union(*map(validation_left_out, run.metrics.values())) for run in runs}
    by_runs: dict[tuple[str, ...], list[str]] = {}
    for source in sorted(set().union(*left_out.values())):
        names = tuple(name for name, sources in left_out.items() if source in sources)
        by_runs.setdefault(names, []).append(source)
    return [
        f"Validation accuracy{'' if len(names) == len(runs) else f' of {first_few(names)}'} leaves out the data source"
        f"{'s' if len(sources) > 1 else ''} {', '.join(sources)}: only a reward is logged there, which is not averaged "
        "with the accuracy of other sources. To have it count, let the reward function return a dict with 'score' and "
        "'acc'."
        for names, sources in by_runs.items()
    ]


def _not_final(run: Run) -> Iterator[str]:
    """Name scores of a run that are there but are not those of the final model."""
    yield from run.notes
    steps = [step for step, data in run.metrics.items() if validation_accuracy(data) is not None]
    final = validation_accuracy(run.metrics[run.last_step])
    if final is None and steps:
        yield f"the last validation is at step {max(steps)}, not at the end of training, step {run.last_step}"
    elif final is not None and not math.isfinite(final):
        yield (
            "the last validation is NaN or infinite. It is not left out for its result: where methods are compared "
            "by their last validation, nothing is claimed about its method"
        )


def _seed_notices(method: str, group: list[Run]) -> Iterator[str]:
    """Name what is odd about the seeds of one method: differing settings, NaN, no validation."""
    described = [run.settings for run in group if run.settings]
    keys = sorted(set().union(*described))
    if differing := [key for key in keys if len({settings.get(key) for settings in described}) > 1]:
        yield (
            f"Seeds of {method} were trained with different settings, so they are not one method: "
            f"{first_few(differing)}."
        )
    for run in group:
        for key in _CHECKED:
            values = [data[key] for data in run.metrics.values() if key in data]
            bad = sum(not math.isfinite(value) for value in values)
            if bad:
                yield f"{run.name}: {key} is NaN or infinite at {bad} of {len(values)} steps."
        if all(validation_accuracy(data) is None for data in run.metrics.values()):
            yield f"{run.name} was never validated: left out of the validation curves."
