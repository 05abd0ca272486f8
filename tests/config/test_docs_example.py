"""The worked example of docs/methods.md is what a reader types, and works."""

import re
from pathlib import Path

import pytest
import torch

from aent_verl.core.controllers import BandController
from aent_verl.core.custom import logprobs_and_custom_entropy
from tests.config.composing import MICRO_BATCHES, actor_config

METHODS = Path(__file__).parents[2] / "docs" / "methods.md"


def block(language: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", METHODS.read_text(), re.DOTALL)
    assert len(found) == 1
    return str(found[0])


def test_a_new_entropy_is_one_function_and_one_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra import compose, initialize_config_module

    (tmp_path / "tsallis.py").write_text(block("python"))
    preset = tmp_path / "presets" / "entropy_control" / "tsallis.yaml"
    preset.parent.mkdir(parents=True)
    preset.write_text(block("yaml"))
    monkeypatch.syspath_prepend(str(tmp_path))
    # What --config-dir adds.
    search = f"hydra.searchpath=[pkg://verl.trainer.config,file://{preset.parents[1]}]"
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        cfg = compose("aent_trainer", overrides=[*MICRO_BATCHES, search, "entropy_control=tsallis"])
    control = actor_config(cfg).entropy_control
    assert control is not None
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


@pytest.mark.parametrize(
    "preset", sorted(p.stem for p in (METHODS.parents[1] / "config/entropy_control").glob("*.yaml"))
)
def test_the_table_has_every_preset(preset: str) -> None:
    rows = [line for line in METHODS.read_text().splitlines() if line.startswith(f"| `{preset}`")]
    assert len(rows) == (preset != "base")
