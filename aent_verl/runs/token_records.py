"""The token dump: JSON lines, one response per line, in files ``step_*.jsonl``.

JSON has no NaN and no infinity. A number that is not finite is one of the strings ``"NaN"``, ``"Infinity"`` and
``"-Infinity"``, so every line is strictly valid JSON, and null is left for a number that does not exist.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from aent_verl._util import whole_number

PATTERN = "step_*.jsonl"
# Where a run keeps its dump, in the run's folder.
FOLDER = "tokens"

_NOT_FINITE = ("NaN", "Infinity", "-Infinity")
_KINDS: dict[str, tuple[set[type], str]] = {
    "int": ({int}, "not an integer"),
    "float": ({int, float}, "not a number"),
    "str": ({str}, "not a string"),
    "bool": ({bool}, "neither true nor false"),
    "list": ({list}, "not a list"),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenRecord:
    """One response of one training step; the attributes are the fields of its line, and this is their definition.

    All lists have one entry per response token.

    Attributes:
        step: training step, counted from 1.
        sample: index of the sample in the step's batch.
        rank: rank of the worker that wrote the line.
        method: name of the method, as in ``entropy_control.method``.
        functional: name of the entropy in ``entropy``: full, clamped, ...
        prompt: the prompt as text.
        tokens: decoded pieces of the response.
        log_prob: log-probability of each token under the policy, nats.
        entropy: entropy of the distribution that each token was drawn from, by ``functional``, nats.
        advantage: the advantage as verl computed it, before shaping.
        policy_weight: factor of advantage shaping on each token's policy loss, shaped over verl's advantage; None where
            verl's advantage is 0.
        bonus_weight: token mask times sample weight of the entropy bonus; 0: no bonus on this token.
        in_loss: the response mask: whether the token counts in the loss.
        score: the reward function's score of the response; None where there is none.
    """

    step: int
    sample: int
    rank: int
    method: str
    functional: str
    prompt: str
    tokens: list[str]
    log_prob: list[float]
    entropy: list[float]
    advantage: list[float]
    policy_weight: list[float | None]
    bonus_weight: list[float]
    in_loss: list[bool]
    score: float | None = None

    def __post_init__(self) -> None:
        for name in ("step", "sample", "rank"):
            whole_number(name, getattr(self, name))
        for name, kind in _TYPES.items():
            if kind.startswith("list[") and len(getattr(self, name)) != len(self.tokens):
                raise ValueError(f"{name} has {len(getattr(self, name))} entries for {len(self.tokens)} tokens")

    def to_json(self) -> str:
        """Write the record as one line of strict JSON, in ASCII, without the line's end."""
        data = vars(self).copy()
        for name in ("log_prob", "entropy", "advantage", "policy_weight", "bonus_weight"):
            data[name] = [_to_json_number(value) for value in data[name]]
        data["in_loss"] = [bool(value) for value in self.in_loss]
        data["score"] = _to_json_number(self.score)
        return json.dumps(data, allow_nan=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str | bytes) -> TokenRecord:
        """Parse the record of a line; fields that this version does not know are ignored.

        Raises:
            ValueError: not strict JSON, a field is missing or has a wrong type, or the lengths differ.
        """
        data = json.loads(line, parse_constant=_refuse_constant)
        if not isinstance(data, dict):
            raise ValueError("not a JSON object")
        if missing := sorted(_TYPES.keys() - data.keys()):
            raise ValueError(f"without {', '.join(missing)}")
        values = {}
        for name, kind in _TYPES.items():
            try:
                values[name] = _read(kind, data[name])
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return cls(**values)


def dump_file(folder: str | Path, step: int, rank: int) -> Path:
    """Name the file for what this rank writes of this step: `write_records` wants one writer a file."""
    return Path(folder) / f"step_{step:06d}_rank_{rank}.jsonl"


def write_records(path: Path, records: Iterable[TokenRecord]) -> None:
    """Append the records to a file that only this process writes; its folder is made.

    Each line is written at once, so that a run that is killed leaves at most the last one incomplete. Such a remainder
    of an earlier start is removed before the first line.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab") as file:
        content = path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):  # or the next line would continue a broken one
            file.truncate(end)
            logger.warning("%s: removed an incomplete last line", path)
        for record in records:
            file.write(record.to_json().encode() + b"\n")
            file.flush()


def read_records(paths: str | Path | Iterable[str | Path]) -> list[TokenRecord]:
    """Read the records of files and folders, sorted by step and sample.

    A folder stands for the dump files in it, or in its folder ``tokens``. An incomplete last line is skipped with a
    warning: the run is writing it, or was killed while it did. A resumed run repeats steps: of the same sample in the
    same file, the later line counts.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without a dump.
        ValueError: another damage; the message names file and line.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    # A file that is named and in a named folder is read once.
    files = {file.resolve(): file for path in paths for file in _files(Path(path))}
    records = (record for file in files.values() for record in _read_file(file))
    return sorted(records, key=lambda record: (record.step, record.sample))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(path.glob(PATTERN)) or sorted((path / FOLDER).glob(PATTERN))
        if not files:
            raise FileNotFoundError(f"no token dump in {path}: train with entropy_control.token_dump=4")
        return files
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    return [path]


def _read_file(path: Path) -> list[TokenRecord]:
    records: dict[tuple[int, int, int, str], TokenRecord] = {}
    *complete, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate([*complete, rest], start=1):
        if not line.strip():
            continue
        try:
            record = TokenRecord.from_json(line)
        except ValueError as error:
            no_json = isinstance(error, json.JSONDecodeError)
            if no_json and number > len(complete):
                logger.warning("%s, line %d is incomplete, so skipped: being written, or cut by a kill", path, number)
                continue
            raise ValueError(f"{path}, line {number} is damaged: {'no JSON: ' if no_json else ''}{error}") from None
        records[record.step, record.sample, record.rank, record.method] = record
    return list(records.values())


def _to_json_number(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return None if value is None else float(value)
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _refuse_constant(name: str) -> None:
    raise ValueError(f'{name} is not JSON: write "{name}", in quotes')


def _read(kind: str, value: Any) -> Any:
    """Check what JSON gave for a field with this annotation, and return its value."""
    if kind.endswith(" | None"):
        return None if value is None else _read(kind.removesuffix(" | None"), value)
    if kind == "float" and value in _NOT_FINITE:
        return float(value)
    expected, wrong = _KINDS[kind.partition("[")[0]]
    if type(value) not in expected:
        raise ValueError(f"{value!r:.40} is {wrong}")
    if isinstance(value, list):
        return [_read(kind[len("list[") : -1], item) for item in value]
    try:
        return float(value) if kind == "float" else value
    except OverflowError:
        raise ValueError(f"{value!r:.40} is too large") from None


_TYPES = {field.name: str(field.type) for field in fields(TokenRecord)}
