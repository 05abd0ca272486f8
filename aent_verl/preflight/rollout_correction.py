"""What of ``algorithm.rollout_correction`` verl's v1 trainers apply, and what they would drop in silence.

Read in verl 0.9.1. *Decoupled* (``bypass_mode=false``): the trainer computes weights and rejections once a step from
the rollout's log-probs, if it returned any, and every policy loss but ``bypass_mode`` multiplies by the weights.
*Bypass*: the rollout's log-probs become the old ones and nothing else happens; verl's earlier trainer also switched the
policy loss to ``bypass_mode`` and handed it this block, which no v1 trainer does.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.defaults import changed
from aent_verl.preflight.errors import Finding, PreflightError, PreflightWarning

KEY = "algorithm.rollout_correction"
POLICY_LOSS = "actor_rollout_ref.actor.policy_loss"
LOG_PROBS = "actor_rollout_ref.rollout.calculate_log_probs"
# The loss that reads its own copy of the block, and what it reads.
BYPASS_LOSS = "bypass_mode"
READ_BY_LOSS = (
    *("loss_type", "rollout_is", "rollout_is_threshold", "rollout_is_batch_normalize"),
    *("rollout_rs", "rollout_rs_threshold"),
)
BY_HAND = f"{POLICY_LOSS}.loss_mode={BYPASS_LOSS} '+{POLICY_LOSS}.rollout_correction=${{{KEY}}}'"


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Find settings of rollout correction that would fail, be dropped, or be replaced by others."""
    block = OmegaConf.select(cfg, KEY)
    if block is None:
        return
    settings = {name: block.get(name) for name in (*READ_BY_LOSS, "bypass_mode")}
    loss_mode = OmegaConf.select(cfg, f"{POLICY_LOSS}.loss_mode", default="vanilla")
    refused = list(_values(settings))
    yield from refused
    yield from _without_switch(cfg, settings)
    if not settings["bypass_mode"]:
        yield from _decoupled(cfg, settings, loss_mode, rejects=settings["rollout_rs"] is not None and not refused)
        return
    if not OmegaConf.select(cfg, LOG_PROBS):
        yield PreflightError(
            LOG_PROBS,
            False,
            f"{KEY}.bypass_mode=true takes the rollout's log-probs for the old ones, and the rollout would return "
            "none: the first step would fail",
            hint=f"Set {LOG_PROBS}=true",
        )
    yield from (_bypass_loss(cfg) if loss_mode == BYPASS_LOSS else _bypass(settings, loss_mode))


def _values(settings: dict[str, Any]) -> Iterator[Finding]:
    """What verl itself would refuse at the first step; a threshold of null switches the weights off without a word."""
    import torch
    from verl.trainer.ppo.rollout_corr_helper import compute_rollout_correction_and_rejection_mask

    zeros = torch.zeros(1, 2)
    call = partial(compute_rollout_correction_and_rejection_mask, zeros, zeros, torch.ones_like(zeros))
    for switch in ("rollout_is", "rollout_rs"):
        value, threshold = settings[switch], settings[f"{switch}_threshold"]
        if value is None:
            continue
        if threshold is None:
            yield PreflightError(
                f"{KEY}.{switch}_threshold",
                None,
                f"verl leaves {KEY}.{switch}={value!r} out where no threshold is given"
                if switch == "rollout_is"
                else f"{KEY}.{switch}={value!r} needs one",
                hint=f"Set {KEY}.{switch}_threshold, 2.0 for instance, or {KEY}.{switch}=null",
            )
            continue
        try:
            call(**{switch: value, f"{switch}_threshold": threshold})
        except (ValueError, TypeError) as error:
            yield PreflightError(
                f"{KEY}.{switch}",
                value,
                f"verl refuses it with {KEY}.{switch}_threshold={threshold!r} at the first step ({error})",
                hint="Change one of the two",
            )
    if settings["loss_type"] not in ("ppo_clip", "reinforce"):
        yield PreflightError(
            f"{KEY}.loss_type",
            settings["loss_type"],
            "verl knows no such loss",
            expected="ppo_clip or reinforce",
            hint=f"Set {KEY}.loss_type=ppo_clip",
        )


def _without_switch(cfg: DictConfig, settings: dict[str, Any]) -> Iterator[Finding]:
    given = changed(cfg, KEY)
    for switch, dependents in (
        ("rollout_is", ("rollout_is_threshold", "rollout_is_batch_normalize")),
        ("rollout_rs", ("rollout_rs_threshold",)),
    ):
        for name in dependents:
            if settings[switch] is None and f"{KEY}.{name}" in given:
                yield PreflightWarning(
                    f"{KEY}.{name}",
                    settings[name],
                    f"it has no effect: {KEY}.{switch} is null, so that nothing is corrected",
                    hint=f"Set {KEY}.{switch}={'token' if switch == 'rollout_is' else 'token_k1'}, or leave it out",
                )


def _decoupled(cfg: DictConfig, settings: dict[str, Any], loss_mode: str, *, rejects: bool) -> Iterator[Finding]:
    switched_on = {name: settings[name] for name in ("rollout_is", "rollout_rs") if settings[name] is not None}
    has_log_probs = bool(OmegaConf.select(cfg, LOG_PROBS))
    if not has_log_probs:
        for name, value in switched_on.items():
            yield PreflightError(
                f"{KEY}.{name}",
                value,
                f"it would be dropped without a word: {LOG_PROBS}=false, so that there are no log-probs of the rollout "
                "to compare with",
                hint=f"Set {LOG_PROBS}=true",
            )
    if settings["loss_type"] == "reinforce":
        yield PreflightError(
            f"{KEY}.loss_type",
            "reinforce",
            f"it belongs to {KEY}.bypass_mode=true; without that the run would compute {POLICY_LOSS}.loss_mode="
            f"{loss_mode}",
            hint=f"Set {KEY}.bypass_mode=true and {BY_HAND}, or {KEY}.loss_type=ppo_clip",
        )
    if loss_mode == BYPASS_LOSS:
        yield PreflightError(
            f"{POLICY_LOSS}.loss_mode",
            loss_mode,
            f"with {KEY}.bypass_mode=false it would take the recomputed log-probs for the rollout's, and drop the "
            "weights that the trainer computes",
            hint=f"Set {KEY}.bypass_mode=true, or {POLICY_LOSS}.loss_mode=vanilla",
        )
    if rejects and has_log_probs and cfg.actor_rollout_ref.actor.loss_agg_mode == "token-mean":
        yield PreflightWarning(
            f"{KEY}.rollout_rs",
            settings["rollout_rs"],
            "rejected tokens leave the loss but not the number of tokens that it is divided by (verl counts its "
            "loss_mask, which a rejection does not change): policy loss and entropy bonus shrink together by the "
            "accepted share",
            hint="The share is 1 - rollout_corr/rollout_rs_*_masked_fraction; compare runs at equal shares only",
        )


def _bypass(settings: dict[str, Any], loss_mode: str) -> Iterator[Finding]:
    instead = f"the run would compute {POLICY_LOSS}.loss_mode={loss_mode}, with the rollout's log-probs as the old ones"
    if settings["loss_type"] == "reinforce":
        yield PreflightError(
            f"{KEY}.loss_type",
            "reinforce",
            f"verl's v1 trainers do not read it: {instead}",
            hint=f"Set {BY_HAND}, or {KEY}.loss_type=ppo_clip",
        )
    if settings["rollout_rs"] is not None:
        yield PreflightError(
            f"{KEY}.rollout_rs",
            settings["rollout_rs"],
            f"verl's v1 trainers reject nothing with {KEY}.bypass_mode=true: {instead}",
            hint=f"Set {BY_HAND}, or {KEY}.rollout_rs=null",
        )
    if settings["rollout_is"] is not None and settings["loss_type"] != "reinforce":
        yield PreflightWarning(
            f"{KEY}.rollout_is",
            settings["rollout_is"],
            f"no weights are computed with {KEY}.bypass_mode=true: the ratio to the rollout's log-probs takes their "
            "place",
            hint=f"Set {KEY}.rollout_is=null, or {KEY}.bypass_mode=false for weights",
        )


def _bypass_loss(cfg: DictConfig) -> Iterator[Finding]:
    """The loss takes its settings from the policy loss's own copy; where there is none, from a class's defaults."""
    from verl.trainer.config import RolloutCorrectionConfig

    copy = OmegaConf.select(cfg, f"{POLICY_LOSS}.rollout_correction")
    used = RolloutCorrectionConfig() if copy is None else copy
    for key, value in changed(cfg, KEY).items():
        name = key.rpartition(".")[2]
        if name in READ_BY_LOSS and used.get(name, None) != value:
            yield PreflightError(
                key,
                value,
                f"{POLICY_LOSS}.loss_mode={BYPASS_LOSS} reads {POLICY_LOSS}.rollout_correction.{name}, which is "
                f"{used.get(name, None)!r}; no v1 trainer copies this block there",
                hint=f"Add '+{POLICY_LOSS}.rollout_correction=${{{KEY}}}'",
            )
