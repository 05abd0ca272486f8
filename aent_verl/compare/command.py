"""The command line of ``aent-verl compare``."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aent_verl import extras
from aent_verl.compare import plan, settings
from aent_verl.locking import alone
from aent_verl.results.run import RECORD, Run, load_runs

if TYPE_CHECKING:
    from aent_verl.compare.schedule import Start

GRID = "grid.yaml"
_OUTPUT = Path("outputs", "compare", "report")
HELP = """\
usage: aent-verl compare [key=value ...]
       aent-verl compare --from RUN [RUN ...] [--output FOLDER] [--baseline METHOD] [--target TARGET] [--title TEXT]
                          [--allow-different]

Train every method with every seed from the same start, evaluate the final models, and write a report that says what
can be told from the results and what cannot. Run it again after a kill: finished runs are not repeated, and the others
go on from their last checkpoint; with a higher trainer.total_training_steps, all of them do.

  aent-verl compare experiment=cpu_arithmetic methods=[grpo,entreg,aent] seeds=[1,2,3]
  aent-verl compare experiment=cpu_arithmetic methods=[grpo,aent] seeds=[1,2,3,4,5] evaluation.data=test.parquet \\
      evaluation.n=16 results=outputs/mine
  aent-verl compare grid=mine.yaml launcher=ray parallel=4         as jobs on the cluster at RAY_ADDRESS

Its own keys; all others go to every run, as with aent-verl train:
  methods=[...]        presets; or "methods.LABEL=['entropy_control=aent','actor_rollout_ref.actor.optim.lr=2e-6']"
  seeds=[...]          one run a method for each; three at least tell anything, five are better        [1,2,3]
  baseline=METHOD      what the others are compared with                                               grpo
  results=FOLDER       all runs and the report                                     outputs/compare/<experiment>
  evaluation.KEY=...   settings of aent-verl evaluate for the final models, as evaluation.data=test.parquet
                       evaluation.n=16; without any the last validation counts
  parallel=N           runs at the same time; on GPUs with launcher=ray, which gives each its own      1
  launcher=local|ray   processes here, or Ray jobs; every node needs the results folder at the same path
  stall_minutes=N      stop a run that logs nothing for so long; 0: never                              60
  target='these problems'    what the verdicts are about; the default is 'problems like these', of which 20 are needed
  title=TEXT           heading of the report
  grid=FILE            these keys in a YAML file, and the overrides of every run as the list `overrides`

--from builds the report from runs that are there: folders of compare or of aent-verl train, a results folder, stock
verl's metrics .jsonl files or folders with TensorBoard files. METHOD:SEED=PATH names a run that does not say its own.
The page goes to --output; by default into the results folder, or for other runs to outputs/compare/report.
--allow-different compares runs whose protocol, model or data differ or are not known; the report then says so.
"""
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.+-]*)(?::(\d+))?=(.+)")


def main(arguments: Sequence[str]) -> int:
    """Run the comparison; returns the process's exit status."""
    if not arguments or arguments[0] in ("--help", "-h"):
        print(HELP, end="")
        return 0
    try:
        if any(text.startswith("--") for text in arguments):
            return _report_of(_parser().parse_args(arguments), arguments)
        extras.require("verl", "a comparison that trains")
        return _run(settings.parse(arguments), arguments)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


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
    from aent_verl.integration.platform_cpu import cluster_to_join

    apart = chosen.parallel == 1 or chosen.launcher == settings.RAY or cell.config.trainer.device == "cpu"
    if not apart and cluster_to_join(cell.config.ray_kwargs.ray_init.get("address")) is None:
        raise ValueError(
            f"parallel={chosen.parallel} with launcher={chosen.launcher}: all runs would use the same GPUs; start Ray "
            "(`ray start --head`), which deals them out, and add launcher=ray"
        )


def _run(chosen: settings.Settings, arguments: Sequence[str]) -> int:
    from omegaconf import OmegaConf
    from rich.console import Console

    from aent_verl.compare.display import GridDisplay
    from aent_verl.compare.schedule import Schedule
    from aent_verl.reporting import write_report

    grid = plan.cells(chosen)
    _check_devices(chosen, grid[0])
    plan.check(grid)
    setting = f"results={chosen.results}"
    busy = ValueError(f"{setting}: another comparison is at work in it; wait, or choose another")
    with alone(chosen.results, setting, busy):
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
        from aent_verl.integration.jobs import RayJobs

        return RayJobs().start
    from aent_verl.compare.processes import start_local

    return start_local


def _report_of(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    from aent_verl.reporting import write_report

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
    from aent_verl.reporting import answer

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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aent-verl compare", usage=HELP.split("\n\n")[0].removeprefix("usage: "))
    parser.add_argument("--from", dest="runs", nargs="+", metavar="RUN", required=True)
    parser.add_argument("-o", "--output")
    parser.add_argument("--baseline")
    parser.add_argument("--target", choices=settings.TARGETS)
    parser.add_argument("--title")
    parser.add_argument("--allow-different", action="store_true")
    return parser
