"""The choice of tokens and order statistics on one rank and on several, against sorted() and against gathering all
tokens; what goes through collectives; the hash that stands in for random numbers."""

import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from aent_verl.core.token_choice import choose_largest, choose_random, order_statistics, priorities
from tests import reference

SAMPLES, LENGTH = 12, 9
ELIGIBLE_SHARE = {"all": 1.0, "some": 0.4, "few": 0.05, "none": 0.0}


def alone(counts: Tensor) -> Tensor:
    return counts


def token_values(kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    value = torch.randn(SAMPLES, LENGTH, dtype=torch.float64, generator=generator)
    if kind == "distinct":
        return value
    if kind == "ties":
        return value.round()
    if kind == "signed zeros":
        return torch.where(value > 0, 0.0, -0.0).double()
    if kind == "infinite":
        return torch.where(value > 0.5, torch.inf, torch.where(value < -0.2, -torch.inf, value))
    if kind == "nan":
        return torch.where(value > 0.5, math.nan, value.round())
    raise AssertionError(kind)


KINDS = ("distinct", "ties", "signed zeros", "infinite", "nan")


def draw_eligible(share: float) -> Tensor:
    return torch.rand(SAMPLES, LENGTH, generator=torch.Generator().manual_seed(2)) < share


class Ranks:
    """Several ranks as threads, each with its end of one gloo group; counts what goes through it."""

    def __init__(self, size: int) -> None:
        store = dist.HashStore()
        self.size, self.sent = size, [[] for _ in range(size)]
        self._pool = ThreadPoolExecutor(size)
        minute = timedelta(seconds=60)
        self._groups = list(self._pool.map(lambda rank: dist.ProcessGroupGloo(store, rank, size, minute), range(size)))

    def run(self, function: Callable[..., Any], tensors: list[Tensor], sizes: list[int], *args: Any) -> list[Any]:
        """Call ``function(*pieces, *args, add)`` on every rank with its rows of ``tensors``."""
        assert len(sizes) == self.size
        self.sent = [[] for _ in range(self.size)]

        def on_rank(rank: int) -> Any:
            def add(counts: Tensor) -> Tensor:
                self.sent[rank].append(counts.nbytes)
                self._groups[rank].allreduce([counts]).wait()
                return counts

            return function(*(x.split(sizes)[rank] for x in tensors), *args, add)

        return list(self._pool.map(on_rank, range(self.size)))

    def close(self) -> None:
        self._groups.clear()
        self._pool.shutdown()


@pytest.fixture(scope="module")
def ranks() -> Iterator[dict[int, Ranks]]:
    groups = {size: Ranks(size) for size in (1, 2, 3, 4)}
    yield groups
    for each in groups.values():
        each.close()


def choose_of_gathered(value: Tensor, priority: Tensor, eligible: Tensor, count: int) -> Tensor:
    """The choice with the tokens of all ranks in one place: sort them, take the first ``count``."""
    if count == 0:
        return torch.zeros_like(eligible)
    eligible = eligible & ~value.isnan()
    places = eligible.flatten().nonzero().squeeze(1)
    values, ties = value.flatten()[places], priority.flatten()[places]
    by_priority = ties.sort(stable=True).indices
    order = by_priority[values[by_priority].sort(descending=True, stable=True).indices]
    return torch.zeros_like(eligible.flatten()).index_fill(0, places[order[:count]], True).reshape(eligible.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", ELIGIBLE_SHARE.values(), ids=ELIGIBLE_SHARE)
@pytest.mark.parametrize("count", [*(pytest.param(count, marks=pytest.mark.slow) for count in (0, 1, 40)), 7, 500])
def test_choice_is_the_definition_on_any_number_of_ranks(
    kind: str, share: float, count: int, ranks: dict[int, Ranks]
) -> None:
    value, eligible = token_values(kind), draw_eligible(share)
    priority = priorities(step=3, sample=torch.arange(SAMPLES), length=LENGTH)
    flat = (value.flatten().tolist(), priority.flatten().tolist(), eligible.flatten().tolist())
    expected = torch.tensor(reference.choose_largest(*flat, count)).reshape(SAMPLES, LENGTH)
    assert expected.sum() == min(count, int((eligible & ~value.isnan()).sum()))
    chosen = choose_largest(value, priority, eligible, count, alone)
    assert chosen.dtype is torch.bool
    assert torch.equal(chosen, expected)
    for sizes in ([4, 8], [4, 0, 8]):
        chosen = torch.cat(ranks[len(sizes)].run(choose_largest, [value, priority, eligible], sizes, count))
        assert torch.equal(chosen, expected)


@pytest.mark.parametrize("share", ELIGIBLE_SHARE.values(), ids=ELIGIBLE_SHARE)
@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_random_choice_is_the_definition_on_any_number_of_ranks(
    share: float, count: int, ranks: dict[int, Ranks]
) -> None:
    eligible = draw_eligible(share)
    priority = priorities(step=3, sample=torch.arange(SAMPLES), length=LENGTH)
    flat = (priority.flatten().tolist(), eligible.flatten().tolist())
    expected = torch.tensor(reference.choose_random(*flat, count)).reshape(SAMPLES, LENGTH)
    assert torch.equal(choose_random(priority, eligible, count, alone), expected)
    for sizes in ([6, 6], [4, 0, 8]):
        chosen = torch.cat(ranks[len(sizes)].run(choose_random, [priority, eligible], sizes, count))
        assert torch.equal(chosen, expected)


def draw_case(rng: random.Random) -> tuple[Tensor, Tensor, Tensor, int]:
    """Values of all signs and sizes with ties, priorities that differ in any bit, eligible tokens, and a count."""
    shape = (rng.randint(0, 9), rng.randint(1, 7))
    generator = torch.Generator().manual_seed(rng.getrandbits(32))
    normal = torch.randn(shape, dtype=torch.float64, generator=generator)
    special = torch.tensor(
        [0.0, -0.0, 5e-324, -5e-324, 2e-310, math.inf, -math.inf, math.nan, 1.0, 1.0 + 2**-52, -1.7e308],
        dtype=torch.float64,
    )
    pick = torch.randint(len(special), shape, generator=generator)
    value = {
        "normal": normal,
        "tied": normal.round(),
        "one value": torch.full(shape, -0.3, dtype=torch.float64),
        "negative": -normal.abs() * 1e-300,
        "last bits": (normal.abs() * 4).floor() * 2**-52 + 1,
        "special": special[pick],
        "fp32": normal.float(),
        "bf16": normal.bfloat16(),
    }[rng.choice(["normal", "tied", "one value", "negative", "last bits", "special", "fp32", "bf16"])]
    priority = priorities(step=rng.randrange(99), sample=torch.arange(shape[0]), length=shape[1])
    if rng.random() < 0.3:
        # Small numbers around 0: they differ in the last digit and the sign alone.
        priority = torch.randperm(priority.numel(), generator=generator).reshape(shape) - priority.numel() // 2
    eligible = torch.rand(shape, generator=generator) < rng.choice([0.0, 0.1, 0.5, 1.0])
    return value, priority, eligible, rng.choice([0, 1, 2, 5, 20, 1000])


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(12, 100))])
def test_choice_and_order_statistics_equal_those_of_gathered_tokens(seed: int, ranks: dict[int, Ranks]) -> None:
    rng = random.Random(seed)
    value, priority, eligible, count = draw_case(rng)
    largest = choose_of_gathered(value, priority, eligible, count)
    any_value = choose_of_gathered(torch.zeros(value.shape), priority, eligible, count)
    counted = eligible & ~value.isnan()
    ordered = value[counted].double().sort().values
    places = [math.floor(q * (len(ordered) - 1)) for q in (0.01, 0.5, 0.99)] if len(ordered) else []
    for size in (1, rng.randint(2, 4)):
        group = ranks[size]
        cuts = sorted(rng.randint(0, len(value)) for _ in range(size - 1))
        sizes = [end - start for start, end in zip([0, *cuts], [*cuts, len(value)], strict=True)]
        assert torch.equal(torch.cat(group.run(choose_largest, [value, priority, eligible], sizes, count)), largest)
        assert torch.equal(torch.cat(group.run(choose_random, [priority, eligible], sizes, count)), any_value)
        for found in group.run(order_statistics, [value, counted], sizes, places) if places else []:
            # Adding 0 makes -0.0 to 0.0, whose bits are those of the result.
            assert torch.equal(found.view(torch.int64), (ordered[places] + 0.0).view(torch.int64))


def test_what_is_sent_depends_neither_on_tokens_nor_on_ranks(ranks: dict[int, Ranks]) -> None:
    histogram = 2048 * 8
    for sizes, length, count in (([4], 1, 1), ([400], 50, 300), ([2, 0, 2], 9, 5), ([100, 1, 299], 50, 300)):
        group = ranks[len(sizes)]
        value = torch.randn(sum(sizes), length, dtype=torch.float64)
        priority, eligible = priorities(step=1, sample=torch.arange(sum(sizes)), length=length), value > -1
        group.run(choose_largest, [value, priority, eligible], sizes, count)
        assert group.sent == [[histogram] * 12] * group.size
        group.run(choose_random, [priority, eligible], sizes, count)
        assert group.sent == [[histogram] * 6] * group.size
        group.run(order_statistics, [value, eligible], sizes, [0, 1, 2])
        assert group.sent == [[3 * histogram] * 6] * group.size


def test_order_statistics_beyond_the_last_are_the_last() -> None:
    value = torch.tensor([[3.0, -1.0, 2.0]])
    assert order_statistics(value, value < 3, [0, 1, 2, 10**9], alone).tolist() == [-1.0, 2.0, 2.0, 2.0]


def test_choice_does_not_depend_on_the_order_of_samples() -> None:
    value, eligible, sample = token_values("ties"), draw_eligible(0.9), torch.arange(SAMPLES) + 100
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))

    def choose(rows: Tensor) -> Tensor:
        priority = priorities(step=3, sample=sample[rows], length=LENGTH)
        return choose_largest(value[rows], priority, eligible[rows], 20, alone)

    assert torch.equal(choose(order), choose(torch.arange(SAMPLES))[order])


def test_inputs_are_not_written_to() -> None:
    value, eligible = token_values("nan"), draw_eligible(0.4)
    priority = priorities(step=3, sample=torch.arange(SAMPLES), length=LENGTH)
    before = [x.clone() for x in (value, priority, eligible)]
    choose_largest(value, priority, eligible, 7, alone)
    for x, y in zip((value, priority, eligible), before, strict=True):
        torch.testing.assert_close(x, y, atol=0, rtol=0, equal_nan=True)


def test_choice_has_no_gradient_and_takes_values_that_do() -> None:
    value = token_values("distinct").requires_grad_()
    priority = priorities(step=3, sample=torch.arange(SAMPLES), length=LENGTH)
    assert not choose_largest(value, priority, draw_eligible(1.0), 7, alone).requires_grad


def test_priorities_are_the_definition() -> None:
    sample = torch.tensor([0, 1, 77, 2**40, -3])
    for step in (0, 1, 12345):
        expected = [[reference.priority(step, s, t) for t in range(5)] for s in sample.tolist()]
        assert priorities(step=step, sample=sample, length=5).tolist() == expected


def test_splitmix64_of_the_reference_is_the_published_one() -> None:
    """First numbers of the generator's widely quoted stream from seed 1234567."""
    stream = [reference.splitmix64(1234567, i) for i in range(3)]
    assert stream == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_priorities_of_a_row_depend_on_its_sample_alone() -> None:
    whole = priorities(step=4, sample=torch.arange(50), length=30)
    rows = torch.tensor([31, 2, 31])
    assert torch.equal(priorities(step=4, sample=rows, length=30), whole[rows])
    assert torch.equal(priorities(step=4, sample=rows, length=7), whole[rows, :7])


def test_priorities_are_distinct_and_uniform() -> None:
    """A million of them. Counts of 64 bins by the highest bits, then the lowest: chi-square of 63 degrees, 5 sigma."""
    drawn = priorities(step=7, sample=torch.arange(1000), length=1000)
    assert drawn.unique().numel() == 10**6
    for bins in ((drawn >> 58) + 32, drawn & 63):
        counts = bins.flatten().bincount(minlength=64).double()
        expected = 10**6 / 64
        assert abs(((counts - expected) ** 2 / expected).sum().item() - 63) < 5 * math.sqrt(2 * 63)


def test_priorities_of_neighbours_are_independent() -> None:
    """Along steps, samples and positions alike: half of the bits differ."""
    grid = torch.stack([priorities(step=k, sample=torch.arange(40), length=40) for k in range(40)])
    for axis in range(3):
        a, b = grid.narrow(axis, 0, 39), grid.narrow(axis, 1, 39)
        differing = sum(((a ^ b) >> bit & 1).double().mean().item() for bit in range(64))
        assert differing == pytest.approx(32.0, abs=0.15)


@pytest.mark.slow
def test_each_token_is_chosen_equally_often_over_the_steps() -> None:
    """4000 steps, 10 of 40 tokens: each near 1000 times, 5 sigma of a binomial."""
    times = torch.zeros(8, 5)
    for step in range(4000):
        priority = priorities(step=step, sample=torch.arange(8), length=5)
        times += choose_random(priority, torch.ones(8, 5, dtype=torch.bool), 10, alone)
    assert times.sum() == 40_000
    assert (times - 1000).abs().max() < 5 * math.sqrt(4000 * 0.25 * 0.75)
