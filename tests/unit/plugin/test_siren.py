"""SIREN's term by the authors' formula in plain Python, on entropies that can be worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from aent_verl.methods.step import StepValues
from aent_verl.plugin.micro_batch import VerlMicroBatch
from aent_verl.plugin.minibatch_stats import initial_entropy
from tests import preset_harness as harness
from tests.preset_harness import Sequence

pytestmark = pytest.mark.usefixtures("single_rank_group")

# How many of the eleven tokens are equally likely, the others being impossible, and how many of them SIREN's nucleus
# of .8 keeps: 2/3, 3/4, 4/6, 5/7 and 8/11 are below .8, one more each time is not. The entropy is the logarithm.
KEPT = {1: 0, 3: 2, 4: 3, 6: 4, 7: 5, 11: 8}
BEFORE = [[3, 1, 1, 1, 1]]
# Two peaks in the first response (log 5, log 8), one in the second (log 5), none in the third.
NOW = [[1, 1, 1, 7, 1, 1, 1, 3, 3, 11], [3, 3, 7, 1, 6], [4, 4]]
COEFFICIENT = 0.005


def entropies(responses: list[list[int]]) -> list[list[float]]:
    return [[math.log(max(1, KEPT[likely])) for likely in response] for response in responses]


def quantile(values: list[float], share: float) -> float:
    """Linear between order statistics."""
    ordered, position = sorted(values), share * (len(values) - 1)
    low = math.floor(position)
    return ordered[low] + (position - low) * (ordered[min(low + 1, len(values) - 1)] - ordered[low])


def aggregate(responses: list[list[int]], weights: list[float] | None = None) -> float:
    """The peak mask is the loss mask: the mean over responses of the mean over the peaks of each."""
    total = divisor = 0.0
    for h, w in zip(entropies(responses), weights or [1.0] * len(responses), strict=True):
        peaks = [x for x in h if x > quantile(h, 0.8)]
        if peaks:
            total, divisor = total + w * sum(peaks) / len(peaks), divisor + w
    return total / divisor


def sequences(responses: list[list[int]], accuracy: list[float] | None = None) -> list[Sequence]:
    """Advantages of 0, so that the bonus is all of the loss."""
    result = []
    for index, response in enumerate(responses):
        logits = torch.full((len(response) + 1, harness.VOCABULARY), -math.inf, dtype=torch.float64)
        for position, likely in enumerate([*response, 1]):
            logits[position, :likely] = 0.7
        n = len(response)
        zeros = torch.zeros(n, dtype=torch.float64)
        result.append(
            Sequence(
                logits=logits,
                tokens=[0] * (n + 1),
                prompt=1,
                old_log_probs=zeros,
                advantages=zeros,
                mask=torch.ones(n),
                sample=index,
                accuracy=accuracy[index] if accuracy else 0.0,
            )
        )
    return [replace(s, old_log_probs=s.log_probs) for s in result]


def anchor_of(config: Any, batch: list[Sequence]) -> float:
    data = harness.to_verl(batch, None)
    seen = VerlMicroBatch.of(harness.model_output(config, data, torch.cat([s.logits for s in batch])), data)
    found: float = initial_entropy(
        config.entropy_control,
        seen.entropy,
        seen.mask,
        accuracy=seen.accuracy,
        loss_agg_mode="token-mean",
        loss_scale_factor=None,
    )
    return found


def run(config: Any, batch: list[Sequence], anchor: float, parts: list[list[int]] | None = None) -> Any:
    step = StepValues(step=2, total_steps=10, bonus_coefficient=COEFFICIENT, initial_entropy=anchor)
    return harness.run(config, batch, step, parts)


def test_the_average_is_what_the_hand_finds() -> None:
    assert aggregate(BEFORE) == math.log(2)
    assert aggregate(NOW) == pytest.approx(((math.log(5) + math.log(8)) / 2 + math.log(5)) / 2, rel=1e-15)


@pytest.mark.parametrize("parts", [[[0], [1], [2]], [[0, 2], [1]], None], ids=str)
def test_the_term_is_the_authors_formula(parts: list[list[int]] | None) -> None:
    """``.005 (a - a_0)^2``, both over the peak tokens: over all tokens it would be some 25 times smaller."""
    config = harness.config("siren")
    assert config.entropy_control.bonus.controller.init == COEFFICIENT
    anchor = anchor_of(config, sequences(BEFORE))
    assert anchor == pytest.approx(aggregate(BEFORE), rel=1e-7)
    expected = COEFFICIENT * (aggregate(NOW) - aggregate(BEFORE)) ** 2
    assert expected == pytest.approx(0.0053, rel=0.01)
    assert run(config, sequences(NOW), anchor, parts).loss == pytest.approx(expected, rel=1e-6)


def test_the_gradient_is_the_chain_rules() -> None:
    """``2 c (a - a_0)`` times the slope of the average, a finite difference; tokens that are not peaks have none.

    Where tokens are equal at the nucleus's edge there is no finite difference, so all rows are tilted a little.
    """
    config = harness.config("siren")
    tilted = []
    for s in sequences(NOW):
        tilt = 0.01 * torch.arange(harness.VOCABULARY, dtype=torch.float64)
        tilted.append(replace(s, logits=s.logits + tilt))
    outcome = run(config, tilted, 0.5)
    average = outcome.metrics[0]["aent/stats/bonus_aggregate"].values[0]
    checked = 0
    for i, s in enumerate(tilted):
        for row in range(len(s.logits) - 1):
            slope = outcome.gradients[i][row]
            if NOW[i][row] not in (7, 11):
                assert not slope.any()
                continue
            for v in range(2):
                shifted = []
                for sign in (1, -1):
                    logits = s.logits.clone()
                    logits[row, v] += sign * 1e-5
                    batch = [replace(s, logits=logits) if j == i else other for j, other in enumerate(tilted)]
                    found = run(config, batch, 0.5).metrics[0]["aent/stats/bonus_aggregate"].values[0]
                    shifted.append(found)
                moved = (shifted[0] - shifted[1]) / 2e-5
                expected = 2 * COEFFICIENT * (average - 0.5) * moved
                assert slope[v].item() == pytest.approx(expected, rel=1e-4, abs=1e-12)
                checked += 1
    assert checked == 6


@pytest.mark.parametrize("mode", ["seq-mean-token-mean", "token-mean"])
def test_a_nan_entropy_reaches_the_term_though_it_is_not_a_peak(mode: str) -> None:
    config, batch = harness.config("siren", **{"bonus.loss_agg_mode": mode}), sequences(NOW)
    batch[1].logits[3] = math.nan
    found = run(config, batch, 0.5, [[0], [1], [2]]).metrics[1]
    assert math.isnan(found["aent/bonus_loss"].values[0])
    assert found["aent/sum/bonus_weight"].values[0] == 1


def test_difficulty_weighs_the_average_and_not_its_size() -> None:
    """Easier prompts at unchanged entropies are not a distance; a solved one counts as little as a masked one."""
    config = harness.config("siren", **{"bonus.sample_weight": {"name": "difficulty_linear"}})
    twice = [NOW[1], NOW[1]]
    anchor = anchor_of(config, sequences(twice, [0.0, 0.25]))
    assert anchor == pytest.approx(math.log(5), rel=1e-7)
    for accuracy in ([0.0, 0.25], [0.5, 0.75], [0.25, 1.0]):
        assert run(config, sequences(twice, accuracy), anchor).loss == pytest.approx(0.0, abs=1e-15)
    for accuracy, counted in (([0.5, 0.0, 0.0], [0.5, 1.0, 1.0]), ([0.25, 1.0, 0.5], [0.75, 0.0, 0.5])):
        expected = COEFFICIENT * (aggregate(NOW, counted) - math.log(2)) ** 2
        assert run(config, sequences(NOW, accuracy), math.log(2)).loss == pytest.approx(expected, rel=1e-6)
    solved = run(config, sequences(NOW, [1.0, 1.0, 1.0]), math.log(2))
    assert solved.loss == 0.0
    assert not any(gradient.any() for gradient in solved.gradients)
