"""The worked examples of docs/methods.md are what a reader types, and work."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from aent_verl.core.controllers import BandController, LinearDecayController
from aent_verl.core.custom import logprobs_and_custom_entropy
from aent_verl.methods.settings import EntropyControlConfig
from tests.config.composing import MICRO_BATCHES, actor_config

METHODS = Path(__file__).parents[2] / "docs" / "methods.md"


def compose_example(number: int, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> EntropyControlConfig:
    """Write the page's n-th Python and YAML blocks as files of that name, and compose the preset."""
    from hydra import compose, initialize_config_module

    python, preset = (
        re.findall(rf"```{language}\n(.*?)```", METHODS.read_text(), re.DOTALL)[number]
        for language in ("python", "yaml")
    )
    (folder / f"{name}.py").write_text(python)
    file = folder / "presets" / "entropy_control" / f"{name}.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(preset)
    monkeypatch.syspath_prepend(str(folder))
    # What --config-dir adds.
    search = f"hydra.searchpath=[pkg://verl.trainer.config,file://{file.parents[1]}]"
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        cfg = compose("aent_trainer", overrides=[*MICRO_BATCHES, search, f"entropy_control={name}"])
    control = actor_config(cfg).entropy_control
    assert control is not None
    assert control.method == name
    return control


def test_a_new_entropy_is_one_function_and_one_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = compose_example(0, "tsallis", tmp_path, monkeypatch)
    assert str(control.functional) == "tsallis:entropy(q=2.0)"
    assert isinstance(control.bonus.controller, BandController)

    function = control.functional.function
    assert function is not None
    logits = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(7, (5,))
    assert torch.autograd.gradcheck(lambda z: logprobs_and_custom_entropy(z, labels, function)[1], logits)
    p = logits.softmax(-1)
    torch.testing.assert_close(function(logits), 1 - (p * p).sum(-1))


def test_a_new_shaping_is_one_class_and_one_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = compose_example(1, "centred", tmp_path, monkeypatch)
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
