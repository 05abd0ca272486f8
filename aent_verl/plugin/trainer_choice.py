"""verl's own trainer modes become ours where the config asks for entropy control.

Presets name our trainer, ``aent_sync``. Whoever then types ``trainer.v1.trainer_mode=separate_async`` means that mode
with entropy control: in verl's registry its name leads to a class that looks at the config and builds ours. Without the
plug-in nothing stands there, verl's trainer starts, and the actor's config stops it.
"""

import logging
from typing import Any

from omegaconf import DictConfig
from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY, PPOTrainer

from aent_verl.plugin.guard import BLOCK

logger = logging.getLogger(__name__)


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
