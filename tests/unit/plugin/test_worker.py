"""The weights that separate_async keeps as the old policy, and whose metrics the driver gets."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from verl.utils import tensordict_utils as tu
from verl.workers.engine_workers import TrainingWorker

from aent_verl.plugin.worker import DetachedEntropyControlWorker, EntropyControlTrainingWorker


def worker(strategy: str, save: Any) -> Any:
    made: Any = DetachedEntropyControlWorker.__new__(DetachedEntropyControlWorker)
    made.config = SimpleNamespace(actor=SimpleNamespace(strategy=strategy))
    made._strategy_handlers = (save, None)
    return made


def test_a_copy_on_the_cpu_does_not_follow_the_weights() -> None:
    """verl's `fsdp2_sharded_save_to_cpu` moves each shard to the CPU, which copies nothing that is there."""
    module = nn.Linear(3, 2)

    def save(module: nn.Module) -> Any:
        return {name: (parameter.detach().cpu(), name) for name, parameter in module.named_parameters()}, "layout"

    shards, layout = worker("fsdp2", save).copy_handler(module)
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert layout == "layout"
    assert {name: spec for name, (_, spec) in shards.items()} == {name: name for name in before}
    for name, (shard, _) in shards.items():
        assert torch.equal(shard, before[name])


@pytest.mark.parametrize("strategy", ["fsdp"])
def test_a_strategy_whose_copy_is_one_keeps_verls(strategy: str) -> None:
    save = object()
    assert worker(strategy, save).copy_handler is save


@pytest.mark.parametrize("rank", [0, 1])
def test_our_metrics_come_from_the_first_rank_alone(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {"actor/pg_loss": [1.0], "aent/sum/tokens": [2.0], "aent/bin/00": [3.0]}
    verls = tu.get_tensordict(tensor_dict={}, non_tensor_dict={"metrics": metrics})
    monkeypatch.setattr(TrainingWorker, "train_mini_batch", lambda self, data: verls)
    made: Any = EntropyControlTrainingWorker.__new__(EntropyControlTrainingWorker)
    made.engine = SimpleNamespace(get_data_parallel_rank=lambda: rank)
    found = tu.get(made.train_mini_batch(None), "metrics")
    assert found == (metrics if rank == 0 else {"actor/pg_loss": [1.0]})


def test_a_rank_that_returns_nothing_still_returns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainingWorker, "train_mini_batch", lambda self, data: None)
    made: Any = EntropyControlTrainingWorker.__new__(EntropyControlTrainingWorker)
    assert made.train_mini_batch(None) is None
