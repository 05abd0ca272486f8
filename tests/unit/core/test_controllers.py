"""What every controller has in common: the state and its JSON, recording, resuming, and the constant one."""

import dataclasses
import inspect
import json
import math
import random

import pytest

from aent_verl.core import controllers
from aent_verl.core.controllers import (
    AnchoredTargetController,
    BandController,
    ConstantController,
    Controller,
    ControllerState,
    DoublingController,
    EntropyGuidedController,
    EntropyGuidedState,
    EpochController,
    LinearDecayController,
    SavedState,
    StageController,
    StepToTargetController,
    StepToTargetState,
)

EVERY: dict[str, Controller] = {
    "constant": ConstantController(init=0.3),
    "band": BandController(init=0.5, low=1.0, high=2.0, lr=0.1, warmup_steps=3, min=0.25, max=0.75, reg=0.3),
    "step_to_target": StepToTargetController(target=1.5, step_size=0.1, min=0.0, max=0.25),
    "anchored_target": AnchoredTargetController(tau=0.6, eta=0.07, max=0.2),
    "entropy_guided": EntropyGuidedController(target=1.5, step_size=0.3),
    "entropy_guided, smoothed": EntropyGuidedController(target=1.5, step_size=0.3, smoothing=0.6),
    "doubling": DoublingController(init=0.1, target=1.5, min=0.04, max=0.5),
    "linear_decay": LinearDecayController(init=0.7, final=0.1, total_steps=9),
    "stage": StageController(total_steps=9),
    "epoch": EpochController(total_steps=9, steps_per_epoch=2),
}
every = pytest.mark.parametrize("controller", EVERY.values(), ids=EVERY.keys())
NAN = math.nan


def begin(controller: Controller) -> ControllerState:
    return controller.observe_initial(controller.initial_state(), entropy=2.5)


def run(controller: Controller, state: ControllerState, entropies: list[float], first: int = 1) -> ControllerState:
    for step, entropy in enumerate(entropies, start=first):
        state = controller.update(state, entropy=entropy, step=step)
    return state


def measured(seed: int, length: int = 12) -> list[float]:
    """Entropies on both sides of all targets above, some of them lost."""
    generator = random.Random(seed)
    finite = [3 * generator.random() for _ in range(length)]
    return [generator.choice([NAN, math.inf]) if generator.random() < 0.2 else entropy for entropy in finite]


def through_json(state: ControllerState) -> ControllerState:
    return type(state).from_dict(json.loads(json.dumps(state.to_dict(), allow_nan=False)))


def test_every_exported_controller_is_tested_here() -> None:
    exported = {value for name in controllers.__all__ if isinstance(value := getattr(controllers, name), type)}
    exported = {kind for kind in exported if not issubclass(kind, SavedState)}
    assert all(issubclass(kind, Controller) for kind in exported)
    assert all(type(each.initial_state()) is each.state_class for each in EVERY.values() if each.knows_its_run)
    assert {kind for kind in exported if not inspect.isabstract(kind)} == {type(kind) for kind in EVERY.values()}


@every
def test_the_state_survives_json_after_every_update(controller: Controller) -> None:
    state = begin(controller)
    for step, entropy in enumerate([NAN, *measured(1)], start=1):
        state = controller.update(state, entropy=entropy, step=step)
        assert through_json(state) == state


@every
@pytest.mark.parametrize("seed", range(3))
def test_a_resumed_run_is_the_run_that_went_on(controller: Controller, seed: int) -> None:
    entropies = ([NAN] if seed else []) + measured(seed)
    whole = run(controller, begin(controller), entropies)
    for stop in range(len(entropies) + 1):
        saved = run(controller, begin(controller), entropies[:stop])
        restored = controller.restore(through_json(saved))
        assert restored == saved
        assert run(controller, restored, entropies[stop:], first=stop + 1) == whole


@every
def test_update_is_pure_and_all_is_frozen(controller: Controller) -> None:
    state = begin(controller)
    run(controller, state, measured(2))
    assert state == begin(controller)
    with pytest.raises(dataclasses.FrozenInstanceError):
        state.coefficient = 1.0  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        controller.init = 1.0  # type: ignore[attr-defined]


@every
def test_settings_are_given_by_name(controller: Controller) -> None:
    with pytest.raises(TypeError, match="positional"):
        type(controller)(*dataclasses.astuple(controller))


@every
def test_mean_and_number_of_the_finite_entropies_are_kept(controller: Controller) -> None:
    state = begin(controller)
    assert (state.entropy_mean, state.measurements, state.step, state.band_side) == (None, 0, 0, 0)
    assert controller.update(state, entropy=1e-20, step=1).entropy_mean == 1e-20
    seen = []
    for step, entropy in enumerate([1.0, 3.0, NAN, 5.0, math.inf], start=1):
        state = controller.update(state, entropy=entropy, step=step)
        assert state.step == step
        seen.append((state.entropy, state.entropy_mean, state.measurements, state.nonfinite))
    assert seen == [(1.0, 1.0, 1, 0), (3.0, 2.0, 2, 0), (3.0, 2.0, 2, 1), (5.0, 3.0, 3, 1), (5.0, 3.0, 3, 2)]


@every
def test_the_initial_entropy_is_recorded_once_and_moves_nothing(controller: Controller) -> None:
    state = controller.initial_state()
    assert state.initial_entropy is None
    observed = controller.observe_initial(state, entropy=1.25)
    assert observed == dataclasses.replace(state, initial_entropy=1.25)
    assert controller.observe_initial(observed, entropy=7.0) == observed


@every
@pytest.mark.parametrize("entropy", [NAN, math.inf, -math.inf])
def test_an_initial_entropy_that_is_not_finite_is_refused(controller: Controller, entropy: float) -> None:
    with pytest.raises(ValueError, match=r"initial_entropy=(nan|-?inf) .* finite number"):
        controller.observe_initial(controller.initial_state(), entropy=entropy)


@every
def test_only_the_anchored_one_needs_the_initial_entropy(controller: Controller) -> None:
    assert controller.needs_initial_entropy == isinstance(controller, AnchoredTargetController)


@every
def test_settings_with_run_lengths_stay_as_they_are(controller: Controller) -> None:
    assert controller.for_run(total_steps=100, steps_per_epoch=10) == controller


def test_constant_never_moves_but_records() -> None:
    controller = ConstantController(init=0.3)
    state = controller.update(controller.initial_state(), entropy=9.0, step=4)
    assert state == ControllerState(0.3, step=4, entropy=9.0, entropy_mean=9.0, measurements=1)
    assert controller.update(state, entropy=NAN, step=5) == dataclasses.replace(state, step=5, nonfinite=1)


def test_a_restored_constant_is_what_this_run_sets() -> None:
    state = ControllerState(0.9, step=4, entropy=1.0, nonfinite=1)
    assert ConstantController(init=0.2).restore(state) == dataclasses.replace(state, coefficient=0.2)


def test_invalid_constant() -> None:
    with pytest.raises(ValueError, match=r"init=nan .* finite number"):
        ConstantController(init=NAN)


FULL = ControllerState(
    coefficient=0.1 + 0.2,
    step=7,
    entropy=1 / 3,
    band_side=-1,
    at_bound=True,
    nonfinite=2,
    bound_hits=3,
    initial_entropy=math.pi,
    entropy_mean=0.7,
    measurements=5,
)


WITH_LEVEL = StepToTargetState(**dataclasses.asdict(FULL), level=1e-300)
SMOOTHED = EntropyGuidedState(**dataclasses.asdict(FULL), entropy_smoothed=2 / 3)


@pytest.mark.parametrize("state", [FULL, WITH_LEVEL, SMOOTHED], ids=lambda state: type(state).__name__)
def test_state_survives_json_exactly(state: ControllerState) -> None:
    assert all(getattr(state, field.name) != field.default for field in dataclasses.fields(state))
    assert through_json(state) == state


def test_a_state_file_of_the_first_releases_is_read() -> None:
    old = {"coefficient": 0.3, "step": 7, "entropy": 0.5, "band_side": -1, "at_bound": True, "nonfinite": 2}
    state = ControllerState.from_dict(old)
    assert state == ControllerState(0.3, step=7, entropy=0.5, band_side=-1, at_bound=True, nonfinite=2)
    assert (state.bound_hits, state.initial_entropy, state.measurements) == (0, None, 0)


NUMBERS = ("entropy", "initial_entropy", "entropy_mean")
COUNTS = ("step", "band_side", "nonfinite", "bound_hits", "measurements")


@pytest.mark.parametrize(
    "change",
    [{name: value} for name in (*NUMBERS, "coefficient") for value in (NAN, math.inf, "1", True)]
    + [{name: value} for name in COUNTS for value in (1.0, None, True, "1")]
    + [{"coefficient": None}, {"at_bound": 1}, {"at_bound": None}, {"extra": 1}],
    ids=str,
)
def test_damaged_state_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"controller state .*{next(iter(change))}"):
        ControllerState.from_dict(FULL.to_dict() | change)


@pytest.mark.parametrize("change", [{"measurements": 0}, {"measurements": -1}, {"entropy_mean": None}], ids=str)
def test_a_mean_without_measurements_or_the_reverse_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"controller state has entropy_mean=.* of measurements="):
        ControllerState.from_dict(FULL.to_dict() | change)


@pytest.mark.parametrize("name", ["coefficient", "step", "entropy", "band_side", "at_bound", "nonfinite"])
def test_state_with_a_missing_field_is_refused(name: str) -> None:
    data = FULL.to_dict()
    del data[name]
    with pytest.raises(ValueError, match=rf"lacks \['{name}'\]"):
        ControllerState.from_dict(data)


@pytest.mark.parametrize("data", [None, [], "state", 1], ids=str)
def test_a_state_that_is_not_a_mapping_is_refused(data: object) -> None:
    with pytest.raises(ValueError, match="controller state needs the fields"):
        ControllerState.from_dict(data)  # type: ignore[arg-type]
