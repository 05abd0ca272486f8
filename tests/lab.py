"""A package as a researcher would write it, with a choice of her own on every axis, and where to put it."""

import inspect
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from aent_verl.core.selection import Boundary, Selector, boundary_at
from aent_verl.methods.axes import BonusForm, Weigh
from aent_verl.methods.micro_batch import MicroBatch
from aent_verl.methods.step import MiniBatchStats, StepValues


@dataclass(frozen=True)
class TopK(Selector):
    """The k likeliest tokens: a functional of one's own in the fused op."""

    k: int = 20

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k={self.k!r} is not allowed: must be at least 1")

    def boundary(self, z: Tensor, scale: Tensor | None, scratch: Tensor, dtype: torch.dtype) -> Boundary:
        kept = min(self.k, z.shape[-1])
        return boundary_at(z, z.topk(kept).values[:, -1:], kept, scratch)


NAME = "entropy_lab"


@dataclass(frozen=True)
class SmallStates(BonusForm):
    """lambda times the mean square of the last hidden state, which tests can compute by themselves."""

    needs_hidden_states: ClassVar[bool] = True

    def term(self, batch: MicroBatch, weigh: Weigh, step: StepValues, stats: MiniBatchStats) -> Tensor:
        return step.bonus_coefficient * weigh(batch.hidden_states.square().mean(-1))


SOURCE = '''
"""A choice on every axis of entropy control."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from aent_verl.core.controllers import Controller, ControllerState, SavedState, record
from aent_verl.core.selection import Boundary, Selector, boundary_at
from aent_verl.methods.axes import BonusForm, SampleWeight, Shaping, TokenMask
from aent_verl.methods.rewards import RewardShaping


def tsallis(logits: torch.Tensor, q: float = 2.0) -> torch.Tensor:
    """Tsallis entropy of order q."""
    return (1 - (logits.softmax(-1) ** q).sum(-1)) / (q - 1)


@dataclass(frozen=True)
class Squared(BonusForm):
    """-lambda * strength * H^2."""

    strength: float

    def __post_init__(self) -> None:
        if not self.strength > 0:
            raise ValueError(f"strength={self.strength!r} is not allowed: must be > 0")

    def term(self, batch, weigh, step, stats):
        return weigh(-step.bonus_coefficient * self.strength * batch.entropy**2)


@dataclass(frozen=True)
class Early(TokenMask):
    """The first tokens of each response."""

    tokens_kept: int = 2

    def tokens(self, entropy, mask):
        return mask & (mask.cumsum(-1) <= self.tokens_kept)


@dataclass(frozen=True)
class Mixed(SampleWeight):
    """Groups with right and wrong answers alone."""

    needs_accuracy: ClassVar[bool] = True

    def weight(self, accuracy):
        return ((accuracy() > 0) & (accuracy() < 1)).float()


@dataclass(frozen=True)
class SwingState(ControllerState):
    direction: int = 1
    last_turn: str = "none"


@dataclass(frozen=True, kw_only=True)
class Swing(Controller):
    """Up and down between 0 and a top, by one size, whatever the entropy is."""

    top: float
    size: float = 0.1
    state_class: ClassVar[type[ControllerState]] = SwingState

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.top:
            raise ValueError(f"size={self.size!r} is not allowed: must be in (0, top={self.top!r}]")

    def initial_state(self):
        return SwingState(coefficient=self.size)

    def restore(self, state):
        return replace(state, coefficient=min(state.coefficient, self.top))

    def update(self, state, *, entropy, step):
        state = record(state, entropy=entropy, step=step)
        target = state.coefficient + state.direction * self.size
        if 0 <= target <= self.top:
            return replace(state, coefficient=target)
        return replace(state, direction=-state.direction, last_turn=f"step {step}")

    def metrics(self, state):
        return {"swing_direction": float(state.direction)}


@dataclass(frozen=True, kw_only=True)
class Centred(Shaping):
    """Advantages less a share of their mean over the mini-batch."""

    share: float = 1.0
    has_coefficient: ClassVar[bool] = True
    coefficient_range: ClassVar[tuple[float, float]] = (0.0, 2.0)

    def minibatch_stats(self, batch, ranks):
        kept = batch.advantages.double().masked_fill(~batch.mask, 0.0)
        total, count = ranks.sum(torch.stack([kept.sum(), batch.mask.double().sum()])).tolist()
        return {"mean_advantage": total / max(count, 1.0)}

    def shape(self, batch, step, stats):
        return step.advantages_coefficient * (batch.advantages - self.share * stats.shaping["mean_advantage"])


@dataclass(frozen=True)
class Seen(SavedState):
    responses: int = 0


@dataclass(frozen=True, kw_only=True)
class Surprise(RewardShaping):
    """Rewards plus a share of the response's mean entropy."""

    scale: float
    state_class: ClassVar[type[SavedState]] = Seen

    def __post_init__(self) -> None:
        if not self.scale >= 0:
            raise ValueError(f"scale={self.scale!r} is not allowed: must be >= 0")

    def shape(self, responses, state):
        kept = responses.entropy.masked_fill(~responses.mask, 0.0)
        mean = kept.sum(-1) / responses.mask.sum(-1).clamp(min=1)
        return responses.reward + self.scale * mean, Seen(state.responses + len(mean))

    def metrics(self, state):
        return {"responses_seen": state.responses}
'''
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "entropy-lab"
version = "0.1"

[project.entry-points."aent_verl.presets"]
entropy_lab = "entropy_lab.presets"

[tool.setuptools]
packages = ["entropy_lab", "entropy_lab.presets"]

[tool.setuptools.package-data]
"entropy_lab.presets" = ["entropy_control/*.yaml"]
"""
PRESET = """
# @package _global_
# A choice of another package on every axis.
#   aent-verl train entropy_control=lab
defaults:
  - base
  - _self_

entropy_control:
  method: lab
  functional:
    name: entropy_lab:TopK
    arguments: {k: 5}
  bonus:
    name: entropy_lab:Squared
    strength: 0.5
    token_mask: {name: "entropy_lab:Early", tokens_kept: 2}
    sample_weight: {name: "entropy_lab:Mixed"}
    controller: {name: "entropy_lab:Swing", top: 0.35, size: 0.1, init: null}
  advantages:
    name: entropy_lab:Centred
    share: 0.5
    controller: {name: "entropy_lab:Swing", top: 1.0, size: 0.25, init: null}
  rewards: {name: "entropy_lab:Surprise", scale: 0.5}
"""


def write(folder: Path) -> Path:
    """Write the package's project into ``folder``."""
    presets = folder / NAME / "presets"
    (presets / "entropy_control").mkdir(parents=True)
    source = textwrap.dedent(SOURCE).lstrip() + "\n\n" + inspect.getsource(TopK)
    (folder / NAME / "__init__.py").write_text(source)
    (presets / "__init__.py").touch()
    (presets / "entropy_control" / "lab.yaml").write_text(PRESET.lstrip())
    (folder / "pyproject.toml").write_text(PROJECT.lstrip())
    return folder
