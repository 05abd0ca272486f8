"""Ways to the k-th smallest of a row on the CPU: why `aent_verl.core.selection` searches by counting.

Each gets a block of rows as the op's chunks are, in the logits' own type, and every conversion it needs is timed.
"""

import itertools
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from aent_verl.core.selection import boundary_by_counting
from benchmarks.measure import Quantiles
from benchmarks.methods import CLAMP_P, inputs
from benchmarks.report import Row, milliseconds

BLOCK_BYTES = 5 * 2**20
DTYPES = (torch.float32, torch.bfloat16)


def by_kthvalue(block: Tensor, k: int) -> Tensor:
    return block.kthvalue(k, dim=-1).values


def by_numpy(block: Tensor, k: int) -> Tensor:
    import numpy as np

    # numpy has no bf16.
    return torch.from_numpy(np.partition(block.float().numpy(), k - 1, axis=-1)[:, k - 1].copy())


def by_sort(block: Tensor, k: int) -> Tensor:
    return block.sort(dim=-1).values[:, k - 1]


def by_topk(block: Tensor, k: int) -> Tensor:
    # The smallest of what stays and the k-th smallest together.
    return block.topk(block.shape[-1] - k + 1, dim=-1).values[:, -1]


def by_histogram(block: Tensor, k: int) -> Tensor:
    """16 bits of the key at a time: one histogram for half types, two for fp32."""
    half = block.dtype is not torch.float32
    bits = block.view(torch.int16 if half else torch.int32)
    # Order-preserving and non-negative.
    keys = torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits).long() + (2**15 if half else 2**31)
    found = []
    for row in keys:
        digits, rank, prefix = (row if half else row >> 16), k, 0
        for last in (True,) if half else (False, True):
            counts = torch.bincount(digits, minlength=2**16).cumsum(0)
            digit = int(torch.searchsorted(counts, rank))
            rank -= int(counts[digit - 1]) if digit else 0
            prefix = prefix << 16 | digit
            if not last:
                digits = row[digits == digit] & 0xFFFF
        found.append(prefix)
    key = (torch.tensor(found) - (2**15 if half else 2**31)).to(bits.dtype)
    return torch.where(key < 0, key ^ torch.iinfo(key.dtype).max, key).view(block.dtype)


def by_counting(block: Tensor, k: int) -> Tensor:
    """Ours: a value that separates the k smallest, not necessarily one of them."""
    z = block.float()
    return boundary_by_counting(z, k, scratch=torch.empty_like(z), dtype=block.dtype)[0].squeeze(-1).to(block.dtype)


SEARCHES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "kthvalue": by_kthvalue,
    "numpy.partition": by_numpy,
    "sort": by_sort,
    "topk of what stays": by_topk,
    "16-bit histogram": by_histogram,
    "counting (ours)": by_counting,
}
if find_spec("numpy") is None:
    del SEARCHES["numpy.partition"]


def check(block: Tensor, k: int) -> None:
    """A fast search counts for nothing if it finds something else: all separate the same ``k`` tokens."""
    expected = by_sort(block, k).unsqueeze(-1)
    for name, search in SEARCHES.items():
        found = search(block, k).unsqueeze(-1)
        same = ((block > found) == (block > expected)) & ((block < found) <= (block <= expected))
        assert bool(same.all()), f"{name} finds another boundary"


def measure(vocabularies: list[int], rounds: int) -> dict[str, dict[str, dict[int, Quantiles]]]:
    """Seconds per row, by type, search and vocabulary, in interleaved rounds."""
    results: dict[str, dict[str, dict[int, Quantiles]]] = {}
    for dtype, vocabulary in itertools.product(DTYPES, vocabularies):
        block = inputs(max(1, BLOCK_BYTES // (4 * vocabulary)), vocabulary, dtype, "cpu")[0].detach()
        k = max(1, int(vocabulary * CLAMP_P))
        check(block, k)
        taken: dict[str, list[float]] = {name: [] for name in SEARCHES}
        for _, name in itertools.product(range(rounds), SEARCHES):
            start = time.perf_counter()
            SEARCHES[name](block, k)
            taken[name].append((time.perf_counter() - start) / len(block))
        of_type = results.setdefault(str(dtype).removeprefix("torch."), {name: {} for name in SEARCHES})
        for name, values in taken.items():
            of_type[name][vocabulary] = Quantiles.of(values)
    return results


def table(results: dict[str, dict[str, dict[int, Quantiles]]]) -> tuple[Row, list[Row]]:
    """Columns and rows."""
    vocabularies = next(iter(next(iter(results.values())).values()))
    rows = [
        [dtype, name, *(milliseconds(time) for time in times.values())]
        for dtype, searches in results.items()
        for name, times in searches.items()
    ]
    return ["logits", "search", *(f"V = {vocabulary:,}" for vocabulary in vocabularies)], rows
