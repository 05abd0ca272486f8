"""NaN at tokens outside the response mask: in no preset and no aggregation does it reach loss or gradient."""

import math
from dataclasses import replace

import pytest
import torch

from aent_verl.methods.step import StepValues
from tests import preset_harness as harness
from tests.preset_harness import COMBINED, Sequence, stock

pytestmark = pytest.mark.usefixtures("single_rank_group")

ON = StepValues(
    step=3, total_steps=10, bonus_coefficient=0.3, advantages_coefficient=0.3, initial_entropy=1.1, entropy_mean=0.6
)
OFF = replace(ON, bonus_coefficient=0.0)
PARTS = [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]
# Every policy loss of ours, every shaping, each kind of statistics, and a loss of verl's that averages over responses.
TOUCHED = ("grpo", "clip_cov", "kl_cov", "siren", "steer", "entropy_adv", "progrpo", "aent+gspo")
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")


@pytest.fixture(scope="module")
def batch() -> list[Sequence]:
    return harness.batch()


def spoilt(sequences: list[Sequence], *, logits: bool) -> list[Sequence]:
    """The same with NaN at each token outside the mask, in what verl's trainer computed and in the model's output."""
    result = []
    for s in sequences:
        outside = s.mask == 0
        rows = s.logits.clone()
        if logits:
            rows[s.prompt - 1 : -1][outside] = math.nan
        numbers = {key: getattr(s, key).masked_fill(outside, math.nan) for key in ("old_log_probs", "advantages")}
        result.append(replace(s, logits=rows, **numbers))
    return result


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TOUCHED)
def test_nan_outside_the_mask_leaves_no_trace(name: str, mode: str, batch: list[Sequence]) -> None:
    preset, settings = name.split("+")[0], COMBINED.get(name, {})
    config = harness.config(preset, loss_agg_mode=mode, loss_scale_factor=14, **settings)
    clean = harness.run(config, batch, ON, PARTS)
    assert math.isfinite(clean.loss)
    # In what the trainer computed alone, and in the model's output, too.
    for logits in (False, True):
        found = harness.run(config, spoilt(batch, logits=logits), ON, PARTS)
        assert found.loss == clean.loss, logits
        for s, one, other in zip(batch, found.gradients, clean.gradients, strict=True):
            assert torch.equal(one, other), (logits, s.sample)


@pytest.mark.parametrize("mode", MODES)
def test_zeros_outside_the_mask_leave_stock_as_it_is(mode: str, batch: list[Sequence]) -> None:
    """Where stock verl is finite, grpo is it to the last bit; with NaN outside the mask stock is not always finite."""
    settings = {"loss_agg_mode": mode, "loss_scale_factor": 14}
    expected = stock(batch, **settings)
    found = harness.run(harness.config("grpo", **settings), batch, OFF)
    assert found.loss == expected.loss
    for one, other in zip(found.gradients, expected.gradients, strict=True):
        assert torch.equal(one, other)
    of_nan = stock(spoilt(batch, logits=False), **settings).loss
    assert math.isnan(of_nan) == mode.startswith("seq")


@pytest.mark.parametrize("key", ["rollout_is_weights", "ref_log_prob"])
def test_nan_outside_the_mask_in_what_a_run_may_add(key: str, batch: list[Sequence]) -> None:
    settings = {"loss_agg_mode": "seq-mean-token-mean", "use_kl_loss": key == "ref_log_prob"}
    config = harness.config("aent", **settings)
    losses = []
    for filler in (0.0, math.nan):
        data = harness.to_verl(batch, ON)
        values = [s.old_log_probs.abs().masked_fill(s.mask == 0, filler) for s in batch]
        data[key] = torch.nested.as_nested_tensor(values, layout=torch.jagged)
        losses.append(harness.run_loss(config, batch, data).loss)
    assert losses[0] == losses[1]
