"""One evaluation: check, sample through verl's vLLM servers, score, summarise and keep."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig
from rich.console import Console

from aent_verl.evaluation import checkpoint, generation, records, settings, summary
from aent_verl.evaluation.records import Answered, Problem, Response
from aent_verl.evaluation.scoring import Scorer
from aent_verl.evaluation.task import Task, prepare
from aent_verl.launch.compose import prepare_task
from aent_verl.launch.environment import choose_platform, hand_to_workers, start_ray
from aent_verl.platforms.cpu import cpu_count
from aent_verl.preflight import machines
from aent_verl.preflight.findings import Setting
from aent_verl.runs import provenance
from aent_verl.runs.run import read_config
from aent_verl.viewing.progress import CountDisplay

LOG = "evaluation.log"
# Most processes that score: more hardly help, and each may hold a copy of what a reward function loads.
SCORERS = 16


def evaluate(cfg: DictConfig, model: checkpoint.Model, typed: set[str], terminal: TextIO) -> None:
    """Check everything, then sample, score, summarise and write.

    Args:
        cfg: the composed config; changed.
        model: what to evaluate.
        typed: the keys that the user set.
        terminal: where people look.

    Raises:
        ValueError, RuntimeError: something does not fit, or a server failed; nothing was written.
    """
    import ray

    output = Path(cfg.evaluation.output)
    changed = settings.inherit(cfg, read_config(model.run), typed) if model.run else []
    if changed:
        print(f"as in {model.run}: {settings.short_form(', '.join(changed))}", file=terminal)
    platform = choose_platform(cfg)
    prepare_task(cfg, terminal)
    task = prepare(cfg, model, terminal)
    if not cfg.evaluation.overwrite and _is_complete(output, task, terminal):
        return
    hand_to_workers(cfg, platform)
    start = time.monotonic()
    with Scorer(
        generation.reward_loader(cfg),
        processes=cfg.evaluation.scorers or min(SCORERS, cpu_count()),
        seconds=cfg.evaluation.score_timeout,
        preload=generation.REWARD_MODULES,
    ) as scorer:
        try:
            start_ray(cfg)
            answered = asyncio.run(_sample(cfg, task, scorer, terminal))
        finally:
            ray.shutdown()  # ends the servers, and Ray if it was started here
    result = task.record | {
        "versions": provenance.versions(),
        "seconds": round(time.monotonic() - start, 1),
        "summary": summary.summarize(answered),
    }
    records.write(output, result, answered)
    for warning in summary.warnings_of(answered):
        print(f"warning: {warning}", file=terminal)
    _show(result, terminal)
    print(f"results in {output}", file=terminal)


def _is_complete(output: Path, task: Task, terminal: TextIO) -> bool:
    """Return whether this very evaluation is in the output folder already.

    Raises:
        PreflightError: another one is.
    """
    there = records.read_summary(output)
    if there is None:
        return False
    differences = records.differences(there, task.record)
    if differences:
        raise Setting("output", str(output)).error(
            f"there is another evaluation in it ({'; '.join(differences)})",
            "Choose another folder with output=, or replace it with overwrite=true",
            "an empty folder, or the same evaluation",
        )
    print(f"this evaluation is complete, in {output}\nto repeat it add overwrite=true", file=terminal)
    _show(there, terminal)
    return True


async def _sample(cfg: DictConfig, task: Task, scorer: Scorer, terminal: TextIO) -> list[Answered]:
    """Sample all responses to all problems, and score each as soon as it arrives."""
    count, each = machines.replicas(cfg)
    found = generation.accelerators(count * each)
    if found < count * each:
        raise Setting("gpus", cfg.trainer.n_gpus_per_node).error(
            f"with trainer.nnodes={cfg.trainer.nnodes} that is {count * each} accelerators",
            "Lower it, or point Ray at a larger cluster with RAY_ADDRESS",
            f"at most the {found:g} that Ray has",
        )
    print(f"starting {count} vLLM server{'s' if count > 1 else ''}, which takes a minute or more", file=terminal)
    n = task.record["sampling"]["n"]
    servers = await generation.Servers.start(cfg, generation.load_model(cfg))
    slots = asyncio.Semaphore(servers.capacity)
    with CountDisplay(Console(file=terminal), len(task.problems) * n, "responses") as progress:

        async def answer(problem: Problem, prompt: Sequence[int]) -> Response:
            async with slots:
                response = await servers.respond(prompt)
                scored = await scorer.score_async(
                    data_source=problem.data_source,
                    solution_str=response.text,
                    ground_truth=problem.ground_truth,
                    # verl adds the last two.
                    extra_info={**problem.extra_info, "num_turns": 2, "rollout_reward_scores": {}},
                )
            progress.advance()
            return replace(response, score=scored.score, answer=scored.answer, error=scored.error)

        asked = zip(task.problems, task.prompts, strict=True)
        tasks = [asyncio.ensure_future(answer(*problem)) for problem in asked for _ in range(n)]
        try:
            responses = await asyncio.gather(*tasks)
        finally:
            for one in tasks:
                one.cancel()
    return [Answered(problem, responses[i * n : (i + 1) * n]) for i, problem in enumerate(task.problems)]


def _show(evaluation: Mapping[str, Any], terminal: TextIO) -> None:
    table = summary.table(evaluation["summary"], evaluation["sampling"]["n"])
    # A file or pipe has no width; 80 columns would fold the table.
    Console(file=terminal, width=None if terminal.isatty() else 120).print(table)
