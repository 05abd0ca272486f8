"""Presets of other packages are found by an entry point, without importing them."""

import re
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from aent_verl.commands.main import main
from aent_verl.methods import presets
from tests import lab
from tests.config.test_configs import PRESETS


def announce(folder: Path, name: str, package: str) -> None:
    """As pip leaves an installed distribution."""
    info = folder / f"{name}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text(f"[{presets.GROUP}]\n{name} = {package}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = lab.write(tmp_path / "site")
    announce(folder, "entropy_lab", "entropy_lab.presets")
    monkeypatch.syspath_prepend(str(folder))
    # What a test may have imported stays out of the others.
    monkeypatch.delitem(sys.modules, lab.NAME, raising=False)
    monkeypatch.delitem(sys.modules, f"{lab.NAME}.presets", raising=False)
    return folder


def test_without_other_packages_there_are_ours() -> None:
    assert [preset.name for preset in presets.installed()] == sorted(PRESETS)
    assert all(preset.about.endswith(".") and preset.package == presets.OURS for preset in presets.installed())


def test_a_package_announces_its_presets_and_is_not_imported(site: Path) -> None:
    assert presets.packages() == ["entropy_lab.presets"]
    assert presets.installed()[-1] == presets.Preset(
        "lab", "A choice of another package on every axis.", "entropy_lab.presets"
    )
    assert lab.NAME not in sys.modules


def test_hydra_finds_it(site: Path) -> None:
    with initialize_config_module("aent_verl._config", version_base="1.3"):
        cfg = compose("aent_trainer", overrides=["experiment=cpu_arithmetic", "entropy_control=lab"])
    assert (cfg.entropy_control.method, cfg.entropy_control.bonus.strength) == ("lab", 0.5)
    assert cfg.trainer.v1.trainer_mode == "aent_sync"


@pytest.mark.parametrize(("name", "other"), [("lab", "entropy_lab.presets"), ("aent", "aent_verl._config")])
def test_two_packages_that_announce_the_same_preset(
    site: Path, name: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Hydra would take one of them in silence."""
    second = site / "another" / "entropy_control"
    second.mkdir(parents=True)
    (second / f"{name}.yaml").write_text(lab.PRESET)
    announce(site, "another", "another")
    with pytest.raises(ValueError, match=rf"entropy_control={name} is announced by") as caught:
        presets.packages()
    assert {other, "another"} < set(re.findall(r"[\w.]+", str(caught.value)))
    assert main(["methods"]) == 1
    assert "uninstall one of them" in capsys.readouterr().err
    assert main(["train", "experiment=cpu_arithmetic"]) == 1
    assert "uninstall one of them" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["entropy_lab", "no_such_package", "entropy_lab.nothing"])
def test_an_entry_point_that_leads_nowhere(site: Path, package: str) -> None:
    announce(site, "wrong", package)
    with pytest.raises(ValueError, match=rf"'{package}', of an entry point in the group aent_verl\.presets, is not"):
        presets.installed()


def test_the_command_lists_presets_and_choices(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    printed = capsys.readouterr().out
    assert "  lab             A choice of another package on every axis. [entropy_lab.presets]\n" in printed
    for line in ("  steer ", "  band ", "  peak ", "Settings: w_min, floor\n", "entropy_control/controller=NAME\n"):
        assert line in printed
