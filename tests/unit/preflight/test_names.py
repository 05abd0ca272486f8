import ast
import inspect
import pickle
import re
import subprocess
import sys

import pytest

from aent_verl.preflight import names
from aent_verl.preflight.findings import PreflightError, PreflightWarning
from tests.unit.preflight import verl_source
from tests.unit.preflight.finding import config, put

ACTOR, ROLLOUT, MODEL = "actor_rollout_ref.actor", "actor_rollout_ref.rollout", "actor_rollout_ref.model"


@pytest.fixture(scope="module")
def base():
    import aent_verl.plugin.trainer  # noqa: F401  registers our trainers, as the entry does

    return config("experiment=cpu_arithmetic")


@pytest.fixture
def cfg(base):
    return pickle.loads(pickle.dumps(base))


def test_our_own_configs_name_nothing_that_is_unknown(base):
    assert list(names.check(base)) == []
    for method in ("clip_cov", "kl_cov", "clip_higher"):
        assert list(names.check(config("experiment=cpu_arithmetic", f"entropy_control={method}"))) == []


@pytest.mark.slow
def test_our_own_names_are_known_whatever_was_imported_before():
    code = (
        "from hydra import compose, initialize_config_module\n"
        "from aent_verl.preflight import names\n"
        "with initialize_config_module('aent_verl._config', version_base='1.3'):\n"
        "    cfg = compose('aent_trainer', ['experiment=cpu_arithmetic', 'entropy_control=kl_cov'])\n"
        "assert list(names.check(cfg)) == []\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_an_evaluation_does_not_ask_for_a_logger():
    assert list(names.check(config(name="aent_evaluate"))) == []


@pytest.mark.parametrize(
    ("key", "value", "close"),
    [
        ("reward.reward_manager.name", "dappo", "dapo"),
        ("reward.reward_manager.source", "registr", "register"),
        ("algorithm.adv_estimator", "grop", "grpo"),
        ("trainer.logger", ["console", "tensorbord"], "tensorboard"),
        ("trainer.logger", "consol", "console"),
        ("trainer.resume_mode", "disabled", "disable"),
        ("trainer.v1.sampler.max_off_policy_strategy", "drops", "drop"),
        (f"{ACTOR}.policy_loss.loss_mode", "aent_kl_kov", "aent_kl_cov"),
        (f"{ACTOR}.loss_agg_mode", "token-means", "token-mean"),
        (f"{ACTOR}.optim.optimizer", "AdanW", "AdamW"),
        (f"{ACTOR}.optim.lr_scheduler_type", "cosin", "cosine"),
        (f"{ACTOR}.checkpoint.save_contents", ["model", "hf_mode"], "hf_model"),
        (f"{ACTOR}.fsdp_config.model_dtype", "bf17", "bf16"),
        (f"{ROLLOUT}.name", "vllmm", "vllm"),
        (f"{ROLLOUT}.mode", "asynch", "async"),
        (f"{ROLLOUT}.agent.default_agent_loop", "tool_agnt", "tool_agent"),
        (f"{ROLLOUT}.multi_turn.format", "hermess", "hermes"),
        (f"{ROLLOUT}.multi_turn.tool_response_truncate_side", "midle", "middle"),
        (f"{ROLLOUT}.checkpoint_engine.backend", "naiv", "naive"),
        (f"{ROLLOUT}.trace.backend", "weav", "weave"),
        (f"{MODEL}.override_config.attn_implementation", "sdpaa", "sdpa"),
    ],
)
def test_a_misspelt_name_stops_with_the_closest(cfg, key, value, close):
    (finding,) = [each for each in names.check(put(cfg, key, value)) if "load_contents" not in each.key]
    assert isinstance(finding, PreflightError)
    assert finding.key == key
    assert f"Did you mean {close}?" in str(finding)
    assert "fails when it first needs it; expected one of " in str(finding)


@pytest.mark.parametrize(
    ("switch", "key", "value"),
    [
        ("algorithm.use_kl_in_reward", "algorithm.kl_penalty", "full"),
        ("algorithm.use_kl_in_reward", "algorithm.kl_penalty", "k4"),
        ("algorithm.use_kl_in_reward", "algorithm.kl_ctrl.type", "adaptiv"),
        (f"{ACTOR}.use_kl_loss", f"{ACTOR}.kl_loss_type", "k4"),
        (f"{ACTOR}.use_kl_loss", f"{ACTOR}.kl_loss_type", "full"),
        ("distillation.enabled", "distillation.distillation_loss.loss_mode", "k9"),
        ("skip.rollout_tq.enable", "skip.rollout_tq.action", "cach"),
        (f"{MODEL}.use_fused_kernels", f"{MODEL}.fused_kernel_options.impl_backend", "tritn"),
        ("reward.reward_model.enable", "reward.reward_model.rollout.name", "vlm"),
    ],
)
def test_a_name_counts_only_where_it_is_read(cfg, switch, key, value):
    assert list(names.check(put(cfg, key, value))) == []
    assert [finding.key for finding in names.check(put(cfg, switch, True))] == [key]


@pytest.mark.parametrize("value", ["k3+", "low_var_kl", "kl", "mse"])
def test_kl_types_with_and_without_straight_through(cfg, value):
    put(cfg, f"{ACTOR}.use_kl_loss", True)
    assert list(names.check(put(cfg, f"{ACTOR}.kl_loss_type", value))) == []


@pytest.mark.parametrize(
    ("key", "value", "package"),
    [
        ("trainer.logger", ["console", "swanlab"], "swanlab"),
        ("trainer.logger", ["vemlp_wandb"], "volcengine_ml_platform"),
        (f"{ROLLOUT}.name", "sglang", "sglang"),
    ],
)
def test_a_known_name_whose_package_is_not_installed_stops(cfg, key, value, package):
    (finding,) = names.check(put(cfg, key, value))
    assert isinstance(finding, PreflightError)
    assert f"the package {package} is not installed" in str(finding)


def test_an_optimizer_module_that_is_not_installed_stops(cfg):
    (finding,) = names.check(put(cfg, f"{ACTOR}.optim.optimizer_impl", "no_such_package.optim"))
    assert "needs a package that is not installed" in str(finding)


def test_a_misspelt_load_format_is_asked_of_vllm(cfg):
    pytest.importorskip("vllm")
    (finding,) = names.check(put(cfg, f"{ROLLOUT}.load_format", "dumy"))
    assert "Did you mean dummy?" in str(finding)


@pytest.mark.parametrize("place", ["external_lib", "env_vars"])
def test_a_name_that_a_users_module_registers_is_known(cfg, tmp_path, monkeypatch, place):
    module = f"registers_{place}"
    (tmp_path / f"{module}.py").write_text(
        "from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, register_adv_est\n"
        f"register_adv_est('from_{place}')(print)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(
        "verl.trainer.ppo.core_algos.ADV_ESTIMATOR_REGISTRY",
        dict(names.resolve("verl.trainer.ppo.core_algos:ADV_ESTIMATOR_REGISTRY")),
    )
    put(cfg, "algorithm.adv_estimator", f"from_{place}")
    assert [finding.key for finding in names.check(cfg)] == ["algorithm.adv_estimator"]
    if place == "external_lib":
        put(cfg, f"{MODEL}.external_lib", module)
    else:
        put(cfg, "ray_kwargs.ray_init.runtime_env.env_vars.VERL_USE_EXTERNAL_MODULES", module)
    assert list(names.check(cfg)) == []


def test_a_users_module_that_cannot_be_imported_here_makes_unknown_names_warnings(cfg):
    put(cfg, f"{MODEL}.external_lib", "no_such_module")
    put(cfg, "algorithm.adv_estimator", "perhaps_from_there")
    findings = list(names.check(cfg))
    assert [type(finding) for finding in findings] == [PreflightWarning, PreflightWarning]
    assert "cannot be imported here" in str(findings[0])


def test_agent_loops_of_the_users_file_are_known(cfg, tmp_path):
    (tmp_path / "loops.yaml").write_text("- name: mine\n  _target_: some.where.Loop\n")
    put(cfg, f"{ROLLOUT}.agent.default_agent_loop", "mine")
    assert len(list(names.check(cfg))) == 1
    assert list(names.check(put(cfg, f"{ROLLOUT}.agent.agent_loop_config_path", str(tmp_path / "loops.yaml")))) == []


@pytest.mark.parametrize("key", names.CHOICES)
def test_every_choice_finds_its_names_in_verl_and_knows_the_default(key, base):
    choice = names.CHOICES[key]
    if "literal" in choice.allowed.__qualname__:
        pytest.importorskip("vllm")
    allowed = set(choice.allowed(base))
    assert len(allowed) >= 1
    given = names.value(base, key)
    assert {str(each) for each in (given if isinstance(given, list) else [given]) if each is not None} <= allowed


def test_every_logger_of_verl_is_built_in_or_has_its_package():
    tracking = names.resolve("verl.utils.tracking")
    source = inspect.getsource(tracking)
    for backend in [*tracking.Tracking.supported_backend, "tracking"]:
        package = names.PACKAGES.get(backend)
        if package is None:
            assert backend in ("console", "file")
        elif backend == "tensorboard":
            assert "torch.utils.tensorboard" in source
        else:
            assert re.search(rf"^\s+(import|from) {package}\b", source, re.MULTILINE), backend


def test_compared_strings_skip_what_only_raises():
    def function(name):
        if name == "refused":
            raise NotImplementedError
        if name in ("a", "b") or name == "c":
            return 1
        if name not in ["d"]:
            raise ValueError
        return 0

    assert names.compared_strings(function, "name") == {"a", "b", "c", "d"}


# Every registry in verl's source that names.py does not ask, and why not.
NOT_ASKED = {
    **dict.fromkeys(
        (
            "verl.models.registry:_MODELS",
            "verl.models.mcore.registry:MODEL_CONFIG_CONVERTER_REGISTRY",
            "verl.models.mcore.registry:MODEL_FORWARD_FUSED_REGISTRY",
            "verl.models.mcore.registry:MODEL_FORWARD_REGISTRY",
            "verl.models.mcore.registry:MODEL_INITIALIZER_REGISTRY",
            "verl.models.mcore.registry:MODEL_WEIGHT_CONVERTER_REGISTRY",
            "verl.models.registry:ModelRegistry",
        ),
        "Megatron's, by the model's architecture",
    ),
    "verl.single_controller.base.decorator:DISPATCH_MODE_FN_REGISTRY": "dispatch modes of worker methods, in code",
    "verl.plugin.platform.platform_manager:PlatformRegistry": "chosen before any check, see platforms/cpu.py",
    "verl.experimental.fully_async_policy.dynamic_schedule.base:_policy_registry": "not a v1 trainer",
    "verl.trainer.ppo.v1.trainer_base:TRAINER_REGISTRY": "only ours are allowed, see plugin/actor_config.py",
    "verl.workers.engine.base:EngineRegistry": "FSDP alone is allowed, see plugin/actor_config.py",
    "verl.workers.reward_manager.registry:REWARD_MANAGER_REGISTRY": "the old trainer's reward managers",
    "verl.trainer.distillation.losses:DISTILLATION_SETTINGS_REGISTRY": "has the keys of DISTILLATION_LOSS_REGISTRY",
    "verl.tools.function_tool:FUNCTION_TOOL_REGISTRY": "filled from the file that function_tool_path names",
    "verl.utils.skip.base_skip:SKIP_REGISTRY": "its names are keys of the block skip, not values",
    "verl.utils.tokenizer.continuous_token_wiring:_CONTINUOUS_TOKEN_BUILDER_REGISTRY": "by the model's type",
    "verl.utils.py_functional:DynamicEnum": "a base class",
    "verl.single_controller.base.decorator:Dispatch": "dispatch modes of worker methods, in code",
    "verl.single_controller.base.decorator:Execute": "execution modes of worker methods, in code",
}


def registries():
    """Module-level mappings and classes of verl's that are named registry, or hold one."""
    for module, (_, tree) in verl_source.modules().items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                fields = [target for each in node.body for target in _targets(each)]
                if node.name.endswith("Registry") or "_registry" in fields:
                    yield f"{module}:{node.name}"
            for name in _targets(node):
                if re.search("registry|^reward_manager$|^_models$", name, re.IGNORECASE):
                    yield f"{module}:{name}"


def _targets(node):
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


def test_every_registry_of_verl_is_asked_or_has_a_reason_not_to_be():
    source = inspect.getsource(names)
    asked = set(re.findall(r"(?:verl[\w.]+|\{CORE\}|trainer_base):(\w+)", source))
    every = set(registries())
    assert {each for each in every if each.partition(":")[2] not in asked} == set(NOT_ASKED)
    assert len(every) > 20
