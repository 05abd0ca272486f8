"""``aent-verl evaluate key=value ...``: sampled answers of a model to problems, scored, summed up and kept."""

from __future__ import annotations

import asyncio
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import hydra
from omegaconf import DictConfig

from aent_verl.evaluation import checkpoint, records, settings, summary
from aent_verl.evaluation.progress import Progress
from aent_verl.evaluation.records import Answered, Problem, Response
from aent_verl.evaluation.scoring import Scorer
from aent_verl.evaluation.task import Task, prepare
from aent_verl.preflight.errors import PreflightError, root_cause
from aent_verl.results import provenance
from aent_verl.terminal import everything_else_in
from aent_verl.train import CONFIG_MODULE, choose_platform, hand_to_workers, prepare_task

if TYPE_CHECKING:
    from aent_verl.integration.generation import Servers

CONFIG_NAME = "aent_evaluate"
LOG = "evaluation.log"
# Most processes that score: more hardly help, and each may hold a copy of what a reward function loads.
SCORERS = 16
HELP = """\
usage: aent-verl evaluate model=MODEL data=FILE [key=value ...]

Sample n responses to each problem through verl's vLLM servers and score them: mean@n, pass@k, maj@n, length, entropy.

  aent-verl evaluate model=outputs/aent_verl/cpu_arithmetic_aent/checkpoints/global_step_40 platform=cpu
  aent-verl evaluate experiment=qwen2.5_math_1.5b_math model=Qwen/Qwen2.5-Math-1.5B \\
      data=[math500.parquet,aime24.parquet] n=32          lengths, sampling and reward of that experiment
  aent-verl evaluate model=... data=gsm8k.parquet n=32 temperature=0.6 top_p=0.95 max_response_length=3072

  model                a model folder, a name on the hub, or a checkpoint of verl's (global_step_N)
  data                 a file, or [several,files], in verl's format: prompt, data_source, reward_model.ground_truth
  n                    responses a problem (16)
  temperature, top_p, top_k                  how they are sampled (1.0, 1.0, -1); temperature=0: the likeliest token
  max_prompt_length, max_response_length     in tokens (512, 512)
  seed                 of the servers' random state (42); equal up to timing, not bit for bit
  gpus                 on each of trainer.nnodes nodes (8); one server takes rollout.tensor_model_parallel_size (1)
  output               folder of the results (evaluation/ in the checkpoint's run, else outputs/evaluation/<model>)
  overwrite=true       replace the results of another evaluation there
  scorers, score_timeout                     processes that score (one a core, up to 16), seconds a response (30)
  reward.custom_reward_function.path, .name  the reward function (verl's own for its data sources)

For a checkpoint the defaults are those of its run; every other key of verl's can be set as in `aent-verl train`.
Results: evaluation.json (summary), scores.jsonl (a line a problem), responses.jsonl, evaluation.log
Show the composed config without running: --cfg job [--resolve]
"""


def main(overrides: list[str]) -> int:
    """Run the command; returns the process's exit status."""
    from aent_verl.integration import compat, guard

    if overrides in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    try:
        guard.refuse_if_disabled()
        compat.check_versions()
    except (guard.PlugInNotActiveError, compat.VersionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    # Hydra reads the command line itself.
    sys.argv = ["aent-verl evaluate", *settings.long_form(overrides)]
    run()
    return 0


@hydra.main(version_base="1.3", config_path=CONFIG_MODULE, config_name=CONFIG_NAME)
def run(cfg: DictConfig) -> None:
    """Evaluate on the config that Hydra composed from the command line; ends the process where that fails."""
    from hydra.core.hydra_config import HydraConfig

    typed = settings.typed_keys(HydraConfig.get().overrides.task)
    where = ""
    try:
        model = checkpoint.locate(cfg.actor_rollout_ref.model.path)
        output = Path(os.path.abspath(cfg.evaluation.output or model.output))
        cfg.evaluation.output = str(output)
        if not cfg.run.progress:
            evaluate(cfg, model, typed, sys.stdout)
            return
        where = f"; the full log is {output / LOG}"
        with everything_else_in(output / LOG) as terminal:
            try:
                evaluate(cfg, model, typed, terminal)
            except Exception:
                traceback.print_exc()
                raise
    except Exception as error:
        cause = root_cause(error)
        print(f"error: {settings.short_form(str(cause))}\n({type(cause).__name__}{where})", file=sys.stderr)
        sys.exit(1)


def evaluate(cfg: DictConfig, model: checkpoint.Model, typed: set[str], terminal: TextIO) -> None:
    """Check everything, then sample, score, sum up and write.

    Args:
        cfg: the composed config; changed.
        model: what to evaluate.
        typed: the keys that the user set.
        terminal: where people look.

    Raises:
        ValueError, RuntimeError: something does not fit, or a server failed; nothing was written.
    """
    from aent_verl.integration import generation
    from aent_verl.integration.platform_cpu import cpu_count

    output = Path(cfg.evaluation.output)
    _inherit(cfg, model, typed, terminal)
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
            generation.start_ray(cfg)
            answered = asyncio.run(_sample(cfg, task, scorer, terminal))
        finally:
            generation.stop_ray()
    result = task.record | {
        "versions": provenance.versions(),
        "seconds": round(time.monotonic() - start, 1),
        "summary": summary.summarize(answered),
    }
    records.write(output, result, answered)
    for warning in summary.warnings_of(answered):
        print(f"warning: {warning}", file=terminal)
    _print(summary.table(result["summary"], task.sampling.n), terminal)
    print(f"results in {output}", file=terminal)


def _inherit(cfg: DictConfig, model: checkpoint.Model, typed: set[str], terminal: TextIO) -> None:
    from aent_verl.results.run import read_config

    if model.run is None:
        return
    changed = settings.inherit(cfg, read_config(model.run), typed)
    if changed:
        names = {long: short for short, long in settings.SHORT_KEYS.items()}
        print(f"as in {model.run}: {', '.join(names.get(key, key) for key in changed)}", file=terminal)


def _is_complete(output: Path, task: Task, terminal: TextIO) -> bool:
    """Whether this very evaluation is in the output folder already.

    Raises:
        PreflightError: another one is.
    """
    there = records.read_summary(output)
    if there is None:
        return False
    differences = records.differences(there, task.record)
    if differences:
        raise PreflightError(
            "output",
            str(output),
            f"there is another evaluation in it ({'; '.join(differences)})",
            expected="an empty folder, or the same evaluation",
            hint="Choose another folder with output=, or replace it with overwrite=true",
        )
    print(f"this evaluation is complete, in {output}\nto repeat it add overwrite=true", file=terminal)
    _print(summary.table(there["summary"], task.sampling.n), terminal)
    return True


async def _sample(cfg: DictConfig, task: Task, scorer: Scorer, terminal: TextIO) -> list[Answered]:
    """All responses to all problems; each is scored as soon as it is there."""
    from aent_verl.integration import generation

    count, each = generation.replicas(cfg)
    found = generation.accelerators(count * each)
    if found < count * each:
        raise PreflightError(
            "gpus",
            cfg.trainer.n_gpus_per_node,
            f"with trainer.nnodes={cfg.trainer.nnodes} that is {count * each} accelerators",
            expected=f"at most the {found:g} that Ray has",
            hint="Lower it, or point Ray at a larger cluster with RAY_ADDRESS",
        )
    print(f"starting {count} vLLM server{'s' if count > 1 else ''}, which takes a minute or more", file=terminal)
    servers = await generation.Servers.start(cfg, generation.load_model(cfg))
    slots = asyncio.Semaphore(servers.capacity)
    with Progress(len(task.problems) * task.sampling.n, terminal) as progress:

        async def answer(problem: Problem, prompt: Sequence[int]) -> Response:
            async with slots:
                response = await _respond(servers, scorer, problem, prompt, greedy=task.sampling.greedy)
            progress.advance()
            return response

        tasks = [
            asyncio.ensure_future(answer(problem, prompt))
            for problem, prompt in zip(task.problems, task.prompts, strict=True)
            for _ in range(task.sampling.n)
        ]
        try:
            responses = await asyncio.gather(*tasks)
        finally:
            for one in tasks:
                one.cancel()
    n = task.sampling.n
    return [Answered(problem, responses[i * n : (i + 1) * n]) for i, problem in enumerate(task.problems)]


async def _respond(
    servers: Servers, scorer: Scorer, problem: Problem, prompt: Sequence[int], *, greedy: bool
) -> Response:
    generated = await servers.respond(prompt)
    scored = await scorer.score_async(
        data_source=problem.data_source,
        solution_str=generated.text,
        ground_truth=problem.ground_truth,
        # verl adds the last two.
        extra_info={**problem.extra_info, "num_turns": 2, "rollout_reward_scores": {}},
    )
    return Response(
        text=generated.text,
        tokens=generated.tokens,
        truncated=generated.truncated,
        # The likeliest token is certain; vLLM gives the log-probability that it would have at temperature 1.
        entropy=0.0 if greedy else records.entropy_of(generated.log_probs),
        score=scored.score,
        answer=scored.answer,
        error=scored.error,
    )


def _print(renderable: object, terminal: TextIO) -> None:
    from rich.console import Console

    console = Console(file=terminal)
    # A file or pipe has no width; 80 columns would fold the table.
    console.print(renderable) if console.is_terminal else Console(file=terminal, width=120).print(renderable)
