"""What an evaluation is asked to do: short keys for verl's settings, what it inherits from a run, and all bounds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from aent_verl import preflight
from aent_verl._util import number, whole_number
from aent_verl.preflight.findings import Row, Setting, at

# What users type, and verl's setting for it: an experiment's values are then the defaults.
SHORT_KEYS = {
    "model": "actor_rollout_ref.model.path",
    "data": "data.val_files",
    "n": "actor_rollout_ref.rollout.val_kwargs.n",
    "temperature": "actor_rollout_ref.rollout.val_kwargs.temperature",
    "top_p": "actor_rollout_ref.rollout.val_kwargs.top_p",
    "top_k": "actor_rollout_ref.rollout.val_kwargs.top_k",
    "max_prompt_length": "data.max_prompt_length",
    "max_response_length": "data.max_response_length",
    "seed": "actor_rollout_ref.rollout.seed",
    "gpus": "trainer.n_gpus_per_node",
    "output": "evaluation.output",
    "overwrite": "evaluation.overwrite",
    "scorers": "evaluation.scorers",
    "score_timeout": "evaluation.score_timeout",
}
# What a checkpoint's own run says about them holds unless the user sets it.
INHERITED = (
    *(SHORT_KEYS[key] for key in ("data", "n", "temperature", "top_p", "top_k")),
    *(SHORT_KEYS[key] for key in ("max_prompt_length", "max_response_length")),
    *("data.prompt_key", "data.reward_fn_key", "data.filter_overlong_prompts", "data.truncation"),
    *("data.apply_chat_template_kwargs", "actor_rollout_ref.model.custom_chat_template"),
    *("actor_rollout_ref.model.trust_remote_code", "reward.custom_reward_function"),
)
_SAMPLING = ("n", "temperature", "top_p", "top_k")


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn.

    Attributes:
        n: responses per problem.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that is sampled from, largest first.
        top_k: number of tokens that are sampled from; -1 for all.
        max_tokens: length at which a response is cut off.
        seed: of the servers' random state. Two evaluations with one seed agree within the noise of sampling, not bit
            for bit: which requests meet in a batch depends on timing.
    """

    n: int
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    seed: int

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0


def long_form(overrides: Sequence[str]) -> list[str]:
    """Write out the short keys among Hydra overrides; leave all others as they are."""
    parts = (override.partition("=") for override in overrides)
    return [f"{SHORT_KEYS.get(key, key)}{equals}{value}" for key, equals, value in parts]


def short_form(message: str) -> str:
    """Replace verl's settings in a message by the keys that users type for them."""
    for short, long in SHORT_KEYS.items():
        message = re.sub(rf"(?<![\w.]){re.escape(long)}(?![\w.])", short, message)
    return message


def typed_keys(overrides: Sequence[str]) -> set[str]:
    """Return the keys of Hydra overrides, without signs and packages."""
    return {override.partition("=")[0].lstrip("+~").partition("@")[0] for override in overrides}


def inherit(cfg: DictConfig, run: Mapping[str, Any], typed: set[str]) -> list[str]:
    """Take what the user has not set from the run that trained the model.

    Args:
        cfg: the composed config; changed.
        run: the config of that run.
        typed: the keys that the user set; with an experiment nothing is inherited.

    Returns:
        The keys whose value changed.
    """
    if "experiment" in typed:
        return []
    trained = OmegaConf.create(dict(run))
    changed = []
    for key in INHERITED:
        value = OmegaConf.select(trained, key)
        if value is None or any(key == name or name.startswith(f"{key}.") for name in typed):
            continue
        if OmegaConf.select(cfg, key) != value:
            with open_dict(cfg):
                OmegaConf.update(cfg, key, value, merge=False)
            changed.append(key)
    return changed


def sampling_of(cfg: DictConfig) -> Sampling:
    """Read the sampling settings, and check every bound.

    Raises:
        PreflightError: one is out of range.
    """
    n, temperature, top_p, top_k = (OmegaConf.select(cfg, SHORT_KEYS[name]) for name in _SAMPLING)
    max_tokens, seed = cfg.data.max_response_length, cfg.actor_rollout_ref.rollout.seed
    _check_whole("n", n, 1, "Set n=16, for example: with n=1 there is neither pass@k nor a majority")
    _check_number(
        "temperature",
        temperature,
        lambda x: 0 <= x < math.inf,
        "at least 0",
        "Set temperature=1.0, as in training",
    )
    _check_number("top_p", top_p, lambda x: 0 < x <= 1, "in (0, 1]", "Set top_p=1.0 to sample from all tokens")
    if top_k != -1:
        _check_whole("top_k", top_k, 1, "Set top_k=-1 to sample from all tokens")
    _check_whole("max_response_length", max_tokens, 1, "Set it to the length of the longest answer allowed")
    _check_whole("seed", seed, 0, "Set seed=0, for example")
    return Sampling(n, float(temperature), top_p, top_k, max_tokens, seed)


def check(cfg: DictConfig) -> Iterator[Row]:
    """Check an evaluation's settings, from its composed config alone."""
    yield from preflight.check_evaluation(cfg)
    yield from preflight.attempt("evaluation", lambda: _check_own(cfg))


def _check_own(cfg: DictConfig) -> Iterator[Warning]:
    sampling = sampling_of(cfg)
    check_scoring(cfg)
    hint = "Set gpus to the number on each node; 1 with platform=cpu"
    _check_whole("gpus", cfg.trainer.n_gpus_per_node, 1, hint)
    _check_whole("trainer.nnodes", cfg.trainer.nnodes, 1, "Set trainer.nnodes=1, for example")
    yield from map(UserWarning, warnings_of(sampling, cfg))


def check_scoring(cfg: DictConfig) -> None:
    """Check how responses are scored.

    Raises:
        PreflightError: a bound, or a reward that is not a function.
    """
    scorers, seconds = cfg.evaluation.scorers, cfg.evaluation.score_timeout
    if scorers is not None:
        _check_whole("scorers", scorers, 1, "Remove it for one process a core")
    _check_number("score_timeout", seconds, lambda x: 0 < x < math.inf, "above 0", "Set score_timeout=30, for example")
    if cfg.reward.reward_model.enable:
        raise at(cfg, "reward.reward_model.enable").error(
            "evaluate scores with a reward function alone",
            "Name a function in reward.custom_reward_function.path",
            "false",
        )


def warnings_of(sampling: Sampling, cfg: DictConfig) -> list[str]:
    """Name settings that are valid and do less than expected."""
    found = []
    if sampling.greedy and sampling.n > 1:
        found.append(
            f"temperature=0 with n={sampling.n}: all responses to a problem are equal up to rounding, so pass@k is "
            "the accuracy and entropy 0; set n=1, or temperature=1.0"
        )
    if sampling.greedy and (sampling.top_p < 1 or sampling.top_k != -1):
        found.append("temperature=0: top_p and top_k have no effect")
    if cfg.reward.reward_manager.source != "register":
        found.append(
            f"reward.reward_manager.name={cfg.reward.reward_manager.name!r} is not used: evaluate calls the reward "
            "function itself"
        )
    return found


def _check_whole(key: str, value: Any, lowest: int, hint: str) -> None:
    try:
        whole_number(key, value, lowest=lowest)
    except ValueError:
        raise Setting(key, value).error("out of range", hint, f"a whole number, at least {lowest}") from None


def _check_number(key: str, value: Any, ok: Callable[[float], bool], allowed: str, hint: str) -> None:
    try:
        number(key, value, ok, allowed=allowed)
    except ValueError:
        raise Setting(key, value).error("out of range", hint, f"a number {allowed}") from None
