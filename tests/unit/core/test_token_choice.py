"""The choice of tokens against sorted(), on one rank and on several; the hash that stands in for random numbers."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch import Tensor

from aent_verl.core.token_choice import choose_largest, choose_random, priorities
from tests import reference

SAMPLES, LENGTH = 12, 9
ELIGIBLE_SHARE = {"all": 1.0, "some": 0.4, "few": 0.05, "none": 0.0}


def alone(offered: Tensor) -> Tensor:
    return offered


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


def on_ranks(choose: Callable[..., Tensor], tensors: list[Tensor], sizes: list[int], count: int) -> Tensor:
    """Run ``choose`` on pieces of ``sizes`` rows in threads that gather through a barrier; the joined result."""
    barrier, offers = Barrier(len(sizes), timeout=60), [torch.empty(0)] * len(sizes)

    def run(rank: int) -> Tensor:
        def gather(offered: Tensor) -> Tensor:
            offers[rank] = offered
            barrier.wait()
            assert len({x.shape for x in offers}) == 1, "offers must have the same size on all ranks"
            together = torch.cat(offers)
            barrier.wait()
            return together

        return choose(*(x.split(sizes)[rank] for x in tensors), count, gather)

    with ThreadPoolExecutor(len(sizes)) as pool:
        return torch.cat(list(pool.map(run, range(len(sizes)))))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", ELIGIBLE_SHARE.values(), ids=ELIGIBLE_SHARE)
@pytest.mark.parametrize("count", [0, 1, 7, 40, 500])
def test_choice_is_the_definition_on_any_number_of_ranks(kind: str, share: float, count: int) -> None:
    value, eligible = token_values(kind), draw_eligible(share)
    priority = priorities(step=3, sample=torch.arange(SAMPLES), length=LENGTH)
    flat = (value.flatten().tolist(), priority.flatten().tolist(), eligible.flatten().tolist())
    expected = torch.tensor(reference.choose_largest(*flat, count)).reshape(SAMPLES, LENGTH)
    assert expected.sum() == min(count, int((eligible & ~value.isnan()).sum()))
    chosen = choose_largest(value, priority, eligible, count, alone)
    assert chosen.dtype is torch.bool
    assert torch.equal(chosen, expected)
    for sizes in ([6, 6], [1, 11], [4, 0, 8]):
        assert torch.equal(on_ranks(choose_largest, [value, priority, eligible], sizes, count), expected)


@pytest.mark.parametrize("share", ELIGIBLE_SHARE.values(), ids=ELIGIBLE_SHARE)
@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_random_choice_is_the_definition_on_any_number_of_ranks(share: float, count: int) -> None:
    eligible = draw_eligible(share)
    priority = priorities(step=3, sample=torch.arange(SAMPLES), length=LENGTH)
    flat = (priority.flatten().tolist(), eligible.flatten().tolist())
    expected = torch.tensor(reference.choose_random(*flat, count)).reshape(SAMPLES, LENGTH)
    assert torch.equal(choose_random(priority, eligible, count, alone), expected)
    for sizes in ([6, 6], [4, 0, 8]):
        assert torch.equal(on_ranks(choose_random, [priority, eligible], sizes, count), expected)


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
