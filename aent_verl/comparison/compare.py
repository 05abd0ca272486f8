"""A comparison from what was asked for to the page: train the grid and report it, or report runs that are there."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aent_verl._util import exclusive_folder
from aent_verl.comparison.grid import plan, settings
from aent_verl.comparison.grid.check import check
from aent_verl.runs.run import RECORD, Run, load_runs

if TYPE_CHECKING:
    from aent_verl.comparison.grid.scheduler import Start

GRID = "grid.yaml"
_OUTPUT = Path("outputs", "compare", "report")
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.+-]*)(?::(\d+))?=(.+)")


def find_runs(path: Path) -> list[Path]:
    """The runs that a path stands for: those of a results folder, or itself."""
    folder = path / plan.RUNS
    found = sorted(entry for entry in folder.iterdir() if (entry / RECORD).is_file()) if folder.is_dir() else []
    return found or [path]


def load_named(texts: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Load what was given to ``--from``: paths, or METHOD:SEED=PATH, METHOD=PATH.

    Returns:
        The finished runs, and a sentence about each that is not.

    Raises:
        ValueError, FileNotFoundError: see `load_runs`; or none is finished.
    """
    runs: list[Run] = []
    unfinished: list[str] = []
    for text in texts:
        named = None if Path(text).exists() else _NAMED.fullmatch(text)
        if named is None:
            found = load_runs(find_runs(Path(text)))
            unfinished += _never_started(Path(text))
        else:
            method, seed, path = named.groups()
            found = load_runs([path], method=method, seed=None if seed is None else int(seed))
        runs += found[0]
        unfinished += found[1]
    if not runs:
        raise ValueError(f"no finished run: {'; '.join(unfinished)}")
    return runs, unfinished


def _check_devices(chosen: settings.Settings, cell: plan.Cell) -> None:
    """Whether runs side by side get devices of their own.

    Raises:
        ValueError: each would start a Ray of its own, and all of them would take the first GPUs.
    """
    from aent_verl.platforms.cpu import cluster_to_join

    apart = chosen.parallel == 1 or chosen.launcher == settings.RAY or cell.config.trainer.device == "cpu"
    if not apart and cluster_to_join(cell.config.ray_kwargs.ray_init.get("address")) is None:
        raise ValueError(
            f"parallel={chosen.parallel} with launcher={chosen.launcher}: all runs would use the same GPUs; start Ray "
            "(`ray start --head`), which deals them out, and add launcher=ray"
        )


def run(chosen: settings.Settings, arguments: Sequence[str]) -> int:
    """Train, evaluate and report a grid; returns the process's exit status."""
    from omegaconf import OmegaConf
    from rich.console import Console

    from aent_verl.comparison.grid.display import GridDisplay
    from aent_verl.comparison.grid.scheduler import Schedule
    from aent_verl.comparison.report import write_report

    grid = plan.cells(chosen)
    _check_devices(chosen, grid[0])
    check(grid)
    setting = f"results={chosen.results}"
    busy = ValueError(f"{setting}: another comparison is at work in it; wait, or choose another")
    with exclusive_folder(chosen.results, setting, busy):
        schedule = Schedule(grid, _starter(chosen), parallel=chosen.parallel, stall_seconds=60 * chosen.stall_minutes)
        OmegaConf.save(OmegaConf.create(chosen.to_dict()), chosen.results / GRID)
        with GridDisplay(Console(), chosen.parallel) as display:
            failed = schedule.run(display.show)
            display.show(schedule.statuses)
        for item in failed:
            print(f"failed: {item.cell.name}: {item.reason}; see {item.cell.folder}", file=sys.stderr)
        runs, _ = load_runs([item.cell.folder for item in schedule.statuses if item not in failed])
        if not runs:
            raise RuntimeError("no run is complete, so there is nothing to report")
        command = shlex.join(["aent-verl", "compare", *arguments])
        page = write_report(
            runs,
            chosen.results,
            baseline=chosen.baseline,
            title=chosen.title,
            commands=[command],
            target=chosen.target,
            failed=[f"{item.cell.name} failed: {item.reason}" for item in failed],
        )
    _tell(page)
    return 1 if failed else 0


def _starter(chosen: settings.Settings) -> Start:
    if chosen.launcher == settings.RAY:
        from aent_verl.launch.ray_jobs import RayJobs

        return RayJobs().start
    from aent_verl.launch.processes import LocalProcess

    return LocalProcess


def report_of(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Report runs that are there; returns the process's exit status."""
    from aent_verl.comparison.report import write_report

    runs, unfinished = load_named(options.runs)
    asked = _asked(options.runs)
    methods = list(dict.fromkeys(run.method for run in runs))
    baseline = options.baseline or asked.get("baseline") or ("grpo" if "grpo" in methods else methods[0])
    if baseline not in methods:
        missing = "".join(f"; {sentence}" for sentence in unfinished)
        raise ValueError(f"--baseline {baseline}: no run of it; there are {', '.join(methods)}{missing}")
    # The report of a results folder belongs into it.
    folder = Path(options.output or (options.runs[0] if asked else _OUTPUT))
    folder.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["aent-verl", "compare", *arguments])
    page = write_report(
        runs,
        folder,
        baseline=baseline,
        title=options.title or asked.get("title") or " against ".join(methods[:2]),
        commands=[command],
        allow_different=options.allow_different,
        failed=unfinished,
        target=options.target or asked.get("target") or settings.TARGETS[0],
    )
    _tell(page)
    return 0


def _tell(page: Path) -> None:
    from aent_verl.comparison.report import answer

    print(*answer(page), f"report: {page}", sep="\n")


def _asked(paths: Sequence[str]) -> dict[str, Any]:
    """What a results folder was asked for, if it is the only thing that is reported."""
    return _grid(Path(paths[0])) if len(paths) == 1 else {}


def _grid(results: Path) -> dict[str, Any]:
    """What a results folder's comparison was asked for; empty if it is none.

    Raises:
        ValueError: the file is damaged.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    file = results / GRID
    if not file.is_file():
        return {}
    try:
        content = OmegaConf.to_container(OmegaConf.load(file))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(
            f"{file} is no readable YAML ({error}): the comparison writes it anew when it goes on"
        ) from None
    return {str(key): value for key, value in content.items()} if isinstance(content, dict) else {}


def _never_started(results: Path) -> list[str]:
    """A sentence, without a full stop, about each method of a grid with seeds that have no run."""
    asked = _grid(results)
    sentences = []
    for method in asked.get("methods") or ():
        seeds = [
            seed for seed in asked.get("seeds") or () if not (results / plan.RUNS / f"{method}_seed{seed}").exists()
        ]
        if seeds:
            listed = ", ".join(map(str, seeds))
            sentences.append(f"{method} seed{'' if len(seeds) == 1 else 's'} {listed}: not started")
    return sentences
