"""Entropy control for LLM reinforcement learning: AEnt and its relatives as a plug-in for verl.

The names below are those of a training loop outside verl. Each is imported when it is first asked for: ``import
aent_verl`` alone imports nothing, not even torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aent_verl._version import __version__

if TYPE_CHECKING:
    from aent_verl.core.advantages import (
        confidence,
        entropy_advantage,
        positive_reweight,
        progrpo,
        repo_r,
        steer_change,
        steer_weight,
    )
    from aent_verl.core.bonus import anchored as anchored_bonus
    from aent_verl.core.bonus import linear as linear_bonus
    from aent_verl.core.bonus import linear_difficulty, peak_mask, smoothing_weight, threshold_difficulty
    from aent_verl.core.bonus import smoothed as smoothed_bonus
    from aent_verl.core.controllers import (
        AnchoredTargetController,
        BandController,
        ConstantController,
        Controller,
        ControllerState,
        DoublingController,
        EntropyGuidedController,
        EpochController,
        LinearDecayController,
        StageController,
        StepToTargetController,
    )
    from aent_verl.core.entropy import (
        clamped_entropy,
        full_entropy,
        nucleus_entropy,
        top_k_and_rest_entropy,
        tre_entropy,
    )
    from aent_verl.core.fused import linear_logprobs_and_entropy, logprobs_and_entropy

__all__ = ["__version__"]
__all__ += ["clamped_entropy", "full_entropy", "nucleus_entropy", "top_k_and_rest_entropy", "tre_entropy"]
__all__ += ["linear_logprobs_and_entropy", "logprobs_and_entropy"]
__all__ += ["AnchoredTargetController", "BandController", "ConstantController", "DoublingController"]
__all__ += [
    "EntropyGuidedController",
    "EpochController",
    "LinearDecayController",
    "StageController",
    "StepToTargetController",
]
__all__ += ["Controller", "ControllerState"]
__all__ += ["anchored_bonus", "linear_bonus", "smoothed_bonus", "smoothing_weight"]
__all__ += ["linear_difficulty", "peak_mask", "threshold_difficulty"]
__all__ += ["confidence", "entropy_advantage", "positive_reweight", "progrpo", "repo_r", "steer_change", "steer_weight"]
# In the order in which a name is looked for: the controllers need no torch.
_MODULES = ("controllers", "entropy", "fused", "bonus", "advantages")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in _MODULES:
            # "linear" says enough in core.bonus, and not here.
            attribute = name.removesuffix("_bonus") if module == "bonus" else name
            if hasattr(found := import_module(f"aent_verl.core.{module}"), attribute):
                return getattr(found, attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
