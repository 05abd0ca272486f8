"""Weights over gloo: what the trainer's first rank sends is what every rank of the rollouts gets, to the last bit."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray.util
import torch
from torch import Tensor
from verl.checkpoint_engine import CheckpointEngineRegistry

from aent_verl.platforms import gloo_weights

WEIGHTS = {
    "half": torch.randn(7, 3).bfloat16(),
    "wide": torch.randn(40, 50).t(),
    "one": torch.tensor(0.1, dtype=torch.float64),
    "none": torch.zeros(0, 4),
    "counts": torch.arange(5),
}


@pytest.fixture(autouse=True)
def _local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")


def update(actors: list[Any], rollouts: list[Any], weights: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """One update as verl's manager goes about it; each rank is a thread here."""
    seen: list[str] = []

    def walk() -> Iterator[tuple[str, Tensor]]:
        for name, weight in weights.items():
            seen.append(name)
            yield name, weight

    async def received(engine: Any) -> dict[str, Tensor]:
        return {name: weight async for name, weight in engine.receive_weights(global_steps=3)}

    with ThreadPoolExecutor(len(actors) + len(rollouts)) as pool:
        metadata = [engine.prepare() for engine in (*actors, *rollouts)]
        topologies = actors[0].build_topology(len(actors), len(rollouts), metadata)
        joined = []
        for engines, arguments in zip((actors, rollouts), topologies, strict=True):
            for index, engine in enumerate(engines):
                joined.append(pool.submit(engine.init_process_group, **{k: v[index] for k, v in arguments.items()}))
        [each.result(30) for each in joined]
        sent = [pool.submit(asyncio.run, engine.send_weights(walk(), global_steps=3)) for engine in actors]
        got = [pool.submit(asyncio.run, received(engine)) for engine in rollouts]
        [each.result(30) for each in sent]
        found = [each.result(30) for each in got]
    for engine in (*actors, *rollouts):
        engine.finalize()
    assert sorted(seen) == sorted(list(weights) * len(actors))
    return found


def test_every_rollout_gets_every_weight_at_each_update() -> None:
    new = CheckpointEngineRegistry.get(gloo_weights.BACKEND)
    actors = [new(bucket_size=1 << 20, is_master=rank == 0) for rank in range(2)]
    rollouts = [new(bucket_size=1 << 20) for _ in range(2)]
    for weights in (WEIGHTS, {name: weight + 1 for name, weight in WEIGHTS.items()}, {}):
        for found in update(actors, rollouts, weights):
            assert list(found) == list(weights)
            for name, weight in weights.items():
                assert found[name].dtype is weight.dtype
                assert torch.equal(found[name], weight)
