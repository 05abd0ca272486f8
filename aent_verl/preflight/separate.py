"""What verl's trainer mode ``separate_async`` needs: it asserts most of this after Ray has started."""

from collections.abc import Iterator

from omegaconf import DictConfig

from aent_verl.preflight.findings import Finding, at
from aent_verl.preflight.machines import separate
from aent_verl.preflight.schema import value

ROLLOUT = "actor_rollout_ref.rollout"
SYNC = "trainer.v1.separate_async.parameter_sync_step"
BATCH, MINI_BATCH = "data.train_batch_size", "actor_rollout_ref.actor.ppo_mini_batch_size"


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Find sizes that do not fit together, rollouts without machines, and weights that would not reach them."""
    if not separate(cfg):
        return
    updates, batch, mini_batch = (value(cfg, key) for key in (SYNC, BATCH, MINI_BATCH))
    if type(updates) is not int or updates < 1:
        yield at(cfg, SYNC).error("is how many updates of the actor a step has", "Set it to 1, or to 2", "at least 1")
    elif batch != updates * mini_batch:
        yield at(cfg, BATCH).error(
            f"separate_async trains {updates} mini-batches of {mini_batch} prompts a step ({SYNC}, {MINI_BATCH})",
            f"Set {BATCH}={updates * mini_batch}, or change one of the others",
            f"{updates * mini_batch}",
        )
    for name in ("nnodes", "n_gpus_per_node"):
        size = at(cfg, f"{ROLLOUT}.{name}")
        if not size.value:
            yield size.error("separate_async has rollouts on GPUs of their own", f"Set {size.key}=1 or more", ">= 1")
    backend = at(cfg, f"{ROLLOUT}.checkpoint_engine.backend")
    if backend.value == "naive":
        yield backend.error(
            "sends weights only to rollouts on the trainer's GPUs", f"Set {backend.key}=nccl; on the CPU, aent_gloo"
        )
