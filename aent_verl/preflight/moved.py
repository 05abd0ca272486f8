"""Overrides for an older verl: Hydra stops at the first key that is gone, this names every one and where it went."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from aent_verl.preflight.errors import Finding, PreflightError
from aent_verl.preflight.keys import FREE, FREE_NAMES
from aent_verl.preflight.schema import has, is_mapping, leaves, node, override, verl_folder

_REWARD_MODEL = "a reward model is served by a rollout engine: reward.reward_model.{enable,model_path,rollout.*}"
_LOSS = "actor_rollout_ref.actor.policy_loss"
_NSYS = "global_profiler.global_tool_config.nsys"
_CORRECTION = "algorithm.rollout_correction"
_MULTI_TURN = "actor_rollout_ref.rollout.multi_turn"
_TQ = "skip.rollout_tq"

# Keys of verl 0.3 to 0.9.0 that 0.9.1 no longer has, from the history of its config and the scripts beside it: the key
# that does the same today, by the block where a whole block moved. The longest that fits counts.
MOVED = {
    "actor_rollout_ref.actor.checkpoint.contents": "actor_rollout_ref.actor.checkpoint.save_contents",
    "critic.checkpoint.contents": "critic.checkpoint.save_contents",
    "critic.model.fsdp_config": "critic.fsdp",
    "critic.kl_ctrl": "algorithm.kl_ctrl",
    **{
        f"actor_rollout_ref.actor.{name}": f"{_LOSS}.{name}"
        for name in ("loss_mode", "clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef")
    },
    "actor_rollout_ref.profiler": "actor_rollout_ref.actor.profiler",
    "actor_rollout_ref.profiler.discrete": f"{_NSYS}.discrete",
    **{
        f"{block}.profiler.discrete": f"{block}.profiler.tool_config.nsys.discrete"
        for block in ("actor_rollout_ref.actor", "actor_rollout_ref.ref", "actor_rollout_ref.rollout", "critic")
    },
    "actor_rollout_ref.model.enable_activation_offloading": "actor_rollout_ref.model.enable_activation_offload",
    "actor_rollout_ref.rollout.update_weights_bucket_megabytes": (
        "actor_rollout_ref.rollout.checkpoint_engine.update_weights_bucket_megabytes"
    ),
    f"{_MULTI_TURN}.max_turns": f"{_MULTI_TURN}.max_assistant_turns",
    "actor_rollout_ref.rollout.skip_rollout": f"{_TQ}.enable",
    "actor_rollout_ref.rollout.skip_dump_dir": f"{_TQ}.dump_dir",
    "actor_rollout_ref.rollout.skip": _TQ,
    **{
        f"algorithm.{name}": f"{_CORRECTION}.{name}"
        for name in ("rollout_is_threshold", "rollout_rs", "rollout_rs_threshold")
    },
    "algorithm.rollout_is_level": f"{_CORRECTION}.rollout_is",
    "ray_init": "ray_kwargs.ray_init",
    "ray_init.timeline_json_file": "ray_kwargs.timeline_json_file",
    "reward_manager": "reward.reward_manager",
    "reward_model.sandbox_fusion": "reward.sandbox_fusion",
    "reward_model.overlong_buffer": "reward.reward_kwargs.overlong_buffer_cfg",
    "trainer.profile_steps": "global_profiler.steps",
    "trainer.controller_nsight_options": f"{_NSYS}.controller_nsight_options",
    "trainer.worker_nsight_options": f"{_NSYS}.worker_nsight_options",
    "trainer.npu_profile.options": "actor_rollout_ref.actor.profiler.tool_config.npu",
    "trainer.val_generations_to_log_to_wandb": "trainer.log_val_generations",
    "trainer.remove_previous_ckpt_in_save": "trainer.max_actor_ckpt_to_keep",
}
# Those without a successor: what to know instead.
GONE = {
    "actor_rollout_ref.actor.fsdp_config.grad_offload": "gradients follow param_offload",
    "actor_rollout_ref.ref.fsdp_config.grad_offload": "gradients follow param_offload",
    "critic.fsdp.grad_offload": "gradients follow param_offload",
    "actor_rollout_ref.actor.sum_pi_squared_checkpointing": "it is part of calculate_sum_pi_squared",
    "actor_rollout_ref.actor.router_replay": "it is a setting of the Megatron and VeOmni engines",
    "actor_rollout_ref.ref.router_replay": "it is a setting of the Megatron and VeOmni engines",
    "actor_rollout_ref.actor.profile": "see actor_rollout_ref.actor.profiler and global_profiler",
    "actor_rollout_ref.ref.profile": "see actor_rollout_ref.ref.profiler and global_profiler",
    **{
        f"{block}.{engine}": f"it is a setting of another training engine; FSDP's stand in {block}.{fsdp}"
        for block, fsdp in (
            *(("actor_rollout_ref.actor", "fsdp_config"), ("actor_rollout_ref.ref", "fsdp_config")),
            ("critic", "fsdp"),
        )
        for engine in ("megatron", "veomni", "torchtitan", "mindspeed")
    },
    **{f"{block}.load_weight": "weights are always loaded" for block in ("actor_rollout_ref.actor", "critic")},
    "actor_rollout_ref.ref.load_weight": "weights are always loaded",
    "actor_rollout_ref.ref.model": "the reference policy is always actor_rollout_ref.model",
    "actor_rollout_ref.model.gradient_checkpointing_kwargs": "Megatron alone took it",
    "actor_rollout_ref.rollout.use_fire_sampling": "no rollout engine samples that way any more",
    "actor_rollout_ref.rollout.chat_scheduler": "see actor_rollout_ref.rollout.agent.default_agent_loop",
    "actor_rollout_ref.rollout.layer_name_map": "weights reach the rollout engine by their names in Hugging Face",
    "actor_rollout_ref.rollout.swap_space": "vLLM keeps no swap space any more",
    f"{_MULTI_TURN}.completion_callback": "write an agent loop, see actor_rollout_ref.rollout.agent",
    f"{_MULTI_TURN}.interaction_config_path": "write an agent loop, see actor_rollout_ref.rollout.agent",
    "algorithm.rollout_is": f"{_CORRECTION}.rollout_is is on where it is token or sequence",
    "algorithm.rollout_is_mode": f"see {_CORRECTION}.rollout_is and rollout_rs",
    "algorithm.rollout_is_threshold_lower": f"see {_CORRECTION}.rollout_rs_threshold",
    "algorithm.rollout_is_veto_threshold": f"see {_CORRECTION}.rollout_rs",
    f"{_CORRECTION}.rollout_rs_threshold_lower": f"{_CORRECTION}.rollout_rs_threshold takes both, as lower_upper",
    f"{_CORRECTION}.rollout_token_veto_threshold": f"see {_CORRECTION}.rollout_rs",
    f"{_CORRECTION}.use_policy_gradient": f"see {_CORRECTION}.loss_type",
    "data.sampler": "prompts are drawn in file order or shuffled; trainer.v1.sampler chooses among finished responses",
    "data.datagen": "write a data set class, see data.custom_cls",
    "data.continuous_token": "verl finds out from the model",
    "trainer.use_legacy_worker_impl": "there is one implementation of the workers",
    "trainer.npu_profile": "see actor_rollout_ref.actor.profiler.tool_config.npu",
    **{
        f"reward_model.{name}": _REWARD_MODEL
        for name in (
            *("strategy", "micro_batch_size", "micro_batch_size_per_gpu", "max_length", "use_dynamic_bsz", "megatron"),
            *("ulysses_sequence_parallel_size", "forward_max_token_len_per_gpu", "launch_reward_fn_async", "profiler"),
            *("load_weight", "param_offload", "nccl_timeout", "use_reward_loop", "model.input_tokenizer"),
            *("model.use_remove_padding", "model.fsdp_config", "model.use_shm", "model.use_fused_kernels"),
            *("model.override_config", "mini_batch_size"),
        )
    },
}


def unknown_overrides(overrides: Sequence[str], cfg_base: DictConfig) -> tuple[list[Finding], list[str]]:
    """Sort overrides into those whose key verl no longer has, or that Hydra's grammar refuses, and those that compose.

    Args:
        overrides: Hydra overrides, one a string.
        cfg_base: the config that they change, composed without them.

    Returns:
        An error for each that does not fit, and the remaining overrides in their order.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    findings: list[Finding] = []
    remaining = []
    for text in overrides:
        try:
            parsed = parser.parse_override(text)
        except HydraException as error:
            problem = f"Hydra cannot read it: {str(error).splitlines()[0]}"
            findings.append(PreflightError(text, None, problem, hint="Write key=value, quoted for the shell"))
            continue
        finding = None if _is_group(parsed.key_or_group) else _look_up(parsed, text, cfg_base)
        if finding is None:
            remaining.append(text)
        else:
            findings.append(finding)
    return findings, remaining


def group_choices(overrides: Sequence[str]) -> tuple[str, ...]:
    """Those of the overrides that choose a file of a config group, or are Hydra's own."""
    keys = ((text, text.partition("=")[0].lstrip("+~")) for text in overrides)
    return tuple(text for text, key in keys if _is_group(key))


def _is_group(key: str) -> bool:
    """Whether this chooses a file of a config group, or is Hydra's own."""
    folders = Path(__file__).parent.parent / "_config", Path(verl_folder(), "trainer", "config")
    group = key.partition("@")[0]
    return "/" in key or "@" in key or key.startswith("hydra.") or any(os.path.isdir(each / group) for each in folders)


def _look_up(parsed: Any, text: str, cfg: DictConfig) -> Finding | None:
    """What is wrong with the key of an override that assigns, adds (+) or deletes (~); None if Hydra takes it."""
    key, given = parsed.key_or_group, text.partition("=")[2]
    known = has(cfg, key)
    successor = _successor(key)
    if successor is not None and not known:
        return _moved(key, given, successor, cfg)
    if parsed.is_add() and known and not is_mapping(node(cfg, key)):
        return PreflightError(key, given, "verl has this key, so that + cannot add it", hint=f"Type {key}={given}")
    if known or parsed.is_add() or parsed.is_force_add():
        return None
    if _is_open(cfg, key):
        return PreflightError(key, given, "Hydra sets no new key without +", hint=f"Type +{key}={given}")
    close = difflib.get_close_matches(key, list(leaves(cfg)), n=1, cutoff=0.7)
    hint = f"The closest key is {close[0]}" if close else "Remove it, or type it with + if code of your own reads it"
    return PreflightError(key, given, "verl 0.9.1 has no such key", hint=hint)


def _successor(key: str) -> tuple[str, str | None] | None:
    """Key or block that is gone, and its place today; None if it is in neither table."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        block = ".".join(parts[:length])
        if block in MOVED:
            return block, MOVED[block] + key[len(block) :]
        if block in GONE:
            return block, None
    return None


def _moved(key: str, given: str, successor: tuple[str, str | None], cfg: DictConfig) -> Finding:
    block, target = successor
    if target is None:
        return PreflightError(key, given, "verl 0.9.1 has no such key", hint=f"Remove it: {GONE[block]}")
    if target in GONE:
        return PreflightError(key, given, "verl 0.9.1 has no such key", hint=f"Remove it: {GONE[target]}")
    return PreflightError(
        key, given, f"it has moved to {target}", hint=f"Type {override(target, given, exists=has(cfg, target))}"
    )


def _is_open(cfg: DictConfig, key: str) -> bool:
    """Whether the key would be new in a mapping that takes any."""
    parts = key.split(".")
    blocks = [".".join(parts[:length]) for length in range(1, len(parts))]
    return any(block in FREE or block.rpartition(".")[2] in FREE_NAMES or _is_empty(cfg, block) for block in blocks)


def _is_empty(cfg: DictConfig, block: str) -> bool:
    return is_mapping(node(cfg, block)) and not node(cfg, block)
