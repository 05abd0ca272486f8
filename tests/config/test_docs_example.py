"""The worked examples of docs/methods.md are what a reader types, and work."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from aent_verl.core.controllers import BandController, LinearDecayController
from aent_verl.core.custom import logprobs_and_custom_entropy
from aent_verl.core.fused import logprobs_and_entropy
from aent_verl.methods.settings import EntropyControlConfig
from tests.config.composing import MICRO_BATCHES, actor_config

METHODS = Path(__file__).parents[2] / "docs" / "methods.md"


def blocks(language: str) -> list[str]:
    """The page's blocks in that language."""
    return re.findall(rf"```{language}\n(.*?)```", METHODS.read_text(), re.DOTALL)


def compose_example(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, python: int, yaml: int | None, *overrides: str
) -> EntropyControlConfig:
    """Write the page's blocks of these numbers as module and preset of that name, and compose with ``overrides``."""
    from hydra import compose, initialize_config_module

    (folder / f"{module}.py").write_text(blocks("python")[python])
    presets = folder / "presets" / "entropy_control"
    presets.mkdir(parents=True)
    if yaml is not None:
        (presets / f"{module}.yaml").write_text(blocks("yaml")[yaml])
    monkeypatch.syspath_prepend(str(folder))
    # What --config-dir adds.
    search = f"hydra.searchpath=[pkg://verl.trainer.config,file://{presets.parent}]"
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        cfg = compose("aent_trainer", overrides=[*MICRO_BATCHES, search, *overrides])
    control = actor_config(cfg).entropy_control
    assert control is not None
    return control


def test_a_new_entropy_is_one_function_and_one_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = compose_example(tmp_path, monkeypatch, "tsallis", 0, 0, "entropy_control=tsallis")
    assert control.method == "tsallis"
    assert str(control.functional) == "tsallis:entropy(q=2.0)"
    assert isinstance(control.bonus.controller, BandController)

    function = control.functional.function
    assert function is not None
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(7, (5,))
    assert torch.autograd.gradcheck(lambda z: logprobs_and_custom_entropy(z, labels, function)[1], logits)
    p = logits.softmax(-1)
    torch.testing.assert_close(function(logits), 1 - (p * p).sum(-1))


def test_a_set_of_tokens_of_ones_own_is_one_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = next(block for block in blocks("sh") if "top_k:TopK" in block)
    overrides = [word for word in command.split() if "entropy_control" in word]
    control = compose_example(tmp_path, monkeypatch, "top_k", 1, None, *overrides)
    assert str(control.functional) == "top_k:TopK(k=50)"
    logits = torch.randn(3, 97, dtype=torch.float64, requires_grad=True)
    entropy = logprobs_and_entropy(logits, torch.zeros(3, dtype=torch.long), **control.functional.arguments())[1]
    top = logits.topk(50).values.log_softmax(-1)
    torch.testing.assert_close(entropy, -(top.exp() * top).sum(-1))


def test_a_new_shaping_is_one_class_and_one_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = compose_example(tmp_path, monkeypatch, "centred", 2, 1, "entropy_control=centred")
    assert control.method == "centred"
    shaping: Any = control.advantages.shaping
    assert (type(shaping).__name__, shaping.share) == ("Centred", 0.5)
    assert control.advantages.measures_minibatch
    assert control.advantages.controller == LinearDecayController(init=1.0, final=0.0)


@pytest.mark.parametrize(
    "preset", sorted(p.stem for p in (METHODS.parents[1] / "config/entropy_control").glob("*.yaml"))
)
def test_the_table_has_every_preset(preset: str) -> None:
    rows = [line for line in METHODS.read_text().splitlines() if line.startswith(f"| `{preset}`")]
    assert len(rows) == (preset != "base")
