"""The versions that we run with, and whether verl's API is what our code relies on.

`check_versions` reads package metadata only, so that it can speak before anything is imported. `violations` imports
verl's trainer, so verl's platform must be decided before it is called.
"""

import importlib.metadata
import platform
import sys
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from aent_verl.verl_api.assumptions import ASSUMPTIONS


class VersionError(RuntimeError):
    """A package is missing or has an unsupported version; the message says what to install."""


class VerlApiError(VersionError):
    """verl's version is in range, but its API is not what our code relies on."""


class UntestedVerlWarning(UserWarning):
    """verl's API is what our code relies on, but its version is outside the declared range."""


PYTHON = ">=3.10,<3.13"
PACKAGES = {"verl": ">=0.9.1,<0.10", "torch": ">=2.9"}


def check_versions() -> None:
    """Check Python, verl and torch without importing any of them.

    Raises:
        VersionError: names the package, the version found, the range needed and what to do.
    """
    remedy = f"aent_verl needs python{PYTHON}: make an environment with Python 3.10, 3.11 or 3.12"
    _check_range("python", platform.python_version(), PYTHON, remedy)
    for package, needed in PACKAGES.items():
        remedy = f'aent_verl needs {package}{needed}: pip install "{package}{needed}"'
        try:
            found = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            raise VersionError(f"{package} is not installed for {sys.executable}; {remedy}") from None
        _check_range(package, found, needed, remedy)


def _check_range(package: str, found: str, needed: str, remedy: str) -> None:
    if not _fits(found, needed):
        raise VersionError(f"{package} {found} is installed, {remedy}")


def _fits(found: str, needed: str) -> bool:
    try:
        # Without suffixes: vendors' builds call themselves 2.8.0a0+nv25.08 or 2.13.0+cpu.
        return SpecifierSet(needed).contains(Version(found).base_version)
    except InvalidVersion:
        return False


def imported_verl() -> tuple[str, Path]:
    """Import verl; return its version and its folder. Package metadata may be those of another verl, later on the path.

    Raises:
        ImportError: this verl cannot be imported here.
    """
    import verl

    return verl.__version__, Path(verl.__file__).parent


def violations() -> list[str]:
    """Check every assumption against verl as it is imported here; one line for each that does not hold."""
    return [line for assumption in ASSUMPTIONS if (line := assumption.violation()) is not None]


def check_assumptions() -> UntestedVerlWarning | None:
    """Stop if verl is not what our code was written for.

    Returns:
        A warning if its API fits but its version is outside the declared range: a source tree ahead of the installed
        verl.

    Raises:
        VerlApiError: lists every violation.
    """
    broken = violations()
    found, folder = imported_verl()
    if broken:
        raise VerlApiError(
            f"verl {found} ({folder}) differs in {len(broken)} point(s) from the API that aent_verl "
            'relies on; repair it with pip install --force-reinstall --no-deps "verl==0.9.1", or install a newer '
            "aent_verl:\n  " + "\n  ".join(broken)
        )
    if _fits(found, PACKAGES["verl"]):
        return None
    return UntestedVerlWarning(
        f"verl {found} is imported from {folder}, and aent_verl is tested with verl{PACKAGES['verl']}: its API is what "
        "our code relies on, anything else is untested. Take that folder off PYTHONPATH to use the installed verl"
    )
