"""Every command of the pages composes and is what verl accepts; a `...` of its own stands for the arithmetic task."""

import re
import shlex
from pathlib import Path

import pytest

from aent_verl.comparison.grid import plan, settings
from tests.config.composing import actor_config, composed
from tests.unit.test_docs import PAGES, ROOT


def commands() -> list[tuple[str, list[str]]]:
    """Where it stands, and its words; variables of the same block are filled in."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL):
            variables: dict[str, str] = {}
            for line in block.replace("\\\n", " ").splitlines():
                if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
                    variables[f"${assigned[1]}"] = assigned[2]
                for name, value in variables.items():
                    line = line.replace(name, value)
                try:
                    words = shlex.split(line, comments=True)
                except ValueError:  # A text over several lines, such as a script for Python.
                    continue
                words = ["experiment=cpu_arithmetic" if word == "..." else word for word in words]
                if not any("..." in word or "<" in word for word in words):
                    found.append((f"{page.relative_to(ROOT)}: {line.strip()}", words))
    return found


def ours(*names: str) -> list[object]:
    chosen = [(where, words[words.index("aent-verl") + 2 :], words) for where, words in commands() if _is(words, names)]
    return [pytest.param(rest, id=where) for where, rest, _ in chosen]


def _is(words: list[str], names: tuple[str, ...]) -> bool:
    program = next((i for i, word in enumerate(words) if Path(word).name == "aent-verl"), None)
    if program is None or program + 1 >= len(words) or words[program + 1] not in names:
        return False
    words[program] = "aent-verl"
    return True


@pytest.mark.parametrize("words", ours("train", "doctor"))
def test_a_run_composes_and_is_valid(words: list[str]):
    from verl.utils.config import validate_config

    overrides = [word for word in words if not word.startswith("--") and ("=" in word or word.startswith("~"))]
    elsewhere = any(re.search(r"\.name=\w+:\w+$", word) for word in overrides)
    if "--config-dir" in words or elsewhere or not overrides:
        pytest.skip("composed by another test, or nothing to compose")
    cfg = composed(*overrides)
    actor_config(cfg)
    if "data.train_files" in " ".join(overrides) or cfg.run.task is not None:
        validate_config(config=cfg, use_reference_policy=False, use_critic=False)


@pytest.mark.slow
@pytest.mark.parametrize("words", [p for p in ours("compare") if "--from" not in p.values[0]])  # type: ignore[attr-defined]
def test_a_comparison_composes(words: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    chosen = settings.parse(words)
    runs = plan.plan_runs(chosen)
    assert [(run.seed, run.method) for run in runs] == [(s, m) for s in chosen.seeds for m in chosen.methods]


def test_there_are_commands_to_check():
    assert len(ours("train", "doctor")) > 12
    assert len(ours("compare")) > 6
