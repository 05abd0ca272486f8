"""The actor config that carries our settings to the workers, and what we demand of verl's own settings."""

import importlib.util
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from verl.workers.config import FSDPActorConfig

from aent_verl import _util
from aent_verl.methods.parsing import NoEffectWarning, no_effect, parse
from aent_verl.methods.settings import EntropyControlConfig
from aent_verl.plugin import guard

# What `trainers` makes of verl's modes, and what presets name.
TRAINER_MODES = tuple(start + mode for mode in ("sync", "colocate_async", "separate_async") for start in ("", "aent_"))
STRATEGIES = ("fsdp", "fsdp2")
# verl's losses that scale with a factor >= 0 on the advantage.
HOMOGENEOUS_LOSSES = ("vanilla", "gspo", "cispo", "sapo", "gpg")
CLIP_COV, KL_COV = "aent_clip_cov", "aent_kl_cov"
ACTOR = "actor_rollout_ref.actor"


@dataclass
class EntropyControlActorConfig(FSDPActorConfig):
    """verl's FSDP actor config with the parsed `entropy_control` block.

    Attributes:
        entropy_control: the settings.
        chosen_tokens: what Clip-Cov or KL-Cov chose, ``[B, T]``, while the policy loss of one micro-batch is computed:
            the functions in verl's registry see this config and no other data of ours.
    """

    _mutable_fields = FSDPActorConfig._mutable_fields | {"chosen_tokens"}

    entropy_control: EntropyControlConfig | None = None
    chosen_tokens: Tensor | None = None

    @property
    def control(self) -> EntropyControlConfig:
        """The settings, where a run has them."""
        assert self.entropy_control is not None
        return self.entropy_control


def actor_config(*, entropy_control: Any, **settings: Any) -> EntropyControlActorConfig:
    """Check, parse, and build the actor config: the Hydra target of ``actor_rollout_ref.actor``.

    `entropy_control.host` holds copies of those of verl's settings that stand outside of the actor's, by interpolation,
    so that they are checked wherever this config is built: in our own entry, in verl's ``main_ppo`` and in the workers.

    Raises:
        ImportError: something that our plug-in needs is not installed; verl only logs that, at DEBUG.
        ValueError: a setting that is invalid, or under which our code would not run.
        PlugInNotActiveError: our plug-in is not active in this process.
    """
    _util.require("verl", "entropy control")
    guard.require()
    verl_settings = entropy_control.get("host") or {}
    _check_trainer(verl_settings, kernel=entropy_control.get("kernel"))
    control = parse(entropy_control)
    _check_rollout(verl_settings, control)
    _check_actor(settings, control, device=verl_settings.get("device"))
    _check_ulysses(settings, attention=str(verl_settings.get("attention", "flash_attention_2")))
    _check_policy_loss(settings, control, verl_settings)
    _check_bonus_aggregation(settings, control)
    _warn_of_ignored(settings)
    return EntropyControlActorConfig(entropy_control=control, **settings)


def _check_trainer(verl_settings: Mapping[str, Any], *, kernel: Any) -> None:
    """Refuse a trainer that would train without entropy control."""
    if not verl_settings.get("use_v1", True):
        raise ValueError("trainer.use_v1=False is not allowed with entropy_control: only verl's v1 trainers run it")
    mode = verl_settings.get("trainer_mode")
    if mode not in TRAINER_MODES:
        raise ValueError(
            f"trainer.v1.trainer_mode={mode!r} is not allowed with entropy_control: it would train without it; "
            f"use one of {', '.join(TRAINER_MODES)}"
        )
    if verl_settings.get("distillation"):
        raise ValueError("distillation.enabled=True is not allowed with entropy_control: its loss replaces ours")
    if kernel == "triton" and verl_settings.get("device") == "cpu":
        raise ValueError("entropy_control.kernel='triton' is not allowed with trainer.device=cpu: use auto or torch")


def _check_rollout(verl_settings: Mapping[str, Any], control: EntropyControlConfig) -> None:
    if control.needs_initial_entropy and verl_settings.get("bypass_mode"):
        names = [
            control.controller_names[axis] for axis, each in control.controllers.items() if each.needs_initial_entropy
        ]
        cause = "entropy_control.bonus.name=anchored" if control.bonus.form.anchored else f"controller {names[0]}"
        raise ValueError(
            f"algorithm.rollout_correction.bypass_mode=True is not allowed with {cause}: the entropy before the first "
            "update is measured in the pass over old log-probs, which that mode leaves out"
        )
    if control.shapes_rewards and verl_settings.get("bypass_mode"):
        raise ValueError(
            "algorithm.rollout_correction.bypass_mode=True is not allowed with entropy_control.rewards.name="
            f"{control.rewards_name}: it measures the responses in the pass over old log-probs, which that mode leaves "
            "out; set it to false"
        )
    if (control.needs_accuracy or control.rewards.needs_accuracy) and verl_settings.get("rollout_n") == 1:
        warnings.warn(
            "actor_rollout_ref.rollout.n=1 makes every group a single sample: its accuracy is then that sample's own, "
            "and no group has a mixed outcome",
            NoEffectWarning,
            stacklevel=2,
        )


def _check_actor(settings: Mapping[str, Any], control: EntropyControlConfig, *, device: Any) -> None:
    """Refuse actor settings that would bypass or duplicate entropy control."""
    strategy = settings.get("strategy")
    if strategy not in STRATEGIES:
        raise ValueError(f"{ACTOR}.strategy={strategy!r} is not allowed with entropy_control: must be fsdp or fsdp2")
    if device == "cpu" and strategy == "fsdp":
        raise ValueError(
            f"{ACTOR}.strategy='fsdp' is not allowed with trainer.device=cpu: verl's engine runs there as fsdp2 alone; "
            "set it to fsdp2"
        )
    if settings.get("entropy_coeff", 0) != 0:
        raise ValueError(
            f"{ACTOR}.entropy_coeff={settings['entropy_coeff']!r} is not allowed with entropy_control: must be 0; "
            "set the coefficient with entropy_control=entreg entropy_control.bonus.controller.init=..."
        )
    if control.functional.function is not None and settings.get("use_fused_kernels"):
        raise ValueError(
            "actor_rollout_ref.model.use_fused_kernels=True is not allowed with entropy_control.functional.name="
            f"{control.functional.name!r}: a fused LM head does not expose logits; set it to false"
        )


def _check_ulysses(settings: Mapping[str, Any], *, attention: str) -> None:
    key = "ulysses_sequence_parallel_size"
    size = max(settings.get(key, 1), (settings.get("fsdp_config") or {}).get(key, 1))
    flash = importlib.util.find_spec("flash_attn") is not None and attention.startswith("flash")
    if size > 1 and not flash:
        raise ValueError(
            f"{ACTOR}.{key}={size} is not allowed without flash-attn: verl's sequence parallelism computes wrong "
            f"log-probs with other attention kernels (here {attention!r}); install flash-attn and use it, or set the "
            "size to 1"
        )


def _check_policy_loss(
    settings: Mapping[str, Any], control: EntropyControlConfig, verl_settings: Mapping[str, Any]
) -> None:
    key = f"{ACTOR}.policy_loss.loss_mode"
    mode = (settings.get("policy_loss") or {}).get("loss_mode", "vanilla")
    if control.advantages.shaping.is_weight and mode not in HOMOGENEOUS_LOSSES:
        raise ValueError(
            f"{key}={mode!r} is not allowed with an advantage shaping that is a weight: a weight on the advantage is "
            f"then not a weight on the loss; use one of {', '.join(HOMOGENEOUS_LOSSES)}"
        )
    # One update per step, at the weights of its old log-probs, makes every ratio 1. A mini-batch may be larger than the
    # step's batch: verl fills it with empty rows if it packs by tokens.
    batch, mini_batch = verl_settings.get("train_batch_size"), settings.get("ppo_mini_batch_size")
    if batch is None or mini_batch is None or mini_batch < batch:
        return
    if settings.get("ppo_epochs", 1) != 1 or verl_settings.get("bypass_mode"):
        return
    # Asynchronous rollouts are older, but their old log-probs are recomputed at these weights, too.
    on_policy = verl_settings.get("trainer_mode") in ("sync", "aent_sync")
    fact = (
        "with one mini-batch and one epoch, a step is strictly on-policy, and {}; "
        if on_policy
        else "with one mini-batch and one epoch, the old log-probs are of the weights that are updated, and {}; "
    )
    why = f"{fact}set {ACTOR}.ppo_mini_batch_size below data.train_batch_size={batch}"
    if mode == KL_COV:
        no_effect(key, mode, why.format("the penalty on |log ratio| has nothing but rounding to penalise"))
    low, high = (
        settings.get("clip_ratio") if (end := settings.get(f"clip_ratio_{name}")) is None else end
        for name in ("low", "high")
    )
    # A range of its own, such as clip-higher's; a narrow or a wide one on both sides may be there for other runs.
    if low != high:
        no_effect(f"{ACTOR}.clip_ratio_high", high, why.format("no ratio leaves a clip range"))


def _check_bonus_aggregation(settings: Mapping[str, Any], control: EntropyControlConfig) -> None:
    """Refuse an aggregation of the bonus that depends on the width of micro-batches, unless it is verl's own."""
    own = control.bonus.loss_agg_mode
    mode = own or settings.get("loss_agg_mode")
    by_width = mode == "seq-mean-token-sum-norm" and not settings.get("loss_scale_factor")
    if by_width and (own or control.bonus.form.anchored):
        setting = f"entropy_control.bonus.loss_agg_mode={own!r}" if own else f"{ACTOR}.loss_agg_mode={mode!r}"
        raise ValueError(
            f"{setting} is not allowed with entropy_control.bonus.name={control.bonus.form_name} unless "
            f"{ACTOR}.loss_scale_factor is set: without it verl divides by the width of each padded micro-batch"
        )


def _warn_of_ignored(settings: Mapping[str, Any]) -> None:
    if settings.get("calculate_entropy"):
        no_effect(f"{ACTOR}.calculate_entropy", True, "the entropy is measured in every update anyway, as aent/entropy")
    for name in ("entropy_from_logits_with_chunking", "entropy_checkpointing"):
        if settings.get(name) or (settings.get("fsdp_config") or {}).get(name):
            no_effect(f"{ACTOR}.{name}", True, "log-probs and entropy come from one op that always works in chunks")
