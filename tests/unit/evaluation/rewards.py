"""Reward functions that misbehave, where other processes can import them."""

import os
import signal
import threading


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    """Does what the solution says."""
    if solution_str == "loop":
        while True:
            pass
    if solution_str == "compute":
        return float(9 ** (9 ** (9**9)))  # holds the interpreter
    if solution_str == "raise":
        raise KeyError("no such thing")
    if solution_str == "die":
        os._exit(3)
    if solution_str == "nan":
        return float("nan")
    if solution_str == "thread":
        return float(threading.current_thread() is threading.main_thread())
    if solution_str == "signal":
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        return 1.0
    if solution_str == "tuple":
        return 1.0, "right"
    if solution_str.startswith("answer "):
        answer = solution_str.removeprefix("answer ")
        return {"score": -1.0, "acc": answer == ground_truth, "pred": answer}
    if solution_str == "both":
        return {"score": 0.5, "acc": None, "pred": "p", "answer": 7}
    return float(solution_str == ground_truth)


async def later(data_source, solution_str, ground_truth, extra_info=None):
    """A coroutine."""
    return {"score": float(solution_str == ground_truth), "pred": ""}


def load():
    """The function above."""
    return compute_score


def load_later():
    """The coroutine above."""
    return later


def load_nothing():
    """A module that cannot be imported."""
    raise ImportError("no module named algebra")


def load_and_die():
    """A module that takes the process with it."""
    os._exit(4)
