"""What of ``algorithm.rollout_correction`` verl's v1 trainers apply, and what they would silently drop.

Read in verl 0.9.1. *Decoupled* (``bypass_mode=false``): the trainer computes weights and rejections for each batch from
the rollout's log-probs, if it returned any, and every policy loss but ``bypass_mode`` multiplies by the weights.
*Bypass*: the rollout's log-probs become the old ones and nothing else happens; verl's earlier trainer also switched the
policy loss to ``bypass_mode`` and handed it this block, which no v1 trainer does.

All of it holds in every trainer mode: the asynchronous ones inherit what applies the block. In ``separate_async`` a
batch is one of the step's mini-batches, and its weights compare the rollout with the step's first weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.findings import Finding, Setting, at, without_effect
from aent_verl.preflight.schema import changed, value
from aent_verl.preflight.settings import control_of

if TYPE_CHECKING:
    from aent_verl.methods.settings import EntropyControlConfig

KEY = "algorithm.rollout_correction"
POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
LOG_PROBS = "actor_rollout_ref.rollout.calculate_log_probs"
# The loss that reads its own copy of the block, and what it reads.
BYPASS_LOSS = "bypass_mode"
READ_BY_LOSS = (
    *("loss_type", "rollout_is", "rollout_is_threshold", "rollout_is_batch_normalize"),
    *("rollout_rs", "rollout_rs_threshold"),
)
# Methods that are a policy loss of ours.
IS_POLICY_LOSS = ("clip_cov", "kl_cov")
BY_HAND = f"{POLICY_LOSS}.loss_mode={BYPASS_LOSS} '+{POLICY_LOSS}.rollout_correction=${{{KEY}}}'"


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Find settings of rollout correction that would fail, be dropped, or be replaced by others."""
    block = value(cfg, KEY)
    if block is None:
        return
    loss_mode = value(cfg, f"{POLICY_LOSS}.loss_mode") or "vanilla"
    refused = list(_values(cfg))
    yield from refused
    for switch, example, dependents in (
        ("rollout_is", "token", ("rollout_is_threshold", "rollout_is_batch_normalize")),
        ("rollout_rs", "token_k1", ("rollout_rs_threshold",)),
    ):
        if block.get(switch) is None:
            keys = (f"{KEY}.{name}" for name in dependents)
            why, hint = f"{KEY}.{switch} is null", f"Set {KEY}.{switch}={example}, or remove it"
            yield from without_effect(cfg, keys, why, hint)
    if not block.get("bypass_mode"):
        yield from _decoupled(cfg, block, loss_mode, rejects=block.get("rollout_rs") is not None and not refused)
        return
    if not value(cfg, LOG_PROBS):
        yield at(cfg, LOG_PROBS).error(
            f"{KEY}.bypass_mode=true needs the rollout's log-probs, but it returns none: the first step would fail",
            f"Set {LOG_PROBS}=true",
        )
    yield from (_bypass_loss(cfg) if loss_mode == BYPASS_LOSS else _bypass(cfg, loss_mode))


def _control(cfg: DictConfig) -> EntropyControlConfig | None:
    """Return the entropy control; None if its settings are invalid, which another check reports."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return control_of(cfg)
        except Exception:
            return None


def _values(cfg: DictConfig) -> Iterator[Finding]:
    """Find what verl itself would refuse at the first step; a threshold of null silently switches the weights off."""
    import torch
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

    zeros = torch.zeros(1, 2)
    call = partial(compute_rollout_correction_and_rejection_mask, zeros, zeros, torch.ones_like(zeros))
    for name in ("rollout_is", "rollout_rs"):
        switch, threshold = at(cfg, f"{KEY}.{name}"), at(cfg, f"{KEY}.{name}_threshold")
        if switch.value is None:
            continue
        given = f"{switch.key}={switch.value!r}"
        if threshold.value is None:
            yield threshold.error(
                f"verl leaves {given} out if no threshold is given" if name == "rollout_is" else f"{given} needs one",
                f"Set {threshold.key}, to 2.0 for instance, or {switch.key}=null",
            )
            continue
        try:
            call(**{name: switch.value, f"{name}_threshold": threshold.value})
        except (ValueError, TypeError) as error:
            yield switch.error(
                f"verl refuses it at step 1 with {threshold.key}={threshold.value!r} ({error})",
                "Change one of the two",
            )
    loss_type = at(cfg, f"{KEY}.loss_type")
    if loss_type.value not in ("ppo_clip", "reinforce"):
        yield loss_type.error("verl knows no such loss", f"Set {loss_type.key}=ppo_clip", "ppo_clip or reinforce")


def _decoupled(cfg: DictConfig, block: dict[str, Any], loss_mode: str, *, rejects: bool) -> Iterator[Finding]:
    log_probs = value(cfg, LOG_PROBS)
    for name in ("rollout_is", "rollout_rs"):
        if not log_probs and block.get(name) is not None:
            yield at(cfg, f"{KEY}.{name}").error(
                f"is silently dropped: with {LOG_PROBS}=false there is nothing to compare",
                f"Set {LOG_PROBS}=true",
            )
    if block.get("loss_type") == "reinforce":
        yield at(cfg, f"{KEY}.loss_type").error(
            f"belongs to {KEY}.bypass_mode=true; without it the run computes {POLICY_LOSS}.loss_mode={loss_mode}",
            f"Set {_or(cfg, f'{KEY}.bypass_mode=true and {BY_HAND}')}{KEY}.loss_type=ppo_clip",
        )
    if loss_mode == BYPASS_LOSS:
        yield at(cfg, f"{POLICY_LOSS}.loss_mode").error(
            f"with {KEY}.bypass_mode=false it would take recomputed log-probs for the rollout's, and drop the weights",
            f"Set {KEY}.bypass_mode=true, or {POLICY_LOSS}.loss_mode=vanilla",
        )
    if rejects and log_probs:
        yield from _rejections(cfg)


def _or(cfg: DictConfig, other_loss: str) -> str:
    """Return the hint to take another policy loss, before the next one; none where the loss is the method."""
    return "" if value(cfg, "entropy_control.method") in IS_POLICY_LOSS else f"{other_loss}, or "


def _rejections(cfg: DictConfig) -> Iterator[Finding]:
    """Find what rejected tokens leave, and what they stay in."""
    rejected, problems, hints = at(cfg, f"{KEY}.rollout_rs"), [], []
    if cfg.actor_rollout_ref.actor.loss_agg_mode == "token-mean":
        problems.append(
            "rejected tokens leave the loss but not the number of tokens that divides it (verl counts its loss_mask, "
            "which a rejection does not change): policy loss and entropy bonus shrink together by the accepted share"
        )
        hints.append("The share is 1 - rollout_corr/rollout_rs_*_masked_fraction; compare runs at equal shares only")
    control = _control(cfg)
    if control is not None and control.needs_initial_entropy:
        problems.append(
            f"{control.method} compares entropies with the initial one, which is measured before the first rejection: "
            "over all tokens, those of later steps over the accepted ones"
        )
        hints.append(f"Set {rejected.key}=null, or weigh instead: {KEY}.rollout_is=token")
    if problems:
        yield rejected.warning("; ".join(problems), ". ".join(hints))


def _bypass(cfg: DictConfig, loss_mode: str) -> Iterator[Finding]:
    loss_type, is_, rs = (at(cfg, f"{KEY}.{name}") for name in ("loss_type", "rollout_is", "rollout_rs"))
    by_hand = _or(cfg, BY_HAND)
    instead = f"the run would compute {POLICY_LOSS}.loss_mode={loss_mode}, with the rollout's log-probs as the old ones"
    if loss_type.value == "reinforce":
        yield loss_type.error(f"verl's v1 trainers do not read it: {instead}", f"Set {by_hand}{loss_type.key}=ppo_clip")
    if rs.value is not None:
        yield rs.error(
            f"verl's trainers reject nothing with {KEY}.bypass_mode=true: {instead}",
            f"Set {by_hand}{rs.key}=null",
        )
    if is_.value is not None and loss_type.value != "reinforce":
        yield is_.warning(
            f"with {KEY}.bypass_mode=true no weights are computed: the ratio to the rollout's log-probs replaces them",
            f"Set {is_.key}=null, or {KEY}.bypass_mode=false for weights",
        )


def _bypass_loss(cfg: DictConfig) -> Iterator[Finding]:
    """Check the loss that takes its settings from the policy loss's own copy, or else from a class's defaults."""
    from verl.trainer.config import RolloutCorrectionConfig

    method = value(cfg, "entropy_control.method")
    if method in IS_POLICY_LOSS:
        yield at(cfg, f"{POLICY_LOSS}.loss_mode").error(
            f"replaces the policy loss that {method} consists of",
            f"Set {POLICY_LOSS}.loss_mode=aent_{method}, or take another preset",
        )
        return
    copy = OmegaConf.select(cfg, f"{POLICY_LOSS}.rollout_correction")
    used = RolloutCorrectionConfig() if copy is None else copy
    for key, given in changed(cfg, KEY).items():
        name = key.rpartition(".")[2]
        if name in READ_BY_LOSS and used.get(name, None) != given:
            yield Setting(key, given).error(
                f"{POLICY_LOSS}.loss_mode={BYPASS_LOSS} reads {POLICY_LOSS}.rollout_correction.{name}, which is "
                f"{used.get(name, None)!r}; no v1 trainer copies this block there",
                f"Add '+{POLICY_LOSS}.rollout_correction=${{{KEY}}}'",
            )
    rejected = at(cfg, f"{POLICY_LOSS}.rollout_correction.rollout_rs")
    control = None if rejected.value is None else _control(cfg)
    if control is not None and control.method != "grpo":
        yield rejected.warning(
            "rejects inside the policy loss alone: bonus and measured entropies are of all tokens, rejected ones too",
            f"Set {KEY}.bypass_mode=false and {POLICY_LOSS}.loss_mode=vanilla to reject before the loss",
        )
