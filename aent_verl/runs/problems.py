"""Scores of single problems: what `aent-verl evaluate` stored, or what verl dumped at a validation.

verl writes a validation's responses to ``<trainer.validation_data_dir>/<step>.jsonl``, one line each, in any order; the
lines of one problem have the same prompt and right answer.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from aent_verl._util import read_json
from aent_verl.runs.checkpoints import step_of
from aent_verl.runs.protocol import Protocol, shortened

EVALUATION = Path("evaluation", "evaluation.json")
UNKNOWN_SOURCE = "validation"
SCORES = Path("evaluation", "scores.jsonl")
RESPONSES = Path("evaluation", "responses.jsonl")
VALIDATION = "validation"
# Of sampling: n is seen in the scores, and another seed draws other samples of the same distribution.
_NO_PROTOCOL = ("n", "seed")


@dataclass(frozen=True)
class ProblemScores:
    """Scores of n responses to each of P problems, in the order of the problems' ids.

    Attributes:
        problems: ids, sorted.
        data_sources: the data set of each problem.
        scores: [P, n], as the reward function gave them.
        answers: for each problem its n extracted answers, None where there is none; empty if not stored. All None
            where no response gave one, or the reward function does not tell them.
        response_tokens: [P, n], or None if not stored.
        truncated: [P, n] booleans: cut off at the longest response allowed; None if not stored.
        entropy: [P, n], nats per token; None if not stored.
        origin: where this comes from, for people.
        sampling: settings of the generation; empty if not stored.
        protocol: what else has to be equal before scores are compared, see `aent_verl.runs.protocol`.
        step: training step of the model; None if its name does not tell.
    """

    problems: tuple[str, ...]
    data_sources: tuple[str, ...]
    scores: np.ndarray
    answers: tuple[tuple[str | None, ...], ...] = ()
    response_tokens: np.ndarray | None = None
    truncated: np.ndarray | None = None
    entropy: np.ndarray | None = None
    origin: str = ""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    protocol: Protocol = field(default_factory=dict)
    step: int | None = None

    @property
    def samples(self) -> int:
        """n, responses per problem."""
        return self.scores.shape[1]


@dataclass(frozen=True)
class Responses:
    """Texts of one problem."""

    prompt: str
    ground_truth: str
    responses: tuple[str, ...]
    scores: tuple[float, ...]


def problem_id(*identity: object) -> str:
    """Return the id of a problem: a hash of what identifies it, the same in all runs that have it.

    An evaluation knows a problem's data source and chat messages. verl's dump of a validation knows the prompt as text
    and the right answer. The two ids of a problem differ, so runs are compared by one kind or by the other.
    """
    return hashlib.sha256("\0".join(map(str, identity)).encode()).hexdigest()[:16]


def read_evaluation(folder: Path) -> ProblemScores | None:
    """Read what `aent-verl evaluate` stored in a run's folder; None if there is no evaluation.

    Raises:
        ValueError: a file of it is missing, damaged or of another format.
    """
    summary = read_json(folder / EVALUATION, "make it again, or remove it")
    if summary is None:
        return None
    where = folder / SCORES
    rows = sorted(_rows(where, "problem", "data_source", "scores"), key=lambda row: str(row["problem"]))
    step = step_of(str(summary.get("model")))
    optional = ("response_tokens", "truncated", "entropy")
    stored = [key for key in optional if all(row.get(key) is not None for row in rows)]
    return ProblemScores(
        problems=tuple(row["problem"] for row in rows),
        data_sources=tuple(row["data_source"] for row in rows),
        scores=_matrix(where, rows, "scores"),
        answers=tuple(tuple(row["answers"]) for row in rows) if all(row.get("answers") for row in rows) else (),
        **{key: _matrix(where, rows, key) for key in stored},
        origin="evaluation of the final model" if step is None else f"evaluation of the model after step {step}",
        sampling=summary.get("sampling", {}),
        protocol=_protocol(summary),
        step=step,
    )


def read_validation(file: Path) -> ProblemScores:
    """Read one validation as verl dumped it.

    A score is the response's ``acc`` where the reward function gives one, else its reward.

    Raises:
        ValueError: no dump of verl's, damaged, or problems with different numbers of responses.
    """
    groups = _validation_groups(file)
    counts = {len(rows) for rows in groups.values()}
    if len(counts) != 1:
        raise ValueError(
            f"{file}: problems have {min(counts)} to {max(counts)} responses, the same number is needed (a prompt that "
            "occurs twice in the data counts as one problem): remove duplicates from data.val_files"
        )
    problems = sorted(groups)
    return ProblemScores(
        problems=tuple(problems),
        data_sources=(UNKNOWN_SOURCE,) * len(problems),
        scores=np.array([[_score(row) for row in groups[problem]] for problem in problems], dtype=float),
        origin=f"validation at step {file.stem}",
        step=int(file.stem) if file.stem.isdigit() else None,
    )


def validations(folder: Path) -> dict[int, Path]:
    """List the validation dumps of a run by step, in ascending order."""
    files = (folder / VALIDATION).glob("*.jsonl")
    return dict(sorted((int(file.stem), file) for file in files if file.stem.isdigit()))


def read_responses(folder: Path, step: int | None = None) -> dict[str, Responses]:
    """Read texts by problem id, from the evaluation, or without one from the validation at a step; empty if not kept.

    Raises:
        ValueError: a damaged file.
    """
    if (folder / EVALUATION).is_file():
        if not (folder / RESPONSES).is_file():
            return {}
        scores = {row["problem"]: tuple(row["scores"]) for row in _rows(folder / SCORES)}
        return {
            row["problem"]: Responses(
                str(row["prompt"]), str(row["ground_truth"]), tuple(row["responses"]), scores.get(row["problem"], ())
            )
            for row in _rows(folder / RESPONSES)
        }
    dumps = validations(folder)
    if step not in dumps:
        return {}
    groups = _validation_groups(dumps[step])
    return {
        problem: Responses(
            str(rows[0]["input"]),
            str(rows[0].get("gts")),
            tuple(str(row["output"]) for row in rows),
            tuple(_score(row) for row in rows),
        )
        for problem, rows in groups.items()
    }


def _protocol(summary: Mapping[str, Any]) -> Protocol:
    """Return what two evaluations have to agree in before they are compared."""
    found = {key: value for key, value in summary.get("sampling", {}).items() if key not in _NO_PROTOCOL}
    found |= {f"prompts.{key}": value for key, value in (summary.get("prompts") or {}).items()}
    found["data"] = ", ".join(_named(each.get("path"), each.get("sha256")) for each in summary.get("data") or ())
    found["reward_settings"] = summary.get("reward_settings") or {}
    reward = str(summary.get("reward"))
    if summary.get("reward_sha256"):
        path, _, found["reward_function"] = reward.rpartition(":")
        reward = _named(path, summary["reward_sha256"])
    found["reward"] = reward
    return {
        f"evaluation.{key}": shortened(json.dumps(value, sort_keys=True) if isinstance(value, dict) else str(value))
        for key, value in found.items()
    }


def _named(path: object, sha256: object) -> str:
    return f"{Path(str(path)).name} {str(sha256)[:12]}"


def _validation_groups(file: Path) -> dict[str, list[dict[str, Any]]]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in _rows(file, "input", "output", "score"):
        # A dump has the prompt as text and no data source, so its ids are others than those of an evaluation.
        groups.setdefault(problem_id(row["input"], row.get("gts")), []).append(row)
    return groups


def _score(row: Mapping[str, Any]) -> float:
    value = row.get("acc")
    return float(row["score"] if value is None else value)


def _matrix(file: Path, rows: Sequence[Mapping[str, Any]], key: str) -> np.ndarray:
    lengths = {len(row[key]) for row in rows}
    if len(lengths) != 1:
        raise ValueError(f"{file}: {key!r} has {min(lengths)} to {max(lengths)} values a problem, one number is needed")
    return np.array([row[key] for row in rows], dtype=float)


def _rows(file: Path, *keys: str) -> list[dict[str, Any]]:
    """Read the objects of a file of JSON lines: with keys, which each must have, there must be at least one."""
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{file} is missing, and the files next to it need it: evaluate again") from None
    rows = []
    # Not splitlines(): JSON strings may hold U+2028 and its like, which it would split at.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line:
            continue
        where, remedy = f"{file}, line {number}", "make it again, or remove it"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{where} is not readable JSON ({error}): {remedy}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{where}: expected a JSON object, found {type(row).__name__}")
        if missing := [key for key in keys if key not in row]:
            raise ValueError(f"{where}: has no {', '.join(map(repr, missing))}; {remedy}")
        rows.append(row)
    if keys and not rows:
        raise ValueError(f"{file} holds no problem: make it again, or remove it")
    return rows
