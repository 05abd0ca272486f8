"""The wheel beside torch alone: what imports and runs there, and what a command says that needs an extra."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.unit.test_docs import ROOT

pytestmark = pytest.mark.slow
# Without what would lead back to this clone.
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
NAMES = "import aent_verl; from aent_verl import logprobs_and_entropy, clamped_entropy, BandController"
# A model of eight logits that has seen five tokens, and what the page's loop takes for granted.
AROUND = """
import torch
torch.manual_seed(0)
model = torch.nn.Linear(4, 8)
optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
batches = [(torch.randn(5, 4), torch.randint(8, (5,)), torch.randn(5), torch.full((5,), -2.0)) for _ in range(6)]
{loop}
assert (state.step, state.measurements) == (6, 6)
from aent_verl import ControllerState
assert controller.restore(ControllerState.from_dict(state.to_dict())) == state
print(state.coefficient != controller.init)
"""


def run(*command: str | Path, folder: Path, check: bool = False) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr[-2000:]
    return done


def required(distribution: str) -> set[str]:
    """The distribution and what it requires without extras, as deep as it goes."""
    found, waiting = set(), {distribution}
    while waiting:
        name = waiting.pop()
        found.add(name)
        for requirement in map(Requirement, metadata.requires(name) or []):
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting |= {canonicalize_name(requirement.name)} - found
    return found


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The commands of an environment with our wheel, torch and what torch requires, which are links to those here."""
    folder = tmp_path_factory.mktemp("wheel")
    source, env = folder / "source", folder / "env"
    for name in ("aent_verl", "config"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "-q"]
    options = ["--no-deps", "--no-index"]
    run(*pip, "wheel", *options, "--no-build-isolation", "-w", folder, source, folder=folder, check=True)
    run(sys.executable, "-m", "venv", "--without-pip", env, folder=folder, check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(env)}))
    for name in required("torch"):
        distribution = metadata.distribution(name)
        for top in {path.parts[0] for path in distribution.files or []} - {"..", "__pycache__"}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    (wheel,) = folder.glob("*.whl")
    run(*pip, "--python", env / "bin" / "python", "install", *options, wheel, folder=folder, check=True)
    return env / "bin"


def test_torch_is_alone(bin_folder: Path, tmp_path: Path) -> None:
    code = "from importlib.metadata import distributions; print(*(d.name for d in distributions()))"
    done = run(bin_folder / "python", "-c", code, folder=tmp_path)
    names = {canonicalize_name(name) for name in done.stdout.split()}
    assert names == required("torch") | {"aent-verl"}, done.stderr
    assert {"verl", "ray", "hydra-core", "transformers", "numpy"} & names == set()
    where = run(bin_folder / "python", "-c", "import aent_verl; print(aent_verl.__file__)", folder=tmp_path)
    assert where.stdout.startswith(str(bin_folder.parent))


def test_the_pages_loop_runs(bin_folder: Path, tmp_path: Path) -> None:
    (loop,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "api.md").read_text(), re.DOTALL)
    done = run(bin_folder / "python", "-c", AROUND.format(loop=loop), folder=tmp_path)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_importing_the_names_imports_nothing_but_torch(bin_folder: Path, tmp_path: Path) -> None:
    """Python lists what was asked for, too, whether it is there or not: torch asks for numpy."""
    listed = {}
    for code in ("pass", "import torch", "import aent_verl", NAMES):
        done = run(bin_folder / "python", "-X", "importtime", "-c", code, folder=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        listed[code] = {name.split(".")[0] for name in re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.M)}
    assert "torch" in listed[NAMES]
    stdlib = sys.stdlib_module_names
    assert listed[NAMES] - listed["import torch"] - stdlib == {"aent_verl"}
    assert listed["import aent_verl"] - listed["pass"] - stdlib == {"aent_verl"}


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("train experiment=cpu_arithmetic", "verl"),
        ("evaluate model=x data=y", "verl"),
        ("doctor", "verl"),
        ("status", "verl"),
        ("set run low=0.1", "verl"),
        ("compare", "compare"),
        ("compare experiment=cpu_arithmetic methods=[grpo,aent]", "compare"),
        ("compare --from x", "compare"),
        ("prepare math --output data", "data"),
        ("tokens x", "compare"),
        ("plot x", "compare"),
    ],
)
def test_a_command_says_the_line_that_installs_its_extra(
    bin_folder: Path, tmp_path: Path, command: str, extra: str
) -> None:
    done = run(bin_folder / "aent-verl", *command.split(), folder=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    said = re.fullmatch(r"error: .+ needs [\w, -]+: pip install (\".+\")", line)
    assert said, line
    requirement = Requirement(shlex.split(said[1])[0])
    assert (requirement.name, requirement.extras) == ("aent-verl", {extra})
    assert Path(str(requirement.url).removeprefix("file://")).suffix == ".whl"
    assert Path(str(requirement.url).removeprefix("file://")).is_file()
    assert list(tmp_path.iterdir()) == []


def test_help_and_the_table_of_methods_need_no_extra(bin_folder: Path, tmp_path: Path) -> None:
    for command in ("--help", "compare --help", "prepare --help"):
        done = run(bin_folder / "aent-verl", *command.split(), folder=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), command
    done = run(bin_folder / "aent-verl", "methods", folder=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "aent " in done.stdout
