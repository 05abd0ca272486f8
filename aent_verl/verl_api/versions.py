"""The versions that we run with, and whether verl's API is what our code relies on.

`check_versions` reads package metadata only, so that it can speak before anything is imported. `violations` imports
verl's trainer, so verl's platform must be decided before it is called.
"""

import importlib.metadata
import platform
import sys

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from aent_verl.verl_api.assumptions import ASSUMPTIONS


class VersionError(RuntimeError):
    """A package is missing or has an unsupported version; the message says what to install."""


class VerlApiError(VersionError):
    """verl's version is in range, but its API is not what our code relies on."""


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
    try:
        # Without suffixes: vendors' builds call themselves 2.8.0a0+nv25.08 or 2.13.0+cpu.
        fits = SpecifierSet(needed).contains(Version(found).base_version)
    except InvalidVersion:
        fits = False
    if not fits:
        raise VersionError(f"{package} {found} is installed, {remedy}")


def violations() -> list[str]:
    """Check every assumption against the installed verl; one line for each that does not hold."""
    return [line for assumption in ASSUMPTIONS if (line := assumption.violation()) is not None]


def check_assumptions() -> None:
    """Stop if verl is not what our code was written for.

    Raises:
        VerlApiError: lists every violation.
    """
    if broken := violations():
        raise VerlApiError(
            f"verl {importlib.metadata.version('verl')} differs in {len(broken)} point(s) from the API that aent_verl "
            'relies on; repair it with pip install --force-reinstall --no-deps "verl==0.9.1", or install a newer '
            "aent_verl:\n  " + "\n  ".join(broken)
        )
