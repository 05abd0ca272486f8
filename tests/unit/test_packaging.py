"""Extras: every import is covered by one, every page names those that there are, every refusal a command that works."""

import ast
import functools
import json
import re
import sys
from pathlib import Path

import pytest

from aent_verl import _util
from aent_verl.commands.main import main
from tests.unit.test_docs import PAGES, ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
OURS = "aent_verl"
# Distributions that are not named as what one imports.
IMPORTED_AS = {"hydra_core": "hydra", "pyyaml": "yaml", "pyzmq": "zmq", "transferqueue": "transfer_queue"}
# The extras that a part of the package may count on; the most exact path holds. All others import torch alone.
ROOMS = {
    **dict.fromkeys(("evaluation", "launch", "methods", "platforms", "plugin", "preflight", "verl_api"), "verl"),
    **dict.fromkeys([f"commands.{name}" for name in ("doctor", "evaluate", "set", "status", "train")], "verl"),
    **dict.fromkeys(("commands.prepare", "data"), "data"),
    **dict.fromkeys(("commands.compare", "comparison", "runs", "viewing"), "compare"),
    **dict.fromkeys(("runs.last_start", "viewing.progress"), "verl"),
    "data.tasks.math_reward": "math",
    "data.tasks.smollm2": "smollm2",
}
# What no extra has to bring: torch requires filelock, its CUDA builds Triton; vLLM has a distribution per platform.
FOUND_OR_NOT = {"_util": {"filelock"}, "core.kernels.programs": {"triton"}, "platforms.vllm_cpu": {"vllm"}}
# Not the folder that importing docker/check.py leaves.
DOCKER = ROOT.glob("docker/*[!_]")
TEXTS = sorted({*PAGES, ROOT / "Makefile", *DOCKER, *ROOT.glob(f"{OURS}/**/*.py"), *ROOT.glob("config/**/*.yaml")})
# A direct reference ("aent-verl[math] @ git+https://...") is none from an index.
FROM_AN_INDEX = re.compile(r"pip3? install\b[^,\n]*?(?<![/\w{])aent[-_]verl\b(?!\S* @ )")
EXTRAS_OF_A_FOLDER = re.compile(r"""install\b.*?["' ]\.\[([^\]]*)\]""")
EXTRAS_IN_TEXT = re.compile(r"\bextras?\s+((?:`\w+`(?:,\s+|\s+and\s+)?)+)")


def modules_of(extra: str) -> set[str]:
    """Top-level modules of the distributions that an extra names, and of those extras that it includes."""
    found = set()
    for requirement in PROJECT["optional-dependencies"][extra]:
        name = re.split(r"[\[<>=!~; ]", requirement)[0].lower().replace("-", "_")
        if name == OURS:
            found |= set.union(*map(modules_of, requirement.partition("[")[2].rstrip("]").split(",")))
        else:
            found.add(IMPORTED_AS.get(name, name))
    return found


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT / OURS).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


SOURCES = {module_name(path): path for path in sorted((ROOT / OURS).rglob("*.py"))}


@functools.cache
def imports(module: str, *, eager: bool = False) -> set[str]:
    """Dotted names that a module imports; eager: outside functions and type checking, so with the module itself."""
    found, nodes = set(), [*ast.parse(SOURCES[module].read_text()).body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module}: a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        later = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        never = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if eager and (later or never):
            continue
        nodes += ast.iter_child_nodes(node)
    return found


def own(names: set[str]) -> set[str]:
    """Those of the dotted names that are modules of the package, with the packages around them."""
    parts = [name.split(".")[1:] for name in names if name.split(".")[0] == OURS]
    return {".".join(path[:count]) for path in parts for count in range(len(path) + 1)} & set(SOURCES)


def third_party(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {OURS, "__future__"}


def own_room(module: str) -> str:
    parts = module.split(".")
    around = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
    return next((name for name in around if name in ROOMS), "core" if parts[0] == "core" else "")


def allowed(module: str) -> set[str]:
    room = own_room(module)
    return {"torch"} | (modules_of(ROOMS[room]) if room in ROOMS else set()) | FOUND_OR_NOT.get(module, set())


def test_what_a_module_imports_is_in_the_extra_of_its_room() -> None:
    beyond = {module: third_party(imports(module)) - allowed(module) for module in SOURCES}
    assert {module: names for module, names in beyond.items() if names} == {}


@pytest.mark.parametrize("room", ["", "core", *ROOMS])
def test_what_importing_a_module_imports_is_in_the_extra_of_its_room(room: str) -> None:
    for module in [name for name in SOURCES if own_room(name) == room]:
        seen: set[str] = set()
        waiting = {module}
        while waiting:
            name = waiting.pop()
            seen.add(name)
            eager = imports(name, eager=True)
            beyond = third_party(eager) - allowed(module) - FOUND_OR_NOT.get(name, set())
            assert not beyond, f"{module}, through {name}"
            waiting |= own(eager) - seen


def test_the_core_imports_nothing_else_of_ours() -> None:
    for module in SOURCES:
        if module.split(".")[0] == "core":
            assert {name for name in own(imports(module)) if name.split(".")[0] not in ("", "core")} == set(), module


@pytest.mark.parametrize("extra", _util.EXTRAS)
def test_an_extra_brings_what_is_asked_for(extra: str) -> None:
    assert set(_util.EXTRAS[extra]) <= modules_of(extra)
    assert modules_of(extra) - set(_util.EXTRAS[extra]) <= modules_of("data")


def test_a_wheel_has_every_data_file() -> None:
    listed = {
        path
        for package, patterns in PYPROJECT["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in (ROOT / package.replace(".", "/")).resolve().glob(pattern)
    }
    here = {path.resolve() for path in (ROOT / OURS).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    here |= {path.resolve() for path in (ROOT / OURS / "_config").rglob("*.yaml")}
    assert {path for path in here if path.suffix != ".py"} == listed


def test_the_plain_installation_is_torch() -> None:
    assert [requirement.split(">")[0] for requirement in PROJECT["dependencies"]] == ["torch"]


def test_the_extras_have_these_names() -> None:
    assert set(PROJECT["optional-dependencies"]) == {"verl", "data", "math", "smollm2", "compare", "gpu", "cpu", "dev"}


def test_texts_name_extras_that_there_are_and_no_index() -> None:
    for file in TEXTS:
        text = file.read_text()
        assert [found[0] for found in FROM_AN_INDEX.finditer(text)] == [], file
        named = [name for found in EXTRAS_OF_A_FOLDER.finditer(text) for name in found[1].split(",")]
        named += [name for found in EXTRAS_IN_TEXT.finditer(text) for name in re.findall(r"\w+", found[1])]
        assert {name for name in named if "{" not in name} <= set(PROJECT["optional-dependencies"]), file


def test_pages_show_commands_to_check() -> None:
    assert sum(len(EXTRAS_OF_A_FOLDER.findall(file.read_text())) for file in TEXTS) > 6


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        ({"url": "file://{folder}", "dir_info": {}}, 'pip install "{folder}[math]"'),
        ({"url": "file://{folder}", "dir_info": {"editable": True}}, 'pip install -e "{folder}[math]"'),
        ({"url": "file:///not/there/any/more", "dir_info": {}}, 'pip install ".[math]" in a clone of this package'),
        ({"url": "file://{wheel}", "archive_info": {}}, 'pip install "aent-verl[math] @ file://{wheel}"'),
        ({"url": "file:///not/there.whl", "archive_info": {}}, 'pip install ".[math]" in a clone of this package'),
        (
            {"url": "https://host/a.git", "vcs_info": {"vcs": "git", "commit_id": "0a1b"}},
            'pip install "aent-verl[math] @ git+https://host/a.git@0a1b"',
        ),
        (None, 'pip install ".[math]" in a clone of this package'),
    ],
)
def test_the_command_fits_how_it_was_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: dict | None, command: str
) -> None:
    wheel = tmp_path / "a%20b.whl"
    (tmp_path / "a b.whl").touch()
    installed = tmp_path / "site" / "aent_verl-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: aent-verl\nVersion: 1.0\n")
    if origin is not None:
        url = origin["url"].format(folder=tmp_path, wheel=wheel)
        (installed / "direct_url.json").write_text(json.dumps({**origin, "url": url}))
    built = tmp_path / "clone" / "aent_verl.egg-info"
    built.mkdir(parents=True)
    (built / "PKG-INFO").write_text((installed / "METADATA").read_text())
    monkeypatch.setattr(sys, "path", [str(tmp_path / "clone"), str(tmp_path / "site")])
    assert _util.install_command("math") == command.format(folder=tmp_path, wheel=wheel)


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ImportError, match=r"the report needs scipy, matplotlib: pip install .*\[compare\]"):
        _util.require("compare", "the report", "numpy", "scipy", "matplotlib")


@pytest.mark.parametrize(
    "command", ["train", "evaluate", "doctor", "compare --from x", "prepare math", "tokens x", "plot x"]
)
def test_a_command_without_its_extra_names_it(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("verl", "scipy", "datasets", "jinja2", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(command.split()) == 1
    assert re.search(r"needs [\w, -]+: pip install .*\[(verl|compare|data)\]", capsys.readouterr().err)
