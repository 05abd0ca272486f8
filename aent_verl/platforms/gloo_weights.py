"""Weights over gloo, from the trainer to rollouts that have machines of their own, on the CPU platform.

verl's trainer mode ``separate_async`` sends weights through a checkpoint engine, and each of verl's needs an
accelerator or a library for one. This is one for CPUs:
``actor_rollout_ref.rollout.checkpoint_engine.backend=aent_gloo``.
"""

import json
from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist
from torch import Tensor
from verl.checkpoint_engine import CheckpointEngine, CheckpointEngineRegistry
from verl.workers.rollout.utils import ensure_async_iterator

BACKEND = "aent_gloo"
# A peer that has died is not waited for much longer than a weight takes.
TIMEOUT = timedelta(minutes=2)


@CheckpointEngineRegistry.register(BACKEND)
class GlooCheckpointEngine(CheckpointEngine):
    """Broadcasts weights, one after the other, from the trainer's first rank to all ranks of the rollouts.

    The trainer's other ranks take no part in the group; they only go through the weights, each of which they gather
    together. Both kinds of process have a default group already, of different worlds, so this one stands by itself.
    """

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        """Take verl's arguments; a weight is sent whole, so the size of a bucket means nothing here."""
        self._is_master = is_master
        self._store: dist.Store | None = None
        # Torch's annotations of the group lack its collectives.
        self._group: Any = None

    def prepare(self) -> dict[str, Any]:
        """Open the store through which the ranks find each other; only the master has an address to tell."""
        if not self._is_master:
            return {}
        host = ray.util.get_node_ip_address()
        store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=TIMEOUT)
        self._store = store
        return {"host": host, "port": store.port}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """Give the trainer's first rank rank 0, the rollouts' the others, and the rest of the trainer's -1."""
        size = 1 + rollout_world_size

        def arguments(ranks: list[int]) -> dict[str, list[Any]]:
            return {"rank": ranks, "size": [size] * len(ranks), "address": [metadata[0]] * len(ranks)}

        return arguments([0] + [-1] * (actor_wg_world_size - 1)), arguments(list(range(1, size)))

    def init_process_group(self, rank: int, size: int, address: dict[str, Any]) -> None:
        """Join the group of this update."""
        if rank < 0:
            return
        if self._store is None:
            self._store = dist.TCPStore(address["host"], address["port"], is_master=False, timeout=TIMEOUT)
        self._group = dist.ProcessGroupGloo(dist.PrefixStore(BACKEND, self._store), rank, size, TIMEOUT)

    def finalize(self) -> None:
        """Leave the group; the next update makes another."""
        self._group = self._store = None

    def _broadcast(self, tensor: Tensor) -> Tensor:
        assert self._group is not None
        options = dist.BroadcastOptions()
        options.rootRank = 0
        self._group.broadcast([tensor], options).wait()
        return tensor

    async def send_weights(self, weights: Any, global_steps: int | None = None) -> None:
        """Send all ``weights``, pairs of name and tensor; every rank goes through them, the first one sends."""
        sends = self._group is not None
        async for name, weight in ensure_async_iterator(weights):
            if sends:
                self._send(name, weight)
        if sends:
            self._send_header("")

    def _send(self, name: str, weight: Tensor) -> None:
        weight = weight.detach().cpu().contiguous()
        self._send_header(json.dumps([name, str(weight.dtype).removeprefix("torch."), list(weight.shape)]))
        self._broadcast(_bytes(weight))

    def _send_header(self, text: str) -> None:
        header = bytearray(text.encode())
        self._broadcast(torch.tensor([len(header)]))
        if header:
            self._broadcast(torch.frombuffer(header, dtype=torch.uint8))

    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, Tensor], None]:
        """Yield pairs of name and tensor until the sender has no more."""
        while length := int(self._broadcast(torch.zeros(1, dtype=torch.int64))):
            header = self._broadcast(torch.empty(length, dtype=torch.uint8))
            name, dtype, shape = json.loads(bytes(header.tolist()))
            weight = torch.empty(shape, dtype=getattr(torch, dtype))
            self._broadcast(_bytes(weight))
            yield name, weight


def _bytes(weight: Tensor) -> Tensor:
    """View a contiguous tensor as bytes: gloo does not know every type."""
    return weight.reshape(-1).view(torch.uint8)
