"""What is to be evaluated, checked before anything starts: settings, data, model, prompts, reward function."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf

from aent_verl._util import file_sha256
from aent_verl.evaluation import checkpoint, records, settings
from aent_verl.evaluation.records import Problem
from aent_verl.preflight import resources
from aent_verl.preflight.errors import PreflightError

DATA = settings.SHORT_KEYS["data"]


@dataclass(frozen=True)
class Task:
    """Everything that is known before the first response.

    Attributes:
        problems: the problems, none twice.
        prompts: their token ids.
        sampling: how responses are drawn.
        record: what `evaluation.json` says of it.
    """

    problems: Sequence[Problem]
    prompts: Sequence[Sequence[int]]
    sampling: settings.Sampling
    record: dict[str, Any]


def prepare(cfg: DictConfig, model: checkpoint.Model, terminal: TextIO) -> Task:
    """Check everything, cheap things first, and put the model together if it is a checkpoint.

    Args:
        cfg: the composed config; what the servers need is filled in.
        model: what to evaluate.
        terminal: where people look.

    Raises:
        PreflightError, ValueError: something does not fit.
    """
    from aent_verl import preflight
    from aent_verl.evaluation import generation
    from aent_verl.preflight import data, reward

    preflight.say(settings.check(cfg), terminal)
    sampling = settings.sampling_of(cfg)
    _check_servers(cfg)
    files = data.named_files(cfg, DATA)
    found = data.read_files(cfg, DATA)
    if found.count is None:
        raise PreflightError(DATA, files, "it is remote", expected="files of this machine", hint="Copy them here first")
    sample = data.Sample(validation=found.sample)
    cfg.actor_rollout_ref.model.path = checkpoint.model_folder(model)
    lines = [*found.warnings, *preflight.model.check(cfg, sample), *reward.check(cfg, sample)]
    preflight.say(preflight.attempt("task", lambda: lines), terminal, words=settings.short_form)
    generation.prepare_servers(cfg)
    loaded = generation.load_model(cfg)
    _check_lengths(cfg, generation.context_length(loaded))
    by_file = {path: problems_of(generation.load_rows(cfg, path, loaded)) for path in files}
    problems = records.distinct([problem for group in by_file.values() for problem in group])
    _say_what_is_left(cfg, sum(map(len, by_file.values())), len(problems), found.count, terminal)
    encode = generation.prompt_encoder(cfg, loaded)
    prompts = [encode(problem.messages) for problem in problems]
    _check_prompts(cfg, prompts)
    return Task(problems, prompts, sampling, _record(cfg, model, by_file, sampling))


def problems_of(rows: Sequence[dict[str, Any]]) -> list[Problem]:
    """Problems of rows from verl's data set.

    Raises:
        ValueError: a prompt that is not plain text.
    """
    problems = [
        Problem(
            data_source=str(row["data_source"]),
            messages=row["raw_prompt"],
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row.get("extra_info") or {},
        )
        for row in rows
    ]
    for index, problem in enumerate(problems):
        if not all(isinstance(message["content"], str) for message in problem.messages):
            raise ValueError(
                f"data: row {index} has a prompt that is not plain text; expected text in every message. Images and "
                "sounds are for verl's own validation: aent-verl train ... trainer.val_only=true"
            )
    return problems


def _check_servers(cfg: DictConfig) -> None:
    from aent_verl.evaluation import generation

    count, each = generation.replicas(cfg)
    if count < 1:
        raise PreflightError(
            "gpus",
            cfg.trainer.n_gpus_per_node,
            f"with trainer.nnodes={cfg.trainer.nnodes} that is too few for one server, which takes {each} (tensor, "
            "data and pipeline parallel sizes of actor_rollout_ref.rollout)",
            expected=f"at least {each} on all nodes together",
            hint=f"Set gpus={each}, or actor_rollout_ref.rollout.tensor_model_parallel_size=1",
        )
    resources.check_executor(cfg)
    rollout = cfg.actor_rollout_ref.rollout
    if rollout.agent.default_agent_loop != generation.SINGLE_TURN or rollout.multi_turn.enable:
        raise PreflightError(
            "actor_rollout_ref.rollout.agent.default_agent_loop",
            rollout.agent.default_agent_loop,
            f"evaluate asks for one response to a prompt (multi_turn.enable={rollout.multi_turn.enable})",
            expected=f"{generation.SINGLE_TURN!r} and multi_turn.enable=false",
            hint="Evaluate agents with verl's own validation: aent-verl train ... trainer.val_only=true",
        )


def _check_lengths(cfg: DictConfig, context: int) -> None:
    prompt, response = cfg.data.max_prompt_length, cfg.data.max_response_length
    if prompt + response > context:
        fits = max(0, context - prompt)
        raise PreflightError(
            "max_response_length",
            response,
            f"with max_prompt_length={prompt} that is {prompt + response} tokens, and the model takes {context}",
            expected=f"at most {fits}" if fits else f"a max_prompt_length below {context}",
            hint=f"Set max_response_length={fits}" if fits else "Set max_prompt_length to what your prompts need",
        )


def _say_what_is_left(cfg: DictConfig, rows: int, problems: int, in_files: int, terminal: TextIO) -> None:
    """Name what is not evaluated, or evaluated only once."""
    if rows < in_files:
        limit = cfg.data.max_prompt_length
        print(
            f"warning: {in_files - rows} of {in_files} rows are left out, by data.filter_overlong_prompts (prompts of "
            f"more than max_prompt_length={limit} tokens) or data.val_max_samples",
            file=terminal,
        )
    if problems == 0:
        raise PreflightError(
            "max_prompt_length",
            cfg.data.max_prompt_length,
            f"all {in_files} prompts are longer",
            expected="room for the prompts",
            hint="Raise it",
        )
    if problems < rows:
        print(f"{rows} rows are {problems} problems, some of them repeated: each is evaluated once", file=terminal)


def _check_prompts(cfg: DictConfig, prompts: Sequence[Sequence[int]]) -> None:
    """Of every prompt: preflight looks at the first few, and verl would cut off the beginning of a longer one."""
    limit = cfg.data.max_prompt_length
    longer = [len(prompt) for prompt in prompts if len(prompt) > limit]
    if longer:
        raise PreflightError(
            "max_prompt_length",
            limit,
            f"{len(longer)} of {len(prompts)} prompts are longer, up to {max(longer)} tokens",
            expected=f"at least {max(longer)}",
            hint="Raise it, or leave such problems out with data.filter_overlong_prompts=true",
        )


def _record(
    cfg: DictConfig,
    model: checkpoint.Model,
    by_file: dict[str, list[Problem]],
    sampling: settings.Sampling,
) -> dict[str, Any]:
    """What this evaluation is about, and by what it is told from another one."""
    folder = Path(cfg.actor_rollout_ref.model.path)
    function = cfg.reward.custom_reward_function
    script = str(function.path or "").removeprefix("file://")
    return {
        "format": records.FORMAT,
        "model": model.given,
        "weights": checkpoint.fingerprint(folder) if folder.is_dir() else None,
        "data": [
            {
                "path": os.path.abspath(path),
                "sha256": file_sha256(path),
                "problems": len({problem.id for problem in group}),
            }
            for path, group in by_file.items()
        ],
        "sampling": sampling.as_dict(),
        "prompts": {
            "max_tokens": cfg.data.max_prompt_length,
            "longer_left_out": bool(cfg.data.filter_overlong_prompts),
            "chat_template": cfg.actor_rollout_ref.model.custom_chat_template,
            "chat_template_settings": _plain(cfg.data.get("apply_chat_template_kwargs")),
        },
        "reward": f"{function.path}:{function.name}" if function.path else "verl:default_compute_score",
        "reward_settings": _plain(function.get("reward_kwargs")),
        "reward_sha256": file_sha256(script) if os.path.isfile(script) else None,
    }


def _plain(settings_block: Any) -> Any:
    return OmegaConf.to_container(settings_block, resolve=True) if OmegaConf.is_config(settings_block) else {}
