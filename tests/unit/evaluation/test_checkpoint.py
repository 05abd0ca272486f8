import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from aent_verl.evaluation import checkpoint
from aent_verl.preflight import PreflightError


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A run with one checkpoint of two ranks."""
    step = tmp_path / "run" / "checkpoints" / "global_step_40"
    (step / "actor" / "huggingface").mkdir(parents=True)
    (step / "actor" / "huggingface" / "config.json").write_text("{}")
    for rank in range(2):
        (step / "actor" / f"model_world_size_2_rank_{rank}.pt").write_bytes(bytes(range(rank, 200)))
    (tmp_path / "run" / "hydra").mkdir()
    (tmp_path / "run" / "hydra" / "config.yaml").write_text("data: {}\n")
    return step


@pytest.fixture
def merger(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """verl's merger, replaced by one that writes a file; returns its commands."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        target = Path(command[command.index("--target_dir") + 1])
        target.mkdir()
        (target / "model.safetensors").write_text(f"merged {len(commands)}")
        (target / "config.json").write_text("{}")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return commands


def fail(how: str) -> Callable[..., Any]:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        target = Path(command[command.index("--target_dir") + 1])
        target.mkdir()
        if how == "killed":
            raise KeyboardInterrupt
        if how != "nothing":
            (target / "model.safetensors").touch()
        if how == "adapter":
            (target / "lora_adapter").mkdir()
        return subprocess.CompletedProcess(command, 1 if how == "error" else 0, "", "Traceback\nKeyError: 'layer'\n")

    return run


@pytest.mark.parametrize("part", ["", "actor", "actor/"])
def test_a_checkpoint_is_found_with_its_run(step: Path, part: str) -> None:
    model = checkpoint.locate(f"{step}/{part}")
    assert model.actor == step / "actor"
    assert model.run == step.parents[1]
    assert model.output == step.parents[1] / "evaluation"
    assert model.given == str(step)


def test_a_checkpoint_without_a_run_of_ours_is_evaluated_next_to_itself(step: Path) -> None:
    (step.parents[1] / "hydra" / "config.yaml").unlink()
    model = checkpoint.locate(str(step))
    assert model.run is None
    assert model.output == step.parent / "evaluation"


def test_model_folders_and_names_on_the_hub_are_taken_as_they_are(tiny_model_folder: str, tmp_path: Path) -> None:
    model = checkpoint.locate(tiny_model_folder)
    assert (model.actor, model.run) == (None, None)
    assert checkpoint.model_folder(model) == tiny_model_folder
    hub = checkpoint.locate("Qwen/Qwen2.5-Math-1.5B")
    assert checkpoint.model_folder(hub) == "Qwen/Qwen2.5-Math-1.5B"
    assert hub.output == Path("outputs/evaluation/Qwen--Qwen2.5-Math-1.5B")
    assert checkpoint.locate("/somewhere/arithmetic/model").output.name == "arithmetic--model"


@pytest.mark.parametrize("path", ["", None])
def test_no_model(path: Any) -> None:
    with pytest.raises(PreflightError, match=r"no model is named.*global_step_N"):
        checkpoint.locate(path)


def test_a_folder_that_is_neither_model_nor_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(PreflightError, match=r"no config.json, and there are no model_world_size.*Megatron"):
        checkpoint.locate(str(tmp_path))


def test_a_checkpoint_that_is_not_there_names_those_that_are(step: Path) -> None:
    with pytest.raises(PreflightError, match="no such checkpoint; expected one of global_step_40"):
        checkpoint.locate(str(step.with_name("global_step_41")))


def test_shards_are_put_together_once(step: Path, merger: list[list[str]]) -> None:
    model = checkpoint.locate(str(step))
    folder = checkpoint.model_folder(model)
    assert Path(folder) == step / "actor" / "huggingface_merged"
    assert checkpoint.model_folder(model) == folder
    assert len(merger) == 1
    assert merger[0][1:4] == ["-m", "verl.model_merger", "merge"]
    assert "fsdp" in merger[0]
    assert not list((step / "actor").glob("*.partial"))


def test_two_at_once_put_shards_together_once(
    step: Path, merger: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge, working = subprocess.run, threading.Event()

    def slow(command: list[str], **settings: Any) -> Any:
        working.set()
        time.sleep(0.2)
        return merge(command, **settings)

    monkeypatch.setattr(subprocess, "run", slow)
    model = checkpoint.locate(str(step))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(checkpoint.model_folder, model)
        assert working.wait(10)
        second = threads.submit(checkpoint.model_folder, model)
        assert first.result() == second.result() == str(step / "actor" / "huggingface_merged")
    assert len(merger) == 1


def test_what_is_put_together_already_needs_no_lock(
    step: Path, merger: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def refuse(file: Path, **_: Any) -> Iterator[None]:
        raise PermissionError(f"{file} is read-only")
        yield

    model = checkpoint.locate(str(step))
    folder = checkpoint.model_folder(model)
    monkeypatch.setattr(checkpoint, "locked", refuse)
    assert checkpoint.model_folder(model) == folder
    (Path(folder) / checkpoint.COMPLETE).unlink()
    with pytest.raises(PreflightError, match=r"is read-only.*in a folder that may be written to"):
        checkpoint.model_folder(model)


def test_other_shards_are_put_together_again(step: Path, merger: list[list[str]]) -> None:
    model = checkpoint.locate(str(step))
    checkpoint.model_folder(model)
    (step / "actor" / "model_world_size_2_rank_1.pt").write_bytes(bytes(range(2, 201)))
    folder = checkpoint.model_folder(model)
    assert (Path(folder) / "model.safetensors").read_text() == "merged 2"


@pytest.mark.parametrize("content", [None, "{", "{}"])
def test_what_is_not_complete_is_put_together_again(step: Path, merger: list[list[str]], content: str | None) -> None:
    model = checkpoint.locate(str(step))
    marker = Path(checkpoint.model_folder(model)) / checkpoint.COMPLETE
    if content is None:
        marker.unlink()
    else:
        marker.write_text(content)
    checkpoint.model_folder(model)
    assert len(merger) == 2


def test_weights_that_the_trainer_saved_whole_are_used(step: Path, merger: list[list[str]]) -> None:
    (step / "actor" / "huggingface" / "model.safetensors").touch()
    assert checkpoint.model_folder(checkpoint.locate(str(step))) == str(step / "actor" / "huggingface")
    assert merger == []


@pytest.mark.parametrize(
    ("how", "message"),
    [("error", "KeyError: 'layer'"), ("nothing", "cannot merge its shards"), ("adapter", "LoRA adapter")],
)
def test_a_merger_that_fails_leaves_nothing(
    step: Path, monkeypatch: pytest.MonkeyPatch, how: str, message: str
) -> None:
    monkeypatch.setattr(subprocess, "run", fail(how))
    with pytest.raises(PreflightError, match=message):
        checkpoint.model_folder(checkpoint.locate(str(step)))
    assert not list((step / "actor").glob("huggingface_merged*"))


def test_a_merger_that_is_interrupted_leaves_nothing(step: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", fail("killed"))
    with pytest.raises(KeyboardInterrupt):
        checkpoint.model_folder(checkpoint.locate(str(step)))
    assert not list((step / "actor").glob("huggingface_merged*"))


def test_fingerprints_tell_weights_apart_and_do_not_depend_on_the_place(tmp_path: Path) -> None:
    def weights(name: str, content: bytes) -> str:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(content)
        (tmp_path / name / "config.json").write_text(json.dumps(name))
        return checkpoint.fingerprint(tmp_path / name)

    size = 3 << 20
    same, copy = weights("a", bytes(size)), weights("b", bytes(size))
    assert same == copy
    others = {
        weights("c", b"\1" + bytes(size - 1)),
        weights("d", bytes(size - 1) + b"\1"),
        weights("e", bytes(size + 1)),
    }
    assert len(others | {same}) == 4
