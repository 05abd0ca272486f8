"""What to evaluate, checked before anything starts: settings, data, model, prompts, reward function."""

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig

from aent_verl import preflight
from aent_verl._util import file_sha256
from aent_verl.evaluation import checkpoint, generation, records, settings
from aent_verl.evaluation.records import Problem
from aent_verl.preflight import data, machines, reward
from aent_verl.preflight.findings import Setting, at
from aent_verl.preflight.schema import value

DATA = settings.SHORT_KEYS["data"]


@dataclass(frozen=True)
class Task:
    """Everything that is known before the first response.

    Attributes:
        problems: the problems, none twice.
        prompts: their token ids.
        record: what `evaluation.json` says of it.
    """

    problems: Sequence[Problem]
    prompts: Sequence[Sequence[int]]
    record: dict[str, Any]


def prepare(cfg: DictConfig, model: checkpoint.Model, terminal: TextIO) -> Task:
    """Check everything, cheap things first, and merge the model if it is a checkpoint.

    Args:
        cfg: the composed config; what the servers need is filled in.
        model: what to evaluate.
        terminal: where people look.

    Raises:
        PreflightError, ValueError: something does not fit.
    """
    from verl.workers.rollout.utils import get_max_position_embeddings

    preflight.say(settings.check(cfg), terminal)
    _check_servers(cfg)
    files = data.named_files(cfg, DATA)
    found = data.read_files(cfg, DATA)
    if found.count is None:
        raise Setting(DATA, files).error("is remote", "Copy them here first", "files of this machine")
    sample = data.Sample(validation=found.sample)
    cfg.actor_rollout_ref.model.path = checkpoint.model_folder(model)
    lines = [*found.warnings, *preflight.model.check(cfg, sample), *reward.check(cfg, sample)]
    preflight.say(preflight.attempt("task", lambda: lines), terminal, words=settings.short_form)
    generation.prepare_servers(cfg)
    loaded = generation.load_model(cfg)
    _check_lengths(cfg, int(get_max_position_embeddings(loaded.hf_config)))
    by_file = {path: problems_of(generation.load_rows(cfg, path, loaded)) for path in files}
    problems = records.distinct(problem for group in by_file.values() for problem in group)
    encode = generation.prompt_encoder(cfg, loaded)
    prompts = [encode(problem.messages) for problem in problems]
    _check_prompts(cfg, prompts, sum(map(len, by_file.values())), found.count, terminal)
    return Task(problems, prompts, _record(cfg, model, by_file))


def problems_of(rows: Sequence[dict[str, Any]]) -> list[Problem]:
    """Turn rows of verl's data set into problems.

    Raises:
        ValueError: a prompt that is not plain text.
    """
    for index, row in enumerate(rows):
        if not all(isinstance(message["content"], str) for message in row["raw_prompt"]):
            raise ValueError(
                f"data: row {index} has a prompt that is not plain text; expected text in every message. Images and "
                "sounds are for verl's own validation: aent-verl train ... trainer.val_only=true"
            )
    return [
        Problem(
            data_source=str(row["data_source"]),
            messages=row["raw_prompt"],
            ground_truth=row["reward_model"]["ground_truth"],
            extra_info=row.get("extra_info") or {},
        )
        for row in rows
    ]


def _check_servers(cfg: DictConfig) -> None:
    count, each = machines.replicas(cfg)
    if count < 1:
        raise Setting("gpus", cfg.trainer.n_gpus_per_node).error(
            f"with trainer.nnodes={cfg.trainer.nnodes} that is too few for one server, which takes {each} (tensor, "
            "data and pipeline parallel sizes of actor_rollout_ref.rollout)",
            f"Set gpus={each}, or actor_rollout_ref.rollout.tensor_model_parallel_size=1",
            f"at least {each} on all nodes together",
        )
    machines.check_executor(cfg)
    loop = at(cfg, "actor_rollout_ref.rollout.agent.default_agent_loop")
    turns = cfg.actor_rollout_ref.rollout.multi_turn.enable
    if loop.value != generation.SINGLE_TURN or turns:
        raise loop.error(
            f"evaluate asks for one response to a prompt (multi_turn.enable={turns})",
            "Evaluate agents with verl's own validation: aent-verl train ... trainer.val_only=true",
            f"{generation.SINGLE_TURN!r} and multi_turn.enable=false",
        )


def _check_lengths(cfg: DictConfig, context: int) -> None:
    prompt, response = cfg.data.max_prompt_length, cfg.data.max_response_length
    if prompt + response > context:
        fits = max(0, context - prompt)
        raise Setting("max_response_length", response).error(
            f"with max_prompt_length={prompt} that is {prompt + response} tokens, but the model takes {context}",
            f"Set max_response_length={fits}" if fits else "Set max_prompt_length to what your prompts need",
            f"at most {fits}" if fits else f"a max_prompt_length below {context}",
        )


def _check_prompts(
    cfg: DictConfig, prompts: Sequence[Sequence[int]], rows: int, in_files: int, terminal: TextIO
) -> None:
    """Check that every prompt fits, and name what is not evaluated, or evaluated only once.

    Preflight looks at the first few, and verl would cut the beginning off a longer one.
    """
    limit = Setting("max_prompt_length", cfg.data.max_prompt_length)
    if rows < in_files:
        print(
            f"warning: {in_files - rows} of {in_files} rows are left out, by data.filter_overlong_prompts (prompts of "
            f"more than {limit.key}={limit.value} tokens) or data.val_max_samples",
            file=terminal,
        )
    if not prompts:
        raise limit.error(f"all {in_files} prompts are longer", "Raise it", "room for the prompts")
    if len(prompts) < rows:
        print(f"{rows} rows are {len(prompts)} problems, some of them repeated: each is evaluated once", file=terminal)
    longer = [len(prompt) for prompt in prompts if len(prompt) > limit.value]
    if longer:
        raise limit.error(
            f"{len(longer)} of {len(prompts)} prompts are longer, up to {max(longer)} tokens",
            "Raise it, or leave such problems out with data.filter_overlong_prompts=true",
            f"at least {max(longer)}",
        )


def _record(cfg: DictConfig, model: checkpoint.Model, by_file: dict[str, list[Problem]]) -> dict[str, Any]:
    """Record what this evaluation is about, and what distinguishes it from another one."""
    folder = Path(cfg.actor_rollout_ref.model.path)
    function = cfg.reward.custom_reward_function
    script = str(function.path or "").removeprefix("file://")
    return {
        "format": records.FORMAT,
        "model": model.given,
        "weights": checkpoint.fingerprint(folder) if folder.is_dir() else None,
        "data": [
            {"path": os.path.abspath(path), "sha256": file_sha256(path), "problems": len({each.id for each in group})}
            for path, group in by_file.items()
        ],
        "sampling": asdict(settings.sampling_of(cfg)),
        "prompts": {
            "max_tokens": cfg.data.max_prompt_length,
            "longer_left_out": bool(cfg.data.filter_overlong_prompts),
            "chat_template": cfg.actor_rollout_ref.model.custom_chat_template,
            "chat_template_settings": value(cfg, "data.apply_chat_template_kwargs") or {},
        },
        "reward": f"{function.path}:{function.name}" if function.path else "verl:default_compute_score",
        "reward_settings": value(function, "reward_kwargs") or {},
        "reward_sha256": file_sha256(script) if os.path.isfile(script) else None,
    }
