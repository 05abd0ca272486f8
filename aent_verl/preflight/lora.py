"""Do verl's LoRA keys mean what they say with its FSDP engines?

verl has two sets: ``model.lora_*`` for the FSDP engines, which are ours, and the block ``model.lora`` for Megatron's,
whose other keys are found by `keys`. Of the block the FSDP engines read ``merge`` alone, but trainer and rollouts take
``lora.rank`` and ``lora_adapter_path`` for a sign that an adapter trains.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from aent_verl.preflight.findings import Finding, PreflightError, at, without_effect
from aent_verl.preflight.schema import value

KEY = "actor_rollout_ref.model"
RANK = f"{KEY}.lora_rank"
PATH = f"{KEY}.lora_adapter_path"
BLOCK = f"{KEY}.lora"
FORMAT = "actor_rollout_ref.rollout.load_format"
ONLY_WITH_LORA = tuple(f"{KEY}.{name}" for name in ("lora_alpha", "target_modules", "exclude_modules", "lora.merge"))
ADAPTER_CONFIG = "adapter_config.json"


def check(cfg: DictConfig) -> Iterator[str | Finding]:
    """Check the LoRA keys of a training run.

    Yields:
        What does not fit, each with its key; for a run that trains an adapter then a line that says so.
    """
    rank, path, rollout = value(cfg, RANK), value(cfg, PATH), cfg.actor_rollout_ref.rollout
    if type(rank) is not int or rank < 0:
        yield at(cfg, RANK).error("is not a rank", f"Set {RANK}=8, for example", "a whole number from 0 (no adapter)")
        return
    nested = value(cfg, f"{BLOCK}.rank") or 0
    if nested not in (0, rank):
        yield at(cfg, f"{BLOCK}.rank").error(
            f"verl's FSDP engine goes by {RANK}={rank}, but vLLM waits for an adapter of this rank, and the actor "
            "without its adapter is taken for the reference policy",
            f"Set {RANK}={nested}, and remove {BLOCK}.rank",
        )
    if rank == 0:
        if path is not None:
            yield at(cfg, PATH).error(
                f"with {RANK}=0 verl does not load it, trains all weights and takes the actor for the reference policy",
                f"Set {RANK} to the adapter's rank, r in its {ADAPTER_CONFIG}",
            )
        yield from without_effect(cfg, ONLY_WITH_LORA, f"{RANK}=0", f"Set {RANK}=8, for example, or remove it")
        return
    if path is not None and Path(path).is_dir():
        yield from _adapter(cfg, path)
    merge = value(cfg, f"{BLOCK}.merge")
    if not merge and rollout.layered_summon and "dummy" in rollout.load_format:
        yield at(cfg, FORMAT).error(
            "with rollout.layered_summon=True verl sends no base weights, and stops at the first update",
            f"Set {FORMAT}=safetensors, or layered_summon=false",
            "a format that loads them from the model's folder",
        )
    if merge and rollout.dtype not in ("bfloat16", "bf16"):
        yield at(cfg, f"{BLOCK}.merge").warning(
            "verl rounds merged weights to bfloat16 before it sends them to vLLM, whose probabilities then differ from "
            f"the trainer's although rollout.dtype={rollout.dtype}",
            f"Remove {BLOCK}.merge: the adapter is then sent alone, and unrounded",
        )
    sent = "merged weights" if merge else "the adapter"
    adapter = path or f"a new adapter of rank {rank}"
    yield f"{adapter} trains; vLLM gets {sent}, a reference policy is the model without it"


def check_evaluation(cfg: DictConfig) -> Iterator[Finding]:
    """Refuse an adapter in an evaluation, whose servers load the model's folder and nothing else."""
    for key in (PATH, RANK, f"{BLOCK}.rank"):
        if value(cfg, key):
            yield at(cfg, key).error(
                "an evaluation loads no adapter: the base model would answer",
                "Merge the adapter into its base model (peft: merge_and_unload) and evaluate that folder",
            )


def _adapter(cfg: DictConfig, path: str) -> Iterator[PreflightError]:
    """Check that the folder of a given adapter has one of the rank that vLLM is told."""
    try:
        rank = json.loads(Path(path, ADAPTER_CONFIG).read_text(encoding="utf-8"))["r"]
    except (OSError, ValueError, KeyError) as error:
        yield at(cfg, PATH).error(
            f"its {ADAPTER_CONFIG} cannot be read ({type(error).__name__}: {error})",
            "`python -m verl.model_merger merge` makes one from a verl checkpoint, named lora_adapter",
            "a folder made by peft's save_pretrained",
        )
        return
    if rank != value(cfg, RANK):
        yield at(cfg, RANK).error(
            f"the adapter in {path} has another rank, and vLLM reserves room for this one",
            f"Set {RANK}={rank}",
            str(rank),
        )
