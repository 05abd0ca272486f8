import importlib.metadata
import platform
import re
import subprocess
import sys

import pytest
from packaging.requirements import Requirement

from aent_verl.verl_api import versions


@pytest.fixture
def installed(monkeypatch):
    """Pretend that these versions are installed; None means that the package is not."""
    versions = {"verl": "0.9.1", "torch": "2.13.0+cpu"}

    def version(name):
        if versions[name] is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    return versions


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("verl", "0.9.1"),
        ("verl", "0.9.9.post1"),
        ("torch", "2.9.0"),
        ("torch", "2.9.0a0+34c6371d24.nv25.08"),  # what NVIDIA's containers hold
        ("torch", "2.13.0+cu130"),
    ],
)
def test_versions_in_range_pass(installed, package, version):
    installed[package] = version
    versions.check_versions()


@pytest.mark.parametrize(
    ("package", "version", "remedy"),
    [
        ("verl", "0.9.0", 'pip install "verl>=0.9.1,<0.10"'),
        ("verl", "0.10.0", 'pip install "verl>=0.9.1,<0.10"'),
        ("verl", "0.10.0.dev0", 'pip install "verl>=0.9.1,<0.10"'),
        ("verl", "1.0", 'pip install "verl>=0.9.1,<0.10"'),
        ("verl", "unknown", 'pip install "verl>=0.9.1,<0.10"'),
        ("torch", "2.8.1", 'pip install "torch>=2.9"'),
    ],
)
def test_versions_out_of_range_are_named_with_range_and_remedy(installed, package, version, remedy):
    installed[package] = version
    with pytest.raises(versions.VersionError) as error:
        versions.check_versions()
    needed = versions.PACKAGES[package]
    assert f"{package} {version} is installed, aent_verl needs {package}{needed}: {remedy}" == str(error.value)


@pytest.mark.parametrize("package", ["verl", "torch"])
def test_a_missing_package_is_named_with_range_and_remedy(installed, package):
    installed[package] = None
    with pytest.raises(versions.VersionError, match=rf"{package} is not installed .* needs {package}>=.*pip install"):
        versions.check_versions()


@pytest.mark.parametrize("version", ["3.9.18", "3.13.0"])
def test_python_out_of_range(installed, monkeypatch, version):
    monkeypatch.setattr(platform, "python_version", lambda: version)
    with pytest.raises(
        versions.VersionError, match=re.escape(f"python {version} is installed, aent_verl needs python>=3.10")
    ):
        versions.check_versions()


def test_ranges_are_those_that_the_package_declares():
    requirements = map(Requirement, importlib.metadata.requires("aent-verl"))
    needed = (item for item in requirements if item.marker is None or item.marker.evaluate({"extra": "verl"}))
    declared = {item.name: item.specifier for item in needed}
    for package, needed in versions.PACKAGES.items():
        assert Requirement(package + needed).specifier == declared[package]
    python = importlib.metadata.metadata("aent-verl")["Requires-Python"]
    assert Requirement("python" + versions.PYTHON).specifier == Requirement("python" + python).specifier


def test_checks_are_imported_and_versions_checked_without_importing_verl():
    code = (
        "import sys, aent_verl.launch.doctor, aent_verl.preflight\n"
        "from aent_verl.verl_api import versions\n"
        "versions.check_versions()\n"
        "print(*{name.partition('.')[0] for name in sys.modules} & {'verl', 'ray', 'torch', 'vllm', 'transformers'})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
