"""Names that only verl's registries and comparisons know: a misspelt one passes Hydra and fails minutes later.

What is allowed is asked of verl at run time: of its registries, where there is one, else of the strings that the
function which reads the setting compares it with. A name that a module of the user's registers is there by then,
because those modules are imported first, as verl imports them in its workers.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import inspect
import os
import textwrap
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.errors import Finding, PreflightError, PreflightWarning
from aent_verl.preflight.schema import has, value
from aent_verl.verl_api.checks import resolve

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
MODEL = "actor_rollout_ref.model"
# The package behind a name, where it is another, or where verl imports it only when the run has begun.
PACKAGES = {
    "wandb": "wandb",
    "tracking": "wandb",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "clearml": "clearml",
    "vemlp_wandb": "volcengine_ml_platform",
    "tensorboard": "tensorboard",
    "trackio": "trackio",
    "rl_insight": "rl_insight",
    "weave": "weave",
    "vllm": "vllm",
    "sglang": "sglang",
    "trtllm": "tensorrt_llm",
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
}


@dataclass(frozen=True)
class Choice:
    """A setting that must be one of a set of names.

    Attributes:
        key: the setting, a name or a list of names.
        allowed: the names that verl knows in this process, given the config.
        when: whether verl will look at the setting at all.
        training: whether only a run that trains reads it.
    """

    key: str
    allowed: Callable[[DictConfig], Collection[str]]
    when: Callable[[DictConfig], Any] = lambda cfg: True
    training: bool = True


def registry(target: str) -> Callable[[DictConfig], Collection[str]]:
    """Names in a registry of verl's, a mapping at ``module:path``."""
    return lambda cfg: [str(getattr(name, "value", name)) for name in resolve(target)]


def compared(target: str, *names: str) -> Callable[[DictConfig], Collection[str]]:
    """Strings that a function of verl's compares a variable or attribute with, or looks for in it.

    A branch that only raises is none that a user can choose.
    """
    return lambda cfg: sorted(compared_strings(resolve(target), *names))


def compared_strings(function: Any, *names: str) -> set[str]:
    """What `compared` gives, for a function or class."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    refused = {
        id(branch.test)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If)
        and all(isinstance(line, ast.Raise) for line in branch.body)
        # `if x not in (...): raise` is the list of what is allowed.
        and not (isinstance(branch.test, ast.Compare) and isinstance(branch.test.ops[0], ast.NotIn))
    }
    found: set[str] = set()
    for compare in ast.walk(tree):
        if isinstance(compare, ast.Compare) and id(compare) not in refused:
            sides = [compare.left, *compare.comparators]
            if any(_last_name(side) in names for side in sides):
                found |= {text for side in sides for text in _strings(side)}
    return found


def _last_name(node: ast.AST) -> str | None:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def _strings(node: ast.AST) -> Iterator[str]:
    """The strings of a constant, or of a literal collection of them."""
    for each in node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else [node]:
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def literal(target: str) -> Callable[[DictConfig], Collection[str]]:
    """Strings of a ``typing.Literal``, unions of them included."""

    def strings(cfg: DictConfig) -> Collection[str]:
        import typing

        def flat(hint: Any) -> Iterator[str]:
            for each in typing.get_args(hint):
                yield from [each] if isinstance(each, str) else flat(each)

        return list(flat(resolve(target)))

    return strings


def _kl(cfg: DictConfig) -> Collection[str]:
    plain = compared("verl.trainer.ppo.core_algos:kl_penalty_forward", "kl_penalty")(cfg)
    return [*plain, *(f"{name}+" for name in plain)]


def _loggers(cfg: DictConfig) -> Collection[str]:
    return [*resolve("verl.utils.tracking:Tracking").supported_backend, "tracking"]


def _agent_loops(cfg: DictConfig) -> Collection[str]:
    names = registry("verl.experimental.agent_loop.agent_loop:_agent_loop_registry")(cfg)
    path = value(cfg, f"{ROLLOUT}.agent.agent_loop_config_path")
    loops: Any = OmegaConf.load(path) if path and os.path.isfile(path) else []
    return [*names, *(str(each.name) for each in loops)]


def _attention(cfg: DictConfig) -> Collection[str]:
    functions = resolve("transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS")
    return ["eager", *functions.valid_keys()]


def _optimizers(prefix: str) -> Callable[[DictConfig], Collection[str]]:
    def names(cfg: DictConfig) -> Collection[str]:
        module = importlib.import_module(value(cfg, f"{prefix}.optimizer_impl"))
        return [name for name, each in vars(module).items() if isinstance(each, type)]

    return names


def _engines(cfg: DictConfig) -> Collection[str]:
    return list(resolve("verl.workers.engine:EngineRegistry")._engines["language_model"])


def _torch_types(cfg: DictConfig) -> Collection[str]:
    lists = resolve("verl.utils.torch_dtypes")
    return [name for each in (lists.HALF_LIST, lists.FLOAT_LIST, lists.BFLOAT_LIST) for name in map(str, each)]


def _is(key: str, *values: Any) -> Callable[[DictConfig], bool]:
    return lambda cfg: value(cfg, key) in (values or (True,))


def _fsdp(cfg: DictConfig) -> bool:
    return str(value(cfg, f"{ACTOR}.strategy")).startswith("fsdp")


def _vllm(key: str, *usual: str) -> Callable[[DictConfig], bool]:
    """Whether vLLM reads the setting; verl's usual values are not worth the seconds that an import of vLLM takes."""
    return lambda cfg: value(cfg, f"{ROLLOUT}.name") == "vllm" and _installed("vllm") and value(cfg, key) not in usual


def _profiled(cfg: DictConfig) -> bool:
    return bool(value(cfg, "global_profiler.steps"))


V1 = "verl.trainer.ppo.v1"
MANAGER = "verl.utils.checkpoint.checkpoint_manager:BaseCheckpointManager"
SCHEDULERS = compared("verl.workers.engine.fsdp.transformer_impl:FSDPEngine._build_lr_scheduler", "lr_scheduler_type")
CHOICES = (
    Choice("algorithm.adv_estimator", registry("verl.trainer.ppo.core_algos:ADV_ESTIMATOR_REGISTRY")),
    Choice("algorithm.kl_penalty", _kl, _is("algorithm.use_kl_in_reward")),
    Choice(
        "algorithm.kl_ctrl.type",
        compared("verl.trainer.ppo.core_algos:get_kl_controller", "type"),
        _is("algorithm.use_kl_in_reward"),
    ),
    Choice(f"{ACTOR}.strategy", _engines),
    Choice(f"{ACTOR}.policy_loss.loss_mode", registry("verl.trainer.ppo.core_algos:POLICY_LOSS_REGISTRY")),
    Choice(f"{ACTOR}.loss_agg_mode", compared("verl.trainer.ppo.core_algos:agg_loss", "loss_agg_mode")),
    Choice(f"{ACTOR}.kl_loss_type", _kl, _is(f"{ACTOR}.use_kl_loss")),
    Choice(f"{ACTOR}.optim.optimizer", _optimizers(f"{ACTOR}.optim"), _fsdp),
    Choice(f"{ACTOR}.optim.lr_scheduler_type", SCHEDULERS, _fsdp),
    Choice(f"{ACTOR}.optim.warmup_style", SCHEDULERS, _fsdp),
    Choice(f"{ACTOR}.fsdp_config.model_dtype", _torch_types, _fsdp),
    Choice(f"{ACTOR}.fsdp_config.dtype", _torch_types, _fsdp),
    Choice(f"{ACTOR}.checkpoint.save_contents", compared(MANAGER, "checkpoint_save_contents"), _fsdp),
    Choice(f"{ACTOR}.checkpoint.load_contents", compared(MANAGER, "checkpoint_load_contents"), _fsdp),
    Choice(f"{MODEL}.override_config.attn_implementation", _attention),
    Choice(
        f"{MODEL}.fused_kernel_options.impl_backend",
        compared("verl.models.transformers.monkey_patch:patch_forward_with_backends", "fused_kernels_backend"),
        _is(f"{MODEL}.use_fused_kernels"),
    ),
    Choice(
        f"{ROLLOUT}.name", registry("verl.workers.rollout.replica:RolloutReplicaRegistry._registry"), training=False
    ),
    Choice(f"{ROLLOUT}.mode", lambda cfg: {mode for _, mode in resolve("verl.workers.rollout.base:_ROLLOUT_REGISTRY")}),
    Choice(
        f"{ROLLOUT}.load_format",
        literal("vllm.model_executor.model_loader:LoadFormats"),
        _vllm(f"{ROLLOUT}.load_format", "dummy", "auto", "safetensors"),
        training=False,
    ),
    Choice(
        f"{ROLLOUT}.dtype",
        literal("vllm.config.model:ModelDType"),
        _vllm(f"{ROLLOUT}.dtype", "bfloat16", "float16", "float32", "auto"),
        training=False,
    ),
    Choice(
        f"{ROLLOUT}.logprobs_mode",
        literal("vllm.config.model:LogprobsMode"),
        _vllm(f"{ROLLOUT}.logprobs_mode", "processed_logprobs"),
    ),
    Choice(
        f"{ROLLOUT}.scheduling_policy",
        literal("vllm.config.scheduler:SchedulerPolicy"),
        _vllm(f"{ROLLOUT}.scheduling_policy", "fcfs"),
        training=False,
    ),
    Choice(
        f"{ROLLOUT}.agent.default_agent_loop",
        _agent_loops,
        lambda cfg: not value(cfg, f"{ROLLOUT}.agent.agent_loop_manager_class"),
    ),
    Choice(f"{ROLLOUT}.multi_turn.format", registry("verl.experimental.agent_loop.tool_parser:ToolParser._registry")),
    Choice(
        f"{ROLLOUT}.multi_turn.tool_response_truncate_side",
        # Every other name counts as middle.
        lambda cfg: [
            *compared("verl.experimental.agent_loop.tool_agent_loop:ToolAgentLoop", "tool_response_truncate_side")(cfg),
            "middle",
        ],
    ),
    Choice(
        f"{ROLLOUT}.checkpoint_engine.backend", registry("verl.checkpoint_engine:CheckpointEngineRegistry._registry")
    ),
    Choice(f"{ROLLOUT}.trace.backend", compared("verl.utils.rollout_trace:RolloutTraceConfig.init", "backend")),
    Choice("reward.reward_manager.source", compared("verl.trainer.ppo.reward:resolve_reward_manager_cls", "source")),
    Choice(
        "reward.reward_manager.name",
        registry("verl.experimental.reward_loop.reward_manager.registry:REWARD_MANAGER"),
        _is("reward.reward_manager.source", "register"),
        training=False,
    ),
    Choice(
        "reward.reward_model.rollout.name",
        registry("verl.workers.rollout.replica:RolloutReplicaRegistry._registry"),
        _is("reward.reward_model.enable"),
        training=False,
    ),
    Choice("trainer.logger", _loggers),
    Choice("trainer.resume_mode", compared(f"{V1}.trainer_base:PPOTrainer._load_checkpoint", "resume_mode")),
    Choice("trainer.v1.trainer_mode", registry(f"{V1}.trainer_base:TRAINER_REGISTRY")),
    Choice(
        "trainer.v1.sampler.max_off_policy_strategy",
        compared(f"{V1}.replay_buffer:ReplayBuffer.__init__", "max_off_policy_strategy"),
        lambda cfg: not value(cfg, "trainer.v1.sampler.custom_sampler.path"),
    ),
    Choice("global_profiler.tool", compared("verl.utils.profiler.profile:DistProfiler.__init__", "_tool"), _profiled),
    Choice(
        "skip.rollout_tq.action",
        compared("verl.utils.skip.config:RolloutTqSkipConfig.__post_init__", "action"),
        _is("skip.rollout_tq.enable"),
    ),
    Choice(
        "distillation.distillation_loss.loss_mode",
        registry("verl.trainer.distillation.losses:DISTILLATION_LOSS_REGISTRY"),
        _is("distillation.enabled"),
    ),
    Choice(
        "critic.loss_agg_mode", compared("verl.trainer.ppo.core_algos:agg_loss", "loss_agg_mode"), _is("critic.enable")
    ),
)


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Yield an error for each name that verl does not know, or whose package is not installed here."""
    # Whoever registers names when verl's trainers are imported, as we do, has done so then.
    importlib.import_module("verl.trainer.ppo.v1")
    failures = list(import_external(cfg))
    yield from failures
    trains = "evaluation" not in cfg
    if OmegaConf.is_missing(cfg.actor_rollout_ref.rollout, "name"):
        yield PreflightError(
            f"{ROLLOUT}.name", "???", "verl's config names no rollout engine", hint=f"Set {ROLLOUT}.name=vllm"
        )
    for choice in CHOICES:
        if (choice.training and not trains) or not has(cfg, choice.key) or not choice.when(cfg):
            continue
        given = value(cfg, choice.key)
        for name in given if isinstance(given, list) else [given]:
            if name is not None:
                yield from _check_name(cfg, choice, str(name), unsure=bool(failures))


def import_external(cfg: DictConfig) -> Iterator[Finding]:
    """Import the modules that workers will import and that may register names; warn of one that fails here."""
    from verl.utils.import_utils import import_external_libs

    names = value(cfg, "ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES")
    modules = {
        f"{MODEL}.external_lib": value(cfg, f"{MODEL}.external_lib"),
        f"{ROLLOUT}.checkpoint_engine.custom_backend_module": value(
            cfg, f"{ROLLOUT}.checkpoint_engine.custom_backend_module"
        ),
        "ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES": names.split(",") if names else None,
    }
    for key, module in modules.items():
        try:
            import_external_libs(module or None)
        except Exception as error:
            yield PreflightWarning(
                key,
                module,
                f"it cannot be imported here ({type(error).__name__}: {error}), so that names it registers are unknown",
                hint="Workers import it, too: install it there, or mend it",
            )


def _check_name(cfg: DictConfig, choice: Choice, name: str, *, unsure: bool) -> Iterator[Finding]:
    package = PACKAGES.get(name)
    try:
        allowed = sorted(set(choice.allowed(cfg)))
    except ImportError as error:
        yield PreflightError(
            choice.key, name, f"it needs a package that is not installed ({error})", hint="Install it, or name another"
        )
        return
    # A kernel from the hub is named like a repository.
    if name not in allowed and not (choice.key.endswith("attn_implementation") and "/" in name):
        close = difflib.get_close_matches(name, allowed, n=1)
        yield (PreflightWarning if unsure else PreflightError)(
            choice.key,
            name,
            "verl does not know this name and fails when it first needs it",
            expected=f"one of {', '.join(allowed)}",
            hint=f"Did you mean {close[0]}?"
            if close
            else "A module that registers more names goes into VERL_USE_EXTERNAL_MODULES",
        )
    elif package is not None and not _installed(package):
        yield PreflightError(
            choice.key,
            name,
            f"the package {package} is not installed, and verl fails when it imports it",
            hint=f"pip install {package.replace('_', '-')}, or name another",
        )


def _installed(package: str) -> bool:
    # transformers takes flash attention from the hub where the package kernels is there.
    packages = (package, "kernels") if package.startswith("flash_attn") else (package,)
    return any(importlib.util.find_spec(each) is not None for each in packages)
