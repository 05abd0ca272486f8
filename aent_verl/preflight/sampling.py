r"""Does the rollout sample from the policy that trains?

verl's v1 trainers hand temperature, ``top_p`` and ``top_k`` to the engine and divide the training logits by the same
temperature. With a truncation the rollout samples from ``b = pi / Z`` on a set of mass ``Z < 1``, while loss, ratios
and entropies are those of ``pi``. Old log-probs that are recomputed are of ``pi`` as well, so ratios are 1 at equal
weights and only the expectation is over ``b``: allowed, with a warning. The rollout's own log-probs are of ``b``
(``processed_logprobs``): as old log-probs they make the ratio at equal weights ``Z``, not 1, and a product of them over
a response vanishes: refused.
"""

from collections.abc import Iterator

from omegaconf import DictConfig

from aent_verl.preflight.findings import Finding, Setting, at
from aent_verl.preflight.schema import changed, value

ROLLOUT = "actor_rollout_ref.rollout"
ENGINE = f"{ROLLOUT}.engine_kwargs.vllm"
CORRECTION = "algorithm.rollout_correction"
FUSED = "actor_rollout_ref.model.use_fused_kernels"
SHAPING = "entropy_control.advantages.name"
PASSED_ON = ("temperature", "top_p", "top_k")
# Keys of vLLM's generation config that a request's own sampling parameters replace.
REPLACED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Find sampling settings under which the rollout is not from the policy that trains, or that are not passed on."""
    yield from _dropped(cfg)
    yield from list(_greedy(cfg)) or _truncated(cfg)
    yield from _log_probs(cfg)
    yield from _validation(cfg)


def _dropped(cfg: DictConfig) -> Iterator[Finding]:
    penalty, ignore_eos = at(cfg, f"{ROLLOUT}.repetition_penalty"), at(cfg, f"{ROLLOUT}.ignore_eos")
    if penalty.value not in (None, 1.0):
        yield penalty.error("verl's agent loop sends 1.0 with every request: nothing is penalised", "Remove it")
    if ignore_eos.value:
        yield ignore_eos.warning(
            "every response runs to the full length, and what follows its end is scored and trained on",
            f"Set {ignore_eos.key}=false, unless this measures speed",
        )
    given = value(cfg, f"{ENGINE}.override_generation_config") or {}
    for name in REPLACED:
        if name in given:
            yield at(cfg, f"{ENGINE}.override_generation_config.{name}").warning(
                "has no effect: every request of verl brings its own",
                f"Set {ROLLOUT}.{name}" if name in PASSED_ON else "Remove it: verl passes on temperature, top_p, top_k",
            )


def _greedy(cfg: DictConfig) -> Iterator[Finding]:
    """Find values that leave nothing to sample, or that the engine refuses."""
    for name, right, off, expected in (
        ("temperature", lambda x: x > 0, 1.0, "> 0"),
        ("top_k", lambda x: x >= -1 and x != 1, -1, "-1 or >= 2"),
        ("top_p", lambda x: 0 < x <= 1, 1.0, "in (0, 1]"),
    ):
        setting = at(cfg, f"{ROLLOUT}.{name}")
        if not right(setting.value):
            yield setting.error(
                "all samples of a prompt would be identical, which leaves no advantage"
                if name != "top_p" and setting.value >= 0
                else "the rollout engine refuses it at the first request",
                f"Set {setting.key}={off}",
                expected,
            )


def _truncated(cfg: DictConfig) -> Iterator[Finding]:
    problem = _wrong_ratio(cfg)
    for key, off, cuts in (
        (f"{ROLLOUT}.top_p", "1.0", lambda x: x < 1),
        (f"{ROLLOUT}.top_k", "-1", lambda x: x > 0),
        (f"{ENGINE}.logits_processors", "null", bool),
    ):
        setting = at(cfg, key)
        if not cuts(setting.value):
            continue
        if problem:
            yield setting.error(
                problem,
                f"Set {key}={off}, or {ROLLOUT}.logprobs_mode=raw_logprobs at temperature 1, or neither "
                f"{CORRECTION}.bypass_mode nor corrections over whole responses",
            )
        else:
            yield setting.warning(
                "the rollout samples from a part of the distribution, renormalised, but loss and entropy are of the "
                "whole: what is left out is never sampled, and its gradient is missing" + _of_method(cfg, key),
                f"Set {key}={off} to sample from the policy that trains",
            )


def _wrong_ratio(cfg: DictConfig) -> str | None:
    """Explain why the rollout's log-probs, of the truncated distribution, must not be used; None if they may."""
    if _mode(cfg).value == "raw_logprobs":
        return None
    ratio = "log-probs are of the truncated distribution: at equal weights a token's ratio is what is kept, not 1"
    if value(cfg, f"{CORRECTION}.bypass_mode"):
        return f"with {CORRECTION}.bypass_mode=true the old {ratio}, and the clip range is off by it"
    for name in ("rollout_is", "rollout_rs"):
        given = value(cfg, f"{CORRECTION}.{name}")
        if given is not None and "seq" in given:
            return f"with {CORRECTION}.{name}={given} the rollout's {ratio}, and its product over a response vanishes"
    return None


def _of_method(cfg: DictConfig, key: str) -> str:
    loss, shaping = value(cfg, "actor_rollout_ref.actor.policy_loss.loss_mode"), value(cfg, SHAPING)
    skewed = next((name for name in (shaping, loss) if name in ("steer", "aent_clip_cov", "aent_kl_cov")), "")
    text = skewed and f"; {skewed} takes the sampled tokens to be drawn from the whole policy, which skews its choice"
    unmeasured = "; the entropy of what is sampled is not measured"
    if key.endswith("processors"):
        return text + unmeasured
    if value(cfg, FUSED):
        return f"{text}{unmeasured} with {FUSED}=true"
    return f"{text}; aent/entropy_sampled is the entropy of what is sampled, aent/entropy_full that of the policy"


def _mode(cfg: DictConfig) -> Setting:
    """Return the setting of what vLLM's log-probs are of, with vLLM's default if verl gives none."""
    given = at(cfg, f"{ENGINE}.logprobs_mode")
    found = given if given.value else at(cfg, f"{ROLLOUT}.logprobs_mode")
    return Setting(found.key, found.value or "raw_logprobs")


def _log_probs(cfg: DictConfig) -> Iterator[Finding]:
    rollout, mode = cfg.actor_rollout_ref.rollout, _mode(cfg)
    if value(cfg, f"{ROLLOUT}.name") != "vllm" or not rollout.calculate_log_probs:
        return
    if mode.value.endswith("logits"):
        problem = "the rollout returns logits for log-probs"
    elif mode.value == "raw_logprobs" and rollout.temperature != 1:
        problem = f"the rollout's log-probs are before the temperature {rollout.temperature}, training's after it"
    else:
        return
    hint = f"Set {mode.key}=processed_logprobs"
    keys = (f"{CORRECTION}.{name}" for name in ("bypass_mode", "rollout_is", "rollout_rs"))
    if used := next((key for key in keys if value(cfg, key)), None):
        yield mode.error(f"{problem}: their ratios, which {used} uses, mean nothing", hint)
    else:
        yield mode.warning(f"{problem}: training/rollout_probs_diff and rollout_corr metrics mean nothing", hint)


def _validation(cfg: DictConfig) -> Iterator[Finding]:
    """Find what validation would not do: a v1 trainer samples at ``val_kwargs.temperature``, whatever ``do_sample``."""
    key = f"{ROLLOUT}.val_kwargs"
    temperature, sample, n = (at(cfg, f"{key}.{name}") for name in ("temperature", "do_sample", "n"))
    if temperature.value == 0 and (sample.value or n.value > 1):
        yield temperature.warning(
            f"validation is greedy, whatever {sample.key}={sample.value} says"
            + (f", and all {n.value} answers to a prompt are the same" if n.value > 1 else ""),
            f"Set {temperature.key}=1.0, or {sample.key}=false {n.key}=1",
        )
    elif temperature.value > 0 and not sample.value and changed(cfg, temperature.key):
        yield sample.warning(
            f"verl's v1 trainers do not read it: validation samples at {temperature.key}={temperature.value}",
            f"Set {sample.key}=true, or {temperature.key}=0 for greedy answers",
        )
