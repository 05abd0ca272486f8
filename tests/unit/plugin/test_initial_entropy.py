"""The entropy before the first update, as the bonus that is tied to it aggregates a mini-batch."""

import pytest
import torch

from aent_verl.core.controllers import AnchoredTargetController, ConstantController
from aent_verl.methods.axes import AllTokens, Anchored, Linear, LinearDifficulty, PeakTokens
from aent_verl.methods.settings import BonusConfig, EntropyControlConfig, FunctionalConfig
from aent_verl.plugin.minibatch_stats import initial_entropy

ENTROPY = torch.tensor([[1.0, 2.0, 3.0, 9.0], [4.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
MASK = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()


def initial(bonus: BonusConfig, accuracy: torch.Tensor | None = None, mode: str = "token-mean") -> float:
    control = EntropyControlConfig("test", FunctionalConfig("full"), bonus)
    return initial_entropy(control, ENTROPY, MASK, accuracy=accuracy, loss_agg_mode=mode, loss_scale_factor=None)


def test_a_controller_that_tracks_it_has_the_mean_over_tokens() -> None:
    tracked = BonusConfig(Linear(), AnchoredTargetController(tau=0.4, eta=0.1, max=1.0), loss_agg_mode="token-sum")
    assert initial(tracked) == (1 + 2 + 3 + 4) / 4


def test_an_anchored_bonus_has_its_own_aggregate() -> None:
    """An average of tokens that are in the loss: a sequence without any does not count."""
    mean = BonusConfig(Anchored(), ConstantController(init=1.0), loss_agg_mode="seq-mean-token-mean")
    assert initial(mean) == (2 + 4) / 2
    for mode in ("token-sum", "seq-mean-token-sum"):
        assert initial(BonusConfig(Anchored(), ConstantController(init=1.0), loss_agg_mode=mode)) == 10 / 4
    assert initial(BonusConfig(Anchored(), ConstantController(init=1.0))) == 10 / 4


def test_masked_and_weighed_as_the_bonus_is() -> None:
    weighed = BonusConfig(
        Anchored(), ConstantController(init=1.0), PeakTokens(quantile=0.5), LinearDifficulty(), "token-mean"
    )
    # Of the first response one token is a peak, 3; the second has one token only, which is above no other. The weight
    # of the only one that counts does not change the average.
    assert initial(weighed, accuracy=torch.tensor([0.75, 0.0, 0.0])) == 3
    every = BonusConfig(Anchored(), ConstantController(init=1.0), sample_weight=LinearDifficulty())
    weights = torch.tensor([0.75, 0.0, 0.0])
    assert initial(every, weights) == (0.25 * (1 + 2 + 3) + 4) / (0.25 * 3 + 1)
    assert initial(every, weights, "seq-mean-token-mean") == pytest.approx((0.25 * 2 + 4) / 1.25, rel=1e-7)


def test_without_a_token_in_the_bonus_there_is_nothing_to_hold() -> None:
    none = {"quantile of .9": (PeakTokens(quantile=0.9), ENTROPY * 0), "solved": (AllTokens(), ENTROPY)}
    for mask, entropy in none.values():
        bonus = BonusConfig(Anchored(), ConstantController(init=1.0), mask, LinearDifficulty(), "seq-mean-token-mean")
        control = EntropyControlConfig("test", FunctionalConfig("nucleus", top_p=0.8), bonus)
        with pytest.raises(ValueError, match=r"has no initial entropy to hold: of the 4 .*raise .*functional\.top_p"):
            initial_entropy(
                control, entropy, MASK, accuracy=torch.ones(3), loss_agg_mode="token-mean", loss_scale_factor=None
            )
