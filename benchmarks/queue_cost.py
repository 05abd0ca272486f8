"""What requests to TransferQueue and calls of an actor take on this machine: part of `driver_cost`."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from tensordict import TensorDict

from benchmarks.measure import Quantiles
from benchmarks.report import progress

# Of each response; TransferQueue's time depends on the samples far more.
TOKENS = 64


def measure(steps: Mapping[int, Any], rounds: int) -> tuple[Quantiles, dict[int, dict[str, Quantiles]]]:
    """Seconds of an actor's call, and of TransferQueue's requests for each of ``steps`` (`driver_cost.Step`)."""
    import ray
    import transfer_queue as tq

    ray.init(num_cpus=6, include_dashboard=False, log_to_driver=False, configure_logging=False)
    call = actor_calls(rounds=100)
    tq.init()
    found = {}
    for count, step in steps.items():
        progress(f"TransferQueue, {count:,} samples")
        partition = f"step-{count}"
        found[count] = in_turns(requests(step, partition), rounds)
        tq.kv_clear(keys=step.keys, partition_id=partition)
    tq.close()
    ray.shutdown()
    return call, found


def requests(step: Any, partition: str) -> dict[str, Callable[[], Any]]:
    """What verl asks for and stores of the advantages, and what we ask for and store."""
    import transfer_queue as tq
    from verl.utils.tensordict_utils import list_of_dict_to_tensordict

    from aent_verl.plugin import samples
    from aent_verl.plugin.micro_batch import SAMPLE

    rows = [
        {"uid": key.rsplit("_", 2)[0], "data_source": source, "index": row, "extra_fields": extra}
        # Of different lengths, as responses are.
        | {name: torch.ones(TOKENS + row % 2) for name in ("response_mask", "rm_scores")}
        for key, source, row, extra in zip(step.keys, *step.fields.values(), strict=True)
    ]
    fields = list_of_dict_to_tensordict(rows)
    batch = tq.kv_batch_put(keys=step.keys, partition_id=partition, fields=fields, tags=step.tags)
    scores, count = fields["rm_scores"], len(step)
    advantages = TensorDict({"advantages": scores, "returns": scores}, batch_size=count)
    index = TensorDict({SAMPLE: torch.arange(count)}, batch_size=count)
    asked = ["uid", "response_mask", "rm_scores"]
    place = {"keys": step.keys, "partition_id": partition}
    return {
        "verl gets": lambda: tq.kv_batch_get(**place, select_fields=asked),
        "verl puts": lambda: tq.kv_batch_put(**place, fields=advantages),
        "indices": lambda: samples.fields_of(batch, first_index=0, accuracies=False),
        "accuracies": lambda: samples.fields_of(batch, first_index=None, accuracies=True),
        "field put": lambda: tq.kv_batch_put(**place, fields=index),
    }


def in_turns(requests: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Quantiles]:
    times: dict[str, list[float]] = {name: [] for name in requests}
    for turn in range(-1, rounds):
        for name, request in requests.items():
            start = time.perf_counter()
            request()
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
    return {name: Quantiles.of(each) for name, each in times.items()}


def actor_calls(rounds: int) -> Quantiles:
    """Seconds of a call that returns the states of two controllers, as a step's two calls of our actor do."""
    import ray

    from aent_verl.core.controllers import ControllerState

    class States:
        def get(self) -> dict[str, ControllerState]:
            return {axis: ControllerState(coefficient=0.1) for axis in ("bonus", "advantages")}

    actor = ray.remote(States).options(num_cpus=0).remote()
    times = []
    for _ in range(rounds + 10):
        start = time.perf_counter()
        ray.get(actor.get.remote())
        times.append(time.perf_counter() - start)
    return Quantiles.of(times[10:])
