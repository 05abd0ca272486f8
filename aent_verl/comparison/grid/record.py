"""How far a run has come, in its ``run.json``: a comparison that is started again resumes from there.

A grid may also be extended: with more training steps, and nothing else changed, its runs resume from their last
checkpoints.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl._util import write_json
from aent_verl.comparison.grid.plan import GridRun
from aent_verl.core.controllers import Controller
from aent_verl.methods.parsing import class_named
from aent_verl.runs import checkpoints, last_start, provenance
from aent_verl.runs.problems import EVALUATION
from aent_verl.runs.protocol import EPOCHS, STEPS, differences
from aent_verl.runs.run import COMPLETE, RECORD, RECORD_FORMAT, read_record

STARTED, TRAINED = "started", "trained"
TRAIN, EVALUATE = "train", "evaluate"
_OPTIMIZER = "actor_rollout_ref.actor.optim"
# Settings, and which of their values have an effect at a step that depends on how many steps will follow.
_BY_LENGTH: dict[str, Callable[[Any], bool]] = {
    "entropy_control.bonus.name": lambda name: name == "smoothed",
    "entropy_control.bonus.controller.name": lambda name: asks_for_length("bonus", name),
    "entropy_control.advantages.controller.name": lambda name: asks_for_length("advantages", name),
    f"{_OPTIMIZER}.lr_scheduler_type": lambda name: name not in (None, "constant"),
    # verl's older name for it, which wins where it is set.
    f"{_OPTIMIZER}.warmup_style": lambda name: name not in (None, "constant"),
    f"{_OPTIMIZER}.lr_warmup_steps_ratio": bool,
}
_RESULTS_HINT = "choose another folder, results=..."
# Between the commits, or versions, of a run that resumed with another one.
_AND = " and "


def check(run: GridRun) -> None:
    """Check that a run can begin, or resume, in its folder; nothing is written.

    Raises:
        ValueError: the folder holds a run with other settings or data, or one that no comparison made.
    """
    record = read_record(run.folder)
    if record is not None and record["starts"]:
        _check_same(run, record)
    elif run.metrics_file.exists():
        raise ValueError(
            f"{run.folder} holds a run that compare did not make, or whose {RECORD} was removed: {_RESULTS_HINT}, or "
            f"read it with aent-verl compare --from {run.method}:{run.seed}={run.folder}"
        )


def begin(run: GridRun, *, versions: dict[str, str], commit: str | None) -> dict[str, Any]:
    """Return the record of a run that `check` has passed, written with its config if it is new or extended.

    A run that resumes with other versions, or another commit, records all of them.
    """
    record = read_record(run.folder)
    if record is None or not record["starts"]:
        record = {
            "format": RECORD_FORMAT,
            "method": run.method,
            "seed": run.seed,
            "evaluation": run.evaluation,
            "versions": versions,
            "commit": commit,
            "machine": provenance.machine(),
            "seconds": {},
            "starts": [],
        }
        _start(run, record)
        return record
    if is_extended(run, record):
        evaluated = run.folder / EVALUATION.parent
        if evaluated.is_dir():  # it stays, under another name
            evaluated.rename(evaluated.with_name(f"{evaluated.name}_step{record['protocol'][STEPS]}"))
        _start(run, record)
    if record["state"] != STARTED:
        evaluated_as_asked = record["evaluation"] == run.evaluation and (run.folder / EVALUATION).is_file()
        done = run.evaluation is None or (record["state"] == COMPLETE and evaluated_as_asked)
        record["state"] = COMPLETE if done else TRAINED
    record["evaluation"] = run.evaluation
    if record["state"] != COMPLETE:
        record["commit"] = _both(record["commit"], commit)
        record["versions"] |= {name: _both(record["versions"].get(name), version) for name, version in versions.items()}
    return record


def stage_begins(run: GridRun, record: dict[str, Any], stage: str) -> None:
    """Write down that a stage of a run starts."""
    record["starts"].append({"stage": stage, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")})
    write_json(run.folder / RECORD, record)


def stage_ends(run: GridRun, record: dict[str, Any], stage: str, seconds: float, *, succeeded: bool) -> None:
    """Write down how a stage of a run ended; its seconds include all starts of the stage."""
    record["seconds"][stage] = round(record["seconds"].get(stage, 0.0) + seconds, 1)
    if succeeded:
        record["state"] = COMPLETE if stage == EVALUATE or run.evaluation is None else TRAINED
    write_json(run.folder / RECORD, record)


def last_checkpoint(run: GridRun) -> Path:
    """Return the last checkpoint of a trained run.

    Raises:
        ValueError: it has none, or verl's tracker is damaged.
    """
    parent = run.config.trainer.default_local_dir
    folder = checkpoints.step_folder(parent, checkpoints.latest_step(parent))
    if not folder.is_dir():
        raise ValueError(f"no checkpoint in {parent} to evaluate: train with trainer.save_freq above 0")
    return folder


def is_extended(run: GridRun, record: Mapping[str, Any]) -> bool:
    """Return whether a run that has begun is now asked for with more training steps.

    Raises:
        ValueError: with fewer; or a run of that length would have differed from its first step on.
    """
    before, now = record["protocol"].get(STEPS), run.total_steps
    if now is None or before in (None, "None", str(now)):
        return False
    asked = f"{STEPS}={now}: {run.folder} has {before} training steps, but {now} are asked for"
    if now < int(before):
        raise ValueError(f"{asked}: the number can only increase; {_RESULTS_HINT}")
    if by_length := _by_length(run.config):
        raise ValueError(
            f"{asked}, and {', '.join(by_length)} depends on the length of the run: a longer one differs from its "
            f"first step on; {_RESULTS_HINT}"
        )
    return True


def asks_for_length(axis: str, name: Any) -> bool:
    """Tell whether a controller's coefficient depends on the length of the run."""
    if name is None:
        return False
    kind: type[Controller] = class_named(f"entropy_control.{axis}.controller", name)
    return kind.for_run is not Controller.for_run


def _by_length(config: DictConfig) -> list[str]:
    """Find the settings whose effect at a step depends on how many will follow."""
    values = {key: OmegaConf.select(config, key) for key in _BY_LENGTH}
    if (OmegaConf.select(config, f"{_OPTIMIZER}.lr_warmup_steps") or 0) > 0:  # it counts instead of the ratio
        del values[f"{_OPTIMIZER}.lr_warmup_steps_ratio"]
    return [f"{key}={value}" for key, value in values.items() if _BY_LENGTH[key](value)]


def _start(run: GridRun, record: dict[str, Any]) -> None:
    """Reset a record to that of a run with these settings that has not been trained, or not far enough."""
    record |= {"overrides": list(run.overrides), "protocol": run.protocol, "state": STARTED}
    last_start.write(run.config, run.folder)
    write_json(run.folder / RECORD, record)


def _both(before: str | None, now: str | None) -> str | None:
    known = before.split(_AND) if before else []
    return _AND.join(known if now is None or now in known else [*known, now]) or None


def _check_same(run: GridRun, record: dict[str, Any]) -> None:
    extended = is_extended(run, record)
    # What an extension may change: the steps, and the epochs that must hold them.
    free = (STEPS, EPOCHS) if extended else ()
    before, now = (
        [text for text in texts if text.lstrip("+").partition("=")[0] not in free]
        for texts in (record["overrides"], run.overrides)
    )
    if before != now:
        there = " ".join(_only_in(before, now)) or "the same in another order"
        asked_for = " ".join(_only_in(now, before)) or "the same in another order"
        raise ValueError(
            f"{run.folder} holds a run with other settings (there: {there}; asked for: {asked_for}): {_RESULTS_HINT}, "
            "or remove this one"
        )
    protocols = {"when it started": record["protocol"], "now": run.protocol}
    changed = differences(
        {when: {key: value for key, value in each.items() if key not in free} for when, each in protocols.items()}
    )
    if changed:
        raise ValueError(
            f"{run.folder}: what it trains on has changed since it started ({'; '.join(changed)}): restore it, "
            f"{_RESULTS_HINT}, or remove this one"
        )
    asked, made = run.evaluation, record.get("evaluation")
    if not extended and made != asked and (run.folder / EVALUATION).is_file():
        raise ValueError(
            f"{run.folder} is evaluated {'with ' + ' '.join(made) if made else 'by another command'}, asked for is "
            f"{' '.join(asked or ['no evaluation'])}: remove or rename {EVALUATION.parent} there to evaluate again"
        )


def _only_in(one: Sequence[str], other: Sequence[str]) -> list[str]:
    return [text for text in one if text not in other]
