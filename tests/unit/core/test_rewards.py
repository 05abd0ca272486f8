"""AEPO's arithmetic against a plain reading of its formulas, response by response and token by token."""

import math
import random
import statistics

import pytest
import torch

from aent_verl.core import rewards

NAN = math.nan


def window_means(entropies: list[float], mask: list[int], window: int) -> list[float]:
    means = []
    for i in range(len(entropies)):
        behind = entropies[i + 1 : i + 1 + window]
        inside = mask[i : i + 1 + window]
        means.append(sum(behind) / window if len(behind) == window and all(inside) else NAN)
    return means


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = math.floor(place)
    return ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def added(n: float, target: float, correct: bool, level: str, alpha: float) -> float:
    f, kappa, t, cap, share = {
        "easy": (0.15, 2, 2, alpha, 0.6),
        "medium": (0.25, 3, 2.5, alpha, 0.8),
        "hard": (0.35, 4, 3, 1.2 * alpha, 1.0),
    }[level]
    d, m = n - target, max(1, f * max(target, 1))

    def h(x: float) -> float:
        x = max(x, 0)
        return x * x / (2 * kappa) if x <= kappa else x - kappa / 2

    if not correct:
        return share * cap * sigma(max(d - m, 0) / t)
    if level == "easy":
        return -min(cap, cap * h(d - m) / (m + kappa))
    if level == "medium":
        return -min(cap, cap * h(abs(d) - m) / (m + kappa))
    return cap * sigma((d + m) / t) if d >= -m else -min(cap, 0.5 * cap * h(-d - m) / (m + kappa))


@pytest.mark.parametrize("window", [1, 3, 4, 9])
def test_windows(window: int) -> None:
    chance = random.Random(window)
    entropy = torch.tensor([[chance.uniform(0, 2) for _ in range(9)] for _ in range(20)], dtype=torch.float64)
    mask = torch.tensor([[int(t < 2 + i // 2 and chance.random() < 0.95) for t in range(9)] for i in range(20)])
    found = rewards.window_entropy(entropy.masked_fill(mask == 0, NAN), mask, window)
    expected = [window_means(*row, window) for row in zip(entropy.tolist(), mask.tolist(), strict=True)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), equal_nan=True, rtol=0, atol=1e-12)


@pytest.mark.parametrize("q", [0.0, 0.5, 0.95, 1.0])
def test_the_typical_high_window_is_the_median_of_quantiles(q: float) -> None:
    chance = random.Random(3)
    rows = [[chance.choice([NAN, chance.uniform(0, 3)]) for _ in range(7)] for _ in range(6)] + [[NAN] * 7]
    known = [[value for value in row if not math.isnan(value)] for row in rows]
    expected = statistics.median(quantile(row, q) for row in known if row)
    assert rewards.typical_high(torch.tensor(rows, dtype=torch.float64), q) == pytest.approx(expected, rel=1e-12)
    assert rewards.typical_high(torch.full((2, 3), NAN), q) is None


def test_difficulty_by_thirds() -> None:
    accuracies = torch.tensor([0.0, 0.33, 1 / 3, 0.5, 0.66, 2 / 3, 1.0])
    names = [rewards.DIFFICULTIES[level] for level in rewards.difficulty(accuracies).tolist()]
    assert names == ["hard", "hard", "medium", "medium", "medium", "easy", "easy"]
    # The mean of three accuracies in fp32.
    assert rewards.difficulty(torch.tensor([1.0, 1.0, 0.0]).mean().reshape(1)).tolist() == [rewards.EASY]


@pytest.mark.parametrize("level", rewards.DIFFICULTIES)
@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_what_is_added(level: str, correct: bool, alpha: float) -> None:
    cases = [(n, target) for target in (0, 1, 3, 8, 40) for n in (0, 1, 2, 3, 5, 7, 9, 10, 14, 30, 39, 55, 100)]
    expected = [added(n, target, correct, level, alpha) for n, target in cases]
    count, target = torch.tensor(cases).T
    size = len(cases)
    found = rewards.aepo(
        count,
        target,
        torch.full((size,), correct),
        torch.full((size,), rewards.DIFFICULTIES.index(level)),
        torch.full((size,), alpha),
    )
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-10)
    assert found.abs().max() <= 1.2 * alpha
