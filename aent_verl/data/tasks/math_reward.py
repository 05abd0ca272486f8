r"""Reward of the math experiments: math-verify on the boxed or last expression of a response.

math-verify computes what a response says, and ``\boxed{9^{9^{9^9}}}`` never ends. Its own time limits are signals
to Python, which work in main threads only, where verl calls no reward, and never within a single huge operation. So it
runs in a separate process here, which the system ends when its time is up; another one takes its place.
"""

import atexit
import functools
import json
import logging
import resource
import signal
import subprocess
import sys
import threading
from typing import IO, Any

from aent_verl import _util

# CPU time for one response, which does not depend on how busy the machine is. Nearly all take milliseconds.
SECONDS = 10
MEMORY = 4 << 30
_READY = "ready"

logger = logging.getLogger(__name__)


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **_: Any
) -> dict[str, Any]:
    r"""Score a response against the ground truth, 1.0 where math-verify finds them equal, else 0.0.

    Args:
        data_source: verl's name of the data set; unused.
        solution_str: the response.
        ground_truth: the answer in LaTeX, without ``\boxed``.
        extra_info: verl's extra columns; unused.

    Returns:
        ``score`` for the reward and ``acc`` for validation, equal, both 0 where the comparison took too long; ``pred``,
        the answer found in the response, by which verl and `aent-verl evaluate` count votes, empty if there is none.

    Raises:
        ImportError: math-verify is not installed.
        RuntimeError: its process cannot be started.
    """
    correct, answer = _verifier().verify(str(solution_str), str(ground_truth))
    return {"score": correct, "acc": correct, "pred": answer}


class Verifier:
    """A process in which math-verify works, one response at a time; may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def verify(self, solution: str, truth: str) -> tuple[float, str]:
        """Return whether the two are equal, as 1.0 or 0.0, and the answer in the solution.

        Raises:
            ImportError, RuntimeError: see `compute_score`.
            BaseException: what interrupts it, such as a signal's handler; the next call is scored as any other.
        """
        with self._lock:
            # Back in its place once its reply is here: after an interruption the next call would take it for its own.
            process, self._process = self._process or self._start(), None
            assert process.stdout is not None
            try:
                print(json.dumps([solution, truth, SECONDS]), file=process.stdin, flush=True)
                line = process.stdout.readline()
            except BrokenPipeError:
                line = ""
            except BaseException:
                process.kill()
                process.wait()
                raise
            if not line:
                status = process.wait()
                late = status == -signal.SIGPROF
                why = f"no result in {SECONDS} s of CPU time" if late else f"it ended with status {status}"
                logger.warning("math-verify: %s, score 0, for a response that ends in %r", why, solution[-200:])
                return 0.0, ""
            self._process = process
        correct, answer = json.loads(line)
        return correct, answer

    def _start(self) -> subprocess.Popen[str]:
        _util.require("math", "this reward")
        command = [sys.executable, "-m", "aent_verl.data.tasks.math_reward"]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        assert process.stdout is not None
        if process.stdout.readline().strip() != _READY:
            raise RuntimeError(f"math-verify's process ended with status {process.wait()}; its own message is above")
        # An orphan ends when its input does; this only spares it the wait.
        atexit.register(process.kill)
        return process


_verifier = functools.cache(Verifier)


def check(solution: str, truth: str) -> tuple[float, str]:
    """Do the work of `Verifier.verify` in this process, however long it takes."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    gold = parse(f"\\boxed{{{truth}}}", [LatexExtractionConfig()], parsing_timeout=None)
    answer = parse(solution, [ExprExtractionConfig(), LatexExtractionConfig()], parsing_timeout=None)
    correct = float(bool(gold and answer and verify(gold, answer, timeout_seconds=None)))
    return correct, canonical(answer[0]) if answer else ""


def canonical(value: Any) -> str:
    """Write what math-verify parsed as a string that is the same for 1/2, 0.5, 2/4 and x = 1/2.

    Nothing is computed: to show that x + x is 2x is what takes math-verify its time, so these stay two answers.
    """
    import sympy

    if isinstance(value, sympy.Equality) and isinstance(value.lhs, sympy.Symbol):
        value = value.rhs
    # Beyond that a fraction may have more digits than there is memory.
    if isinstance(value, sympy.Float) and (value.is_zero or 1e-15 < abs(value) < 1e15):
        value = sympy.Rational(str(value))
    return str(value)


def serve(requests: IO[str], replies: IO[str]) -> None:
    """Reply to each line until SIGPROF, which no computation can hold up, ends the process."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of time limits that are off
    import math_verify  # noqa: F401  before the first time limit

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    print(_READY, file=replies, flush=True)
    for line in requests:
        solution, truth, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            result = check(solution, truth)
        except Exception as error:
            print(f"math-verify: {type(error).__name__}: {error}, score 0", file=sys.stderr)
            result = 0.0, ""
        signal.setitimer(signal.ITIMER_PROF, 0)
        print(json.dumps(result), file=replies, flush=True)


if __name__ == "__main__":
    stdout, sys.stdout = sys.stdout, sys.stderr  # a library that prints must not be taken for a reply
    serve(sys.stdin, stdout)
