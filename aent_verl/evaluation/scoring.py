"""A reward function in processes of its own, each call in a main thread and with a time limit.

In a main thread, because libraries such as math-verify limit their time with signals, which work nowhere else. In
processes, because a call that never returns can only be ended with its process, which is then replaced.
"""

from __future__ import annotations

import asyncio
import inspect
import math
import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

# Loads the reward function; called once in each process, so it has to be picklable.
Load = Callable[[], Callable[..., Any]]
START_SECONDS = 300
# What a reward function may return alongside its score: whether the answer is right, and what the answer was.
ACC = "acc"
ANSWERS = ("answer", "pred")


class ScorerError(RuntimeError):
    """The reward function cannot be loaded, or its process cannot be kept alive."""


@dataclass(frozen=True)
class Scored:
    """The score of one response.

    Attributes:
        score: ``acc`` where the reward function gives one, as in verl's validation, else its score.
        answer: what it extracted from the response, None if it does not say.
        error: why there is no score, which then is 0.
    """

    score: float
    answer: str | None = None
    error: str | None = None


class Scorer:
    """A pool of processes that score responses; use it in a ``with`` block.

    Args:
        load: gives the reward function.
        processes: how many.
        seconds: longest time for one response.
        preload: modules that all processes share because they are imported before the first one starts; it makes
            replacing a stopped process cheap.
    """

    def __init__(self, load: Load, *, processes: int, seconds: float, preload: Sequence[str] = ()) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([__name__, *preload])
        self._load = load
        self._seconds = seconds
        self._idle: queue.Queue[_Worker] = queue.Queue()
        self._workers: list[_Worker] = []
        self._count = processes
        self.threads = ThreadPoolExecutor(max_workers=processes, thread_name_prefix="scorer")

    def __enter__(self) -> Scorer:
        """Start the processes.

        Raises:
            ScorerError: the reward function cannot be loaded there.
        """
        try:
            self._workers = [_Worker(self._context, self._load) for _ in range(self._count)]
            for worker in self._workers:
                worker.wait_until_ready()
                self._idle.put(worker)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop them, whatever they are doing."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.stop()

    def score(self, **arguments: Any) -> Scored:
        """Score one response; waits for a free process, so call it from as many threads as there are processes.

        Raises:
            ScorerError: a process that was stopped cannot be replaced.
        """
        worker = self._idle.get()
        try:
            return worker.score(arguments, self._seconds)
        finally:
            self._idle.put(worker)

    async def score_async(self, **arguments: Any) -> Scored:
        """Call `score` from an event loop."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, lambda: self.score(**arguments))


class _Worker:
    """A process and the connection to it; replaces a process that dies."""

    def __init__(self, context: multiprocessing.context.ForkServerContext, load: Load) -> None:
        self._context, self._load = context, load
        self._start()

    def _start(self) -> None:
        self._connection, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_work, args=(theirs, self._load), daemon=True)
        self._process.start()
        theirs.close()  # so that the end of the process is the end of the connection

    def wait_until_ready(self) -> None:
        try:
            failure = self._connection.recv() if self._connection.poll(START_SECONDS) else "it takes too long"
        except EOFError:
            failure = "its process died"
        if failure is not None:
            raise ScorerError(f"the reward function cannot be loaded in a process of its own: {failure}")

    def score(self, arguments: dict[str, Any], seconds: float) -> Scored:
        try:
            self._connection.send(arguments)
            if self._connection.poll(seconds):
                return self._connection.recv()
            failure = f"no score after {seconds:g} s"
        except (EOFError, OSError):
            self._process.join(10)
            failure = f"its process died (exit status {self._process.exitcode})"
        self.stop()
        self._start()
        self.wait_until_ready()
        return Scored(0.0, error=failure)

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _work(connection: Connection, load: Load) -> None:
    """Load the function, then score what arrives until the connection closes."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        function = load()
    except BaseException as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    while True:
        try:
            arguments = connection.recv()
        except EOFError:
            return
        connection.send(score_once(function, arguments))


def _die_with_parent() -> None:
    """End with the parent: an endless loop in the reward function must not outlive a killed evaluation."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def score_once(function: Callable[..., Any], arguments: Mapping[str, Any]) -> Scored:
    """Call the reward function in this process; an error in it gives a score of 0 that says why."""
    try:
        result = function(**arguments)
        if inspect.isawaitable(result):
            result = asyncio.run(asyncio.wait_for(result, None))
        given = result if isinstance(result, Mapping) else {"score": result}
        score = float(given["score"] if given.get(ACC) is None else given[ACC])
        if not math.isfinite(score):
            raise ValueError(f"the score is {score}")
        answer = next((given[key] for key in ANSWERS if given.get(key) not in (None, "")), None)
        return Scored(score, None if answer is None else str(answer))
    except Exception as error:
        return Scored(0.0, error=f"{type(error).__name__}: {error}")
