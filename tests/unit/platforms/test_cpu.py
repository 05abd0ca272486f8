import ast
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from aent_verl.platforms import cpu

HEAD_NODE_OF_GPU_CLUSTER = {"CPU": 200.0, "GPU": 16.0, "memory": 1e12, "accelerator_type:H100": 2.0}
CPU_CLUSTER = {"CPU": 8.0, "memory": 1e10, "object_store_memory": 1e9, "node:10.0.0.1": 1.0}
OUR_OWN_CLUSTER = CPU_CLUSTER | {"GPU": 2.0, cpu.LOGICAL_RESOURCE: 2.0}


def test_every_accelerator_that_ray_knows_counts():
    from ray._private.accelerators import get_all_accelerator_resource_names

    assert get_all_accelerator_resource_names() <= cpu.ACCELERATOR_RESOURCES


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        (CPU_CLUSTER, False),
        ({}, False),
        (HEAD_NODE_OF_GPU_CLUSTER, True),
        ({"CPU": 4.0, "GPU": 1.0}, True),
        ({"CPU": 4.0, "GPU": 0.0}, False),
        ({"CPU": 4.0, "NPU": 8.0}, True),
        ({"CPU": 4.0, "TPU": 4.0}, True),
        ({"CPU": 4.0, "HPU": 8.0}, True),
        ({"CPU": 4.0, "neuron_cores": 2.0}, True),
        ({"CPU": 4.0, "accelerator_type:A100": 1.0}, True),
        (OUR_OWN_CLUSTER, False),
        # A node with eight GPUs joined the cluster that we had started with two logical ones.
        (OUR_OWN_CLUSTER | {"GPU": 10.0}, True),
        # The marker excuses "GPU" alone.
        (OUR_OWN_CLUSTER | {"NPU": 2.0}, True),
    ],
)
def test_cluster_has_accelerator(resources, expected):
    assert cpu.cluster_has_accelerator(resources) is expected


def test_the_cluster_that_we_start_counts_as_one_without_accelerator():
    arguments = cpu.logical_accelerators(3)
    resources = {"CPU": 16.0, "GPU": float(arguments["num_gpus"]), **arguments["resources"]}
    assert arguments["num_gpus"] == 3
    assert not cpu.cluster_has_accelerator(resources)


@pytest.mark.parametrize(
    ("requested", "cluster", "local", "expected"),
    [
        # The user's word stands, whatever there is.
        ("cpu", HEAD_NODE_OF_GPU_CLUSTER, True, "cpu"),
        (" CPU ", None, True, "cpu"),
        ("nvidia", CPU_CLUSTER, False, None),
        ("metax", None, False, None),
        # A cluster to be joined decides, not the machine we are on.
        (None, HEAD_NODE_OF_GPU_CLUSTER, False, None),
        (None, CPU_CLUSTER, True, "cpu"),
        (None, OUR_OWN_CLUSTER, False, "cpu"),
        # Nothing to join: this machine decides.
        (None, None, True, None),
        (None, None, False, "cpu"),
        ("", None, False, "cpu"),
        ("  ", None, False, "cpu"),
    ],
)
def test_detect_platform(monkeypatch, requested, cluster, local, expected):
    monkeypatch.delenv("VERL_PLATFORM", raising=False)
    if requested is not None:
        monkeypatch.setenv("VERL_PLATFORM", requested)
    monkeypatch.setattr(cpu, "joined_cluster_resources", lambda address: cluster)
    monkeypatch.setattr(cpu, "local_accelerator", lambda: local)
    assert cpu.detect_platform() == expected


def test_the_local_machine_is_not_asked_where_a_cluster_decides(monkeypatch):
    monkeypatch.setattr(cpu, "joined_cluster_resources", lambda address: CPU_CLUSTER)
    monkeypatch.setattr(cpu, "local_accelerator", lambda: pytest.fail("local machine asked"))
    for requested in ("nvidia", ""):
        monkeypatch.setenv("VERL_PLATFORM", requested)
        cpu.detect_platform()


class FakeRay:
    """What `joined_cluster_resources` uses of Ray; records what was called."""

    def __init__(self, monkeypatch, *, initialized=False, running=None, resources=CPU_CLUSTER):
        import ray
        from ray._private import services

        self.calls = []
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.delenv("VERL_PLATFORM", raising=False)
        monkeypatch.setattr(ray, "is_initialized", lambda: initialized)
        monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
        monkeypatch.setattr(ray, "init", lambda address, **_: self.calls.append(("init", address)))
        monkeypatch.setattr(ray, "shutdown", lambda: self.calls.append("shutdown"))
        monkeypatch.setattr(services, "find_bootstrap_address", lambda temp_dir: running)
        monkeypatch.setattr(services, "find_gcs_addresses", lambda: set())


def test_a_joined_cluster_is_not_joined_again(monkeypatch):
    ray = FakeRay(monkeypatch, initialized=True, resources=HEAD_NODE_OF_GPU_CLUSTER)
    assert cpu.detect_platform() is None
    assert ray.calls == []


@pytest.mark.parametrize("address", ["10.0.0.9:6379", "ray://10.0.0.9:10001"])
@pytest.mark.parametrize("how", ["config", "environment", "environment and auto", "ray start on this machine"])
def test_the_resources_of_a_cluster_to_join_decide(monkeypatch, how, address):
    ray = FakeRay(
        monkeypatch,
        running="10.0.0.9:6379" if how == "ray start on this machine" else None,
        resources=HEAD_NODE_OF_GPU_CLUSTER,
    )
    monkeypatch.setattr(cpu, "local_accelerator", lambda: False)
    if how.startswith("environment"):
        monkeypatch.setenv("RAY_ADDRESS", address)
    given = {"config": address, "environment and auto": "auto"}.get(how)
    assert cpu.detect_platform(given) is None
    # Ray looks for an authentication token only if it finds the address itself.
    assert ray.calls == [("init", given), "shutdown"]


@pytest.mark.parametrize("address", [None, "local"])
@pytest.mark.parametrize(("local", "expected"), [(True, None), (False, "cpu")])
def test_without_a_cluster_this_machine_decides(monkeypatch, address, local, expected):
    ray = FakeRay(monkeypatch, running="10.0.0.9:6379" if address == "local" else None)
    monkeypatch.setattr(cpu, "local_accelerator", lambda: local)
    assert cpu.detect_platform(address) == expected
    assert ray.calls == []


def test_the_users_platform_is_respected_without_asking_ray(monkeypatch):
    ray = FakeRay(monkeypatch, running="10.0.0.9:6379")
    monkeypatch.setenv("VERL_PLATFORM", "nvidia")
    assert cpu.detect_platform() is None
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert cpu.detect_platform() == "cpu"
    assert ray.calls == []


@pytest.fixture
def registry(monkeypatch) -> Iterator[type]:
    """verl's platform registry with our platform in it, put back afterwards."""
    from verl.plugin.platform import PlatformRegistry

    monkeypatch.setattr(PlatformRegistry, "_platforms", dict(PlatformRegistry._platforms))
    cpu.register()
    return PlatformRegistry


def test_local_accelerator_asks_verls_platforms_only(monkeypatch, registry):
    answers = {"use_smi_check": False, "is_available": False}

    class Platform:
        def is_platform_available(self, use_smi_check=False):
            assert use_smi_check
            return answers["use_smi_check"]

        def is_available(self):
            if answers["is_available"] == "raises":
                raise AttributeError("module 'torch' has no attribute 'npu'")
            return answers["is_available"]

    monkeypatch.setattr(registry, "_platforms", {"some": Platform, "cpu": cpu.platform_class()})
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert not cpu.local_accelerator()
    answers["is_available"] = "raises"
    assert not cpu.local_accelerator()
    answers["is_available"] = True  # CUDA works, nvidia-smi is not installed
    assert cpu.local_accelerator()
    answers.update(use_smi_check=True, is_available=False)  # the driver is there, this process sees no device
    assert cpu.local_accelerator()


def test_register_is_idempotent_and_refuses_a_second_cpu_platform(registry):
    platform_type = registry.get("cpu")
    cpu.register()
    assert registry.get("cpu") is platform_type is cpu.platform_class()
    registry._platforms["cpu"] = registry.get("nvidia")
    with pytest.raises(RuntimeError, match=r"already has a platform named 'cpu' \(.*PlatformCUDA\)"):
        cpu.register()


def test_platform_answers_what_verl_needs(monkeypatch):
    platform = cpu.platform_class()()  # an abstract method left out would raise here
    assert torch.empty(1).to(platform.current_device()).device.type == "cpu" == platform.device_name
    assert platform.is_available()
    assert not platform.is_ipc_supported()
    assert platform.ray_resource_name() == "GPU"
    assert platform.ray_resource_options(0.5) == {"num_gpus": 0.5}
    assert platform.communication_backend_name() == "gloo"
    assert platform.get_device_capability() == (None, None)
    with platform.nvtx_range("step"):
        platform.synchronize()
    platform.manual_seed(3)
    first = torch.rand(2)
    platform.manual_seed_all(3)
    assert torch.equal(torch.rand(2), first)
    for value, available in (("cpu", True), ("CPU ", True), ("nvidia", False), ("", False)):
        monkeypatch.setenv("VERL_PLATFORM", value)
        assert platform.is_platform_available(use_smi_check=True) is available
    monkeypatch.delenv("VERL_PLATFORM")
    assert not platform.is_platform_available(use_smi_check=True)


def called_on_the_device_module() -> set[str]:
    """Dotted names that verl reads on `get_torch_device()`, directly, through a local name, or on `x.device_module`."""
    import verl

    found = set()
    for path in Path(verl.__file__).parent.rglob("*.py"):
        source = path.read_text()
        if "plugin/platform" in path.as_posix() or not ("get_torch_device" in source or "device_module" in source):
            continue
        for scope in ast.walk(ast.parse(source)):
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
                found |= attributes_of_device(scope)
    return found


def is_device_call(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and getattr(node.func, "id", None) == "get_torch_device"


def attributes_of_device(scope: ast.AST) -> set[str]:
    names = {
        target.id
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign) and is_device_call(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def is_device(node: ast.AST) -> bool:
        by_name = isinstance(node, ast.Name) and node.id in names
        by_attribute = isinstance(node, ast.Attribute) and node.attr == "device_module"
        return is_device_call(node) or by_name or by_attribute

    found = set()
    for node in ast.walk(scope):
        if isinstance(node, ast.Attribute):
            if is_device(node.value):
                found.add(node.attr)
            elif isinstance(node.value, ast.Attribute) and is_device(node.value.value):
                found.add(f"{node.value.attr}.{node.attr}")
    return found


def test_device_module_has_everything_that_verl_calls():
    called = called_on_the_device_module()
    assert {"empty_cache", "mem_get_info", "current_stream", "memory._dump_snapshot"} <= called, "the search went blind"
    for dotted in sorted(called):
        target = cpu.device_module()
        for name in dotted.split("."):
            assert hasattr(target, name), f"verl calls {dotted} on the device module"
            target = getattr(target, name)


def test_device_module_works():
    device = cpu.device_module()
    allocated, peak, (free, total) = device.memory_allocated(), device.max_memory_allocated(), device.mem_get_info()
    assert 1e7 < allocated <= peak * 1.01
    assert peak < total
    assert 0 < free < total
    assert not device.is_available()
    state = device.get_rng_state()
    first = torch.rand(2)
    device.set_rng_state(state)
    assert torch.equal(torch.rand(2), first)
    with device.stream(device.Stream()) as stream:
        stream.wait_stream(device.current_stream())
        device.current_stream().record_event(device.Event())
    device.synchronize()
    device.set_device(0)
    assert device.get_device_properties(0).total_memory == total


def test_runtime_env_vars(monkeypatch):
    monkeypatch.setattr(cpu, "cpu_count", lambda: 8)
    variables = cpu.runtime_env_vars(environ={})
    assert variables == {
        "VERL_PLATFORM": "cpu",
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": "8",
        "TORCHDYNAMO_DISABLE": "1",
    }
    assert cpu.runtime_env_vars(processes=3, environ={})["OMP_NUM_THREADS"] == "2"
    assert cpu.runtime_env_vars(processes=99, environ={})["OMP_NUM_THREADS"] == "1"
    assert cpu.runtime_env_vars(environ=variables) == variables


def test_runtime_env_vars_keep_what_the_user_set():
    user = {"VLLM_CPU_KVCACHE_SPACE": "6", "OMP_NUM_THREADS": "5", "TORCHDYNAMO_DISABLE": "0"}
    assert cpu.runtime_env_vars(environ=user).items() >= user.items()
    assert cpu.runtime_env_vars(environ={"VLLM_PLUGINS": "other"})["VLLM_PLUGINS"] == "other,aent_verl"
    assert cpu.runtime_env_vars(environ={"VLLM_PLUGINS": ""})["VLLM_PLUGINS"] == "aent_verl"
    assert "VLLM_PLUGINS" not in cpu.runtime_env_vars(environ={"VLLM_PLUGINS": "aent_verl"})


def test_register_engines(monkeypatch):
    from verl.workers.engine import EngineRegistry, FSDPEngineWithLMHead

    cpu.register_engines()
    cpu.register_engines()
    engines = EngineRegistry._engines
    for model_type in ("language_model", "value_model"):
        assert engines[model_type]["fsdp2"]["cpu"] is engines[model_type]["fsdp2"]["cuda"]
        assert "cpu" not in engines[model_type]["fsdp"], "FSDP1 refuses modules on the CPU"
    monkeypatch.setenv("VERL_ENGINE_DEVICE", "cpu")
    assert EngineRegistry.get_engine_cls("language_model", "fsdp2") is FSDPEngineWithLMHead
    monkeypatch.setitem(engines["value_model"]["fsdp2"], "cpu", FSDPEngineWithLMHead)
    with pytest.raises(RuntimeError, match="already has an engine for 'value_model'"):
        cpu.register_engines()


RANK = """
import os, sys, torch
from aent_verl.platforms import cpu
from verl.utils.distributed import initialize_global_process_group_ray

def check():
    made = cpu.initialize_gloo(), cpu.initialize_gloo()
    initialize_global_process_group_ray()  # what verl's worker does next: nothing, for there is a group
    total = torch.tensor([torch.distributed.get_rank() + 1])
    torch.distributed.all_reduce(total)
    ranks = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(ranks, torch.distributed.get_rank())
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (len(ranks),), mesh_dim_names=("fsdp",))
    print("RESULT", made, total.item(), ranks, mesh.size())
    torch.distributed.destroy_process_group()

cpu.register()
check()
os.environ.update(WORLD_SIZE="1", RANK="0", DIST_INIT_METHOD="file://" + sys.argv[1] + str(os.getpid()))
check()
"""


def start_ranks(world_size: int, folder: Path) -> list[subprocess.Popen]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder / "store")],
            env=os.environ | shared | {"RANK": str(rank), "VERL_PLATFORM": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world_size)
    ]


def results(processes: list[subprocess.Popen]) -> list[str]:
    found = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        found += [line for line in out.splitlines() if line.startswith("RESULT")]
    return found


def test_initialize_gloo_where_a_worker_runs_on_the_cpu(monkeypatch, tmp_path):
    from verl.utils import device

    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "DIST_INIT_METHOD": f"file://{tmp_path}/store"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(device, "get_device_name", lambda: "cuda")
    assert not cpu.initialize_gloo(), "a group for a platform that is not ours"
    monkeypatch.setattr(device, "get_device_name", lambda: "cpu")
    assert cpu.initialize_gloo()
    try:
        assert torch.distributed.get_backend() == "cpu:gloo"
        assert torch.distributed.get_world_size() == 1
        assert not cpu.initialize_gloo()
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_initialize_gloo_with_two_processes_and_with_one(tmp_path):
    two, one = "RESULT (True, False) 3 [0, 1] 2", "RESULT (True, False) 1 [0] 1"
    assert results(start_ranks(2, tmp_path)) == [two, one] * 2


FRESH = """
from aent_verl.platforms import cpu  # first: if it imported verl, verl would find our plug-in half built
import sys
import verl  # calls our plug-in, which registers
from verl.plugin.platform import platform_manager
assert platform_manager.PlatformRegistry.get("cpu") is cpu.platform_class()
assert platform_manager._current_platform is None, "registering resolved the platform"
assert platform_manager._detect_platform_name() != "cpu", "verl chose the CPU platform by itself"
assert "vllm" not in sys.modules
assert not cpu.initialize_gloo(), "a group for a platform that is not ours"
"""


@pytest.mark.slow
def test_nothing_is_active_unless_named():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("VERL_", "VLLM_"))}
    environment["VERL_USE_EXTERNAL_MODULES"] = "aent_verl.plugin.entry_point"  # whose failure verl lets through
    process = subprocess.run([sys.executable, "-c", FRESH], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


ORDER = """
import importlib.metadata, json, sys
from hydra import compose, initialize_config_module
name, overrides, cluster, expected = map(json.loads, sys.argv[1:])
with initialize_config_module("aent_verl._config", version_base="1.3"):
    cfg = compose(name, overrides)
from verl.plugin.platform import platform_manager
assert platform_manager._current_platform is None, "composing resolved the platform"
importlib.metadata.version("vllm")
from aent_verl.launch import environment
from aent_verl.platforms import cpu
cpu.joined_cluster_resources = lambda address=None: cluster
assert environment.choose_platform(cfg) == expected
from verl.utils.device import get_device_name
assert get_device_name() == (expected or "cuda")
if name == "aent_trainer" and expected:
    from verl.utils.config import validate_config
    validate_config(config=cfg, use_reference_policy=False, use_critic=False)  # imports vLLM for LoRA
"""
LORA = ["experiment=cpu_arithmetic", "actor_rollout_ref.model.lora_rank=8"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides", "cluster", "expected"),
    [
        ("aent_trainer", LORA, None, "cpu"),
        ("aent_evaluate", ["platform=cpu", "actor_rollout_ref.model.path=m"], CPU_CLUSTER, "cpu"),
        # The head node of a GPU cluster has no accelerator of its own, and the CPU build of vLLM at most.
        ("aent_trainer", [*LORA, "trainer.device=cuda"], HEAD_NODE_OF_GPU_CLUSTER, None),
    ],
)
def test_what_composing_imports_does_not_depend_on_the_platform(name, overrides, cluster, expected):
    """Hydra imports verl to find its configs; the platform is decided from the composed config, afterwards."""
    if cluster is None and torch.cuda.is_available():
        pytest.skip("an accelerator decides here")
    pytest.importorskip("vllm")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("VERL_", "VLLM_", "RAY_"))}
    arguments = [json.dumps(item) for item in (name, overrides, cluster, expected)]
    process = subprocess.run([sys.executable, "-c", ORDER, *arguments], env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
