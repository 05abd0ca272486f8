"""Ask the math reward about many answers; it works in processes of its own, which end when their time is up."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from aent_verl.data.tasks import math_reward

_JOBS_A_PROCESS = 256
_MOST_PROCESSES = 16
_WRONG = "-98765.4321"
_NOT_ACCEPTED = "the reward does not accept it"


def unscorable(truths: Sequence[str]) -> dict[str, str]:
    """Ground truths that the math reward cannot work with, and why.

    Each has to be accepted as its own answer; a wrong number has to be refused, within the time, because a truth such
    as 2^{3000000000} + 1 is accepted at once but costs the reward all its time on any other answer.

    Args:
        truths: Ground truths.

    Raises:
        ImportError: math-verify is not installed.
    """
    probes = [truth for truth in truths if truth != _WRONG]
    reasons = refusals([*((truth, truth) for truth in truths), *((truth, _WRONG) for truth in probes)])
    found = {truth: reasons[truth, truth] for truth in truths if (truth, truth) in reasons}
    for truth in probes:
        on_wrong = reasons.get((truth, _WRONG), f"the reward accepts {_WRONG} for it")
        if truth not in found and on_wrong != _NOT_ACCEPTED:
            found[truth] = on_wrong
    return found


def refusals(jobs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    r"""Which answers the math reward does not accept, and why.

    Args:
        jobs: Pairs of ground truth and answer; the answer is scored as the response `\boxed{answer}`.

    Returns:
        The pairs that are not accepted, each with the reason.

    Raises:
        ImportError: math-verify is not installed.
    """
    unique = list(dict.fromkeys(jobs))
    if not unique:
        return {}
    processes = min(os.cpu_count() or 1, _MOST_PROCESSES, 1 + len(unique) // _JOBS_A_PROCESS)
    with ThreadPoolExecutor(processes) as pool:
        found = list(pool.map(_score, range(processes), [unique[start::processes] for start in range(processes)]))
    reasons = {job: reason for part in found for job, reason in part.items()}
    return {job: reasons[job] for job in unique if job in reasons}


def _score(number: int, jobs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    verifier = _verifier(number)
    verifier.verify("\\boxed{1}", "1")  # starts its process, which is not the first answer's time
    reasons = {}
    for truth, answer in jobs:
        start = time.monotonic()
        correct, understood = verifier.verify(f"\\boxed{{{answer}}}", truth)
        if correct != 1.0:
            slow = time.monotonic() - start >= math_reward.SECONDS
            why = _NOT_ACCEPTED if understood else "the reward can make nothing of it"
            reasons[truth, answer] = f"the reward takes more than {math_reward.SECONDS} s" if slow else why
    return reasons


@functools.cache
def _verifier(number: int) -> math_reward.Verifier:
    return math_reward.Verifier()
