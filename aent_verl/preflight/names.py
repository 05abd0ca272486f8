"""Names that only verl's registries and comparisons know: Hydra lets a misspelt one pass, and it fails minutes later.

What is allowed is asked of verl at run time: of its registries, where there is one, else of the strings that the
function which reads the setting compares it with. A name that a custom module registers is there by then,
because those modules are imported first, as verl imports them in its workers.
"""

import ast
import difflib
import functools
import importlib
import importlib.util
import inspect
import os
import textwrap
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any, get_args

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.findings import Finding, Setting
from aent_verl.preflight.schema import has, value
from aent_verl.verl_api.checks import resolve

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
MODEL = "actor_rollout_ref.model"
CORE = "verl.trainer.ppo.core_algos"
V1 = "verl.trainer.ppo.v1"
MODULES = "ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES"
Names = Callable[[DictConfig], Collection[str]]
# The package behind a name, where it is another, or where verl imports it only when the run has begun.
PACKAGES = {
    **{name: name for name in ("wandb", "mlflow", "swanlab", "clearml", "tensorboard", "trackio")},
    **{name: name for name in ("rl_insight", "weave", "vllm", "sglang")},
    "tracking": "wandb",
    "vemlp_wandb": "volcengine_ml_platform",
    "trtllm": "tensorrt_llm",
    "flash_attention_2": "flash_attn",
    "flash_attention_3": "flash_attn_interface",
}


@dataclass(frozen=True)
class Choice:
    """A setting, one name or a list of them, that must be in a set of names.

    Attributes:
        allowed: the names that verl knows in this process, given the config.
        when: whether verl will look at the setting at all.
        training: whether only a run that trains reads it.
    """

    allowed: Names
    when: Callable[[DictConfig], Any] = lambda cfg: True
    training: bool = True


def registry(target: str) -> Names:
    """Take the names in a registry of verl's, a mapping at ``module:path``."""
    return lambda cfg: [str(getattr(name, "value", name)) for name in resolve(target)]


def compared(target: str, *names: str) -> Names:
    """Take the strings that a function of verl's compares a variable or attribute with, or looks for in it.

    A branch that only raises is not a choice.
    """
    return lambda cfg: sorted(compared_strings(resolve(target), *names))


@functools.cache
def compared_strings(function: Any, *names: str) -> set[str]:
    """Collect what `compared` takes, for a function or class."""
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
            # The name of a variable, or of an attribute of whatever object.
            if any(getattr(side, "attr", getattr(side, "id", None)) in names for side in sides):
                found |= {text for side in sides for text in _strings(side)}
    return found


def _strings(node: ast.AST) -> Iterator[str]:
    """Yield the strings of a constant, or of a literal collection of them."""
    for each in node.elts if isinstance(node, ast.List | ast.Tuple | ast.Set) else [node]:
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def literal(target: str) -> Names:
    """Take the strings of a ``typing.Literal``, including unions of them."""

    def strings(hint: Any) -> list[str]:
        return [hint] if isinstance(hint, str) else [text for each in get_args(hint) for text in strings(each)]

    return lambda cfg: strings(resolve(target))


def _kl(cfg: DictConfig) -> Collection[str]:
    plain = compared(f"{CORE}:kl_penalty_forward", "kl_penalty")(cfg)
    return [*plain, *(f"{name}+" for name in plain)]


def _loggers(cfg: DictConfig) -> Collection[str]:
    return [*resolve("verl.utils.tracking:Tracking").supported_backend, "tracking"]


def _agent_loops(cfg: DictConfig) -> Collection[str]:
    names = registry("verl.experimental.agent_loop.agent_loop:_agent_loop_registry")(cfg)
    path = value(cfg, f"{ROLLOUT}.agent.agent_loop_config_path")
    loops: Any = OmegaConf.load(path) if path and os.path.isfile(path) else []
    return [*names, *(str(each.name) for each in loops)]


def _truncations(cfg: DictConfig) -> Collection[str]:
    loop = "verl.experimental.agent_loop.tool_agent_loop:ToolAgentLoop"
    # Every other name counts as middle.
    return [*compared(loop, "tool_response_truncate_side")(cfg), "middle"]


def _attention(cfg: DictConfig) -> Collection[str]:
    return ["eager", *resolve("transformers.modeling_utils:ALL_ATTENTION_FUNCTIONS").valid_keys()]


def _optimizers(cfg: DictConfig) -> Collection[str]:
    module = importlib.import_module(value(cfg, f"{ACTOR}.optim.optimizer_impl"))
    return [name for name, each in vars(module).items() if isinstance(each, type)]


def _torch_types(cfg: DictConfig) -> Collection[str]:
    lists = resolve("verl.utils.torch_dtypes")
    return [name for each in (lists.HALF_LIST, lists.FLOAT_LIST, lists.BFLOAT_LIST) for name in map(str, each)]


def _is(key: str, *values: Any) -> Callable[[DictConfig], bool]:
    return lambda cfg: value(cfg, key) in (values or (True,))


def _fsdp(cfg: DictConfig) -> bool:
    return str(value(cfg, f"{ACTOR}.strategy")).startswith("fsdp")


def _vllm(name: str, target: str, *usual: str, training: bool = False) -> dict[str, Choice]:
    """Make the choice for a setting that vLLM reads; for verl's usual values the slow import of vLLM is spared."""
    key = f"{ROLLOUT}.{name}"

    def is_read(cfg: DictConfig) -> bool:
        return value(cfg, f"{ROLLOUT}.name") == "vllm" and _installed("vllm") and value(cfg, key) not in usual

    return {key: Choice(literal(f"vllm.{target}"), is_read, training)}


MANAGER = "verl.utils.checkpoint.checkpoint_manager:BaseCheckpointManager"
SCHEDULERS = compared("verl.workers.engine.fsdp.transformer_impl:FSDPEngine._build_lr_scheduler", "lr_scheduler_type")
AGGREGATION = compared(f"{CORE}:agg_loss", "loss_agg_mode")
ENGINES = registry("verl.workers.rollout.replica:RolloutReplicaRegistry._registry")
CHOICES = {
    "algorithm.adv_estimator": Choice(registry(f"{CORE}:ADV_ESTIMATOR_REGISTRY")),
    "algorithm.kl_penalty": Choice(_kl, _is("algorithm.use_kl_in_reward")),
    "algorithm.kl_ctrl.type": Choice(compared(f"{CORE}:get_kl_controller", "type"), _is("algorithm.use_kl_in_reward")),
    f"{ACTOR}.policy_loss.loss_mode": Choice(registry(f"{CORE}:POLICY_LOSS_REGISTRY")),
    f"{ACTOR}.loss_agg_mode": Choice(AGGREGATION),
    f"{ACTOR}.kl_loss_type": Choice(_kl, _is(f"{ACTOR}.use_kl_loss")),
    f"{ACTOR}.optim.optimizer": Choice(_optimizers, _fsdp),
    f"{ACTOR}.optim.lr_scheduler_type": Choice(SCHEDULERS, _fsdp),
    f"{ACTOR}.optim.warmup_style": Choice(SCHEDULERS, _fsdp),
    f"{ACTOR}.fsdp_config.model_dtype": Choice(_torch_types, _fsdp),
    f"{ACTOR}.fsdp_config.dtype": Choice(_torch_types, _fsdp),
    f"{ACTOR}.checkpoint.save_contents": Choice(compared(MANAGER, "checkpoint_save_contents"), _fsdp),
    f"{ACTOR}.checkpoint.load_contents": Choice(compared(MANAGER, "checkpoint_load_contents"), _fsdp),
    f"{MODEL}.override_config.attn_implementation": Choice(_attention),
    f"{MODEL}.fused_kernel_options.impl_backend": Choice(
        compared("verl.models.transformers.monkey_patch:patch_forward_with_backends", "fused_kernels_backend"),
        _is(f"{MODEL}.use_fused_kernels"),
    ),
    f"{ROLLOUT}.name": Choice(ENGINES, training=False),
    f"{ROLLOUT}.mode": Choice(lambda cfg: {mode for _, mode in resolve("verl.workers.rollout.base:_ROLLOUT_REGISTRY")}),
    **_vllm("load_format", "model_executor.model_loader:LoadFormats", "dummy", "auto", "safetensors"),
    **_vllm("dtype", "config.model:ModelDType", "bfloat16", "float16", "float32", "auto"),
    **_vllm("logprobs_mode", "config.model:LogprobsMode", "processed_logprobs", training=True),
    **_vllm("scheduling_policy", "config.scheduler:SchedulerPolicy", "fcfs"),
    f"{ROLLOUT}.agent.default_agent_loop": Choice(
        _agent_loops, lambda cfg: not value(cfg, f"{ROLLOUT}.agent.agent_loop_manager_class")
    ),
    f"{ROLLOUT}.multi_turn.format": Choice(registry("verl.experimental.agent_loop.tool_parser:ToolParser._registry")),
    f"{ROLLOUT}.multi_turn.tool_response_truncate_side": Choice(_truncations),
    f"{ROLLOUT}.checkpoint_engine.backend": Choice(
        registry("verl.checkpoint_engine:CheckpointEngineRegistry._registry")
    ),
    f"{ROLLOUT}.trace.backend": Choice(compared("verl.utils.rollout_trace:RolloutTraceConfig.init", "backend")),
    "reward.reward_manager.source": Choice(compared("verl.trainer.ppo.reward:resolve_reward_manager_cls", "source")),
    "reward.reward_manager.name": Choice(
        registry("verl.experimental.reward_loop.reward_manager.registry:REWARD_MANAGER"),
        _is("reward.reward_manager.source", "register"),
        training=False,
    ),
    "reward.reward_model.rollout.name": Choice(ENGINES, _is("reward.reward_model.enable"), training=False),
    "trainer.logger": Choice(_loggers),
    "trainer.resume_mode": Choice(compared(f"{V1}.trainer_base:PPOTrainer._load_checkpoint", "resume_mode")),
    "trainer.v1.sampler.max_off_policy_strategy": Choice(
        compared(f"{V1}.replay_buffer:ReplayBuffer.__init__", "max_off_policy_strategy"),
        lambda cfg: not value(cfg, "trainer.v1.sampler.custom_sampler.path"),
    ),
    "global_profiler.tool": Choice(
        compared("verl.utils.profiler.profile:DistProfiler.__init__", "_tool"),
        lambda cfg: value(cfg, "global_profiler.steps"),
    ),
    "skip.rollout_tq.action": Choice(
        compared("verl.utils.skip.config:RolloutTqSkipConfig.__post_init__", "action"), _is("skip.rollout_tq.enable")
    ),
    "distillation.distillation_loss.loss_mode": Choice(
        registry("verl.trainer.distillation.losses:DISTILLATION_LOSS_REGISTRY"), _is("distillation.enabled")
    ),
    "critic.loss_agg_mode": Choice(AGGREGATION, _is("critic.enable")),
}


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Yield an error for each name that verl does not know, or whose package is not installed here."""
    # By then whoever registers names when verl's trainers are imported, as we do, has done so.
    importlib.import_module(V1)
    failures = list(import_external(cfg))
    yield from failures
    trains = "evaluation" not in cfg
    if OmegaConf.is_missing(cfg.actor_rollout_ref.rollout, "name"):
        yield Setting(f"{ROLLOUT}.name", "???").error(
            "verl's config names no rollout engine", f"Set {ROLLOUT}.name=vllm"
        )
    for key, choice in CHOICES.items():
        if (choice.training and not trains) or not has(cfg, key) or not choice.when(cfg):
            continue
        given = value(cfg, key)
        for name in given if isinstance(given, list) else [given]:
            if name is not None:
                yield from _check_name(cfg, Setting(key, str(name)), choice, unsure=bool(failures))


def import_external(cfg: DictConfig) -> Iterator[Finding]:
    """Import the modules that workers will import and that may register names; warn of one that fails here."""
    from verl.utils.import_utils import import_external_libs

    for key in (f"{MODEL}.external_lib", f"{ROLLOUT}.checkpoint_engine.custom_backend_module", MODULES):
        given = value(cfg, key) or None
        modules = given.split(",") if given and key == MODULES else given
        try:
            import_external_libs(modules)
        except Exception as error:
            yield Setting(key, modules).warning(
                f"cannot be imported here ({type(error).__name__}: {error}), so names that it registers are unknown",
                "Workers import it, too: install it there, or fix it",
            )


def _check_name(cfg: DictConfig, setting: Setting, choice: Choice, *, unsure: bool) -> Iterator[Finding]:
    name = setting.value
    package = PACKAGES.get(name)
    try:
        allowed = sorted(set(choice.allowed(cfg)))
    except ImportError as error:
        yield setting.error(f"needs a package that is not installed ({error})", "Install it, or choose another name")
        return
    # A kernel from the hub is named like a repository.
    if name not in allowed and not (setting.key.endswith("attn_implementation") and "/" in name):
        close = difflib.get_close_matches(name, allowed, n=1)
        more = "A module that registers more names goes into VERL_USE_EXTERNAL_MODULES"
        yield (setting.warning if unsure else setting.error)(
            "verl does not know this name and fails when it first needs it",
            f"Did you mean {close[0]}?" if close else more,
            f"one of {', '.join(allowed)}",
        )
    elif package is not None and not _installed(package):
        yield setting.error(
            f"the package {package} is not installed, and verl fails when it imports it",
            f"pip install {package.replace('_', '-')}, or choose another name",
        )


def _installed(package: str) -> bool:
    # transformers takes flash attention from the hub where the package kernels is there.
    packages = (package, "kernels") if package.startswith("flash_attn") else (package,)
    return any(importlib.util.find_spec(each) is not None for each in packages)
