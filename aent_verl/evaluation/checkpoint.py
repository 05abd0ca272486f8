"""Which model `model=` means: a folder as it is, a name on the hub, or the merged shards of a verl checkpoint."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from aent_verl._util import locked
from aent_verl.preflight.findings import PreflightError, Setting
from aent_verl.preflight.model import WEIGHTS
from aent_verl.runs.checkpoints import step_folders, step_of
from aent_verl.runs.run import CONFIGS

# Alongside verl's own `huggingface`, which has config and tokenizer but no weights.
MERGED = "huggingface_merged"
COMPLETE = "merged.json"
_LOCK = f".{MERGED}.lock"
_SHARDS = "model_world_size_*_rank_*.pt"
_PIECE = 1 << 20


@dataclass(frozen=True)
class Model:
    """What is to be evaluated.

    Attributes:
        given: as the user wrote it; a local path is absolute.
        actor: folder of a checkpoint's shards, None where there is nothing to merge.
        run: folder of the run that trained it, None if that is not known.
        output: where its results go by default.
    """

    given: str
    actor: Path | None = None
    run: Path | None = None
    output: Path = Path("outputs")


def locate(path: str) -> Model:
    """Find out what ``model=path`` names.

    Raises:
        PreflightError: nothing is named, or a checkpoint has no shards.
    """
    if not isinstance(path, str) or not path:
        raise Setting("model", path).error(
            "no model is named",
            "Set model=<run>/checkpoints/global_step_N, or model=Qwen/Qwen2.5-0.5B-Instruct",
            "a model folder, a name on the hub, or a checkpoint",
        )
    folder = Path(path).expanduser()
    there = folder.is_dir()
    if not there and step_of(folder) is not None:
        names = ", ".join(one.name for one in step_folders(folder.parent))
        expected = f"one of {names}" if names else "a folder global_step_N"
        raise Setting("model", path).error("there is no such checkpoint", "Check the path", expected)
    if not there or (folder / "config.json").is_file():
        # The folder may be one that the experiment has yet to make.
        name = "--".join(part for part in folder.parts[-2:] if part not in ("/", "."))
        return Model(os.path.abspath(folder) if there else path, output=Path("outputs", "evaluation", name))
    step = Path(os.path.abspath(folder.parent if folder.name == "actor" else folder))
    actor = step / "actor"
    if not any(actor.glob(_SHARDS)):
        raise Setting("model", path).error(
            f"has no config.json, and there are no {_SHARDS} in {actor}",
            "Check the path; a Megatron checkpoint has to be merged with `python -m verl.model_merger` first",
            "a model folder, or a checkpoint of verl's FSDP trainer (global_step_N)",
        )
    run = next((one for one in (step.parent.parent, step.parent) if any((one / c).is_file() for c in CONFIGS)), None)
    return Model(str(step), actor, run, (run or step.parent) / "evaluation")


def model_folder(model: Model) -> str:
    """Return the folder or hub name that transformers and vLLM can load; merge a checkpoint if need be.

    verl's merger rounds weights to bfloat16, in which vLLM got them during training, too, unless that ran in fp32.

    Raises:
        PreflightError: the merger fails, or the checkpoint is one of a LoRA adapter.
    """
    if model.actor is None:
        return model.given
    stock, merged = model.actor / "huggingface", model.actor / MERGED
    if any(any(stock.glob(pattern)) for pattern in WEIGHTS):
        return str(stock)  # trainer.save_contents has hf_model: the weights are there already
    shards = fingerprint(model.actor, (_SHARDS,))
    if _is_complete(merged, shards):  # also in a folder that cannot be written to
        return str(merged)
    try:
        with locked(model.actor / _LOCK, note=f"model={model.given}: waiting for another process that merges it"):
            if not _is_complete(merged, shards):
                _merge_into(model, merged, shards)
    except OSError as error:
        raise _unmerged(model, str(error)) from error
    return str(merged)


def _merge_into(model: Model, merged: Path, shards: str) -> None:
    partial = merged.with_name(f"{MERGED}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed merger left
    # In a process of its own: it holds all weights, and returns its memory only by ending.
    command = ["merge", "--backend", "fsdp", "--local_dir", str(model.actor), "--target_dir", str(partial)]
    try:
        done = subprocess.run([sys.executable, "-m", "verl.model_merger", *command], text=True, capture_output=True)
        print(done.stdout, done.stderr, flush=True)
        if done.returncode != 0 or not any(any(partial.glob(pattern)) for pattern in WEIGHTS):
            raise _unmerged(model, (done.stderr.strip().splitlines() or ["it wrote no weights"])[-1])
        if (partial / "lora_adapter").exists():
            raise Setting("model", model.given).error(
                "the checkpoint is a LoRA adapter, and vLLM would evaluate its base model",
                "Merge the adapter into its base model (peft: merge_and_unload) and evaluate that folder",
                "a checkpoint of all weights",
            )
        (partial / COMPLETE).write_text(json.dumps({"shards": shards}) + "\n", encoding="utf-8")
        shutil.rmtree(merged, ignore_errors=True)
        os.replace(partial, merged)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _unmerged(model: Model, reason: str) -> PreflightError:
    return Setting("model", model.given).error(
        f"verl.model_merger cannot merge its shards ({reason})",
        "Check that no shard and no file of actor/huggingface is missing; the merger's output is in the log",
        "the complete checkpoint of verl's FSDP trainer, in a folder that may be written to",
    )


def _is_complete(merged: Path, shards: str) -> bool:
    try:
        return bool(json.loads((merged / COMPLETE).read_text(encoding="utf-8"))["shards"] == shards)
    except (OSError, ValueError, KeyError):
        return False


def fingerprint(folder: Path, patterns: tuple[str, ...] = WEIGHTS) -> str:
    """Identify weights without reading all of them: names, sizes, first and last MiB of each file."""
    digest = hashlib.sha256()
    for file in sorted(file for pattern in patterns for file in folder.glob(pattern)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_PIECE))
            stream.seek(max(0, size - _PIECE))
            digest.update(stream.read(_PIECE))
    return digest.hexdigest()[:16]
