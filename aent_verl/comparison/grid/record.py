"""How far a run is, in its ``run.json``: what a comparison that is started again goes on from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aent_verl._util import write_json
from aent_verl.comparison.grid.extension import is_longer, without_steps
from aent_verl.comparison.grid.plan import Cell
from aent_verl.runs import last_start, provenance
from aent_verl.runs.problems import EVALUATION
from aent_verl.runs.protocol import EPOCHS, STEPS, differences
from aent_verl.runs.run import COMPLETE, RECORD, RECORD_FORMAT, read_record

STARTED, TRAINED = "started", "trained"
TRACKER = "latest_checkpointed_iteration.txt"
# Between the commits, or versions, of a run that went on with another one.
_AND = " and "


def check(cell: Cell) -> None:
    """Check that a run can begin, or go on, in its folder; nothing is written.

    Raises:
        ValueError: the folder holds a run with other settings or data, or one that no comparison made.
    """
    record = read_record(cell.folder)
    if record is not None and record["starts"]:
        _check_same(cell, record)
    elif cell.metrics_file.exists():
        raise ValueError(
            f"{cell.folder} holds a run that compare did not make, or whose {RECORD} was removed: choose another "
            f"folder, results=..., or read it with aent-verl compare --from {cell.method}:{cell.seed}={cell.folder}"
        )


def begin(cell: Cell, *, versions: dict[str, str], commit: str | None) -> dict[str, Any]:
    """The record of a run that `check` has passed, written if it is new or is to get longer, together with its config.

    A run that goes on with other versions, or another commit, has all of them.
    """
    record = read_record(cell.folder)
    asked = _asked(cell)
    if record is None or not record["starts"]:
        record = {
            "format": RECORD_FORMAT,
            "method": cell.method,
            "seed": cell.seed,
            "state": STARTED,
            "overrides": list(cell.overrides),
            "evaluation": asked,
            "protocol": cell.protocol,
            "versions": versions,
            "commit": commit,
            "machine": provenance.machine(),
            "seconds": {},
            "starts": [],
        }
        last_start.write(cell.config, cell.folder)
        _write(cell, record)
        return record
    if is_longer(cell, record):
        _train_on(cell, record)
    if record["state"] != STARTED:
        evaluated = record["evaluation"] == asked and (cell.folder / EVALUATION).is_file()
        record["state"] = COMPLETE if asked is None or (record["state"] == COMPLETE and evaluated) else TRAINED
    record["evaluation"] = asked
    if record["state"] != COMPLETE:
        record["commit"] = _both(record["commit"], commit)
        record["versions"] |= {name: _both(record["versions"].get(name), version) for name, version in versions.items()}
    return record


def stage_begins(cell: Cell, record: dict[str, Any], stage: str) -> None:
    """Write down that a stage of a run starts."""
    record["starts"].append({"stage": stage, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    _write(cell, record)


def stage_ends(cell: Cell, record: dict[str, Any], stage: str, seconds: float, *, succeeded: bool) -> None:
    """Write down how a stage of a run ended; all starts of a stage count in its seconds."""
    record["seconds"][stage] = round(record["seconds"].get(stage, 0.0) + seconds, 1)
    if succeeded:
        done = COMPLETE if stage == "evaluate" or cell.evaluation is None else TRAINED
        record["state"] = done
    _write(cell, record)


def checkpoint(cell: Cell) -> Path:
    """The last checkpoint of a trained run.

    Raises:
        ValueError: it has none.
    """
    folder = Path(cell.config.trainer.default_local_dir)
    newest = folder / f"global_step_{saved_step(cell)}"
    if not newest.is_dir():
        raise ValueError(f"no checkpoint in {folder} to evaluate: train with trainer.save_freq above 0")
    return newest


def saved_step(cell: Cell) -> int:
    """Step of the last checkpoint; 0 if there is none.

    Raises:
        ValueError: verl's tracker is damaged.
    """
    tracker = Path(cell.config.trainer.default_local_dir) / TRACKER
    if not tracker.is_file():
        return 0
    text = tracker.read_text().strip()
    if not text.isdecimal():
        raise ValueError(
            f"{tracker} holds {text!r} and not a step, as after a kill while it was written: write the number of the "
            "last global_step_N beside it into it"
        )
    return int(text)


def _asked(cell: Cell) -> list[str] | None:
    return list(cell.evaluation) if cell.evaluation is not None else None


def _train_on(cell: Cell, record: dict[str, Any]) -> None:
    """Make a run that has begun one with more steps; what was evaluated stays beside it."""
    evaluated = cell.folder / EVALUATION.parent
    if evaluated.is_dir():
        evaluated.rename(evaluated.with_name(f"{evaluated.name}_step{record['protocol'][STEPS]}"))
    record |= {"overrides": list(cell.overrides), "protocol": cell.protocol, "state": STARTED}
    last_start.write(cell.config, cell.folder)
    _write(cell, record)


def _both(before: str | None, now: str | None) -> str | None:
    known = before.split(_AND) if before else []
    return _AND.join(known if now is None or now in known else [*known, now]) or None


def _check_same(cell: Cell, record: dict[str, Any]) -> None:
    longer = is_longer(cell, record)
    before, now = record["overrides"], list(cell.overrides)
    protocols = {"when it started": dict(record["protocol"]), "now": dict(cell.protocol)}
    if longer:
        before, now = without_steps(before), without_steps(now)
        for protocol in protocols.values():
            for key in (STEPS, EPOCHS):
                protocol.pop(key, None)
    if before != now:
        there = " ".join(_only_in(before, now)) or "the same in another order"
        asked_for = " ".join(_only_in(now, before)) or "the same in another order"
        raise ValueError(
            f"{cell.folder} holds a run with other settings (there: {there}; asked for: {asked_for}): choose another "
            "folder, results=..., or remove this one"
        )
    changed = differences(protocols)
    if changed:
        raise ValueError(
            f"{cell.folder}: what it trains on has changed since it started ({'; '.join(changed)}): restore it, choose "
            "another folder, results=..., or remove this one"
        )
    asked = _asked(cell)
    made = record.get("evaluation")
    if not longer and made != asked and (cell.folder / EVALUATION).is_file():
        raise ValueError(
            f"{cell.folder} is evaluated {'with ' + ' '.join(made) if made else 'by another command'}, asked for is "
            f"{' '.join(asked or ['no evaluation'])}: remove or rename {EVALUATION.parent} there to evaluate again"
        )


def _only_in(one: Sequence[str], other: Sequence[str]) -> list[str]:
    return [text for text in one if text not in other]


def _write(cell: Cell, record: dict[str, Any]) -> None:
    cell.folder.mkdir(parents=True, exist_ok=True)
    write_json(cell.folder / RECORD, record)
