"""Our trainers in verl's registry, beside verl's own, which become ours where the config asks for entropy control.

Presets name our trainer, ``aent_sync``. Whoever then types ``trainer.v1.trainer_mode=separate_async`` means that mode
with entropy control: in verl's registry its name leads to a class that looks at the config and builds ours. Without the
plug-in nothing stands there, verl's trainer starts, and the actor's config stops it.
"""

import logging
from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer, register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from aent_verl.plugin.guard import BLOCK
from aent_verl.plugin.trainer import EntropyControlMixin
from aent_verl.plugin.worker import DetachedEntropyControlWorker


@register_trainer("aent_sync")
class EntropyControlTrainerSync(EntropyControlMixin, PPOTrainerSync):
    """verl's synchronous trainer with entropy control: ``trainer.v1.trainer_mode=aent_sync``."""

    base_mode = "sync"


@register_trainer("aent_colocate_async")
class EntropyControlTrainerColocateAsync(EntropyControlMixin, PPOTrainerColocateAsync):
    """The same of verl's trainer that generates the next batch while it trains: ``aent_colocate_async``."""

    base_mode = "colocate_async"


@register_trainer("aent_separate_async")
class EntropyControlTrainerSeparateAsync(EntropyControlMixin, PPOTrainerSeparateAsync):
    """The same of verl's trainer with rollouts on GPUs of their own: ``aent_separate_async``."""

    base_mode = "separate_async"
    worker_class = DetachedEntropyControlWorker

    def _setup(self) -> None:
        # Without rollouts on the trainer's GPUs verl 0.9.1 logs a line in a way that the logger refuses; the next verl
        # does not know them.
        stock = logging.getLogger(PPOTrainerSeparateAsync.__module__)
        level = stock.level
        if not getattr(self, "_enable_hybrid_replicas", True):
            stock.setLevel(logging.WARNING)
        super()._setup()
        stock.setLevel(level)


def asks_for_control(config: Any) -> bool:
    """Return whether the whole config of a run holds a method's settings."""
    block = config.get(BLOCK) if isinstance(config, DictConfig) else None
    return isinstance(block, DictConfig) and "method" in block


def prefer(ours: type[PPOTrainer]) -> None:
    """Let the name of verl's trainer under ``ours`` build ours where the config asks for it; may be called again."""
    mode: str = ours.base_mode
    stock = TRAINER_REGISTRY[mode]
    if hasattr(stock, "with_entropy_control"):
        return

    class Chosen(stock):  # type: ignore[valid-type, misc]
        with_entropy_control = ours

        def __new__(cls, config: DictConfig, *args: Any, **kwargs: Any) -> Any:
            if cls is not Chosen or not asks_for_control(config):
                return super().__new__(cls)
            print(f"trainer.v1.trainer_mode={mode} with {BLOCK}={config[BLOCK].method}: aent_{mode}", flush=True)
            return ours(config, *args, **kwargs)

    # Under verl's name, as whoever looks into the registry expects.
    Chosen.__name__, Chosen.__qualname__, Chosen.__module__ = stock.__name__, stock.__qualname__, stock.__module__
    TRAINER_REGISTRY[mode] = Chosen


for _ours in (EntropyControlTrainerSync, EntropyControlTrainerColocateAsync, EntropyControlTrainerSeparateAsync):
    prefer(_ours)
