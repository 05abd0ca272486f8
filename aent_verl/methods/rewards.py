"""How rewards are changed before they become advantages: on the driver, from a pass over the step's responses.

A class from elsewhere derives from `RewardShaping`, as the choices on the other axes do (`axes`).
"""

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from aent_verl._util import number, whole_number
from aent_verl.core import rewards
from aent_verl.core.controllers import SavedState


@dataclass(frozen=True, kw_only=True)
class Responses:
    """The responses of a step, as their old log-probs were computed: ``R`` of at most ``T`` tokens, in ``G`` groups.

    Attributes:
        reward: what the reward function gave each, ``[R]``.
        mask: response tokens that take part in the loss, ``[R, T]``; other values are meaningless.
        tokens: their ids, ``[R, T]``.
        entropy: the configured functional, nats, ``[R, T]``.
        group: index of each one's prompt, int64 ``[R]`` in ``[0, G)``.
        text: text of the token with an id.
        accuracy: of each, in ``[0, 1]``, ``[R]``; None unless the shaping has ``needs_accuracy``.
    """

    reward: Tensor
    mask: Tensor
    tokens: Tensor
    entropy: Tensor
    group: Tensor
    text: Callable[[int], str]
    accuracy: Tensor | None = None

    def group_mean(self, values: Tensor) -> Tensor:
        """Average ``values`` over each group; ``[R] -> [G]``."""
        total = torch.zeros(int(self.group.max()) + 1, 2, dtype=torch.float64)
        total.index_add_(
            0, self.group, torch.stack([values.double(), torch.ones_like(values, dtype=torch.float64)], -1)
        )
        return total[:, 0] / total[:, 1]


class RewardShaping(ABC):
    """How rewards are changed before they become advantages. Its state is saved in each checkpoint and resumed."""

    # Whether it reads `Responses.accuracy`.
    needs_accuracy: ClassVar[bool] = False
    state_class: ClassVar[type[SavedState]] = SavedState

    def initial_state(self) -> SavedState:
        """Return what the shaping remembers before the first step."""
        return self.state_class()

    @abstractmethod
    def shape(self, responses: Responses, state: Any) -> tuple[Tensor, Any]:
        """Compute the rewards ``[R]`` of a step, and the state after it."""

    def metrics(self, state: Any) -> dict[str, float]:
        """Return what to log of the state after a step, by name."""
        return {}


@dataclass(frozen=True)
class AsGiven(RewardShaping):
    """The rewards of the reward function."""

    def shape(self, responses: Responses, state: Any) -> tuple[Tensor, Any]:
        """Return the same tensor."""
        return responses.reward, state


@dataclass(frozen=True)
class AresState(SavedState):
    """What AEPO remembers.

    Attributes:
        threshold: the entropy, in nats, from which a window is high; None before the first step.
        alpha_easy: largest change of the reward for an easy prompt.
        alpha_medium: the same for a medium one.
        alpha_hard: for a hard one, where the largest change is a fifth more.
        deliberations: how often a response deliberated in the last step, on average.
    """

    threshold: float | None = None
    alpha_easy: float = 0.0
    alpha_medium: float = 0.0
    alpha_hard: float = 0.0
    deliberations: float = 0.0

    @property
    def alphas(self) -> tuple[float, float, float]:
        """Of all difficulties."""
        return self.alpha_easy, self.alpha_medium, self.alpha_hard


@dataclass(frozen=True, kw_only=True)
class Ares(RewardShaping):
    """More or less reward for deliberation, by the prompt's difficulty (AEPO of ARES)."""

    window: int
    quantile: float
    decay: float
    init: float
    lr: float
    max: float
    trigger_words: Collection[str] | None = None
    needs_accuracy: ClassVar[bool] = True
    state_class: ClassVar[type[SavedState]] = AresState

    def __post_init__(self) -> None:
        whole_number("window", self.window, lowest=1)
        number("quantile", self.quantile, lambda x: 0 <= x <= 1, allowed="in [0, 1]")
        number("decay", self.decay, lambda x: 0 <= x <= 1, allowed="in [0, 1]")
        number("max", self.max, lambda x: x > 0, allowed="> 0")
        number("init", self.init, lambda x: 0 <= x <= self.max, allowed=f"in [0, max={self.max!r}]")
        number("lr", self.lr, lambda x: x >= 0, allowed=">= 0")
        words = self.trigger_words
        if words is not None:
            if isinstance(words, str) or not words or not all(isinstance(word, str) for word in words):
                raise ValueError(f"trigger_words={words!r} is not allowed: must be null, or a list of words")
            object.__setattr__(self, "trigger_words", tuple(map(_plain, words)))

    def initial_state(self) -> AresState:
        """Return the state before the first step."""
        return AresState(None, self.init, self.init, self.init)

    def shape(self, responses: Responses, state: AresState) -> tuple[Tensor, AresState]:
        """Add `core.rewards.aepo` to the rewards; the threshold is that of the step before."""
        assert responses.accuracy is not None
        windows = rewards.window_entropy(responses.entropy, responses.mask, self.window)
        high = rewards.typical_high(windows, self.quantile)
        before = high if state.threshold is None else state.threshold
        deliberates = (windows >= (torch.inf if before is None else before)) & self._triggers(responses)
        count = deliberates.sum(-1)

        of_group, level = responses.group_mean(count), rewards.difficulty(responses.group_mean(responses.accuracy))
        alphas, targets = list(state.alphas), [0.0, 0.0, 0.0]
        for which in level.unique().tolist():
            mean = float(of_group[level == which].mean())
            targets[which] = float(round(mean))
            surplus = mean - targets[which] if which != rewards.HARD else targets[which] - mean
            alphas[which] = min(max(alphas[which] + self.lr * surplus, 0.0), self.max)

        mine = level[responses.group]
        table = torch.tensor([targets, alphas], dtype=torch.float64)
        added = rewards.aepo(count, table[0, mine], responses.accuracy == 1.0, mine, table[1, mine])
        after = before if high is None or before is None else self.decay * before + (1.0 - self.decay) * high
        easy, medium, hard = alphas
        return responses.reward + added, AresState(after, easy, medium, hard, float(count.double().mean()))

    def _triggers(self, responses: Responses) -> Tensor:
        """Mark the tokens, ``[R, T]``, that are trigger words; all tokens without a list."""
        if self.trigger_words is None:
            return responses.mask
        words = set(self.trigger_words)
        ids = responses.tokens[responses.mask].unique()
        found = [token for token in ids.tolist() if _plain(responses.text(token)) in words]
        return responses.mask & torch.isin(responses.tokens, torch.tensor(found, dtype=responses.tokens.dtype))

    def metrics(self, state: AresState) -> dict[str, float]:
        """Name the threshold, the alphas and the mean number of deliberations."""
        named = {name: value for name, value in dataclasses.asdict(state).items() if value is not None}
        return {f"ares_{name}": value for name, value in named.items()}


def _plain(token: str) -> str:
    """Strip a token of spaces, and of the signs that tokenizers write for one, and of capitals."""
    return re.sub(r"^[▁Ġ]+", "", token).strip().lower()


REWARDS: dict[str, type[Any]] = {"none": AsGiven, "ares": Ares}
