"""The `entropy_control` block as typed objects, and the names of what it can choose."""

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from aent_verl.core import bonus, controllers
from aent_verl.core.backends import Kernel
from aent_verl.core.controllers import ConstantController, Controller
from aent_verl.core.custom import Functional
from aent_verl.core.selection import Selector
from aent_verl.methods import axes
from aent_verl.methods.micro_batch import MicroBatch
from aent_verl.methods.rewards import REWARDS, AsGiven, RewardShaping

ROOT = "entropy_control"
FUNCTIONALS = ("full", "clamped", "nucleus")
BONUS_CONTROLLERS: dict[str, type[Controller]] = {
    "constant": controllers.ConstantController,
    "band": controllers.BandController,
    "step_to_target": controllers.StepToTargetController,
    "anchored_target": controllers.AnchoredTargetController,
    "linear_decay": controllers.LinearDecayController,
}
ADVANTAGES_CONTROLLERS: dict[str, type[Controller]] = {
    "constant": controllers.ConstantController,
    "linear_decay": controllers.LinearDecayController,
    "stage": controllers.StageController,
    "epoch": controllers.EpochController,
    "entropy_guided": controllers.EntropyGuidedController,
    "doubling": controllers.DoublingController,
}
# By the block that chooses: our choices by name, and what a class from elsewhere derives from.
CHOICES: dict[str, tuple[Mapping[str, type[Any]], type[Any]]] = {
    f"{ROOT}.bonus": (axes.BONUSES, axes.BonusForm),
    f"{ROOT}.bonus.token_mask": (axes.TOKEN_MASKS, axes.TokenMask),
    f"{ROOT}.bonus.sample_weight": (axes.SAMPLE_WEIGHTS, axes.SampleWeight),
    f"{ROOT}.bonus.controller": (BONUS_CONTROLLERS, Controller),
    f"{ROOT}.advantages": (axes.ADVANTAGES, axes.Shaping),
    f"{ROOT}.advantages.controller": (ADVANTAGES_CONTROLLERS, Controller),
    f"{ROOT}.rewards": (REWARDS, RewardShaping),
}
NO_SHAPING = ConstantController(init=1.0)
ALL_TOKENS, UNIFORM, AS_GIVEN = axes.AllTokens(), axes.Uniform(), AsGiven()


def name_in(table: Mapping[str, type[Any]], choice: Any) -> str:
    """Find the name of the class of ``choice`` in ``table``; of one from elsewhere, its ``package.module:Class``."""
    kind = type(choice)
    return next((name for name, ours in table.items() if kind is ours), f"{kind.__module__}:{kind.__qualname__}")


@dataclass(frozen=True)
class FunctionalConfig:
    """``full``; ``clamped`` without the share ``clamp_p`` of lowest logits; ``nucleus`` of mass ``top_p``.

    Any other ``name`` is a path ``package.module:name``: of a differentiable function of logits ``[N, V] -> [N]``,
    called with ``given`` as keyword arguments; or of a `core.selection.Selector`, whose settings they are, for the
    fused op.
    """

    name: str
    clamp_p: float | None = None
    top_p: float | None = None
    given: tuple[tuple[str, Any], ...] = ()

    @property
    def function(self) -> Functional | None:
        """The function from elsewhere with its arguments, or None where the fused op computes the functional.

        Raises:
            ValueError: it cannot be imported, is no function or selector, or does not take these arguments.
        """
        found = self._from_elsewhere()
        return None if isinstance(found, Selector) else found

    def arguments(self) -> dict[str, Any]:
        """Return the arguments with which `core.fused` computes it."""
        found = self._from_elsewhere()
        return {"functional": self.name if found is None else found, "clamp_p": self.clamp_p, "top_p": self.top_p}

    def _from_elsewhere(self) -> Functional | Selector | None:
        if ":" not in self.name:
            return None
        module, _, name = self.name.partition(":")
        arguments = dict(self.given)
        try:
            found: Any = getattr(importlib.import_module(module), name)
            if isinstance(found, type) and issubclass(found, Selector):
                return found(**arguments)
            inspect.signature(found).bind(None, **arguments)
        except (ImportError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{ROOT}.functional.name={self.name!r} is not allowed with arguments {arguments}: {error}; it must be "
                "the path package.module:name of a function of logits [N, V], or of a class derived from Selector (in "
                "aent_verl.core.selection), importable on every node"
            ) from None
        return partial(found, **arguments)

    def __str__(self) -> str:
        own = [f"{key}={value:g}" for key in ("clamp_p", "top_p") if (value := getattr(self, key)) is not None]
        given = own + [f"{key}={value}" for key, value in self.given]
        return f"{self.name}({', '.join(given)})" if given else self.name


@dataclass(frozen=True)
class BonusConfig:
    """How per-token entropies become a loss term.

    Attributes:
        form: the loss term of a token.
        controller: moves its coefficient.
        token_mask: which tokens take part in it.
        sample_weight: how much each sample counts.
        loss_agg_mode: how the term is aggregated; None: as the policy loss is.
    """

    form: axes.BonusForm
    controller: Controller
    token_mask: axes.TokenMask = ALL_TOKENS
    sample_weight: axes.SampleWeight = UNIFORM
    loss_agg_mode: str | None = None

    @property
    def form_name(self) -> str:
        """The form's name in the config."""
        return name_in(axes.BONUSES, self.form)

    def weights(
        self, entropy: Tensor, mask: Tensor, accuracy: Callable[[], Any]
    ) -> tuple[Tensor | None, Tensor | None]:
        """Find tokens that take part, Boolean ``[B, T]``, and weights of samples, ``[B]``; None where all are equal.

        ``accuracy`` is called for the groups' accuracies ``[B]`` if they are needed.
        """
        return self.token_mask.tokens(entropy, mask), self.sample_weight.weight(accuracy)

    def averaged_tokens(self, entropy: Tensor, mask: Tensor) -> Tensor:
        """Mark the tokens that the term is averaged over, ``[B, T]``: of the mask if anchored, else of the response."""
        return bonus.averaged_tokens(
            entropy, mask, self.token_mask.tokens(entropy, mask) if self.form.anchored else None
        )

    def weigh(self, batch: MicroBatch) -> axes.Weigh:
        """Make the function that masks and weighs a per-token term ``[B, T]`` of this batch."""
        tokens, weight = self.weights(batch.entropy, batch.mask, lambda: batch.accuracy)
        return lambda term: bonus.weighted(term, batch.mask, tokens, weight)


@dataclass(frozen=True)
class AdvantagesConfig:
    """How advantages are changed before the policy loss, and the controller of that coefficient."""

    shaping: axes.Shaping
    controller: Controller = NO_SHAPING

    @property
    def measures_minibatch(self) -> bool:
        """Whether the shaping must see each mini-batch before the first update that it is used for."""
        return type(self.shaping).minibatch_stats is not axes.Shaping.minibatch_stats


@dataclass(frozen=True)
class EntropyControlConfig:
    """One choice on each axis, and what the run does with it.

    Attributes:
        method: the preset's name, for logs and banner.
        functional: the entropy that is measured, rewarded and handed to the bonus's controller.
        bonus: the entropy term of the loss, and its controller.
        advantages: what is done to advantages, and its controller.
        rewards: what is done to rewards before.
        kernel: what computes log-probs and entropies: ``auto``, ``triton`` or ``torch``.
        restart_controller: on resume, restart the controllers instead of reading their saved state.
        live_changes: whether `aent-verl set` may change the controllers of the running job.
        token_dump: how many responses per step are written out token by token.
        token_dump_dir: where to.
    """

    method: str
    functional: FunctionalConfig
    bonus: BonusConfig
    advantages: AdvantagesConfig = AdvantagesConfig(axes.Unchanged())
    rewards: RewardShaping = AS_GIVEN
    kernel: Kernel = "auto"
    restart_controller: bool = False
    live_changes: bool = True
    token_dump: int = 0
    token_dump_dir: str | None = None

    def check_coefficient(self, axis: str, value: float) -> None:
        """Check a coefficient that a controller of ``axis`` gave: those from elsewhere may give any.

        Raises:
            ValueError: it is not finite, or outside the range of the shaping's coefficient.
        """
        low, high = self.advantages.shaping.coefficient_range if axis == "advantages" else (-math.inf, math.inf)
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(
                f"{ROOT}.{axis}.controller.name={self.controller_names[axis]} gave the coefficient {value!r}: it must "
                f"be finite and in [{low:g}, {high:g}]; correct that controller's update, then resume"
            )

    @property
    def controllers(self) -> dict[str, Controller]:
        """The controllers by the axis whose coefficient they move."""
        return {"bonus": self.bonus.controller, "advantages": self.advantages.controller}

    @property
    def controller_names(self) -> dict[str, str]:
        """Their names in the config and in the state file."""
        tables = {axis: CHOICES[f"{ROOT}.{axis}.controller"][0] for axis in self.controllers}
        return {axis: name_in(tables[axis], controller) for axis, controller in self.controllers.items()}

    @property
    def shapes_rewards(self) -> bool:
        """Whether rewards are changed at all."""
        return self.rewards != AS_GIVEN

    @property
    def rewards_name(self) -> str:
        """The name of what changes them, in the config and in the state file."""
        return name_in(REWARDS, self.rewards)

    @property
    def needs_initial_entropy(self) -> bool:
        """Whether the entropy before the first update must be measured."""
        return self.bonus.form.anchored or any(each.needs_initial_entropy for each in self.controllers.values())

    @property
    def needs_accuracy(self) -> bool:
        """Whether the batch must carry the groups' accuracies."""
        choices = (self.bonus.form, self.bonus.sample_weight, self.advantages.shaping)
        return any(choice.needs_accuracy for choice in choices)

    @property
    def needs_hidden_states(self) -> bool:
        """Whether the engine must return the last hidden states."""
        return self.bonus.form.needs_hidden_states or self.advantages.shaping.needs_hidden_states

    @property
    def anchor(self) -> dict[str, Any] | None:
        """What an anchored bonus is tied to, as settings: equal where two runs measure the same. None without one."""
        if not self.bonus.form.anchored:
            return None
        tokens, weight = self.bonus.token_mask, self.bonus.sample_weight
        return {
            "functional": str(self.functional),
            "loss_agg_mode": self.bonus.loss_agg_mode,
            "token_mask": {"name": name_in(axes.TOKEN_MASKS, tokens), **vars(tokens)},
            "sample_weight": {"name": name_in(axes.SAMPLE_WEIGHTS, weight), **vars(weight)},
        }
