"""One token with a number that is not finite leaves what is done to all others as it is."""

import math
from dataclasses import replace

import pytest
import torch

from aent_verl.methods.step import StepValues
from aent_verl.plugin.micro_batch import CHOSEN, minibatch_stats
from tests import preset_harness as harness
from tests import reference_presets
from tests.preset_harness import Sequence, shipped

pytestmark = pytest.mark.usefixtures("single_rank_group")

OFF = StepValues(step=3, total_steps=10, bonus_coefficient=0.0)


@pytest.fixture
def batch() -> list[Sequence]:
    return harness.batch()


@pytest.mark.parametrize("advantage", [math.inf, 1.0], ids=["advantage inf", "probability 0"])
def test_a_token_without_a_finite_entropy_change_leaves_steers_other_weights_alone(
    advantage: float, batch: list[Sequence]
) -> None:
    """A response token of probability 0 has a finite loss: verl clamps the ratio. Its entropy change is infinite."""
    no_clip = {"clip_ratio_low": 1e9, "clip_ratio_high": 1e9, "clip_ratio_c": 1e9}
    broken, t = list(batch), int(batch[0].mask.nonzero()[0])
    logits, advantages = batch[0].logits.clone(), batch[0].advantages.clone()
    advantages[t] = advantage
    if advantage == 1.0:
        logits[batch[0].prompt + t - 1, batch[0].tokens[batch[0].prompt + t]] = -math.inf
    broken[0] = replace(batch[0], logits=logits, advantages=advantages)
    out = list(batch)
    out[0] = replace(batch[0], mask=batch[0].mask.clone().index_fill(0, torch.tensor(t), 0.0))
    found = {}
    for name, sequences in (("broken", broken), ("out", out)):
        config = harness.config("steer", **no_clip)
        data = harness.to_verl(sequences, OFF, whole=batch)
        harness.run_stats_pass(config, sequences, data)
        found[name] = harness.run_loss(config, sequences, data)
    one, other = (found[name].metrics[0]["aent/stats/largest_change"].values[0] for name in ("broken", "out"))
    assert one == other > 0
    assert math.isfinite(found["broken"].loss) == (advantage == 1.0)
    for a, b in zip(found["broken"].gradients[1:], found["out"].gradients[1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-15)


def test_a_prompt_of_nan_probability_leaves_progrpos_response_alone(batch: list[Sequence]) -> None:
    i = next(i for i, s in enumerate(batch) if 0 < s.accuracy < 1 and s.prompt > 1 and s.mask.any())
    logits = batch[i].logits.clone()
    logits[0] = math.nan
    broken = [replace(s, logits=logits) if s is batch[i] else s for s in batch]
    one, other = (harness.run(shipped("progrpo"), each, OFF) for each in (broken, batch))
    plain = harness.run(shipped("clip_higher"), batch, OFF)
    assert math.isfinite(one.loss)
    for j, (a, b) in enumerate(zip(one.gradients, (plain if j == i else other for j in range(12)), strict=True)):
        assert torch.equal(a, b.gradients[j])


@pytest.mark.parametrize("what", ["log-prob nan", "log-prob -inf", "advantage nan", "advantage inf"])
@pytest.mark.parametrize("preset", ["clip_cov", "kl_cov"])
def test_a_token_that_is_not_finite_leaves_the_choice_among_the_others_alone(preset: str, what: str) -> None:
    """As if it stood outside the response: it is in no mean, and not chosen."""
    batch, out = harness.batch(), harness.batch()
    first = next(i for i, s in enumerate(batch) if s.mask[0])
    s, value = batch[first], float(what.split()[1])
    if what.startswith("advantage"):
        s.advantages[0] = value
    else:
        s.logits[s.prompt - 1, s.tokens[s.prompt]] = value
    out[first].mask[0] = 0.0
    found = []
    for each in (batch, out):
        data = harness.to_verl(each, OFF)
        harness.run_stats_pass(shipped(preset), each, data)
        found.append((minibatch_stats(data).report, [row.tolist() for row in data[CHOSEN].unbind()]))
    assert found[0] == found[1]
    assert found[0][0]["chosen_tokens"] > 0


def test_clip_cov_drops_no_token_whose_old_log_prob_is_nan() -> None:
    """Its loss is NaN; dropped it would be 0, and the error would go unseen."""
    batch = harness.batch()
    _, dropped = reference_presets.dropped_by_clip_cov(reference_presets.responses(batch, [s.logits for s in batch]))
    where = [(i, t) for i, s in enumerate(batch) for t in s.mask.nonzero().flatten().tolist()]
    i, t = where[dropped.index(True)]
    batch[i].old_log_probs[t] = math.nan
    assert math.isnan(harness.run(shipped("clip_cov"), batch, OFF).loss)
