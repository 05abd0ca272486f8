"""The `entropy_control` block as typed, validated objects, and the actor config that carries it to the workers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss
from verl.workers.config import FSDPActorConfig

from aent_verl import _util
from aent_verl.core import bonus
from aent_verl.core.backends import KERNELS, Kernel
from aent_verl.core.controllers import (
    AnchoredTargetController,
    BandController,
    ConstantController,
    Controller,
    EntropyGuidedController,
    EpochController,
    LinearDecayController,
    StageController,
    StepToTargetController,
)
from aent_verl.methods import blocks
from aent_verl.methods.axes import (
    ADVANTAGES,
    BONUSES,
    SAMPLE_WEIGHTS,
    TOKEN_MASKS,
    AllTokens,
    BonusForm,
    LinearDifficulty,
    PeakTokens,
    Shaping,
    ThresholdDifficulty,
    Unchanged,
    Uniform,
)
from aent_verl.methods.combinations import LOSS_AGG_MODES, check_actor, check_combination, check_host
from aent_verl.methods.functional import FunctionalConfig
from aent_verl.plugin import guard
from aent_verl.plugin.micro_batch import MicroBatch

ROOT = "entropy_control"
BONUS_CONTROLLERS: dict[str, type[Controller]] = {
    "constant": ConstantController,
    "band": BandController,
    "step_to_target": StepToTargetController,
    "anchored_target": AnchoredTargetController,
    "linear_decay": LinearDecayController,
}
ADVANTAGES_CONTROLLERS: dict[str, type[Controller]] = {
    "constant": ConstantController,
    "linear_decay": LinearDecayController,
    "stage": StageController,
    "epoch": EpochController,
    "entropy_guided": EntropyGuidedController,
}
NO_SHAPING = ConstantController(init=1.0)
ALL_TOKENS, UNIFORM = AllTokens(), Uniform()


@dataclass(frozen=True)
class BonusConfig:
    """How per-token entropies become a loss term.

    Attributes:
        form: the loss term of a token.
        controller: moves its coefficient.
        token_mask: which tokens have a part in it.
        sample_weight: how much each sample counts.
        loss_agg_mode: how the term is aggregated; None: as the policy loss is.
    """

    form: BonusForm
    controller: Controller
    token_mask: AllTokens | PeakTokens = ALL_TOKENS
    sample_weight: Uniform | LinearDifficulty | ThresholdDifficulty = UNIFORM
    loss_agg_mode: str | None = None

    @classmethod
    def parse(cls, block: Any, key: str) -> "BonusConfig":
        """Build from the block at ``key``; ``ValueError`` names key, value and allowed range."""
        parts = ("token_mask", "sample_weight", "loss_agg_mode", "controller")
        mode = block.get("loss_agg_mode") if isinstance(block, Mapping) else None
        return cls(
            form=blocks.chosen(block, key, BONUSES, also=parts),
            controller=blocks.chosen(block.get("controller"), f"{key}.controller", BONUS_CONTROLLERS),
            token_mask=blocks.chosen(block.get("token_mask", {"name": "all"}), f"{key}.token_mask", TOKEN_MASKS),
            sample_weight=blocks.chosen(
                block.get("sample_weight", {"name": "uniform"}), f"{key}.sample_weight", SAMPLE_WEIGHTS
            ),
            loss_agg_mode=mode and blocks.choice(f"{key}.loss_agg_mode", mode, LOSS_AGG_MODES),
        )

    @property
    def form_name(self) -> str:
        """The form's name in the config."""
        return blocks.name_in(BONUSES, self.form)

    def weights(self, entropy: Tensor, mask: Tensor, accuracy: Any) -> tuple[Tensor | None, Tensor | None]:
        """Tokens that have a part, Boolean ``[B, T]``, and weights of the samples, ``[B]``; None where all are equal.

        ``accuracy`` is called for the groups' accuracies ``[B]`` if they are needed.
        """
        return self.token_mask.tokens(entropy, mask), self.sample_weight.weight(accuracy)

    def averaged_tokens(self, entropy: Tensor, mask: Tensor) -> Tensor:
        """Tokens over which the term is averaged, Boolean ``[B, T]``: of the mask if anchored, else of the response."""
        return bonus.averaged_tokens(
            entropy, mask, self.token_mask.tokens(entropy, mask) if self.form.anchored else None
        )

    def weigh(self, batch: MicroBatch) -> Any:
        """A function that masks and weighs a per-token term ``[B, T]`` of this batch."""
        tokens, weight = self.weights(batch.entropy, batch.mask, lambda: batch.accuracy)
        return lambda term: bonus.weighted(term, batch.mask, tokens, weight)


@dataclass(frozen=True)
class AdvantagesConfig:
    """How advantages are changed before the policy loss, and what moves the coefficient of that."""

    shaping: Shaping
    controller: Controller = NO_SHAPING

    @classmethod
    def parse(cls, block: Any, key: str) -> "AdvantagesConfig":
        """Build from the block at ``key``; ``ValueError`` names key, value and allowed range."""
        shaping = blocks.chosen(block, key, ADVANTAGES, also=("controller",))
        given = block.get("controller") or {"name": "constant", "init": 1.0}
        controller = blocks.chosen(given, f"{key}.controller", ADVANTAGES_CONTROLLERS)
        if not shaping.has_coefficient and controller != NO_SHAPING:
            blocks.no_effect(f"{key}.controller", str(controller), f"{key}.name={block['name']} has no coefficient")
            controller = NO_SHAPING
        if shaping.has_coefficient and controller == NO_SHAPING:
            blocks.no_effect(f"{key}.name", block["name"], f"{key}.controller keeps its coefficient at 1")
        for bound in ("init", "final", "min", "max"):
            value = getattr(controller, bound, 0.0)
            if not 0 <= value <= 1:
                raise ValueError(
                    f"{key}.controller.{bound}={value!r} is not allowed: must be in [0, 1], it bounds the weight of "
                    "positive advantages"
                )
        return cls(shaping, controller)


@dataclass(frozen=True)
class EntropyControlConfig:
    """One choice on each axis, and what the run does with it.

    Attributes:
        method: the preset's name, for logs and banner.
        functional: the entropy that is measured, rewarded and handed to the bonus's controller.
        bonus: the entropy term of the loss, and its controller.
        advantages: what is done to advantages, and its controller.
        kernel: what computes log-probs and entropies: ``auto``, ``triton`` or ``torch``.
        restart_controller: on resume, start the controllers afresh instead of reading their saved state.
        token_dump: how many responses a step are written out token by token.
        token_dump_dir: where to.
    """

    method: str
    functional: FunctionalConfig
    bonus: BonusConfig
    advantages: AdvantagesConfig = AdvantagesConfig(Unchanged())
    kernel: Kernel = "auto"
    restart_controller: bool = False
    token_dump: int = 0
    token_dump_dir: str | None = None

    @property
    def controllers(self) -> dict[str, Controller]:
        """The controllers by the axis whose coefficient they move."""
        return {"bonus": self.bonus.controller, "advantages": self.advantages.controller}

    @property
    def controller_names(self) -> dict[str, str]:
        """Their names in the config and in the state file."""
        return {
            "bonus": blocks.name_in(BONUS_CONTROLLERS, self.bonus.controller),
            "advantages": blocks.name_in(ADVANTAGES_CONTROLLERS, self.advantages.controller),
        }

    @property
    def needs_initial_entropy(self) -> bool:
        """Whether the entropy before the first update must be measured."""
        return self.bonus.form.anchored or self.bonus.controller.needs_initial_entropy

    @property
    def needs_accuracy(self) -> bool:
        """Whether the batch must carry the groups' accuracies."""
        return self.bonus.sample_weight.needs_accuracy or self.advantages.shaping.needs_accuracy

    @property
    def anchor(self) -> dict[str, Any] | None:
        """What an anchored bonus is tied to, as settings: equal where two runs measure the same. None without one."""
        if not self.bonus.form.anchored:
            return None
        tokens, weight = self.bonus.token_mask, self.bonus.sample_weight
        return {
            "functional": str(self.functional),
            "loss_agg_mode": self.bonus.loss_agg_mode,
            "token_mask": {"name": blocks.name_in(TOKEN_MASKS, tokens), **asdict(tokens)},
            "sample_weight": {"name": blocks.name_in(SAMPLE_WEIGHTS, weight), **asdict(weight)},
        }

    def initial_entropy(
        self,
        entropy: Tensor,
        mask: Tensor,
        *,
        accuracy: Tensor | None,
        loss_agg_mode: str,
        loss_scale_factor: int | None,
    ) -> float:
        """The entropy before the first update, nats: as an anchored bonus averages it, else the mean over tokens.

        Args:
            entropy: the configured functional of all tokens of the step, ``[B, T]``.
            mask: the response mask, ``[B, T]``.
            accuracy: the groups' accuracies, ``[B]``, if the bonus weighs samples by them.
            loss_agg_mode: the run's aggregation.
            loss_scale_factor: its divisor, for ``seq-mean-token-sum-norm``.

        Raises:
            ValueError: no token has a part in an anchored bonus, so that there is nothing to tie it to.
        """
        if not self.bonus.form.anchored:
            return float(entropy[mask].mean())
        weights = self.bonus.weights(entropy, mask, lambda: accuracy)
        over = self.bonus.averaged_tokens(entropy, mask)
        mode = self.bonus.loss_agg_mode or loss_agg_mode
        value, share = (
            float(agg_loss(bonus.weighted(term, mask, *weights), over, mode, loss_scale_factor=loss_scale_factor))
            for term in (entropy, torch.ones_like(entropy))
        )
        if not share > 0:
            raise ValueError(
                f"{ROOT}.bonus.name={self.bonus.form_name} has no initial entropy to hold: of the {int(mask.sum())} "
                f"response tokens of the first step none takes part in it ({self.functional}, {self.bonus.token_mask}, "
                f"{self.bonus.sample_weight}); where nearly all of these entropies are 0, raise {ROOT}.functional.top_p"
            )
        return value / share

    @classmethod
    def parse(cls, block: Any) -> "EntropyControlConfig":
        """Build from the `entropy_control` block (any mapping); ``ValueError`` names key, value and allowed range."""
        known = ("method", "functional", "bonus", "advantages", "kernel", "restart_controller", "token_dump", "host")
        values = blocks.fields(block, ROOT, known)
        host = values.get("host") or {}
        kernel = blocks.choice(f"{ROOT}.kernel", values.get("kernel", "auto"), KERNELS)
        if kernel == "triton" and host.get("device") == "cpu":
            raise ValueError(f"{ROOT}.kernel='triton' is not allowed with trainer.device=cpu: use auto or torch")
        dump = values.get("token_dump", 0)
        if not isinstance(dump, int) or isinstance(dump, bool) or dump < 0:
            raise ValueError(f"{ROOT}.token_dump={dump!r} is not allowed: must be a number of responses, >= 0")
        check_host(host)
        control = cls(
            method=str(values.get("method")),
            functional=FunctionalConfig.parse(values.get("functional"), f"{ROOT}.functional"),
            bonus=BonusConfig.parse(values.get("bonus"), f"{ROOT}.bonus"),
            advantages=AdvantagesConfig.parse(values.get("advantages", {"name": "none"}), f"{ROOT}.advantages"),
            kernel=cast(Kernel, kernel),
            restart_controller=blocks.boolean(f"{ROOT}.restart_controller", values.get("restart_controller", False)),
            token_dump=dump,
            token_dump_dir=host.get("token_dump_dir"),
        )
        check_combination(control, host)
        return control


@dataclass
class EntropyControlActorConfig(FSDPActorConfig):
    """verl's FSDP actor config with the parsed `entropy_control` block.

    Attributes:
        entropy_control: the settings.
        chosen_tokens: what the pre-pass chose, ``{"chosen": [B, T]}``, while the policy loss of one micro-batch is
            computed: the functions in verl's registry see this config and no other data of ours.
    """

    entropy_control: EntropyControlConfig | None = field(default=None)
    chosen_tokens: dict[str, Tensor] = field(default_factory=dict)


def actor_config(*, entropy_control: Any, **settings: Any) -> EntropyControlActorConfig:
    """Hydra target of ``actor_rollout_ref.actor``: check, parse, and build the actor config.

    Raises:
        ImportError: something that our plug-in needs is not installed; verl only logs that, at DEBUG.
        ValueError: a setting that is illegal, or under which our code would not run.
        PlugInNotActiveError: our plug-in is not at work in this process.
    """
    _util.require("verl", "entropy control")
    guard.require()
    host = entropy_control.get("host") or {}
    control = EntropyControlConfig.parse(entropy_control)
    check_actor(settings, control, host)
    return EntropyControlActorConfig(entropy_control=control, **settings)
