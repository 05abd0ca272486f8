"""A comparison from its settings to its page: train a grid and report it, or report existing runs."""

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console

from aent_verl._util import exclusive_folder
from aent_verl.comparison.grid import plan
from aent_verl.comparison.grid.display import GridDisplay
from aent_verl.comparison.grid.plan import RUNS, GridRun
from aent_verl.comparison.grid.scheduler import Scheduler
from aent_verl.comparison.grid.settings import LABEL, RAY, Settings
from aent_verl.comparison.report import build, write_report
from aent_verl.comparison.stats import TARGETS, Target
from aent_verl.launch.processes import LocalProcess
from aent_verl.launch.ray_jobs import RayJobs
from aent_verl.runs.run import RECORD, Run, load_runs, read_yaml

GRID = "grid.yaml"
_OUTPUT = Path("outputs", "compare", "report")
_NAMED = re.compile(rf"({LABEL.pattern})(?::(\d+))?=(.+)")


def run_grid(settings: Settings, command: str) -> tuple[Path, int]:
    """Train, evaluate and report a grid, with its progress on the terminal.

    Args:
        settings: what was asked for.
        command: what reproduces the comparison, for the report.

    Returns:
        The report's page, and how many runs failed.

    Raises:
        ValueError: the grid is refused before a run starts, or its runs cannot be compared.
        RuntimeError: no run is complete.
    """
    grid = plan.plan_runs(settings)
    _check_devices(settings, grid[0])
    plan.check(grid)
    folder = f"results={settings.results}"
    busy = ValueError(f"{folder}: another comparison is running in it; wait, or choose another folder")
    with exclusive_folder(settings.results, folder, busy):
        start = RayJobs().start if settings.launcher == RAY else LocalProcess
        stall_seconds = 60 * settings.stall_minutes
        scheduler = Scheduler(grid, start, parallel=settings.parallel, stall_seconds=stall_seconds)
        OmegaConf.save(OmegaConf.create(settings.to_dict()), settings.results / GRID)
        with GridDisplay(Console(), settings.parallel) as display:
            failed = scheduler.run(display.show)
            display.show(scheduler.statuses)
        for status in failed:
            print(f"failed: {status.run.name}: {status.reason}; see {status.run.folder}", file=sys.stderr)
        runs, _ = load_runs(status.run.folder for status in scheduler.statuses if status not in failed)
        if not runs:
            raise RuntimeError("no run is complete, so there is nothing to report")
        report = build(
            runs,
            baseline=settings.baseline,
            title=settings.title,
            commands=[command],
            target=settings.target,
            failed=[f"{status.run.name} failed: {status.reason}" for status in failed],
        )
        page = write_report(report, settings.results)
    return page, len(failed)


def report_runs(
    given: Sequence[str],
    command: str,
    *,
    output: str | None = None,
    baseline: str | None = None,
    target: Target | None = None,
    title: str | None = None,
    allow_different: bool = False,
) -> Path:
    """Report existing runs.

    Args:
        given: the runs, see `load_named`. The defaults for a results folder alone are those of its comparison.
        command: what reproduces the report.
        output: folder of the report; by default that of the results, or `outputs/compare/report` for other runs.
        baseline: the method that the others are compared with.
        target: what the verdicts are about.
        title: heading of the page.
        allow_different: compare runs whose protocols differ.

    Returns:
        The report's page.

    Raises:
        ValueError, FileNotFoundError: see `load_named`; or the runs cannot be compared.
    """
    runs, unfinished = load_named(given)
    asked = _asked(Path(given[0])) if len(given) == 1 else {}
    methods = list(dict.fromkeys(run.method for run in runs))
    baseline = baseline or asked.get("baseline") or ("grpo" if "grpo" in methods else methods[0])
    if baseline not in methods:
        missing = "".join(f"; {sentence}" for sentence in unfinished)
        raise ValueError(f"--baseline {baseline}: no run of it; there are {', '.join(methods)}{missing}")
    report = build(
        runs,
        baseline=baseline,
        title=title or asked.get("title") or " against ".join(methods[:2]),
        commands=[command],
        allow_different=allow_different,
        failed=unfinished,
        target=target or asked.get("target") or TARGETS[0],
    )
    return write_report(report, output or (given[0] if asked else _OUTPUT))


def load_named(given: Sequence[str]) -> tuple[list[Run], list[str]]:
    """Load what was given to ``--from``: paths, or METHOD:SEED=PATH, METHOD=PATH.

    Returns:
        The finished runs, and a sentence about each that is not.

    Raises:
        ValueError, FileNotFoundError: see `load_runs`; or none is finished.
    """
    runs: list[Run] = []
    unfinished: list[str] = []
    for text in given:
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


def find_runs(path: Path) -> list[Path]:
    """Find the runs that a path stands for: those of a results folder, or itself."""
    return sorted(record.parent for record in path.glob(f"{RUNS}/*/{RECORD}")) or [path]


def _check_devices(settings: Settings, run: GridRun) -> None:
    """Check that runs at the same time get devices of their own.

    Raises:
        ValueError: each would start a Ray of its own, and all of them would take the first GPUs.
    """
    from aent_verl.platforms.cpu import cluster_to_join

    apart = settings.parallel == 1 or settings.launcher == RAY or run.config.trainer.device == "cpu"
    if not apart and cluster_to_join(run.config.ray_kwargs.ray_init.get("address")) is None:
        raise ValueError(
            f"parallel={settings.parallel} with launcher={settings.launcher}: all runs would use the same GPUs; start "
            "Ray (`ray start --head`), which deals them out, and add launcher=ray"
        )


def _asked(results: Path) -> dict[str, Any]:
    """Read the settings of a results folder's comparison; empty if there was none.

    Raises:
        ValueError: the file is damaged.
    """
    file = results / GRID
    return read_yaml(file, "the comparison writes it again when it resumes") if file.is_file() else {}


def _never_started(results: Path) -> Iterator[str]:
    """Yield a sentence, without a full stop, about each method of a grid with seeds that have no run."""
    asked = _asked(results)
    for method in asked.get("methods") or ():
        seeds = [seed for seed in asked.get("seeds") or () if not (results / RUNS / f"{method}_seed{seed}").exists()]
        if seeds:
            yield f"{method} seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}: not started"
