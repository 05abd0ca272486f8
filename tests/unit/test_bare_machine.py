"""`make test-gpu` and `make bench` need torch, Triton and pytest alone; without a GPU the first is not a pass."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import record

ROOT = Path(__file__).parents[2]
# What a bare machine lacks. Triton's interpreter, and only that, needs numpy.
ABSENT = ("verl", "ray", "vllm", "hydra", "omegaconf", "tensordict", "transformers", "datasets", "rich", "psutil")
SCRIPT = """
import runpy, sys
for name in {absent!r}:
    sys.modules[name] = None
sys.argv[1:] = {arguments!r}
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def bare(module: str, *arguments: str, interpreted: bool = False) -> "subprocess.CompletedProcess[str]":
    absent = ABSENT if interpreted else (*ABSENT, "numpy")
    script = SCRIPT.format(absent=absent, module=module, arguments=list(arguments))
    # Plug-ins of pytest that are installed here might import what is absent there.
    settings = {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OMP_NUM_THREADS": "1",
        "TRITON_INTERPRET": str(int(interpreted)),
    }
    command = [sys.executable, "-W", "ignore", "-c", script]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **settings}, capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
@pytest.mark.parametrize("interpreted", [False, True], ids=["torch", "triton interpreted"])
def test_the_checks_of_a_gpu_are_rehearsed(tmp_path: Path, interpreted: bool) -> None:
    file = tmp_path / "folder" / "device.json"
    chosen = ["-k", "values and triton-50257-bf16 or inplace and triton-bf16"] if interpreted else []
    done = bare(
        "pytest", "tests/gpu", "-q", "-p", "no:cacheprovider", "--on", "cpu", "--record", str(file), *chosen,
        interpreted=interpreted,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    saved = json.loads(file.read_text())
    assert saved["environment"]["torch"] == torch.__version__
    assert saved["environment"]["commit"]
    found = saved["tests"]
    assert found["rehearsal"]
    assert found["failed"] == 0
    assert found["passed"] >= (8 if interpreted else 100)
    assert found["failures"] == {}
    assert found["left_out"] == []
    errors = [case for case in found["cases"] if case["test"].startswith("test_values_and_both_gradients")]
    assert {case["kernel"] for case in errors} == {"triton" if interpreted else "torch"}
    names = {"log_probs", "entropy", "grad_log_probs", "grad_entropy"}
    for case in errors:
        assert case["max_error"].keys() == case["of_bound"].keys() == names
        assert 0 <= max(case["of_bound"].values()) <= 1


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_the_tests_do_not_pass(tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    done = bare("pytest", "tests/gpu", "-p", "no:cacheprovider", "--on", "cuda", "--record", str(file))
    assert done.returncode == 3
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "no GPU" in line]
    assert torch.__version__ in line
    assert "PYTHON=" in line
    assert not file.exists()


@pytest.mark.slow
def test_what_the_time_did_not_allow_is_said_and_is_not_a_pass(tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    arguments = ("tests/gpu/test_op.py", "-q", "-p", "no:cacheprovider", "--on", "cpu", "--seconds", "0")
    done = bare("pytest", *arguments, "-k", "custom", "--record", str(file))
    assert done.returncode == 1
    assert "2 tests were left out when 0 s were over" in done.stdout
    found = json.loads(file.read_text())["tests"]
    assert (found["passed"], len(found["left_out"])) == (0, 2)


@pytest.mark.slow
def test_the_benchmarks_run_without_verl(tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    small = ("--device", "cpu", "--tokens", "8", "--vocabularies", "1000", "--rounds", "2", "--seconds", "20")
    # Each has its memory measured in a process of its own.
    some = ("--methods", "plain", "ours-full")
    done = bare("benchmarks.logits_op", *small, *some, "--selection", "--record", str(file))
    assert done.returncode == 0, done.stderr
    assert bare("benchmarks.linear_memory", "--help").returncode == 0
    done = bare("benchmarks.actor_update", "--record", str(file))
    assert (done.returncode, done.stdout) == (0, "actor update: left out, verl is not installed\n")
    saved = json.loads(file.read_text())
    assert list(saved) == ["environment", "logits_op"]
    ratios = saved["logits_op"]["ratios"]["1000"]
    assert ratios["plain"] == {"plain": {"time": 1.0, "memory": 1.0}}
    assert ratios["ours-full"]["plain"]["time"] > 0
    assert saved["logits_op"]["left_out"] == []


def test_sections_stand_beside_each_other_only_of_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "device.json"
    record.save(file, "cpu", "tests", {"passed": 1})
    record.save(file, "cpu", "logits_op", {"seconds": 2.0})
    record.save(file, "cpu", "tests", {"passed": 3})
    saved = json.loads(file.read_text())
    assert [key for key in saved if key != "environment"] == ["tests", "logits_op"]
    assert saved["tests"]["passed"] == 3
    assert "date" in saved["tests"]
    monkeypatch.setattr(record, "_commit", lambda: "another")
    record.save(file, "cpu", "tests", {"passed": 4})
    assert list(json.loads(file.read_text())) == ["environment", "tests"]
    file.write_text("{")
    record.save(file, "cpu", "tests", {})
    assert list(json.loads(file.read_text())) == ["environment", "tests"]


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["bench", "PYTHON=/bin/any"], ["/bin/any -m benchmarks.logits_op", "/bin/any -m benchmarks.linear_memory"]),
        (["test-gpu", "PYTHON=/bin/any"], ["/bin/any -m pytest -m gpu --on cuda"]),
    ],
)
def test_a_given_interpreter_is_used_and_nothing_installed(arguments: list[str], lines: list[str]) -> None:
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "pip" not in done.stdout
    assert all(line in done.stdout for line in lines)
    for target in ("bench", "test-gpu"):
        printed = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        # Only the benchmarks come with an environment; that would be one without CUDA.
        assert ("python -m venv" in printed or ".venv/bin/python -m benchmarks" in printed) == (target == "bench")
