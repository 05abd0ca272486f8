"""Notes in every process of a run who used which coefficient in a loss, and who wrote a state file.

A module for ``VERL_USE_EXTERNAL_MODULES``: verl imports it on every node, whatever process it is in.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import wrapt

NAME = "tests.e2e.witness"
FOLDER = "witness"
# In all processes of a run, and in no other: tests import this module to read the notes.
FILE_ENV = "VERL_FILE_LOGGER_PATH"


def note(event: str, **values: Any) -> None:
    import ray

    # A file each, so that lines stay whole.
    folder = Path(os.environ[FILE_ENV]).parent / FOLDER
    folder.mkdir(exist_ok=True)
    line = {"event": event, "pid": os.getpid(), "node": ray.get_runtime_context().get_node_id(), **values}
    with (folder / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")


def notes(run: Path, event: str) -> list[dict[str, Any]]:
    lines = [line for file in (run / FOLDER).glob("*.jsonl") for line in file.read_text().splitlines()]
    return [found for found in map(json.loads, lines) if found["event"] == event]


def noting(function: Callable[..., Any], note_of: Callable[..., None]) -> Callable[..., Any]:
    def noted(*arguments: Any, **keywords: Any) -> Any:
        note_of(*arguments, **keywords)
        return function(*arguments, **keywords)

    return noted


def _of_losses(module: Any) -> None:
    def used(*_: Any, step: Any, **__: Any) -> None:
        import torch

        rank = torch.distributed.get_rank()
        note("loss", rank=rank, step=step.step, coefficient=step.bonus_coefficient)

    module.of_micro_batch = noting(module.of_micro_batch, used)


def _of_writes(module: Any) -> None:
    def written(folder: Any, **_: Any) -> None:
        note("state", folder=Path(folder).name)

    module.write = noting(module.write, written)


if FILE_ENV in os.environ:
    wrapt.when_imported("aent_verl.plugin.measurements")(_of_losses)
    wrapt.when_imported("aent_verl.plugin.saved_state")(_of_writes)
