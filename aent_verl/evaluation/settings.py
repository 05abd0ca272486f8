"""What an evaluation is asked to do: short keys for verl's settings, what it inherits from a run, and all bounds."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl import preflight
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


def _whole(lowest: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: type(value) is int and value >= lowest, f"a whole number, at least {lowest}"


def _number(fits: Callable[[float], bool], allowed: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: type(value) in (int, float) and fits(value), f"a number {allowed}"


# What each must be, the same in words, and what to set it to.
BOUNDS: dict[str, tuple[Callable[[Any], bool], str, str]] = {
    "n": (*_whole(1), "Set n=16, for example: with n=1 there is neither pass@k nor a majority"),
    "temperature": (*_number(lambda x: 0 <= x < math.inf, "at least 0"), "Set temperature=1.0, as in training"),
    "top_p": (*_number(lambda x: 0 < x <= 1, "in (0, 1]"), "Set top_p=1.0 to sample from all tokens"),
    "top_k": (lambda k: k == -1 or _whole(1)[0](k), _whole(1)[1], "Set top_k=-1 to sample from all tokens"),
    "max_response_length": (*_whole(1), "Set it to the length of the longest answer allowed"),
    "seed": (*_whole(0), "Set seed=0, for example"),
    "scorers": (lambda n: n is None or _whole(1)[0](n), _whole(1)[1], "Remove it for one process a core"),
    "score_timeout": (*_number(lambda x: 0 < x < math.inf, "above 0"), "Set score_timeout=30, for example"),
    "gpus": (*_whole(1), "Set gpus to the number on each node; 1 with platform=cpu"),
    "trainer.nnodes": (*_whole(1), "Set trainer.nnodes=1, for example"),
}


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
        given = any(key == name or name.startswith(f"{key}.") for name in typed)
        if value is not None and not given and OmegaConf.select(cfg, key) != value:
            OmegaConf.update(cfg, key, value, merge=False, force_add=True)
            changed.append(key)
    return changed


def sampling_of(cfg: DictConfig) -> Sampling:
    """Read the sampling settings, and check every bound.

    Raises:
        PreflightError: one is out of range.
    """
    values = {field.name: bounded(cfg, field.name) for field in fields(Sampling) if field.name != "max_tokens"}
    values["temperature"] = float(values["temperature"])
    return Sampling(**values, max_tokens=bounded(cfg, "max_response_length"))


def bounded(cfg: DictConfig, key: str) -> Any:
    """Return the value of one of the settings in ``BOUNDS``.

    Raises:
        PreflightError: it is out of range.
    """
    value = OmegaConf.select(cfg, SHORT_KEYS.get(key, key))
    fits, expected, hint = BOUNDS[key]
    if not fits(value):
        raise Setting(key, value).error("out of range", hint, expected)
    return value


def check(cfg: DictConfig) -> Iterator[Row]:
    """Check an evaluation's settings, from its composed config alone."""
    yield from preflight.check_evaluation(cfg)
    yield from preflight.attempt("evaluation", lambda: _check_own(cfg))


def _check_own(cfg: DictConfig) -> Iterator[Warning]:
    for key in BOUNDS:
        bounded(cfg, key)
    if cfg.reward.reward_model.enable:
        raise at(cfg, "reward.reward_model.enable").error(
            "evaluate scores with a reward function alone",
            "Name a function in reward.custom_reward_function.path",
            "false",
        )
    sampling, manager = sampling_of(cfg), cfg.reward.reward_manager
    if sampling.temperature == 0 and sampling.n > 1:
        yield UserWarning(
            f"temperature=0 with n={sampling.n}: all responses to a problem are equal up to rounding, so pass@k is "
            "the accuracy and entropy 0; set n=1, or temperature=1.0"
        )
    if sampling.temperature == 0 and (sampling.top_p < 1 or sampling.top_k != -1):
        yield UserWarning("temperature=0: top_p and top_k have no effect")
    if manager.source != "register":
        yield UserWarning(
            f"reward.reward_manager.name={manager.name!r} is not used: evaluate calls the reward function itself"
        )
