"""Run the synthetic MDP, and write results, tables and picture.

python -m examples.synthetic_mdp.run
"""

import argparse
import json
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from datetime import datetime, timezone
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from examples.synthetic_mdp.experiment import Job, jobs, run
from examples.synthetic_mdp.plot import figure
from examples.synthetic_mdp.tables import put_into_readme, tables

RESULTS, PICTURE = "results.json", "reward.png"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.synthetic_mdp.run", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--optimal", type=_positive, nargs="+", default=[15, 10, 5, 1], metavar="K", help="numbers of optimal actions")
    add("--steps", type=_positive, default=4000, help="steps of gradient ascent")
    add("--seeds", type=_positive, default=5, help="runs per curve: seeds 0, 1, ...; at least 2 for an interval")
    add("--processes", type=_positive, default=os.cpu_count(), help="jobs at a time")
    add("--output", type=Path, default=Path("outputs/synthetic_mdp"), metavar="FOLDER", help="where everything goes")
    options = parser.parse_args(arguments)
    began, load = time.monotonic(), os.getloadavg()[0]
    results = _all_jobs(jobs(options.optimal, options.steps, options.seeds), options.processes, began)
    results["made"] = _made(options, time.monotonic() - began)
    results["made"]["load before"] = round(load, 1)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / RESULTS).write_text(json.dumps(results, separators=(",", ":")) + "\n")
    figure(results).savefig(options.output / PICTURE)
    put_into_readme(options.output / "README.md", results)
    print("", tables(results), f"{options.output}: {RESULTS}, {PICTURE}", sep="\n")


def _all_jobs(todo: list[Job], processes: int, began: float) -> dict[str, Any]:
    """Results by part and number of optimal actions; a line for each job that is done."""
    results: dict[str, Any] = {}
    # Spawn: a fork of a process with torch's threads may hang.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        running = {pool.submit(run, job): job for job in todo}
        for done, future in enumerate(as_completed(running), 1):
            job = running[future]
            results.setdefault(job.part, {})[str(job.optimal)] = future.result()
            print(f"{done:2d} of {len(todo)}  {time.monotonic() - began:4.0f} s  {job}", flush=True)
    return results


def _made(options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} {platform.machine()} cores",
        "minutes": round(seconds / 60, 1),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in ("torch", "numpy")},
        "optimal": options.optimal,
        "steps": options.steps,
        "seeds": list(range(options.seeds)),
    }


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not allowed: must be at least 1")
    return value


if __name__ == "__main__":
    main()
