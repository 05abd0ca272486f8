"""The choices on the axes of entropy control, as validated settings that know how to apply themselves.

Each is a small frozen dataclass around one pure function of `core`; its fields are the keys of its block of settings,
and the tables at the end give the names. A class from elsewhere, named by its path ``package.module:Class``, is on
equal terms: it derives from the first class of its axis here, `BonusForm`, `TokenMask`, `SampleWeight` or `Shaping`, or
from `core.controllers.Controller`; its class variables, and which methods it overrides, say what it needs of a batch.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from aent_verl._util import number
from aent_verl.core import advantages, bonus
from aent_verl.methods.micro_batch import MicroBatch
from aent_verl.methods.step import MiniBatchStats, Ranks, StepValues

# Masks tokens and weighs samples: [B, T] -> [B, T].
Weigh = Callable[[Tensor], Tensor]


class BonusForm(ABC):
    """How the entropies of the tokens become a loss term."""

    needs_accuracy: ClassVar[bool] = False
    # Whether it reads `MicroBatch.hidden_states`.
    needs_hidden_states: ClassVar[bool] = False
    # Whether it ties the average entropy of the mini-batch to the initial one. The average is then over the tokens of
    # the mask, else over all response tokens.
    anchored: ClassVar[bool] = False

    @abstractmethod
    def term(self, batch: MicroBatch, weigh: Weigh, step: StepValues, stats: MiniBatchStats) -> Tensor:
        """Compute the loss per token, ``[B, T]``, which the caller aggregates over `BonusConfig.averaged_tokens`.

        Args:
            batch: with the configured functional as ``entropy``.
            weigh: applies token mask and sample weights.
            step: the driver's values.
            stats: what was measured of the mini-batch.
        """


@dataclass(frozen=True)
class Linear(BonusForm):
    """``-lambda * H`` (AEnt, and the plain entropy bonus)."""

    def term(self, batch: MicroBatch, weigh: Weigh, step: StepValues, stats: MiniBatchStats) -> Tensor:
        """See `core.bonus.linear`."""
        return bonus.linear(weigh(batch.entropy), step.bonus_coefficient)


@dataclass(frozen=True)
class Anchored(BonusForm):
    """``lambda * (mean(H) - H_0)^2``, ``H_0`` being that weighted mean before the first update (SIREN)."""

    anchored: ClassVar[bool] = True

    def term(self, batch: MicroBatch, weigh: Weigh, step: StepValues, stats: MiniBatchStats) -> Tensor:
        """See `core.bonus.anchored`; 0 if no token of the mini-batch takes part."""
        if stats.aggregate is None:
            return weigh(batch.entropy) * 0.0
        if step.initial_entropy is None:
            raise RuntimeError("this batch carries no initial entropy: the driver runs another version of aent_verl")
        term = bonus.anchored(
            batch.entropy, step.bonus_coefficient, aggregate=stats.aggregate, target=step.initial_entropy
        )
        return weigh(term) / stats.share


@dataclass(frozen=True, kw_only=True)
class Smoothed(BonusForm):
    """``-lambda * (H - beta_k * amount by which H leaves [low, high] * mean past entropy)`` (EPO)."""

    low: float
    high: float
    gamma: float

    def __post_init__(self) -> None:
        number("low", self.low, lambda x: x >= 0, allowed=">= 0")
        number("high", self.high, lambda x: x >= self.low, allowed=f">= low={self.low!r}")
        number("gamma", self.gamma, lambda x: x >= 0, allowed=">= 0")

    def term(self, batch: MicroBatch, weigh: Weigh, step: StepValues, stats: MiniBatchStats) -> Tensor:
        """See `core.bonus.smoothed`."""
        beta = bonus.smoothing_weight(step.step - 1, step.total_steps, gamma=self.gamma)
        return weigh(
            bonus.smoothed(
                batch.entropy, step.bonus_coefficient, mean=step.entropy_mean, low=self.low, high=self.high, beta=beta
            )
        )


class TokenMask(ABC):
    """Which response tokens take part in the bonus."""

    @abstractmethod
    def tokens(self, entropy: Tensor, mask: Tensor) -> Tensor | None:
        """Mark them, Boolean ``[B, T]``, by entropy (nats) and response mask; None: all."""


@dataclass(frozen=True)
class AllTokens(TokenMask):
    """Every response token takes part in the bonus."""

    def tokens(self, entropy: Tensor, mask: Tensor) -> Tensor | None:
        """Return None: all."""
        return None


@dataclass(frozen=True, kw_only=True)
class PeakTokens(TokenMask):
    """Tokens above the ``quantile`` of their own response (SIREN)."""

    quantile: float

    def __post_init__(self) -> None:
        number("quantile", self.quantile, lambda x: 0 <= x < 1, allowed="in [0, 1)")

    def tokens(self, entropy: Tensor, mask: Tensor) -> Tensor | None:
        """See `core.bonus.peak_mask`."""
        return bonus.peak_mask(entropy.detach(), mask, self.quantile)


class SampleWeight(ABC):
    """How much each sample counts in the bonus."""

    needs_accuracy: ClassVar[bool] = False

    @abstractmethod
    def weight(self, accuracy: Callable[[], Tensor]) -> Tensor | None:
        """Compute weights ``[B]`` >= 0; ``accuracy`` is called for the groups' accuracies ``[B]``. None: 1 for all."""


@dataclass(frozen=True)
class Uniform(SampleWeight):
    """Every sample counts the same."""

    def weight(self, accuracy: Callable[[], Tensor]) -> Tensor | None:
        """Return None: 1 for all."""
        return None


@dataclass(frozen=True)
class LinearDifficulty(SampleWeight):
    """``1 - accuracy`` of the sample's group (AER, reconstructed)."""

    needs_accuracy: ClassVar[bool] = True

    def weight(self, accuracy: Callable[[], Tensor]) -> Tensor | None:
        """See `core.bonus.linear_difficulty`."""
        return bonus.linear_difficulty(accuracy())


@dataclass(frozen=True, kw_only=True)
class ThresholdDifficulty(SampleWeight):
    """1 for groups of at most the accuracy ``threshold``, else 0 (AER, reconstructed)."""

    threshold: float
    needs_accuracy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("threshold", self.threshold, lambda x: 0 <= x <= 1, allowed="in [0, 1]")

    def weight(self, accuracy: Callable[[], Tensor]) -> Tensor | None:
        """See `core.bonus.threshold_difficulty`."""
        return bonus.threshold_difficulty(accuracy(), threshold=self.threshold)


class Shaping(ABC):
    """How advantages are changed before the policy loss."""

    # A factor >= 0 on the advantage: right only for losses that are positively homogeneous in it.
    is_weight: ClassVar[bool] = False
    needs_accuracy: ClassVar[bool] = False
    # Whether it reads `MicroBatch.hidden_states`.
    needs_hidden_states: ClassVar[bool] = False
    # Whether `advantages.controller` moves it, where that coefficient must stay, and where it changes nothing.
    has_coefficient: ClassVar[bool] = False
    coefficient_range: ClassVar[tuple[float, float]] = (-math.inf, math.inf)
    neutral_coefficient: ClassVar[float | None] = None

    @abstractmethod
    def shape(self, batch: MicroBatch, step: StepValues, stats: MiniBatchStats) -> Tensor:
        """Compute shaped advantages, ``[B, T]``, without gradient."""

    def minibatch_stats(self, batch: MicroBatch, ranks: Ranks) -> Mapping[str, float]:
        """Measure a mini-batch before the first update that it is used for, without gradient.

        Where a class overrides this, the model runs once more over each mini-batch. `shape` finds the result in
        ``stats.shaping``, equal for all micro-batches and ranks, and the trackers as ``aent/<name>``.

        Args:
            batch: this rank's part of the mini-batch.
            ranks: reduces over all of them, so that each returns the same numbers.
        """
        return {}


@dataclass(frozen=True)
class Unchanged(Shaping):
    """The advantages as verl computed them."""

    def shape(self, batch: MicroBatch, step: StepValues, stats: MiniBatchStats) -> Tensor:
        """Return the same tensor."""
        return batch.advantages


@dataclass(frozen=True)
class PositiveReweight(Shaping):
    """Positive advantages times mu, which `advantages.controller` moves (PAR)."""

    is_weight: ClassVar[bool] = True
    has_coefficient: ClassVar[bool] = True
    coefficient_range: ClassVar[tuple[float, float]] = (0.0, 1.0)
    neutral_coefficient: ClassVar[float | None] = 1.0

    def shape(self, batch: MicroBatch, step: StepValues, stats: MiniBatchStats) -> Tensor:
        """See `core.advantages.positive_reweight`."""
        return advantages.positive_reweight(batch.advantages, step.advantages_coefficient)


@dataclass(frozen=True)
class RepoR(Shaping):
    """Advantages times a weight by the token's log-prob, which `advantages.controller` moves (REPO-R)."""

    is_weight: ClassVar[bool] = True
    has_coefficient: ClassVar[bool] = True
    neutral_coefficient: ClassVar[float | None] = 0.0

    def shape(self, batch: MicroBatch, step: StepValues, stats: MiniBatchStats) -> Tensor:
        """See `core.advantages.repo_r`."""
        return advantages.repo_r(batch.advantages, batch.log_prob, step.advantages_coefficient)


@dataclass(frozen=True, kw_only=True)
class Steer(Shaping):
    """Less weight for tokens that change the entropy most; the largest change is that of the mini-batch (STEER)."""

    w_min: float
    floor: float
    is_weight: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("w_min", self.w_min, lambda x: 0 < x <= 1, allowed="in (0, 1]")
        number("floor", self.floor, lambda x: x > 0, allowed="> 0")

    def minibatch_stats(self, batch: MicroBatch, ranks: Ranks) -> Mapping[str, float]:
        """Find the largest absolute entropy change."""
        return {"largest_change": float(ranks.max(self._change(batch).abs().amax()))}

    def _change(self, batch: MicroBatch) -> Tensor:
        return advantages.steer_change(
            batch.log_prob, batch.old_log_prob, batch.advantages, batch.entropy_full, batch.mask
        )

    def shape(self, batch: MicroBatch, step: StepValues, stats: MiniBatchStats) -> Tensor:
        """Multiply advantages by `core.advantages.steer_weight`."""
        largest = stats.shaping["largest_change"]
        weight = advantages.steer_weight(self._change(batch), largest=largest, w_min=self.w_min, floor=self.floor)
        return batch.advantages * weight


@dataclass(frozen=True, kw_only=True)
class EntropyAdvantage(Shaping):
    """Advantages plus a share of the full entropy, bounded by the advantage itself."""

    scale: float
    kappa: float

    def __post_init__(self) -> None:
        number("scale", self.scale, lambda x: x >= 0, allowed=">= 0")
        number("kappa", self.kappa, lambda x: x > 0, allowed="> 0")

    def shape(self, batch: MicroBatch, step: StepValues, stats: MiniBatchStats) -> Tensor:
        """See `core.advantages.entropy_advantage`."""
        return advantages.entropy_advantage(
            batch.advantages, batch.entropy_full, batch.mask, scale=self.scale, kappa=self.kappa
        )


@dataclass(frozen=True, kw_only=True)
class ProGRPO(Shaping):
    """Advantages plus the excess of the prompt's confidence over the response's, in groups of mixed outcome (ARM).

    A group is mixed if its accuracy is neither 0 nor 1.
    """

    scale: float
    share: float
    needs_accuracy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        number("scale", self.scale, lambda x: x >= 0, allowed=">= 0")
        number("share", self.share, lambda x: 0 < x <= 1, allowed="in (0, 1]")

    def shape(self, batch: MicroBatch, step: StepValues, stats: MiniBatchStats) -> Tensor:
        """See `core.advantages.progrpo`."""
        accuracy = batch.accuracy
        return advantages.progrpo(
            batch.advantages,
            response_confidence=advantages.confidence(batch.log_prob, batch.mask, share=self.share),
            prompt_confidence=advantages.confidence(*batch.prompt_log_probs(), share=self.share),
            mixed=(accuracy > 0) & (accuracy < 1),
            scale=self.scale,
        )


BONUSES: dict[str, type[Any]] = {"linear": Linear, "anchored": Anchored, "smoothed": Smoothed}
TOKEN_MASKS: dict[str, type[Any]] = {"all": AllTokens, "peak": PeakTokens}
SAMPLE_WEIGHTS: dict[str, type[Any]] = {
    "uniform": Uniform,
    "difficulty_linear": LinearDifficulty,
    "difficulty_threshold": ThresholdDifficulty,
}
ADVANTAGES: dict[str, type[Any]] = {
    "none": Unchanged,
    "positive_reweight": PositiveReweight,
    "repo_r": RepoR,
    "steer": Steer,
    "entropy_adv": EntropyAdvantage,
    "progrpo": ProGRPO,
}
