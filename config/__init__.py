"""Hydra configuration; installed as ``aent_verl._config``, so that ``pkg://aent_verl._config`` finds it.

Hydra imports this package before it composes; `plugin.entry_point` does so in verl's workers.
"""

from omegaconf import OmegaConf

from aent_verl.methods import presets

# So that a platform's context length can follow the lengths of prompts and responses.
OmegaConf.register_new_resolver("aent_verl.sum", lambda *numbers: sum(numbers), replace=True)
# With rollouts on machines of their own verl refuses its default, and all others that it has need an accelerator.
OmegaConf.register_new_resolver(
    "aent_verl.checkpoint_engine", lambda mode: "aent_gloo" if "separate" in str(mode) else "naive", replace=True
)
# verl's configuration, and the presets of other packages.
OmegaConf.register_new_resolver(
    "aent_verl.search_path",
    lambda: ["pkg://verl.trainer.config", *(f"pkg://{package}" for package in presets.packages())],
    replace=True,
)
