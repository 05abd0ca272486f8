"""Time and memory of log-prob and entropy from logits, forward and backward: stock verl, the authors' form, ours.

    python -m benchmarks.logits_op --selection --bounds

The methods take turns, round by round, on the same random logits, so that a busy machine slows all of them alike.
Ratios are to stock verl's log-prob only (without verl: plain torch's), of the same vocabulary and run. Peak memory
counts the gradient of the logits but not the logits; on the CPU it is measured in a fresh process for each method and
vocabulary. With the default settings a CPU of two cores needs a few minutes and 4 GiB.

Needs torch alone, and Triton on CUDA. There it ends within --seconds: methods so slow that their rounds do not fit take
part in fewer. A method that fails, for want of memory or of a compiler, is left out, and said to be.
"""

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from benchmarks import bounds, selection
from benchmarks.measure import Quantiles, copy_bandwidth, in_fresh_process, seconds
from benchmarks.methods import BASE, BASES, METHODS, flash_attention, inputs, peak
from benchmarks.report import DTYPES, Report, Row, add_output_options, mebibytes, milliseconds, progress, ratio, stamp

# Tokens, rounds, type and seconds by device.
DEFAULTS = {"cpu": (128, 10, "fp32", math.inf), "cuda": (4096, 10, "bf16", 150.0)}
VOCABULARIES = (49_152, 128_256, 151_936, 262_144)


@dataclass(frozen=True)
class Result:
    """One method at one vocabulary: seconds, and bytes at the peak beyond the logits."""

    method: str
    vocabulary: int
    forward: Quantiles
    total: Quantiles
    peak: int | None


@dataclass
class Clock:
    """The time that is left, and what was left out for want of it or, the second list, because it failed."""

    end: float
    left_out: list[str]
    failed: list[str]

    def left(self) -> float:
        return max(0.0, self.end - time.monotonic())

    def leave_out(self, what: str, why: str) -> None:
        self.left_out.append(f"{what}: {why}")


def attempt(method: str, vocabulary: int, clock: Clock, work: Callable[[], Any]) -> Any:
    """What ``work`` returns, or None where it fails."""
    try:
        return work()
    except Exception as error:
        # On a machine that nobody has seen: one method's failure must not take the others' numbers.
        clock.failed.append(method)
        first = (str(error).strip().splitlines() or ["no message"])[0]
        clock.leave_out(f"{method} at V = {vocabulary:,}", f"{type(error).__name__}: {first}")
        return None


def times(
    methods: list[str], vocabulary: int, options: argparse.Namespace, clock: Clock, share: float
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of the forward pass and of both for each method, in interleaved rounds after one that does not count.

    All rounds of all methods fit into ``share`` seconds, as far as that leaves each at least one.
    """
    logits, labels = inputs(options.tokens, vocabulary, DTYPES[options.dtype], options.device)

    def once(method: str, turn: int) -> tuple[float, float]:
        progress(f"vocabulary {vocabulary:,}, round {turn} of {options.rounds}, {method}")
        logits.grad = None
        return seconds(partial(METHODS[method].run, logits, labels), options.device)

    rounds: dict[str, int] = {}
    for method in methods:
        if attempt(method, vocabulary, clock, partial(once, method, 0)) is None:
            continue
        rounds[method] = options.rounds
        if share < math.inf:
            # The first may have compiled.
            start = time.perf_counter()
            once(method, 0)
            needed = time.perf_counter() - start
            rounds[method] = max(1, min(options.rounds, int(share / len(methods) / needed)))
            if needed > share / 4:
                del rounds[method]
                clock.leave_out(f"{method} at V = {vocabulary:,}", f"one run takes {needed:.0f} s; --seconds allows it")
    measured: dict[str, list[tuple[float, float]]] = {method: [] for method in rounds}
    for turn, method in itertools.product(range(options.rounds), rounds):
        if turn < rounds[method]:
            measured[method].append(once(method, turn + 1))
    return measured


def measure(methods: list[str], options: argparse.Namespace, clock: Clock) -> list[Result]:
    """All methods at all vocabularies."""
    results = []
    for index, vocabulary in enumerate(options.vocabularies):
        if clock.left() == 0:
            clock.leave_out(f"V = {vocabulary:,}", f"{options.seconds:g} s were over")
            continue
        # A third for warm-up and memory.
        taken = times(methods, vocabulary, options, clock, clock.left() / (len(options.vocabularies) - index) / 1.5)
        for method in taken:
            progress(f"vocabulary {vocabulary:,}, memory of {method}")
            arguments = (method, options.tokens, vocabulary, DTYPES[options.dtype], options.device)
            run = partial(in_fresh_process, peak) if options.device == "cpu" else peak
            needed = attempt(method, vocabulary, clock, partial(run, *arguments))
            forward, total = (Quantiles.of(list(values)) for values in zip(*taken[method], strict=True))
            results.append(Result(method, vocabulary, forward, total, needed))
    return results


def ratios(results: list[Result]) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """Of time and peak memory, by vocabulary, method, and the method that it is divided by."""
    by_place = {(result.vocabulary, result.method): result for result in results}
    found: dict[str, dict[str, dict[str, dict[str, float | None]]]] = {}
    for result in results:
        bases = {name: by_place[result.vocabulary, name] for name in BASES if (result.vocabulary, name) in by_place}
        found.setdefault(str(result.vocabulary), {})[result.method] = {
            name: {
                "time": result.total.median / base.total.median,
                "memory": result.peak / base.peak if result.peak is not None and base.peak else None,
            }
            for name, base in bases.items()
        }
    return found


def bandwidth(result: Result, tokens: int, itemsize: int) -> float:
    """Bytes per second over what must move at least: reads of the logits, and a write of their gradient."""
    return tokens * result.vocabulary * itemsize * (METHODS[result.method].reads + 2) / result.total.median


def paired(results: list[Result], shares: list[float] | None) -> Iterator[tuple[Result, float | None]]:
    return zip(results, shares or itertools.repeat(None), strict=False)


def rows(results: list[Result], shares: list[float] | None) -> list[Row]:
    """Cells of the main table."""
    cells = []
    base = {result.vocabulary: result for result in results if result.method == BASE}
    for index, result in enumerate(results):
        stock = base.get(result.vocabulary)
        cells.append(
            [
                f"{result.vocabulary:,}",
                METHODS[result.method].label,
                milliseconds(result.forward),
                milliseconds(result.total),
                ratio(result.total.median, stock and stock.total.median),
                mebibytes(result.peak),
                ratio(result.peak, stock and stock.peak),
                *([f"{shares[index]:.0%}"] if shares else []),
            ]
        )
    return cells


def check(results: list[Result], shares: list[float] | None, options: argparse.Namespace) -> tuple[Row, list[Row]]:
    """Columns and rows of the table of bounds."""
    here = [index for index, result in enumerate(results) if result.vocabulary == bounds.VOCABULARY]
    taken = {results[index].method: results[index].total.median for index in here}
    if options.device == "cuda":
        assert shares is not None
        return bounds.on_cuda(taken, {results[index].method: shares[index] for index in here}, flash_attention())
    arguments = ("ours-clamped", bounds.TOKENS, bounds.VOCABULARY, DTYPES[options.dtype], options.device)
    return bounds.on_cpu(taken, in_fresh_process(peak, *arguments), DTYPES[options.dtype].itemsize)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.logits_op", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, help="rows of the logits, N; default 128 on CPU, 4096 on CUDA")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=list(VOCABULARIES), metavar="V")
    parser.add_argument("--dtype", choices=DTYPES, help="type of the logits; default fp32 on CPU, bf16 on CUDA")
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device)
    parser.add_argument("--rounds", type=int, help="default 10")
    parser.add_argument("--seconds", type=float, help="for times and memory; default 150 on CUDA, else no limit")
    parser.add_argument("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=f"some of {', '.join(METHODS)}")
    parser.add_argument("--selection", action="store_true", help="also time searches for the k-th smallest on the CPU")
    parser.add_argument("--bounds", action="store_true", help="also check the bounds promised for V = 151,936")
    add_output_options(parser)
    options = parser.parse_args(arguments)
    tokens, rounds, dtype, limit = DEFAULTS[options.device]
    options.tokens = tokens if options.tokens is None else options.tokens
    options.rounds = rounds if options.rounds is None else options.rounds
    options.seconds = limit if options.seconds is None else options.seconds
    options.dtype = options.dtype or dtype
    if min(options.tokens, options.rounds) < 1 or min(options.vocabularies) < 2:
        parser.error("--tokens and --rounds must be at least 1, --vocabularies at least 2")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    if options.bounds and (bounds.VOCABULARY not in options.vocabularies or options.dtype != dtype):
        parser.error(f"--bounds needs {bounds.VOCABULARY} among --vocabularies and, on this device, --dtype {dtype}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    warnings.filterwarnings("ignore", category=UserWarning)
    methods = options.methods or [name for name, method in METHODS.items() if method.runs_on(options.device)]
    stamped = stamp(options.device, dtype=options.dtype, tokens=options.tokens, rounds=options.rounds)
    report = Report(options, stamped, "logits_op")
    itemsize = DTYPES[options.dtype].itemsize
    columns = ["V", "method", "forward, ms", "forward + backward, ms", "ratio", "peak extra memory, MiB", "ratio"]
    clock = Clock(time.monotonic() + options.seconds, [], [])
    results = measure(methods, options, clock)
    shares = copy = None
    if options.device == "cuda":
        copy = copy_bandwidth(options.tokens * max(options.vocabularies) * itemsize)
        shares = [bandwidth(result, options.tokens, itemsize) / copy for result in results]
        columns.append("of copy bandwidth")
        report.text(f"copy bandwidth {copy / 1e12:.2f} TB/s; share of it: bytes that must move at least, over time")
    report.table(
        "Log-prob and entropy from logits; median (20% to 80% quantile), ratio to the log-prob only",
        columns,
        rows(results, shares),
    )
    for line in clock.left_out:
        report.text(f"left out: {line}")
    report.save(
        results=[vars(result) | {"copy_bandwidth_share": share} for result, share in paired(results, shares)],
        ratios=ratios(results),
        copy_bytes_per_second=copy,
        left_out=clock.left_out,
    )
    if options.selection and options.device == "cuda":
        report.text("searches for the k-th smallest are those of a CPU: --device cpu times them")
    elif options.selection:
        progress("searches for the k-th smallest")
        found = selection.measure(options.vocabularies, options.rounds)
        report.table("k-th smallest of a row on the CPU, ms per row, k = .33 V", *selection.table(found))
        report.save(selection=found)
    if options.bounds:
        progress("memory for the bounds")
        table = check(results, shares, options)
        report.table(f"Bounds at V = {bounds.VOCABULARY:,}", *table)
        report.save(bounds=table)
    if ours := sorted({method for method in clock.failed if method.startswith("ours")}):
        raise SystemExit(f"failed: {', '.join(ours)}; the lines `left out` above have the errors")


if __name__ == "__main__":
    main()
