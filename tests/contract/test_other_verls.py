"""Another verl than the one that is declared: which forms of a fact we know, what users are told, `make contract`."""

import importlib
import inspect
import os
import re
import subprocess
import sys

import pytest

from aent_verl import preflight
from aent_verl.verl_api import assumptions, checks, versions
from tests.contract import __main__ as contract

FUSED = "dense_common:forward_with_torch_backend"
INPUTS = "FSDPEngineWithLMHead.prepare_model_inputs"
BACKEND = 'getattr(self, "_verl_fused_kernels_backend", "torch")'


@pytest.fixture
def verl():
    return importlib.import_module("verl")


@pytest.mark.parametrize(
    ("name", "known", "form", "holds"),
    [
        (FUSED, r"FusedLinearForPPO\(.*\)", "FusedLinearForPPO()", True),
        (FUSED, r"FusedLinearForPPO\(.*\)", f"FusedLinearForPPO(impl_backend={BACKEND})", True),
        (FUSED, r"FusedLinearForPPO\(.*\)", "FusedLinearForPPO(softcap=30.0)", False),
        (FUSED, r"FusedLinearForPPO\(.*\)", f"FusedLinearForPPO(impl_backend={BACKEND}, softcap=30.0)", False),
        (INPUTS, r"output_args = {.*}", "output_args = {}", True),
        (INPUTS, r"output_args = {.*}", 'output_args = {"temperature_is_one": temperature_is_one}', True),
        (INPUTS, r"output_args = {.*}", 'output_args = {"softcap": 30.0}', False),
        (INPUTS, r'temperature = micro_batch\["temperature"\]', "temperature = self.temperature", False),
    ],
)
def test_the_forms_of_two_versions_hold_and_others_do_not(monkeypatch, name, known, form, holds):
    (assumption,) = [one for one in assumptions.ASSUMPTIONS if name in one.what]
    if assumption.found_instead() is not None:  # which has imported everything
        pytest.skip("this verl has a form of its own, which another test reports")
    original = inspect.getsource

    def getsource(thing):
        source, places = re.subn(known, lambda _: form, original(thing))
        assert places == 1
        return source

    monkeypatch.setattr(inspect, "getsource", getsource)
    found = assumption.found_instead()
    assert found is None if holds else re.match("no '.*' there", found)


def test_a_form_stands_where_the_order_wants_it():
    def there(*fragments):
        return checks.in_source(f"{__name__}:two_steps", *fragments, why="").found_instead()

    assert there(("second(", "first("), "second(") is None
    assert there("second(", ("first(", "zeroth(")) == "no 'first(' or 'zeroth(' there at its place"


def two_steps(first, second):
    first()
    second()


@pytest.mark.parametrize(("version", "states"), [("0.9.1", ["ok"]), ("0.10.0.dev", ["ok", "warning"])])
def test_a_source_tree_of_another_version_is_named(monkeypatch, verl, version, states):
    monkeypatch.setattr(verl, "__version__", version)
    monkeypatch.setattr(versions, "ASSUMPTIONS", ())
    rows = list(preflight.check_api())
    assert [row.state for row in rows] == states
    if "warning" in states:
        folder = os.path.dirname(verl.__file__)
        said = f"verl 0.10.0.dev is imported from {folder}, and aent_verl is tested with verl>=0.9.1,<0.10: "
        assert rows[-1].detail.startswith(said)


@pytest.fixture
def path(monkeypatch):
    """Let the path be changed."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "")


def test_a_source_tree_comes_right_behind_this_repository(path, monkeypatch, tmp_path):
    (tmp_path / "verl").mkdir()
    (tmp_path / "verl" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    contract.put_first(".")
    assert sys.path == [before[0], str(tmp_path), *before[1:]]
    assert os.environ["PYTHONPATH"] == str(tmp_path)
    contract.put_first(str(tmp_path))
    assert os.environ["PYTHONPATH"] == f"{tmp_path}{os.pathsep}{tmp_path}"


def test_a_folder_without_verl_is_refused(path, tmp_path):
    with pytest.raises(SystemExit, match=rf"VERL={tmp_path}: there is no .*/verl/__init__.py; expected the root of"):
        contract.put_first(str(tmp_path))


@pytest.mark.parametrize(
    ("found", "status", "code", "verdict"),
    [
        (None, 0, 0, "1 assumptions hold; the contract's tests passed"),
        (None, 1, 1, "1 assumptions hold; the contract's tests failed"),
        ("a cat", 0, 1, "1 of 1 assumptions do not hold; the contract's tests passed"),
    ],
)
def test_the_report_ends_with_what_does_not_hold(monkeypatch, capsys, verl, found, status, code, verdict):
    monkeypatch.setattr(assumptions, "ASSUMPTIONS", (checks.Assumption("a dog", lambda: found, "it barks"),))
    monkeypatch.setattr(assumptions, "FUSED_MODELS", ("dense_common",))
    monkeypatch.setattr(subprocess, "run", lambda arguments: subprocess.CompletedProcess(arguments, status))
    assert contract.main([]) == code
    first, *listed, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"verl {verl.__version__} in {os.path.dirname(verl.__file__)}; aent_verl declares verl>=")
    assert [line for line in listed if line] == (
        ["expected: a dog", "found: a cat", "needed because it barks"] if found else []
    )
    assert last == f"verl {verl.__version__}: {verdict}"
