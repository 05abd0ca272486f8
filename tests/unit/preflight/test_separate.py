"""The sizes of verl's separate_async: what fits passes, what verl would assert on is named before the start."""

import re

import pytest

from aent_verl.preflight import machines, separate
from tests.unit.preflight.finding import config, findings

MODE = "trainer.v1.trainer_mode=separate_async"
ROLLOUT = separate.ROLLOUT
FITS = (
    MODE,
    "data.train_batch_size=16",
    f"{separate.MINI_BATCH}=8",
    f"{separate.SYNC}=2",
    f"{ROLLOUT}.nnodes=1",
    f"{ROLLOUT}.n_gpus_per_node=2",
    f"{ROLLOUT}.checkpoint_engine.backend=nccl",
)


@pytest.mark.parametrize(
    ("overrides", "keys", "said"),
    [
        ((), [], ""),
        ((f"{separate.SYNC}=1", f"{separate.MINI_BATCH}=16"), [], ""),
        ((f"{separate.SYNC}=4",), [separate.BATCH], "trains 4 mini-batches of 8 prompts .* expected 32.* Set .*=32"),
        ((f"{separate.SYNC}=0",), [separate.SYNC], "expected at least 1"),
        ((f"{ROLLOUT}.nnodes=0",), [f"{ROLLOUT}.nnodes"], "rollouts on GPUs of their own.* Set .*nnodes=1"),
        ((f"{ROLLOUT}.n_gpus_per_node=0",), [f"{ROLLOUT}.n_gpus_per_node"], "expected >= 1"),
        (
            (f"{ROLLOUT}.checkpoint_engine.backend=naive",),
            [f"{ROLLOUT}.checkpoint_engine.backend"],
            "only to rollouts on the trainer's GPUs.*nccl; on the CPU, aent_gloo",
        ),
        (("trainer.v1.trainer_mode=aent_separate_async", f"{separate.SYNC}=3"), [separate.BATCH], "expected 24"),
        (("trainer.v1.trainer_mode=sync", f"{separate.SYNC}=3"), [], ""),
    ],
)
def test_sizes(overrides: tuple[str, ...], keys: list[str], said: str) -> None:
    found = findings(separate.check, config(*FITS, *overrides))
    assert list(found) == keys
    for finding in found.values():
        assert re.search(said, str(finding))


def test_machines_count_both_pools() -> None:
    trainer = ("trainer.nnodes=1", "trainer.n_gpus_per_node=4", f"{ROLLOUT}.tensor_model_parallel_size=2")
    cfg = config(*FITS, *trainer)
    assert machines.gpus(cfg) == 6
    assert machines.replicas(cfg) == (3, 2)
    assert machines.replicas(config(*FITS, *trainer, "actor_rollout_ref.hybrid_engine=false")) == (1, 2)
    assert machines.replicas(config(*FITS, *trainer, "trainer.v1.trainer_mode=sync")) == (2, 2)
    assert machines.gpus(config(*FITS, *trainer, "trainer.v1.trainer_mode=sync")) == 4
