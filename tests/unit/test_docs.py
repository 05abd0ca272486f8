"""The pages: no stray control characters, no link to a file or heading that is not there, no path that has moved."""

import ast
import re
import shlex
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("docs/results/*/*.md"), *ROOT.glob("examples/*/*.md")]
)


def headings(page: Path) -> set[str]:
    """Anchors as GitHub makes them."""
    lines = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL).splitlines()
    titles = [line.lstrip("#").strip().lower() for line in lines if line.startswith("#")]
    return {re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_page(page: Path) -> None:
    text = page.read_bytes().decode()
    assert not re.findall(r"[\x00-\x09\x0b-\x1f]", text)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file).resolve() if file else page
        assert linked.exists(), target
        assert not anchor or anchor in headings(linked), target


PACKAGE = ROOT / "aent_verl"
TEXTS = sorted(
    {*PAGES, ROOT / "Makefile", *ROOT.glob("docker/*"), *ROOT.glob("config/**/*.yaml")} - {ROOT / "CHANGELOG.md"}
)
# `data/` and `runs/` on the pages are mostly the reader's own folders, not the rooms.
FOLDERS = {"aent_verl", "benchmarks", "config", "docker", "docs", "examples", "tests"} | (
    {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"data", "runs"}
)
# A path of this repository or package, and a dotted name of the package.
FILE = re.compile(r"(?<![\w./-])((?:\w+/)+[\w.]*\.(?:py|yaml|md)|(?:\w+/)+(?=`))")
MODULE = re.compile(r"\baent_verl((?:\.\w+)+)")


def is_there(dotted: str) -> bool:
    """Whether ``.package.module.attribute`` leads to a module of ours; what it holds is not looked at."""
    found = PACKAGE
    for name in dotted.strip(".").split("."):
        if found.joinpath(f"{name}.py").exists():
            return True
        found /= name
    return found.is_dir()


@pytest.mark.parametrize("file", TEXTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_paths_of_ours_are_there(file: Path) -> None:
    """The changelog, which tells what has been, is left out, and so are the paths of a run or of other packages."""
    # Resolvers of OmegaConf, and the group of entry points.
    text = re.sub(r"aent_verl\.(sum:|search_path:|checkpoint_engine:|presets\b)", "", file.read_text())
    found = [path for path in FILE.findall(text) if path.endswith(".py") or path.split("/")[0] in FOLDERS]
    assert [path for path in found if not (ROOT / path).exists() and not (PACKAGE / path).exists()] == []
    assert [name for name in MODULE.findall(text) if not is_there(name)] == []


def test_some_paths_are_looked_at() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert {"aent_verl/core/bonus.py", "tests/reference.py", "tests/unit/core/"} <= set(FILE.findall(text))
    assert is_there(".core.controllers")
    assert not is_there(".integration.plugin")


def own_script(*, after: bool) -> list[str]:
    """The overrides of the script in README.md, before or after."""
    (block,) = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line[1:] for line in block.splitlines() if after or line[0] != "+"]
    program, *overrides = shlex.split("\n".join(lines).replace("\\\n", " "))
    assert (program, *overrides[:2]) == ("python3", "-m", "verl.trainer.main_ppo")
    return overrides[2:]


def test_two_overrides_turn_a_script_of_verls_into_aent() -> None:
    from hydra import compose, initialize_config_module
    from verl.utils.config import omega_conf_to_dataclass, validate_config

    assert len(own_script(after=True)) == len(own_script(after=False)) + 2
    for after in (False, True):
        with initialize_config_module("verl.trainer.config", version_base=None):
            cfg = compose("ppo_trainer", overrides=own_script(after=after))
        validate_config(config=cfg, use_reference_policy=False, use_critic=False)
        control = getattr(omega_conf_to_dataclass(cfg.actor_rollout_ref.actor), "entropy_control", None)
        assert (control.method if control else None) == ("aent" if after else None)


def test_the_citation_is_complete() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= set(citation)
    for reference in citation["references"]:
        assert {"title", "authors", "type", "year"} <= set(reference)
        assert reference["identifiers"][0]["value"].removeprefix("arXiv:") in reference["url"]


# Errors of verl, vLLM and others that the page explains.
FOREIGN = (
    *("Unknown trainer", "Total available", "No working C++", "libnuma", "'Parameter'", "operator torchvision"),
    *("vllm version", "Sleep mode", "flash-attn"),
)
# A word that is a value or a prefix, or next to one that is filled in.
FILLED_IN = re.compile(
    r"[=\d'\[\]()/_]|\.\.\.|^(N|M|None|nan|settings|off|bonus|method|entreg|grpo|transfer-queue|math-verify|pip|needs|"
    r"step|functional|on-policy)\b|^(warning|effect):"
)


def quoted_messages() -> list[str]:
    """What docs/troubleshooting.md explains, and the warnings that docs/configuration.md lists."""
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    warnings = (ROOT / "docs" / "configuration.md").read_text().split("## What only warns")[1].split("\n## ")[0]
    found = [quote for _, quote in re.findall(r"\*\*(`+)(.*?)\1", page, flags=re.DOTALL)]
    found += [quote for row in warnings.splitlines() for quote in re.findall(r"`([^`]*)` \|$", row)]
    return [quote for quote in found if not quote.strip().startswith(FOREIGN)]


def test_messages_on_the_pages_are_those_of_the_code() -> None:
    texts = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            for part in node.values if isinstance(node, ast.JoinedStr) else [node]:
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    texts.append(" ".join(part.value.split()))
    code, looked_at, stale = "\n".join(texts), 0, {}
    for quote in quoted_messages():
        words = quote.replace("\\|", "|").split()
        threes = [t for t in zip(words, words[1:], words[2:], strict=False) if not any(map(FILLED_IN.search, t))]
        looked_at += len(threes)
        if missing := [text for three in threes if (text := " ".join(three)).strip(":;,.") not in code]:
            stale[quote] = missing
    assert stale == {}
    assert looked_at > 250
