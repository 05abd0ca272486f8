"""What a training step costs on verl's driver, by simulated ranks and samples: our part beside verl's own metadata.

    python -m benchmarks.driver_cost             # no cluster: what the driver calls, with the data that it gets
    python -m benchmarks.driver_cost --queue     # a real TransferQueue, and calls of an actor, on this machine

The first prints CPU time of this process, which other processes on the machine hardly change; the second prints time
on the clock, verl's own requests and ours in turns. One step: 8 rollouts a prompt, 4 mini-batches.
"""

import argparse
import copy
import gc
import pickle
import random
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch
from tensordict import NonTensorStack, TensorDict

from benchmarks import queue_cost
from benchmarks.report import Report, add_output_options, progress, stamp

RANKS = (8, 64, 512, 4096)
SAMPLES = (1024, 8192, 65_536, 524_288)
MOST_REPEATED = 65_536
ROLLOUTS, MINI_BATCHES, MICRO_BATCHES = 8, 4, 2
# Response tokens of each sample where rewards are shaped; the other costs do not depend on it.
TOKENS = 64
# What verl's agent loop and trainer have stored of each sample when the actor is updated.
NESTED = (
    "prompts",
    "responses",
    "input_ids",
    "position_ids",
    "response_mask",
    "loss_mask",
    "rm_scores",
    "rollout_log_probs",
)
NESTED += ("old_log_probs", "advantages", "returns")
OTHERS = ("uid", "data_source", "index", "session_id", "extra_fields", "reward_model", "raw_prompt", "num_turns")
EXTRA_INFO = {"calculate_entropy": False, "global_batch_size": 1024, "mini_batch_size": 1024, "epochs": 1, "seed": 42}
EXTRA_INFO |= {"distillation_use_topk": False, "dataloader_kwargs": {"shuffle": False}, "temperature": 1.0}
# verl's metrics of a micro-batch without an entropy, a KL loss or a critic.
VERLS = ("pg_loss", "pg_clipfrac", "ppo_kl", "pg_clipfrac_lower", "rollout_corr/kl", "rollout_corr/ppl")


@dataclass(frozen=True)
class Step:
    """The samples of a step, as the driver gets them."""

    keys: list[str]
    tags: list[dict[str, Any]]
    fields: dict[str, list[Any]]

    @classmethod
    def draw(cls, samples: int) -> "Step":
        rng = random.Random(0)
        keys, rows = [], []
        for row in range(samples // ROLLOUTS):
            uid = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            for rollout in range(ROLLOUTS):
                keys.append(f"{uid}_{rollout}_0")
                info = {"reward_extra_info": {"acc": float(rng.random() < 0.5)}, "min_global_steps": 3}
                rows.append({"data_source": "math", "index": row, "extra_fields": info})
        order = rng.sample(range(samples), samples)
        tag = {"status": "success", "prompt_len": 80, "response_len": TOKENS, "seq_len": 80 + TOKENS}
        tag |= {"global_steps": 3, "min_global_steps": 3, "max_global_steps": 3}
        fields = {name: [rows[i][name] for i in order] for name in rows[0]}
        return cls([keys[i] for i in order], [dict(tag) for _ in keys], fields)

    def __len__(self) -> int:
        return len(self.keys)

    def queue(self) -> Any:
        """Stand in for TransferQueue: hand out what is asked for, made beforehand, so that it costs nothing."""
        fields: dict[str, Any] = {name: NonTensorStack.from_list(values) for name, values in self.fields.items()}
        fields["rm_scores"] = nested(torch.zeros(len(self), TOKENS))
        whole = TensorDict(fields, batch_size=len(self))
        of_prompts = whole.select("data_source", "index")[: len(self) // ROLLOUTS]
        queue = mock.Mock()
        queue.kv_batch_get = lambda keys, select_fields, **_: of_prompts if len(keys) < len(self) else whole
        return queue


def nested(values: torch.Tensor) -> torch.Tensor:
    """Rows in the layout that TransferQueue hands out."""
    return torch.nested.as_nested_tensor(list(values.unbind()), layout=torch.jagged)


def cpu_seconds(run: Callable[[], Any], rounds: int) -> float:
    """The least CPU time of ``run``: what disturbs it only adds."""
    times = []
    for _ in range(rounds):
        gc.collect()
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def batch_meta(step: Step, ours: bool, extra_info: dict[str, Any]) -> Any:
    """TransferQueue's metadata of a step, as its controller returns it for each call of the workers."""
    from transfer_queue import BatchMeta

    size = len(step)
    plain = {"dtype": torch.int64, "shape": torch.Size([1]), "is_nested": False, "is_non_tensor": False}
    schema: dict[str, Any] = {name: {**plain, "is_non_tensor": True, "shape": None} for name in OTHERS}
    for name in NESTED:
        schema[name] = {**plain, "is_nested": True, "per_sample_shapes": [(TOKENS,)] * size}
    if ours:
        schema |= {"aent_sample": plain, "aent_accuracy": {**plain, "dtype": torch.float32}}
    return BatchMeta(
        list(range(size)), ["train"] * size, schema, np.ones(size, dtype=np.int8), extra_info, copy.deepcopy(step.tags)
    )


def step_values() -> dict[str, Any]:
    from aent_verl.methods.step import StepValues
    from aent_verl.plugin.micro_batch import STEP

    return {STEP: StepValues(step=3, total_steps=100, bonus_coefficient=1e-3, initial_entropy=0.4, entropy_mean=0.3)}


def verls_metadata(step: Step, ranks: int, rounds: int) -> tuple[float, float, int]:
    """CPU time of one call of all workers, once and for each rank's part, and bytes of all parts.

    Once: the batch's keys and tags, and the controller's answer. TransferQueue makes the parts one by one, all alike.
    """
    from transfer_queue import KVBatchMeta

    answer = pickle.dumps(batch_meta(step, ours=False, extra_info=EXTRA_INFO))

    def once() -> None:
        KVBatchMeta(keys=step.keys, tags=step.tags, partition_id="train", extra_info=EXTRA_INFO)
        pickle.loads(answer)

    meta, sent = pickle.loads(answer), 0

    def part() -> None:
        nonlocal sent
        sent = len(pickle.dumps(meta.select_samples(list(range(len(step) // ranks)))))

    return cpu_seconds(once, rounds), cpu_seconds(part, rounds), sent * ranks


def our_metadata(step: Step, ranks: int, rounds: int) -> tuple[float, int]:
    """The same of what we add: the step's values for each rank, and two fields in TransferQueue's metadata."""
    values = step_values()
    own = list(range(len(step) // ranks))
    parts = [
        batch_meta(step, ours, EXTRA_INFO | (values if ours else {})).select_samples(own) for ours in (False, True)
    ]
    without, with_ours = (len(pickle.dumps(part)) for part in parts)

    def dispatch() -> None:
        for _ in range(ranks):
            pickle.dumps(copy.deepcopy(values))

    return cpu_seconds(dispatch, rounds), (with_ours - without) * ranks


def our_names() -> dict[str, str]:
    """Our metrics of a micro-batch by name, with verl's way to pool each."""
    from aent_verl.methods.micro_batch import MicroBatch
    from aent_verl.methods.step import MiniBatchStats, StepValues
    from aent_verl.plugin import measurements

    one = torch.ones(1, 1)
    tensors = ("old_log_prob", "advantages", "log_prob", "entropy", "entropy_full", "removed_mass", "entropy_sampled")
    batch = mock.Mock(spec=MicroBatch, mask=one.bool(), **dict.fromkeys(tensors, one))
    found = measurements.of_micro_batch(
        batch,
        shaped=one,
        bonus_weight=one,
        bonus_loss=one.sum(),
        step=StepValues(step=1, total_steps=1, bonus_coefficient=0.1),
        stats=MiniBatchStats(report={"largest_change": 1.0}),
    )
    return {name: metric.aggregation.value for name, metric in found.items()}


def metrics_of_rank(names: dict[str, str]) -> dict[str, Any]:
    from verl.utils.metric import Metric

    metrics = {name: Metric(kind) for name, kind in names.items()}
    for metric in metrics.values():
        metric.extend([random.random() for _ in range(MICRO_BATCHES)])
    return metrics


def on_each_rank(ranks: int, rounds: int) -> tuple[float, float]:
    """CPU time that each rank takes to learn all others' metrics of a step: verl's own, and ours."""
    from verl.utils.metric import Metric

    from aent_verl.plugin import measurements

    theirs, ours = metrics_of_rank(dict.fromkeys(VERLS, "mean")), metrics_of_rank(our_names())
    sent, row = pickle.dumps(theirs), pickle.dumps(np.zeros(len(ours)))

    def verl() -> None:
        for _ in range(MINI_BATCHES):
            everyone = [pickle.loads(sent) for _ in range(ranks)]
            for name in theirs:
                Metric.aggregate_dp([each[name] for each in everyone])

    def gather(into: list[Any], mine: Any, group: Any) -> None:
        pickle.dumps(mine)
        into[:] = [pickle.loads(row) for _ in range(ranks)]

    distributed = mock.Mock(all_gather_object=gather, get_rank=lambda _: 0, get_world_size=lambda _: ranks)

    def mine() -> None:
        with mock.patch.object(measurements, "dist", distributed):
            for _ in range(MINI_BATCHES):
                measurements.over_ranks(ours, "group")

    return cpu_seconds(verl, rounds), cpu_seconds(mine, rounds)


def driver_metrics(ranks: int, rounds: int) -> tuple[float, float]:
    """CPU time of the driver with the metrics of a step: verl's own, which all ranks return, and ours, of the first."""
    from verl.utils.metric import reduce_metrics

    from aent_verl.methods.step import StepValues
    from aent_verl.plugin import measurements

    sent = StepValues(step=1, total_steps=1, bonus_coefficient=0.1)

    def replies(names: list[str], ranks: int, finish: Callable[[dict[str, Any]], Any]) -> float:
        values = {f"actor/{name}": [1.0 if name.endswith("/advantages") else 0.1] * MINI_BATCHES for name in names}
        reply = pickle.dumps(values)

        def read() -> None:
            everyone = [pickle.loads(reply) for _ in range(ranks)]
            finish(reduce_metrics(everyone[0]))

        return cpu_seconds(read, rounds)

    verl = replies([*VERLS, "loss", "grad_norm", "lr", "mfu"], ranks, lambda metrics: metrics)
    ours = replies(
        list(our_names()), 1, lambda m: measurements.of_step(measurements.pooled([measurements.taken(m)]), sent)
    )
    return verl, ours


def sample_fields(step: Step, rounds: int) -> tuple[float, float]:
    """CPU time of the samples' indices, and of their groups' accuracies, TransferQueue itself left out."""
    from transfer_queue import KVBatchMeta

    from aent_verl.plugin import samples

    batch = KVBatchMeta(keys=step.keys, tags=step.tags, partition_id="train")
    with mock.patch.object(samples, "tq", step.queue()):
        return (
            cpu_seconds(lambda: samples.fields_of(batch, first_index=0, accuracies=False), rounds),
            cpu_seconds(lambda: samples.fields_of(batch, first_index=None, accuracies=True), rounds),
        )


def shaped_rewards(step: Step, rounds: int) -> tuple[float, float]:
    """CPU time of verl's GRPO advantages, and of the shaping of rewards (preset ``ares``), of `TOKENS` a sample."""
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.core_algos import compute_grpo_outcome_advantage

    from aent_verl.methods.rewards import Ares
    from aent_verl.plugin import rewards

    size, uids = len(step), [key.rsplit("_", 2)[0] for key in step.keys]
    fields = {
        # Over prompt and response, as the engine returns it.
        rewards.ENTROPY: nested(torch.rand(size, 2 * TOKENS)),
        "response_mask": nested(torch.ones(size, TOKENS, dtype=torch.int64)),
        "responses": nested(torch.ones(size, TOKENS, dtype=torch.int64)),
        "rm_scores": nested(torch.zeros(size, TOKENS)),
        "extra_fields": NonTensorStack.from_list(step.fields["extra_fields"]),
    }
    data = TensorDict(fields, batch_size=size)
    shaping = Ares(window=4, quantile=0.95, decay=0.9, init=0.1, lr=0.01, max=0.5)
    batch = KVBatchMeta(keys=step.keys, tags=step.tags, partition_id="train")
    queue = mock.Mock(kv_batch_get=lambda **_: data)
    index, tokens = np.array(uids, dtype=object), torch.ones(size, TOKENS)
    with mock.patch.object(rewards, "tq", queue):
        ours = cpu_seconds(lambda: rewards.shape(batch, shaping, shaping.initial_state(), mock.Mock()), rounds)
    return cpu_seconds(lambda: compute_grpo_outcome_advantage(tokens, tokens, index), rounds), ours


def by_ranks(rank_counts: list[int], rounds: int) -> dict[int, dict[str, float]]:
    found = {}
    for ranks in rank_counts:
        progress(f"metrics of {ranks:,} ranks")
        each, driver = on_each_rank(ranks, rounds), driver_metrics(ranks, rounds)
        found[ranks] = {"verl each": each[0], "ours each": each[1], "verl": driver[0], "ours": driver[1]}
    return found


def by_samples(counts: list[int], ranks: int, rounds: int) -> dict[int, dict[str, float]]:
    found = {}
    for count in counts:
        progress(f"{count:,} samples")
        step = Step.draw(count)
        times = rounds if count <= MOST_REPEATED else 1
        once, part, verls_bytes = verls_metadata(step, ranks, times)
        ours, our_bytes = our_metadata(step, ranks, rounds)
        indices, accuracies = sample_fields(step, rounds)
        advantages, rewards = shaped_rewards(step, times) if count <= MOST_REPEATED else (float("nan"), float("nan"))
        found[count] = {"once": once, "part": part, "ours": ours, "verl bytes": verls_bytes, "our bytes": our_bytes}
        found[count] |= {"indices": indices, "accuracies": accuracies, "advantages": advantages, "rewards": rewards}
    return found


def ms(seconds: float) -> str:
    return "" if seconds != seconds else f"{1e3 * seconds:,.1f}"


def mb(size: float) -> str:
    return f"{size / 1e6:,.2f}"


def report_simulated(report: Report, ranks: list[int], counts: list[int], rounds: int) -> None:
    metrics = by_ranks(ranks, rounds)
    report.table(
        f"Metrics of a step of {MINI_BATCHES} mini-batches, ms of CPU time",
        ["ranks", "", "on each rank: verl's own", "ours", "on the driver: verl's own", "ours"],
        [
            [f"{n:,}", "", *(ms(row[k]) for k in ("verl each", "ours each", "verl", "ours"))]
            for n, row in metrics.items()
        ],
    )
    most = 512 if 512 in ranks else max(ranks)
    samples = by_samples(counts, most, rounds)
    columns = {"once": ms, "part": ms, "verl bytes": mb, "ours": ms, "our bytes": mb, "indices": ms, "accuracies": ms}
    report.table(
        f"Samples of a step, {most:,} ranks, ms of CPU time on the driver",
        ["samples", "", "verl's metadata: once", "each part", "MB", "ours: parts", "MB", "indices", "accuracies"],
        [[f"{n:,}", "", *(show(row[name]) for name, show in columns.items())] for n, row in samples.items()],
    )
    report.table(
        f"Rewards, {TOKENS} tokens a sample, ms of CPU time on the driver",
        ["samples", "", "verl's GRPO advantages", "shaped by ares"],
        [[f"{n:,}", "", ms(r["advantages"]), ms(r["rewards"])] for n, r in samples.items()],
    )
    report.save(by_ranks=metrics, by_samples=samples)


def report_queue(report: Report, counts: list[int], rounds: int) -> None:
    call, queue = queue_cost.measure({count: Step.draw(count) for count in counts}, rounds)
    names = ("verl gets", "verl puts", "indices", "accuracies", "field put")
    report.text(f"a call of an actor: {ms(call.median)} ms (20% to 80%: {ms(call.low)} to {ms(call.high)})")
    report.table(
        "TransferQueue, ms on the clock, median",
        ["samples", "", "verl's advantages: get", "put", "ours: indices", "accuracies", "put of a field"],
        [[f"{n:,}", "", *(ms(row[name].median) for name in names)] for n, row in queue.items()],
    )
    report.save(queue=queue, actor_call=call)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.driver_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--queue", action="store_true", help="measure a real TransferQueue, in a Ray of this machine")
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--samples", type=int, nargs="+", help=f"{SAMPLES}; with --queue {SAMPLES[:2]}")
    parser.add_argument("--rounds", type=int, default=3)
    add_output_options(parser)
    options = parser.parse_args(arguments)
    counts = options.samples or list(SAMPLES[:2] if options.queue else SAMPLES)
    torch.set_num_threads(1)
    report = Report(options, stamp("cpu", rounds=options.rounds))
    if options.queue:
        report_queue(report, counts, options.rounds)
    else:
        report_simulated(report, options.ranks, counts, options.rounds)


if __name__ == "__main__":
    main()
