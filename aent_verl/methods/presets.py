"""The presets that are installed: ours, and those that other packages announce.

A package announces its presets with an entry point of the group `aent_verl.presets`, whose value is a package of its
own with a folder ``entropy_control`` of YAML files:

    [project.entry-points."aent_verl.presets"]
    entropy_lab = "entropy_lab.presets"

``aent-verl``'s commands then find ``entropy_control=NAME``. Nothing of the package is imported before that.
"""

import importlib.util
import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import takewhile
from pathlib import Path

GROUP = "aent_verl.presets"
_SENTENCE = re.compile(r".*?\.(?=\s|$)|.*")
OURS = "aent_verl._config"


@dataclass(frozen=True)
class Preset:
    """A preset.

    Attributes:
        name: what ``entropy_control=`` takes.
        about: the first sentence of the comment at the top of its file.
        package: where it is from.
    """

    name: str
    about: str
    package: str


def packages() -> list[str]:
    """List the packages that announce presets, by name.

    Raises:
        ValueError: two announce a preset of one name, or one of ours, or a package has no presets where it says.
    """
    announced = sorted({point.value for point in entry_points(group=GROUP)})
    owners: dict[str, str] = {}
    for package in (OURS, *announced):
        for name in _files(package):
            if (other := owners.setdefault(name, package)) != package:
                raise ValueError(
                    f"entropy_control={name} is announced by {other} and by {package}, and Hydra would take the first "
                    f"that it finds: uninstall one of them, or have it rename {name}.yaml"
                )
    return announced


def installed() -> list[Preset]:
    """List all presets, ours first; `ValueError` as `packages`."""
    return [
        Preset(name, _about(path), package)
        for package in (OURS, *packages())
        for name, path in sorted(_files(package).items())
    ]


def _files(package: str) -> dict[str, Path]:
    """Find the presets' files by name."""
    return {path.stem: path for path in _folder(package).glob("*.yaml") if path.stem != "base"}


def _about(path: Path) -> str:
    # The comment at the top, after Hydra's own and up to an indented command.
    lines = path.read_text(encoding="utf-8").splitlines()
    head = takewhile(lambda line: line.startswith("# "), (line for line in lines if "@package" not in line))
    text = " ".join(line.removeprefix("# ") for line in takewhile(lambda line: line[:3] != "#  ", head))
    return str(_SENTENCE.match(text)[0])  # type: ignore[index]


def _folder(package: str) -> Path:
    # The specification of a package inside another one would import that one.
    top, *inside = package.split(".")
    spec = importlib.util.find_spec(top)
    places = (Path(place, *inside, "entropy_control") for place in (spec and spec.submodule_search_locations) or ())
    found = next((place for place in places if place.is_dir()), None)
    if found is None:
        raise ValueError(
            f"{package!r}, of an entry point in the group {GROUP}, is not a package with a folder entropy_control: "
            "correct the entry point, or uninstall what has it"
        )
    return found
