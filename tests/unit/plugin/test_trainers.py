"""verl's trainer modes build ours where the config asks for entropy control, and verl's own elsewhere."""

from typing import Any

import pytest
from omegaconf import OmegaConf
from verl.trainer.ppo.v1 import get_trainer_cls, trainer_base

from aent_verl.plugin import trainers

OURS = {
    "sync": trainers.EntropyControlTrainerSync,
    "colocate_async": trainers.EntropyControlTrainerColocateAsync,
    "separate_async": trainers.EntropyControlTrainerSeparateAsync,
}


@pytest.fixture(params=OURS)
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A mode whose constructors, verl's and ours, only note that they ran."""
    mode: str = request.param
    for kind in (OURS[mode], OURS[mode].__mro__[2]):
        monkeypatch.setattr(kind, "__init__", lambda self, config: setattr(self, "built_with", config))
    return mode


def test_a_method_in_the_config_builds_ours_and_says_so(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = OmegaConf.create({"entropy_control": {"method": "aent"}})
    built: Any = get_trainer_cls(mode)(config=config)
    assert type(built) is OURS[mode]
    assert built.built_with is config
    assert capsys.readouterr().out == f"trainer.v1.trainer_mode={mode} with entropy_control=aent: aent_{mode}\n"


@pytest.mark.parametrize("config", [{}, {"entropy_control": None}, {"entropy_control": "aent"}], ids=str)
def test_any_other_config_builds_verls_own(mode: str, config: dict[str, Any]) -> None:
    """A word in place of the settings among them: verl's trainer then asks the guard, which stops it."""
    built = get_trainer_cls(mode)(config=OmegaConf.create(config))
    assert not hasattr(built, "use_entropy_control")
    assert type(built).__name__ == OURS[mode].__mro__[2].__name__


def test_the_registry_holds_verls_names_once(mode: str) -> None:
    before = trainer_base.TRAINER_REGISTRY[mode]
    trainers.prefer(OURS[mode])
    assert trainer_base.TRAINER_REGISTRY[mode] is before
    assert (before.__module__, before.__qualname__) == (
        OURS[mode].__mro__[2].__module__,
        OURS[mode].__mro__[2].__name__,
    )
