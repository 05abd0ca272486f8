"""Do verl's LoRA keys mean what they say with its FSDP engines?

verl has two sets: ``model.lora_*`` for the FSDP engines, which are ours, and the block ``model.lora`` for Megatron's.
Of the block the FSDP engines read ``merge`` alone, but trainer and rollouts take ``lora.rank`` and
``lora_adapter_path`` for a sign that an adapter trains.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.errors import Finding, PreflightError, PreflightWarning

KEY = "actor_rollout_ref.model"
RANK = f"{KEY}.lora_rank"
PATH = f"{KEY}.lora_adapter_path"
BLOCK = f"{KEY}.lora"
# Keys of the block that FSDP engines or vLLM read, and the FSDP engines' names of what only Megatron's read.
READ = {"merge", "rank", "fully_sharded_loras"}
FSDP_NAMES = {"rank": RANK, "alpha": f"{KEY}.lora_alpha", "adapter_path": PATH} | {
    name: f"{KEY}.{name}" for name in ("target_modules", "exclude_modules")
}
ONLY_WITH_LORA = ("lora_alpha", "target_modules", "exclude_modules", "lora.merge")
ADAPTER_CONFIG = "adapter_config.json"


def check(cfg: DictConfig) -> Iterator[str | Finding]:
    """Check the LoRA keys of a training run.

    Yields:
        What does not fit, each with its key; for a run that trains an adapter then a line that says so.
    """
    model, rollout = cfg.actor_rollout_ref.model, cfg.actor_rollout_ref.rollout
    rank = model.lora_rank
    if type(rank) is not int or rank < 0:
        yield PreflightError(
            RANK, rank, "no rank", expected="a whole number from 0, which trains all weights", hint=f"Set {RANK}=8, say"
        )
        return
    yield from _block(model)
    if rank == 0:
        yield from _without_lora(model)
        return
    yield from _adapter(model)
    merge = model.lora.get("merge", False)
    if not merge and rollout.layered_summon and "dummy" in rollout.load_format:
        yield PreflightError(
            "actor_rollout_ref.rollout.load_format",
            rollout.load_format,
            "with rollout.layered_summon=True verl sends no base weights, and stops at the first update",
            expected="a format that loads them from the model's folder",
            hint="Set actor_rollout_ref.rollout.load_format=safetensors, or layered_summon=false",
        )
    if merge and rollout.dtype not in ("bfloat16", "bf16"):
        yield PreflightWarning(
            f"{BLOCK}.merge",
            merge,
            "verl rounds merged weights to bfloat16 on their way to vLLM, whose probabilities then differ from the "
            f"trainer's although rollout.dtype={rollout.dtype}",
            hint=f"Leave {BLOCK}.merge out: the adapter travels alone, and unrounded",
        )
    adapter = model.lora_adapter_path or f"a new adapter of rank {rank}"
    sent = "merged weights" if merge else "the adapter"
    yield f"{adapter} trains; vLLM gets {sent}, a reference policy is the model without it"


def check_evaluation(cfg: DictConfig) -> Iterator[Finding]:
    """Refuse an adapter in an evaluation, whose servers load the model's folder and nothing else."""
    model = cfg.actor_rollout_ref.model
    for name in ("lora_adapter_path", "lora_rank", "lora.rank"):
        value = OmegaConf.select(model, name)
        if value:
            yield PreflightError(
                f"{KEY}.{name}",
                value,
                "an evaluation loads no adapter: the base model would answer",
                hint="Merge the adapter into its base model (peft: merge_and_unload) and evaluate that folder",
            )


@cache
def _defaults() -> DictConfig:
    """The model block of verl's own configs."""
    text = (files("verl.trainer.config") / "model" / "hf_model.yaml").read_text(encoding="utf-8")
    defaults = OmegaConf.create(text)
    assert isinstance(defaults, DictConfig)
    return defaults


def _block(model: DictConfig) -> Iterator[PreflightError]:
    """What is set in Megatron's block and would not be done."""
    rank = model.lora.get("rank", 0)
    if rank not in (0, model.lora_rank):
        yield PreflightError(
            f"{BLOCK}.rank",
            rank,
            f"verl's FSDP engine goes by {RANK}={model.lora_rank}, while vLLM waits for an adapter of this rank, and "
            "the reference policy is taken to be the actor without one",
            hint=f"Set {RANK}={rank}, and leave {BLOCK}.rank out",
        )
    for name, value in model.lora.items():
        if name in READ or value == _defaults().lora.get(name):
            continue
        other = FSDP_NAMES.get(str(name))
        yield PreflightError(
            f"{BLOCK}.{name}",
            _plain(value),
            "only verl's Megatron engine reads it",
            hint=f"Set {other} instead" if other else "Leave it out: verl's FSDP engines have no such setting",
        )


def _without_lora(model: DictConfig) -> Iterator[Finding]:
    """What has no effect where no adapter trains."""
    if model.lora_adapter_path is not None:
        yield PreflightError(
            PATH,
            model.lora_adapter_path,
            f"with {RANK}=0 verl does not load it, trains all weights, and takes the actor without an adapter for the "
            "reference policy",
            hint=f"Set {RANK} to the adapter's rank, r in its {ADAPTER_CONFIG}",
        )
    for name in ONLY_WITH_LORA:
        value = OmegaConf.select(model, name)
        if value is not None and value != OmegaConf.select(_defaults(), name):
            yield PreflightWarning(
                f"{KEY}.{name}",
                _plain(value),
                f"has no effect with {RANK}=0",
                hint=f"Set {RANK}=8, say, or leave it out",
            )


def _adapter(model: DictConfig) -> Iterator[PreflightError]:
    """Whether the folder of a given adapter has one of the rank that vLLM is told; other places are left to verl."""
    path = model.lora_adapter_path
    if path is None or not os.path.isdir(path):
        return
    try:
        with open(os.path.join(path, ADAPTER_CONFIG), encoding="utf-8") as file:
            rank = json.load(file)["r"]
    except (OSError, ValueError, KeyError) as error:
        yield PreflightError(
            PATH,
            path,
            f"its {ADAPTER_CONFIG} cannot be read ({type(error).__name__}: {error})",
            expected="a folder that peft's save_pretrained made",
            hint="From a checkpoint of verl's, `python -m verl.model_merger merge` makes one, named lora_adapter",
        )
        return
    if rank != model.lora_rank:
        yield PreflightError(
            RANK,
            model.lora_rank,
            f"the adapter in {path} has another rank, and vLLM makes room for one of this",
            expected=str(rank),
            hint=f"Set {RANK}={rank}",
        )


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
