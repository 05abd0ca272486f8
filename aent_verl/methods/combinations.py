"""What entropy control demands of the run around it: verl's settings, and pairs of our own that have a meaning."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aent_verl.core.controllers import ConstantController, LinearDecayController
from aent_verl.methods.axes import AllTokens, Linear, Uniform
from aent_verl.methods.blocks import NoEffectWarning, no_effect

if TYPE_CHECKING:
    from aent_verl.methods.settings import BonusConfig, EntropyControlConfig

TRAINER_MODES = ("aent_sync",)
STRATEGIES = ("fsdp", "fsdp2")
LOSS_AGG_MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean")
# verl's losses that scale with a factor >= 0 on the advantage.
HOMOGENEOUS_LOSSES = ("vanilla", "gspo", "cispo", "sapo", "gpg")
CLIP_COV, KL_COV = "aent_clip_cov", "aent_kl_cov"


def check_host(host: Mapping[str, Any]) -> None:
    """Refuse verl settings under which our code would not run, and training would go on without entropy control.

    `entropy_control.host` holds copies of those settings, by interpolation, so that this check sees them wherever the
    actor's config is built: in our own entry, in verl's ``main_ppo`` and in the workers.
    """
    if not host.get("use_v1", True):
        raise ValueError("trainer.use_v1=False is not allowed with entropy_control: only verl's v1 trainers run it")
    mode = host.get("trainer_mode")
    if mode not in TRAINER_MODES:
        raise ValueError(
            f"trainer.v1.trainer_mode={mode!r} is not allowed with entropy_control: it would train without it; "
            f"use one of {', '.join(TRAINER_MODES)}"
        )
    if host.get("distillation"):
        raise ValueError("distillation.enabled=True is not allowed with entropy_control: its loss replaces ours")


def check_combination(control: EntropyControlConfig, host: Mapping[str, Any]) -> None:
    """Refuse pairs of choices that have no meaning together, and warn about those that can have no effect."""
    bonus = control.bonus
    if bonus.form.anchored and not isinstance(bonus.controller, ConstantController | LinearDecayController):
        raise ValueError(
            f"entropy_control.bonus.controller.name={control.controller_names['bonus']} is not allowed with "
            "entropy_control.bonus.name=anchored: a controller that measures the entropy takes a larger coefficient to "
            "mean more entropy, and an anchored bonus pulls down as well as up; "
            "use entropy_control/controller=constant or linear_decay"
        )
    if control.needs_initial_entropy and host.get("bypass_mode"):
        raise ValueError(
            "algorithm.rollout_correction.bypass_mode=True is not allowed with "
            f"{'entropy_control.bonus.name=anchored' if bonus.form.anchored else 'controller anchored_target'}: "
            "the entropy before the first update is measured in the pass over old log-probs, which that mode leaves out"
        )
    _check_bonus_without_effect(bonus)
    for axis, controller in control.controllers.items():
        _check_controller_that_never_moves(controller, f"entropy_control.{axis}.controller")
    if control.needs_accuracy and host.get("rollout_n") == 1:
        warnings.warn(
            "actor_rollout_ref.rollout.n=1 makes every group a single sample: its accuracy is then that sample's own, "
            "and no group has a mixed outcome",
            NoEffectWarning,
            stacklevel=2,
        )


def _check_bonus_without_effect(bonus: BonusConfig) -> None:
    key = "entropy_control.bonus"
    controller = bonus.controller
    if isinstance(controller, LinearDecayController) and controller.init == controller.final:
        no_effect(f"{key}.controller.final", controller.final, f"{key}.controller.init is the same")
    stays_zero = getattr(controller, "min", None) == getattr(controller, "max", None) == 0
    if controller not in (ConstantController(init=0.0), LinearDecayController(init=0.0, final=0.0)) and not stays_zero:
        return
    why = f"{key}.controller keeps the coefficient at 0, which adds no bonus to the loss"
    for name, default in (("form", Linear()), ("token_mask", AllTokens()), ("sample_weight", Uniform())):
        if getattr(bonus, name) != default:
            no_effect(f"{key}.{'name' if name == 'form' else name}", str(getattr(bonus, name)), why)
    if bonus.loss_agg_mode is not None:
        no_effect(f"{key}.loss_agg_mode", bonus.loss_agg_mode, why)


def _check_controller_that_never_moves(controller: Any, key: str) -> None:
    """A controller that measures the entropy and has no room, or no step, to react."""
    for name in ("lr", "step_size", "eta"):
        if getattr(controller, name, None) == 0:
            no_effect(f"{key}.{name}", 0.0, "the coefficient never moves; entropy_control/controller=constant says so")
    low, high = (getattr(controller, end, None) for end in ("min", "max"))
    if low is not None and low == high:
        no_effect(f"{key}.max", high, f"{key}.min is the same, and the coefficient never moves")


def check_actor(settings: Mapping[str, Any], control: EntropyControlConfig, host: Mapping[str, Any]) -> None:
    """Refuse or warn about actor settings that would bypass, duplicate or ignore entropy control."""
    key = "actor_rollout_ref.actor"
    strategy = settings.get("strategy")
    if strategy not in STRATEGIES:
        raise ValueError(f"{key}.strategy={strategy!r} is not allowed with entropy_control: must be fsdp or fsdp2")
    if settings.get("entropy_coeff", 0) != 0:
        raise ValueError(
            f"{key}.entropy_coeff={settings['entropy_coeff']!r} is not allowed with entropy_control: must be 0; "
            f"set the coefficient with entropy_control=entreg entropy_control.bonus.controller.init=..."
        )
    if control.functional.function is not None and settings.get("use_fused_kernels"):
        raise ValueError(
            "actor_rollout_ref.model.use_fused_kernels=True is not allowed with entropy_control.functional.name="
            f"{control.functional.name!r}: a fused LM head hands out no logits; set it to false"
        )
    _check_ulysses(settings, attention=str(host.get("attention", "flash_attention_2")))
    _check_policy_loss(settings, control, host)
    _check_bonus_aggregation(settings, control)
    if settings.get("calculate_entropy"):
        no_effect(f"{key}.calculate_entropy", True, "the entropy is measured in every update anyway, as aent/entropy")
    for name in ("entropy_from_logits_with_chunking", "entropy_checkpointing"):
        if settings.get(name) or (settings.get("fsdp_config") or {}).get(name):
            no_effect(f"{key}.{name}", True, "log-probs and entropy come from one op that always works in chunks")


def _check_bonus_aggregation(settings: Mapping[str, Any], control: EntropyControlConfig) -> None:
    """A choice of ours, or a formula with the whole mini-batch in it, must not depend on the width of micro-batches."""
    own, actor = control.bonus.loss_agg_mode, "actor_rollout_ref.actor"
    mode = own or settings.get("loss_agg_mode")
    by_width = mode == "seq-mean-token-sum-norm" and not settings.get("loss_scale_factor")
    if by_width and (own or control.bonus.form.anchored):
        setting = f"entropy_control.bonus.loss_agg_mode={own!r}" if own else f"{actor}.loss_agg_mode={mode!r}"
        raise ValueError(
            f"{setting} is not allowed with entropy_control.bonus.name={control.bonus.form_name} unless "
            f"{actor}.loss_scale_factor is set: without it verl divides by the width of each padded micro-batch"
        )


def _check_ulysses(settings: Mapping[str, Any], *, attention: str) -> None:
    ulysses = max(
        settings.get("ulysses_sequence_parallel_size", 1),
        (settings.get("fsdp_config") or {}).get("ulysses_sequence_parallel_size", 1),
    )
    flash = importlib.util.find_spec("flash_attn") is not None and attention.startswith("flash")
    if ulysses > 1 and not flash:
        raise ValueError(
            f"actor_rollout_ref.actor.ulysses_sequence_parallel_size={ulysses} is not allowed without flash-attn: "
            f"verl's sequence parallelism computes wrong log-probs with other attention kernels (here {attention!r}); "
            "install flash-attn and use it, or set the size to 1"
        )


def _check_policy_loss(settings: Mapping[str, Any], control: EntropyControlConfig, host: Mapping[str, Any]) -> None:
    key = "actor_rollout_ref.actor.policy_loss.loss_mode"
    mode = (settings.get("policy_loss") or {}).get("loss_mode", "vanilla")
    if control.advantages.shaping.is_weight and mode not in HOMOGENEOUS_LOSSES:
        raise ValueError(
            f"{key}={mode!r} is not allowed with an advantage shaping that is a weight: a weight on the advantage is "
            f"then not a weight on the loss; use one of {', '.join(HOMOGENEOUS_LOSSES)}"
        )
    if not strictly_on_policy(settings, host):
        return
    why = (
        "with one mini-batch and one epoch a step is strictly on-policy, and {}; set {} below data.train_batch_size={}"
    )
    where = "actor_rollout_ref.actor.ppo_mini_batch_size", host["train_batch_size"]
    if mode == KL_COV:
        no_effect(key, mode, why.format("the penalty on |log ratio| has nothing but rounding to penalise", *where))
    low, high = (
        settings.get("clip_ratio") if (end := settings.get(f"clip_ratio_{name}")) is None else end
        for name in ("low", "high")
    )
    # A range of its own, such as clip-higher's; a narrow or a wide one on both sides may be there for other runs.
    if low != high:
        key = "actor_rollout_ref.actor.clip_ratio_high"
        no_effect(key, high, why.format("no ratio leaves a clip range", *where))


def strictly_on_policy(settings: Mapping[str, Any], host: Mapping[str, Any]) -> bool:
    """Whether each step makes one update, at the weights of its old log-probs, so that every ratio is 1.

    A mini-batch may be larger than the step's batch: verl fills it with empty rows if it packs by tokens.
    """
    batch, mini_batch = host.get("train_batch_size"), settings.get("ppo_mini_batch_size")
    if batch is None or mini_batch is None:
        return False
    return bool(mini_batch >= batch and settings.get("ppo_epochs", 1) == 1 and not host.get("bypass_mode"))
