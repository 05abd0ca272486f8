"""Controllers: how a coefficient moves from one training step to the next. Frozen state, pure update.

A controller holds hyper-parameters and is itself immutable; what changes lives in a `ControllerState` that
``update(state, entropy=H, step=k)`` maps to the next one. Steps are counted from 1, and ``state.coefficient`` is the
value in force for the next training step: after ``update(step=k)``, the one of step ``k + 1``.

`feedback` holds those that answer the measured entropy, `schedules` those that follow the step alone.
"""

from aent_verl.core.controllers.feedback import (
    AnchoredTargetController,
    BandController,
    DoublingController,
    EntropyGuidedController,
    EntropyGuidedState,
    StepToTargetController,
    StepToTargetState,
)
from aent_verl.core.controllers.schedules import (
    ConstantController,
    EpochController,
    LinearDecayController,
    Schedule,
    StageController,
)
from aent_verl.core.controllers.state import Controller, ControllerState, SavedState, record

__all__ = [
    "AnchoredTargetController",
    "BandController",
    "ConstantController",
    "Controller",
    "ControllerState",
    "DoublingController",
    "EntropyGuidedController",
    "EntropyGuidedState",
    "EpochController",
    "LinearDecayController",
    "SavedState",
    "Schedule",
    "StageController",
    "StepToTargetController",
    "StepToTargetState",
    "record",
]
