"""What a comparison was made with: settings that differ, the protocol, versions, machines, commands."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from aent_verl.comparison.report.cost import spent
from aent_verl.comparison.report.groups import Groups
from aent_verl.runs.metrics import STEP_SECONDS
from aent_verl.runs.protocol import unnamed
from aent_verl.runs.run import Run

MISSING = "not recorded"
# Where a run's files went had no part in its numbers, and whoever runs it again has folders of their own.
_PLACES = ("run.dir=", "trainer.validation_data_dir=")


@dataclass(frozen=True)
class RunFacts:
    """One run: what its record says, `MISSING` where it says nothing; no seconds where its log lacks some."""

    method: str
    seed: int
    place: str
    last_step: int
    seconds: float | None
    commit: str
    machine: str
    versions: str
    command: str


def differing_settings(groups: Groups) -> dict[str, dict[str, str]]:
    """Settings that are not the same for all methods whose config is known: value by method, by key."""
    settings = {method: _settings(group) for method, group in groups.runs.items()}
    known = {method: found for method, found in settings.items() if found}
    keys = sorted({key for found in known.values() for key in found})
    table = {key: {method: found.get(key, MISSING) for method, found in known.items()} for key in keys}
    return {key: row for key, row in table.items() if len(set(row.values())) > 1}


def protocol_rows(groups: Groups) -> dict[str, dict[str, list[str]]]:
    """The protocol: for each key the runs by value; one value where all runs agree; `MISSING` where a run has none.

    Copies of a file under several names are one value, under the first name.
    """
    rows: dict[str, dict[str, list[str]]] = {}
    for key in sorted({key for run in groups.all for key in run.protocol}):
        shown: dict[str, str] = {}
        for run in groups.all:
            value = run.protocol.get(key, MISSING)
            value = shown.setdefault(unnamed(value), value)
            rows.setdefault(key, {}).setdefault(value, []).append(run.name)
    return rows


def run_facts(groups: Groups) -> list[RunFacts]:
    """Of all runs, in the report's order."""
    return [_facts(run) for run in groups.all]


def _facts(run: Run) -> RunFacts:
    record = run.record
    overrides = [text for text in map(str, record.get("overrides") or ()) if not text.startswith(_PLACES)]
    return RunFacts(
        method=run.method,
        seed=run.seed,
        place=run.path.name,
        last_step=run.last_step,
        seconds=spent(run, STEP_SECONDS),
        commit=str(record.get("commit") or MISSING),
        machine=str(record.get("machine") or MISSING),
        versions=_versions(record.get("versions")),
        command=shlex.join(["aent-verl", "train", *overrides]) if overrides else MISSING,
    )


def _versions(found: object) -> str:
    if not isinstance(found, Mapping) or not found:
        return MISSING
    return ", ".join(f"{name} {version}" for name, version in found.items())


def _settings(group: list[Run]) -> Mapping[str, str]:
    return next((run.settings for run in group if run.settings), {})
