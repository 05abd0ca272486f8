r"""Does the rollout sample from the policy that trains?

verl's v1 trainers hand temperature, ``top_p`` and ``top_k`` to the engine and divide the training logits by the same
temperature. With a truncation the rollout samples from ``b = pi / Z`` on a set of mass ``Z < 1``, while loss, ratios
and entropies are those of ``pi``. Old log-probs that are recomputed are of ``pi`` as well, so ratios are 1 at equal
weights and only the expectation is over ``b``: allowed, with a warning. The rollout's own log-probs are of ``b``
(``processed_logprobs``): as old log-probs they make the ratio at equal weights ``Z``, not 1, and a product of them over
a response vanishes: refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.defaults import changed
from aent_verl.preflight.errors import Finding, PreflightError, PreflightWarning

ROLLOUT = "actor_rollout_ref.rollout"
ENGINE = f"{ROLLOUT}.engine_kwargs.vllm"
CORRECTION = "algorithm.rollout_correction"
# Keys of vLLM's generation config that a request's own sampling parameters replace.
REPLACED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Find sampling settings under which the rollout is not from the policy that trains, or that are not passed on."""
    yield from _unknown(cfg)
    yield from _dropped(cfg)
    greedy = list(_greedy(cfg))
    yield from greedy
    if not greedy:
        yield from _truncated(cfg)
    yield from _log_probs(cfg)
    yield from _validation(cfg)


def _unknown(cfg: DictConfig) -> Iterator[Finding]:
    """Keys added with + that verl's own config classes refuse, in the workers: ``min_p``, penalties, ``stop``."""
    from verl.workers.config import RolloutConfig
    from verl.workers.config.rollout import SamplingConfig

    for key, kind in ((ROLLOUT, RolloutConfig), (f"{ROLLOUT}.val_kwargs", SamplingConfig)):
        known = {field.name for field in dataclasses.fields(kind)} | {"_target_"}
        for name in OmegaConf.select(cfg, key):
            if name not in known:
                yield PreflightError(
                    f"{key}.{name}",
                    OmegaConf.select(cfg, f"{key}.{name}"),
                    f"verl's {kind.__name__} has no such field and its workers would fail; of sampling parameters verl "
                    "passes on temperature, top_p and top_k",
                    hint="Leave it out",
                )


def _dropped(cfg: DictConfig) -> Iterator[Finding]:
    rollout = cfg.actor_rollout_ref.rollout
    penalty = rollout.get("repetition_penalty", 1.0)
    if penalty != 1.0:
        yield PreflightError(
            f"{ROLLOUT}.repetition_penalty",
            penalty,
            "verl's agent loop sends 1.0 with every request, so that nothing is penalised",
            hint="Leave it out",
        )
    if not rollout.get("do_sample", True):
        yield PreflightError(
            f"{ROLLOUT}.do_sample",
            False,
            f"verl's v1 trainers do not read it and sample at {ROLLOUT}.temperature={rollout.temperature}",
            hint=f"Set {ROLLOUT}.do_sample=true",
        )
    if rollout.get("over_sample_rate", 0):
        yield PreflightWarning(
            f"{ROLLOUT}.over_sample_rate",
            rollout.over_sample_rate,
            "it has no effect: verl's v1 trainers do not read it",
            hint="Leave it out",
        )
    if rollout.get("ignore_eos"):
        yield PreflightWarning(
            f"{ROLLOUT}.ignore_eos",
            True,
            "every response goes on to the full length, and what comes after its end is scored and trained on",
            hint=f"Set {ROLLOUT}.ignore_eos=false, unless this measures speed",
        )
    given = OmegaConf.select(cfg, f"{ENGINE}.override_generation_config") or {}
    for name in REPLACED:
        if name in given:
            yield PreflightWarning(
                f"{ENGINE}.override_generation_config.{name}",
                given[name],
                "it has no effect: every request of verl brings its own",
                hint=f"Set {ROLLOUT}.{name}"
                if name in ("temperature", "top_p", "top_k")
                else "Leave it out: verl passes on temperature, top_p and top_k only",
            )


def _greedy(cfg: DictConfig) -> Iterator[Finding]:
    rollout = cfg.actor_rollout_ref.rollout
    for name, value, right in (
        ("temperature", rollout.temperature, rollout.temperature > 0),
        ("top_k", rollout.top_k, rollout.top_k >= -1 and rollout.top_k != 1),
        ("top_p", rollout.top_p, 0 < rollout.top_p <= 1),
    ):
        if not right:
            greedy = name != "top_p" and value >= 0
            yield PreflightError(
                f"{ROLLOUT}.{name}",
                value,
                "all samples of a prompt would be one and the same, and no advantage is left"
                if greedy
                else "the rollout engine refuses it at the first request",
                expected={"temperature": "> 0", "top_k": "-1 or >= 2", "top_p": "in (0, 1]"}[name],
                hint=f"Set {ROLLOUT}.{name}={-1 if name == 'top_k' else 1.0}",
            )


def _truncated(cfg: DictConfig) -> Iterator[Finding]:
    rollout = cfg.actor_rollout_ref.rollout
    cuts: dict[str, Any] = {}
    if rollout.top_p < 1:
        cuts[f"{ROLLOUT}.top_p"] = rollout.top_p
    if rollout.top_k > 0:
        cuts[f"{ROLLOUT}.top_k"] = rollout.top_k
    if OmegaConf.select(cfg, f"{ENGINE}.logits_processors"):
        cuts[f"{ENGINE}.logits_processors"] = OmegaConf.select(cfg, f"{ENGINE}.logits_processors")
    for key, value in cuts.items():
        off = "null" if key.endswith("processors") else -1 if key.endswith("top_k") else 1.0
        problem = _wrong_ratio(cfg)
        if problem:
            yield PreflightError(
                key,
                value,
                problem,
                hint=f"Set {key}={off}, or {ROLLOUT}.logprobs_mode=raw_logprobs at temperature 1, or neither "
                f"{CORRECTION}.bypass_mode nor corrections over whole responses",
            )
            continue
        yield PreflightWarning(
            key,
            value,
            "the rollout samples from a part of the distribution and renormalises it, while loss and entropy are of "
            "the whole: what is left out is never sampled, and its gradient is missing" + _of_method(cfg, key),
            hint=f"Set {key}={off} to sample from the policy that trains",
        )


def _wrong_ratio(cfg: DictConfig) -> str | None:
    """Why the rollout's log-probs, which are of the truncated distribution, must not be used; None where they may."""
    if _mode(cfg) == "raw_logprobs":
        return None
    if OmegaConf.select(cfg, f"{CORRECTION}.bypass_mode"):
        return (
            f"with {CORRECTION}.bypass_mode=true the old log-probs are those of the truncated distribution: at equal "
            "weights the ratio is the probability of what is kept, not 1, and the clip range is off by it"
        )
    for name in ("rollout_is", "rollout_rs"):
        value = OmegaConf.select(cfg, f"{CORRECTION}.{name}")
        if value is not None and "seq" in value:
            return (
                f"with {CORRECTION}.{name}={value} the log-probs of the truncated distribution are compared over whole "
                "responses: at equal weights each token has the ratio of what is kept, below 1, and their product "
                "vanishes"
            )
    return None


def _of_method(cfg: DictConfig, key: str) -> str:
    loss = OmegaConf.select(cfg, "actor_rollout_ref.actor.policy_loss.loss_mode")
    shaping = OmegaConf.select(cfg, "entropy_control.advantages.name")
    text = ""
    if shaping == "steer" or loss in ("aent_clip_cov", "aent_kl_cov"):
        name = shaping if shaping == "steer" else loss
        text += f"; {name} takes the sampled tokens to be drawn from the whole policy, and its choice shifts with that"
    if key.endswith("processors"):
        return text + "; the entropy of what is sampled is not measured"
    fused = OmegaConf.select(cfg, "actor_rollout_ref.model.use_fused_kernels")
    return text + (
        "; the entropy of what is sampled is not measured with actor_rollout_ref.model.use_fused_kernels=true"
        if fused
        else "; aent/entropy_sampled is the entropy of what is sampled, aent/entropy_full that of the policy"
    )


def _mode(cfg: DictConfig) -> str:
    """What vLLM's log-probs are of; its own default where verl gives none."""
    given = OmegaConf.select(cfg, f"{ENGINE}.logprobs_mode") or cfg.actor_rollout_ref.rollout.get("logprobs_mode")
    return given or "raw_logprobs"


def _log_probs(cfg: DictConfig) -> Iterator[Finding]:
    rollout, mode = cfg.actor_rollout_ref.rollout, _mode(cfg)
    if OmegaConf.select(cfg, f"{ROLLOUT}.name") != "vllm" or not rollout.calculate_log_probs:
        return
    key = f"{ENGINE}.logprobs_mode" if OmegaConf.select(cfg, f"{ENGINE}.logprobs_mode") else f"{ROLLOUT}.logprobs_mode"
    if mode.endswith("logits"):
        problem = "the rollout returns logits for log-probs"
    elif mode == "raw_logprobs" and rollout.temperature != 1:
        problem = (
            f"the rollout returns log-probs before the temperature {rollout.temperature}, and training computes them "
            "after it"
        )
    else:
        return
    used = [
        f"{CORRECTION}.{name}"
        for name in ("bypass_mode", "rollout_is", "rollout_rs")
        if OmegaConf.select(cfg, f"{CORRECTION}.{name}")
    ]
    hint = f"Set {key}=processed_logprobs"
    if used:
        yield PreflightError(key, mode, f"{problem}: ratios of the two, which {used[0]} uses, mean nothing", hint=hint)
    else:
        yield PreflightWarning(
            key, mode, f"{problem}: training/rollout_probs_diff and rollout_corr metrics mean nothing", hint=hint
        )


def _validation(cfg: DictConfig) -> Iterator[Finding]:
    """Find what validation would not do: a v1 trainer samples at ``val_kwargs.temperature``, whatever ``do_sample``."""
    key = f"{ROLLOUT}.val_kwargs"
    val = cfg.actor_rollout_ref.rollout.val_kwargs
    if val.temperature == 0 and (val.do_sample or val.n > 1):
        yield PreflightWarning(
            f"{key}.temperature",
            val.temperature,
            f"validation is greedy, whatever {key}.do_sample={val.do_sample} says"
            + (f", and all {val.n} answers to a prompt are the same" if val.n > 1 else ""),
            hint=f"Set {key}.temperature=1.0, or {key}.do_sample=false {key}.n=1",
        )
    elif val.temperature > 0 and not val.do_sample and f"{key}.temperature" in changed(cfg, key):
        yield PreflightWarning(
            f"{key}.do_sample",
            False,
            f"verl's v1 trainers do not read it: validation samples at {key}.temperature={val.temperature}",
            hint=f"Set {key}.do_sample=true, or {key}.temperature=0 for greedy answers",
        )
