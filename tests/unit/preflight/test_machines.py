import pytest
from omegaconf import open_dict

from aent_verl.platforms import cpu
from aent_verl.preflight import PreflightError, machines
from aent_verl.preflight.findings import PreflightWarning
from tests.unit.preflight.rows import edit


def test_too_few_slots(settings):
    settings.ray_kwargs.ray_init.num_cpus = 5
    with pytest.raises(PreflightError, match=r"num_cpus=5: .*expected at least 6 for 1 rank\(s\).*num_cpus=6"):
        machines.check(settings)
    settings.ray_kwargs.ray_init.num_cpus = 6
    machines.check(settings)


def test_slots_of_the_machine_where_none_are_given(settings, monkeypatch):
    settings.ray_kwargs.ray_init.num_cpus = None
    monkeypatch.setattr(machines.os, "cpu_count", lambda: 2)
    with pytest.raises(PreflightError, match="num_cpus=None: Ray would have 2 CPU slots"):
        machines.check(settings)


def test_slots_grow_with_ranks_and_pools(settings):
    settings.trainer.n_gpus_per_node = 2
    assert machines.cpu_slots(settings) == 3 * 2 + 3
    settings.reward.reward_model.enable_resource_pool = True
    settings.reward.reward_model.nnodes = 1
    settings.reward.reward_model.n_gpus_per_node = 1
    assert machines.cpu_slots(settings) == 3 * 3 + 3


def test_too_few_logical_accelerators(settings):
    settings.ray_kwargs.ray_init.num_gpus = 1
    settings.trainer.n_gpus_per_node = 2
    with pytest.raises(PreflightError, match=r"num_gpus=1: the run needs .*= 2; expected at least 2"):
        machines.check(settings)


def test_too_few_gpus(settings, monkeypatch):
    import torch

    settings.trainer.device = "cuda"
    settings.trainer.n_gpus_per_node = 4
    settings.trainer.nnodes = 2
    settings.ray_kwargs.ray_init.num_cpus = 64
    settings.ray_kwargs.ray_init.num_gpus = None
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(
        PreflightError, match=r"n_gpus_per_node=4: .*= 8 GPUs, .*which has 4; expected at most 4.*RAY_ADDRESS"
    ):
        machines.check(settings)
    settings.trainer.nnodes = 1
    assert machines.check(settings) == ["GPUs: 4 here, 4 needed", "Ray: 64 CPU slots, 15 needed"]


def test_a_cluster_that_is_joined_is_checked_instead_of_this_machine(settings, monkeypatch):
    monkeypatch.setattr(cpu, "joined_cluster_resources", lambda address=None: {"CPU": 9.0, "GPU": 2.0})
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.9:6379")
    settings.ray_kwargs.ray_init.num_cpus = 1
    assert machines.check(settings) == ["Ray cluster: 2 GPU, 1 needed; 9 CPU slots, 6 needed"]
    settings.trainer.n_gpus_per_node = 3
    with pytest.raises(PreflightError, match="at most the 2 that the cluster has"):
        machines.check(settings)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ({"CPU": 64.0, "GPU": 1.0}, "needs 2 of Ray's resource GPU; expected at most the 1"),
        ({"CPU": 64.0}, "at most the 0 that the cluster has.*--num-gpus"),
        ({"CPU": 8.0, "GPU": 2.0}, "needs 9 CPU slots; expected at most the 8"),
    ],
)
def test_a_cluster_that_is_too_small(settings, found, problem):
    settings.trainer.n_gpus_per_node = 2
    with pytest.raises(PreflightError, match=problem):
        machines.check_cluster(found, settings)


def test_a_cluster_that_is_large_enough(settings):
    settings.trainer.n_gpus_per_node = 2
    assert machines.check_cluster({"CPU": 9.0, "GPU": 2.0}, settings)


def test_a_model_in_parts_needs_vllms_executor_of_several_processes(settings):
    settings.trainer.n_gpus_per_node = 2
    machines.check(settings)
    settings.actor_rollout_ref.rollout.tensor_model_parallel_size = 2
    with pytest.raises(
        PreflightError, match=r"distributed_executor_backend=.*UniProcExecutor': .*ask for 2; expected mp"
    ):
        machines.check(settings)
    settings.actor_rollout_ref.rollout.engine_kwargs.vllm.distributed_executor_backend = "mp"
    machines.check(settings)


def test_too_little_memory(settings, monkeypatch):
    needed = sum(machines.memory_estimate(settings).values())
    monkeypatch.setattr(machines, "available_gib", lambda: needed - 0.1)
    with pytest.raises(PreflightError, match=rf"about {needed:.1f} GiB .*11 processes 6\.6.*run\.check_memory=false"):
        machines.check(settings)
    with open_dict(settings):
        settings.run.check_memory = False
    assert "memory: not checked" in machines.check(settings)[-1]


def test_memory_by_hand(settings, monkeypatch):
    monkeypatch.setattr(machines, "weight_gib", lambda path: 2.0)
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    settings.trainer.n_gpus_per_node = 2
    settings.actor_rollout_ref.actor.use_kl_loss = True
    # 2 ranks, 2 rollout engines of two processes each, 8 others
    assert machines.memory_estimate(settings) == {
        "14 processes": pytest.approx(0.6 * 14),
        "training": 5 * 2.0,
        "rollout": 2 * 2.0 * 2,
        "KV cache": 3.0 * 2,
    }


def test_weights_in_half_precision_count_double(settings, model_copy):
    full = machines.weight_gib(str(model_copy))
    assert full == pytest.approx((model_copy / "model.safetensors").stat().st_size / 1024**3)
    edit(model_copy / "config.json", dtype="bfloat16")
    assert machines.weight_gib(str(model_copy)) == pytest.approx(2 * full)
    assert machines.weight_gib("Qwen/Qwen2.5-Math-1.5B") == 0.0


def test_memory_is_not_checked_on_gpus(settings, monkeypatch):
    import torch

    settings.trainer.device = "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(machines, "available_gib", lambda: 0.0)
    machines.check(settings)


@pytest.mark.parametrize(
    ("variable", "setting", "warns"), [("", None, 1), ("auto", None, 1), ("h:1", None, 0), ("", "h:1", 0)]
)
def test_a_cluster_that_nobody_named_is_joined_with_a_warning(settings, monkeypatch, variable, setting, warns):
    monkeypatch.setenv("RAY_ADDRESS", variable)
    monkeypatch.setattr(cpu, "joined_cluster_resources", lambda address: {"GPU": 9.0, "CPU": 99.0})
    monkeypatch.setattr(cpu, "cluster_to_join", lambda address: "10.0.0.9:6379")
    with open_dict(settings):
        settings.ray_kwargs.ray_init.address = setting
    found = [item for item in machines.check(settings) if isinstance(item, PreflightWarning)]
    assert len(found) == warns
    assert all("10.0.0.9:6379" in str(item) and "RAY_ADDRESS=local" in str(item) for item in found)


@pytest.mark.parametrize(
    ("gpus", "nodes", "tensor", "expected"), [(8, 2, 2, (8, 2)), (1, 1, 1, (1, 1)), (1, 1, 2, (0, 2))]
)
def test_number_of_rollout_engines(settings, gpus, nodes, tensor, expected):
    settings.trainer.n_gpus_per_node, settings.trainer.nnodes = gpus, nodes
    settings.actor_rollout_ref.rollout.tensor_model_parallel_size = tensor
    assert machines.replicas(settings) == expected
