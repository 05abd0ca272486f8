"""The names that `aent_verl` exports: which they are, their page, and that they are imported only when asked for."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import aent_verl

IMPORTED = [
    node
    for node in ast.walk(ast.parse(Path(aent_verl.__file__).read_text()))
    if isinstance(node, ast.ImportFrom) and str(node.module).startswith("aent_verl.core.")
]


def test_every_name_is_what_type_checkers_take_it_for() -> None:
    pairs = {
        alias.asname or alias.name: getattr(sys.modules[str(node.module)], alias.name)
        for node in IMPORTED
        if __import__(str(node.module))
        for alias in node.names
    }
    assert sorted([*pairs, "__version__"]) == sorted(aent_verl.__all__) == sorted(dir(aent_verl))
    for name, value in pairs.items():
        assert getattr(aent_verl, name) is value, name


def test_other_names_are_refused() -> None:
    for name in ("nothing", "linear", "Tensor", "dataclass"):
        with pytest.raises(AttributeError, match=f"module 'aent_verl' has no attribute '{name}'"):
            getattr(aent_verl, name)


@pytest.mark.slow
def test_importing_the_package_imports_no_torch_until_it_is_asked_for() -> None:
    code = (
        "import sys, aent_verl\n"
        "assert 'torch' not in sys.modules and not [n for n in sys.modules if n.startswith('aent_verl.core')]\n"
        "from aent_verl import BandController\n"
        "assert 'torch' not in sys.modules\n"
        "from aent_verl import full_entropy\n"
        "assert 'torch' in sys.modules and full_entropy.__module__ == 'aent_verl.core.entropy'"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


API = Path(aent_verl.__file__).parents[1] / "docs" / "api.md"


def test_the_page_has_every_name() -> None:
    assert set(aent_verl.__all__) - {"__version__"} <= set(re.findall(r"\w+", API.read_text()))
