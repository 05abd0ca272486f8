"""The metrics of a run: the lines of verl's ``file`` logger, or TensorBoard's event files.

verl writes one line ``{"step": n, "data": {name: value}}`` a step. It empties the file whenever a run starts, so
`rotate` moves that of the previous start away first: ``metrics.1.jsonl`` is the oldest, then ``metrics.2.jsonl`` and so
on, and ``metrics.jsonl`` is the newest.
"""

import json
import logging
import math
import os
import re
from pathlib import Path

from aent_verl import _util

METRICS_FILE = "metrics.jsonl"
REWARD = "critic/score/mean"
ENTROPY = "aent/entropy"
ENTROPY_FULL = "aent/entropy_full"
COEFFICIENT = "aent/coefficient"
ADVANTAGES_COEFFICIENT = "aent/advantages_coefficient"
INITIAL_ENTROPY = "aent/initial_entropy"
BAND_SIDE = "aent/band_side"
STEP_SECONDS = "timing_s/step"
RESPONSE_LENGTH = "response_length/mean"

# One step's metrics by name. JSON has no NaN and verl's logger writes null for it; here it is NaN again.
Metrics = dict[str, float]

# Files of a run's earlier starts.
OLDER = re.compile(r"metrics\.([1-9]\d*)\.jsonl")
_EVENTS = "*tfevents*"
# A data source may itself hold slashes, as in openai/gsm8k.
_VALIDATION = re.compile(r"val-core/(?P<source>.+)/(?P<kind>acc|reward)/mean@\d+")

logger = logging.getLogger(__name__)


def read_metrics(path: Path) -> dict[int, Metrics]:
    """Read the metrics of a run by step, in ascending order.

    Args:
        path: a run's folder with ``metrics.jsonl`` in it, one such file of verl's ``file`` logger under any name, or a
            folder with TensorBoard's event files in it or below it.

    Raises:
        FileNotFoundError: there is nothing of that kind.
        ValueError: damaged, or no step in it.
    """
    if path.is_file():
        steps = read_file(path)
        if not steps:
            raise ValueError(f"{path} holds no step: the run ended before its first one, see its log")
        return dict(sorted(steps.items()))
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is not there: give the folder of a run, or its metrics file")
    if _logs(path):
        return read_run(path)
    folders = sorted({file.parent for file in path.rglob(_EVENTS)})
    if not folders:
        raise FileNotFoundError(
            f"{path} has neither {METRICS_FILE} nor TensorBoard's event files: give the folder of a run whose "
            "trainer.logger includes 'file' or 'tensorboard', or the .jsonl file itself"
        )
    if len(folders) > 1:
        raise ValueError(
            f"{path} has TensorBoard's event files of {len(folders)} runs below it "
            f"({', '.join(str(folder.relative_to(path)) for folder in folders[:3])}, ...): give one of them"
        )
    return _read_tensorboard(folders[0])


def read_run(folder: str | Path) -> dict[int, Metrics]:
    """Read all steps of a run in ascending order, over every start of it.

    A later start resumes from a checkpoint, so what it logged replaces all that an earlier one had logged from there
    on, including steps that the later one has not reached yet. The last line of a file may be incomplete: the run is
    writing it, or was killed while it did.

    Raises:
        FileNotFoundError: the folder holds no metrics file.
        ValueError: a line before the last is not a line of metrics, or there is no step at all.
    """
    files = _logs(Path(folder))
    if not files:
        raise FileNotFoundError(
            f"no {METRICS_FILE} in {folder}: give the folder of a run (run.dir) whose trainer.logger includes 'file'"
        )
    run: dict[int, Metrics] = {}
    for steps in filter(None, map(read_file, files)):
        first = min(steps)
        # A start whose first line only validates its checkpoint adds to that step and does not redo it.
        kept = first + 1 if all(key.startswith("val-") for key in steps[first]) else first
        run = {step: data for step, data in run.items() if step < kept}
        for step, data in steps.items():
            run[step] = run.get(step, {}) | data
    if not run:
        raise ValueError(f"no step in {', '.join(map(str, files))}: the run ended before its first step, see its log")
    return dict(sorted(run.items()))


def read_file(file: Path) -> dict[int, Metrics]:
    """Read all steps of one file in its order; an incomplete last line is left out.

    Raises:
        ValueError: a line before the last is not a line of metrics.
    """
    steps: dict[int, Metrics] = {}
    lines = file.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            step, data = _parse(line)
        except ValueError as error:
            if number == len(lines):
                break
            where = f"{file}, line {number} of {len(lines)}"
            raise ValueError(f"{where} is not a metrics line ({error}): remove the line, or the file") from None
        steps[step] = steps.get(step, {}) | data
    return steps


def validation_accuracy(data: Metrics) -> float | None:
    """Return a step's mean validation accuracy over its data sources; the mean reward where the task has no accuracy.

    Each source counts the same, however many problems it has: verl does not log how many those are. None if the step
    was not validated.
    """
    values = [value for _, value in _validations(data)]
    return sum(values) / len(values) if values else None


def validation_sources(data: Metrics) -> set[str]:
    """Return the data sources that `validation_accuracy` is the mean over; empty if the step was not validated."""
    return {source for source, _ in _validations(data)}


def validation_left_out(data: Metrics) -> set[str]:
    """Return the sources that `validation_accuracy` leaves out: with a reward alone, where others have an accuracy."""
    sources = {match["source"] for match in map(_VALIDATION.fullmatch, data) if match}
    return sources - validation_sources(data)


def rotate(folder: Path) -> None:
    """Move ``metrics.jsonl`` to the next free number, before verl opens and thereby empties it.

    A file that is missing or empty holds nothing to save and stays.
    """
    newest = folder / METRICS_FILE
    if newest.is_file() and newest.stat().st_size:
        # Beyond the highest number, not in the first gap: the numbers are the order of the starts.
        newest.rename(folder / f"metrics.{max(_older(folder), default=0) + 1}.jsonl")


class MetricsTail:
    """Follows one metrics file while verl writes it.

    The file may not exist yet, end in the middle of a line, or be emptied or replaced by a new start of the run, which
    is then read from its beginning.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._offset = 0
        self._last_line = b""

    def read_new(self) -> list[tuple[int, Metrics]]:
        """Read the steps whose lines were completed since the last call; other complete lines are skipped."""
        try:
            with open(self.path, "rb") as file:
                # A file that was emptied may have grown past our offset since: only its content tells.
                file.seek(self._offset - len(self._last_line))
                if file.read(len(self._last_line)) != self._last_line:
                    self._offset, self._last_line = 0, b""
                    file.seek(0)
                new = file.read()
        except FileNotFoundError:
            return []
        steps = []
        for line in new[: new.rfind(b"\n") + 1].splitlines(keepends=True):
            self._offset += len(line)
            self._last_line = line
            try:
                steps.append(_parse(line))
            except ValueError as error:
                logger.warning("%s: skipped a line: %s", self.path, error)
        return steps


def _validations(data: Metrics) -> list[tuple[str, float]]:
    """Return data sources with their accuracies, or with their rewards where none has an accuracy."""
    found: dict[str, list[tuple[str, float]]] = {"acc": [], "reward": []}
    for key, value in data.items():
        if match := _VALIDATION.fullmatch(key):
            found[match["kind"]].append((match["source"], value))
    return found["acc"] or found["reward"]


def _logs(folder: Path) -> list[Path]:
    """List the files of all starts, the newest last."""
    return [file for file in (*_older(folder).values(), folder / METRICS_FILE) if file.is_file()]


def _older(folder: Path) -> dict[int, Path]:
    """List the files of earlier starts by number, in ascending order."""
    matches = map(OLDER.fullmatch, os.listdir(folder) if folder.is_dir() else [])
    return dict(sorted((int(match[1]), folder / match[0]) for match in matches if match))


def _parse(line: bytes) -> tuple[int, Metrics]:
    """Parse the step and the metrics of one line; values that are not numbers are left out.

    Raises:
        ValueError: not JSON, or not of the logger's form.
    """
    entry = json.loads(line)
    if not isinstance(entry, dict) or type(entry.get("step")) is not int or not isinstance(entry.get("data"), dict):
        raise ValueError('expected {"step": <integer>, "data": {...}}')
    numbers = {key: math.nan if value is None else value for key, value in entry["data"].items()}
    return entry["step"], {key: float(value) for key, value in numbers.items() if isinstance(value, int | float)}


def _read_tensorboard(folder: Path) -> dict[int, Metrics]:
    _util.require("compare", f"{folder}, which holds TensorBoard's event files,", "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={SCALARS: 0, TENSORS: 0})
    accumulator.Reload()
    run: dict[int, Metrics] = {}
    for tag in accumulator.Tags()[SCALARS]:
        for event in accumulator.Scalars(tag):
            # verl starts at step 0 or 1; of a step that a run and its resumption both logged, the later counts.
            run.setdefault(event.step, {})[tag] = float(event.value)
    if not any(math.isfinite(value) for data in run.values() for value in data.values()):
        raise ValueError(f"{folder}: TensorBoard's event files hold no numbers")
    return dict(sorted(run.items()))
