"""Choices of another package, named by their path, are on equal terms with ours."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from aent_verl.core.controllers import ConstantController
from aent_verl.methods import axes
from aent_verl.methods.parsing import parse
from aent_verl.methods.settings import AS_GIVEN, EntropyControlConfig
from aent_verl.methods.step import StepValues
from aent_verl.plugin import saved_state
from aent_verl.plugin.coefficients import Coefficients
from aent_verl.plugin.micro_batch import minibatch_stats
from tests import lab, preset_harness

CONSTANT = {"name": "constant", "init": 0.1}


@pytest.fixture
def entropy_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(lab.write(tmp_path / "lab")))
    yield importlib.import_module(lab.NAME)
    del sys.modules[lab.NAME]


def block(**own: Any) -> dict[str, Any]:
    """A block whose bonus, or another part, is changed."""
    bonus = {"name": "linear", "controller": CONSTANT} | own.pop("bonus", {})
    return {"method": "mine", "functional": {"name": "full"}, "bonus": bonus} | own


SWING = {"name": "entropy_lab:Swing", "top": 0.35, "size": 0.1}
EVERYTHING = block(
    functional={"name": "entropy_lab:tsallis", "arguments": {"q": 3.0}},
    bonus={
        "name": "entropy_lab:Squared",
        "strength": 0.5,
        "controller": SWING,
        "token_mask": {"name": "entropy_lab:Early", "tokens_kept": 1},
        "sample_weight": {"name": "entropy_lab:Mixed"},
    },
    advantages={"name": "entropy_lab:Centred", "share": 0.5, "controller": {**SWING, "top": 1.0}},
    rewards={"name": "entropy_lab:Surprise", "scale": 0.5},
)


def test_every_axis_takes_a_class_from_elsewhere(entropy_lab: ModuleType) -> None:
    control = parse(EVERYTHING)
    assert control.bonus.form == entropy_lab.Squared(strength=0.5)
    assert control.bonus.form_name == "entropy_lab:Squared"
    assert control.bonus.token_mask == entropy_lab.Early(tokens_kept=1)
    assert control.bonus.sample_weight == entropy_lab.Mixed()
    assert control.advantages.shaping == entropy_lab.Centred(share=0.5)
    assert control.bonus.controller == entropy_lab.Swing(top=0.35, size=0.1)
    assert control.controller_names == {"bonus": "entropy_lab:Swing", "advantages": "entropy_lab:Swing"}
    assert control.rewards == entropy_lab.Surprise(scale=0.5)
    assert control.rewards_name == "entropy_lab:Surprise"
    assert control.needs_accuracy
    assert control.advantages.measures_minibatch
    assert not parse(block()).advantages.measures_minibatch


def test_a_selector_is_computed_by_the_fused_op(entropy_lab: ModuleType) -> None:
    functional = parse(block(functional={"name": "entropy_lab:TopK", "arguments": {"k": 3}})).functional
    assert functional.function is None
    assert functional.arguments() == {"functional": entropy_lab.TopK(3), "clamp_p": None, "top_p": None}
    assert str(functional) == "entropy_lab:TopK(k=3)"


def test_loss_and_statistics_are_the_classs(entropy_lab: ModuleType, single_rank_group: None) -> None:
    given = {
        "bonus.name": "entropy_lab:Squared",
        "bonus.strength": 0.5,
        "bonus.token_mask": {"name": "entropy_lab:Early", "tokens_kept": 2},
        "advantages.name": "entropy_lab:Centred",
        "advantages.controller": {"name": "constant", "init": 0.75},
    }
    config, batch = preset_harness.config("entreg", **given), preset_harness.batch()
    step = StepValues(step=1, total_steps=4, bonus_coefficient=0.2, advantages_coefficient=0.75)
    data = preset_harness.to_verl(batch, step)
    preset_harness.run_stats_pass(config, batch, data)
    mean = torch.cat([s.advantages[s.mask.bool()] for s in batch]).mean().item()
    assert minibatch_stats(data).shaping == {"mean_advantage": pytest.approx(mean, rel=1e-12)}

    outcome = preset_harness.run(config, batch, step)
    assert outcome.metrics[0]["aent/stats/mean_advantage"].values[0] == pytest.approx(mean, rel=1e-12)
    terms, tokens = 0.0, 0
    for s in batch:
        kept = s.mask.bool()
        entropy = torch.distributions.Categorical(logits=s.logits[s.prompt - 1 : -1]).entropy().double()
        first_two = kept & (kept.cumsum(0) <= 2)
        terms += -0.2 * 0.5 * (entropy[first_two] ** 2).sum().item()
        tokens += int(kept.sum())
    bonus = sum(metrics["aent/bonus_loss"].values[0] for metrics in outcome.metrics)
    assert bonus == pytest.approx(terms / tokens, rel=1e-9)


def test_hidden_states_are_there_for_those_who_ask(single_rank_group: None) -> None:
    name = "tests.lab:SmallStates"
    config, batch = preset_harness.config("entreg", **{"bonus.name": name}), preset_harness.batch()
    assert config.control.needs_hidden_states
    assert not preset_harness.config("entreg").control.needs_hidden_states
    with pytest.raises(RuntimeError, match=r"no hidden states: .* must say needs_hidden_states = True"):
        preset_harness.run(config, batch, StepValues(step=1, total_steps=4, bonus_coefficient=0.2))


def test_its_state_is_saved_resumed_and_its_own(entropy_lab: ModuleType, tmp_path: Path) -> None:
    control = parse(EVERYTHING)
    actor = Coefficients(control, control.controllers)
    for step in range(1, 6):
        actor.begin(step)
        actor.update({"bonus": 1.0, "advantages": 1.0}, step=step)
    states = actor.snapshot().states
    assert isinstance(states["bonus"], entropy_lab.SwingState)
    assert states["bonus"].last_turn == "step 3"
    saved_state.write(tmp_path, control=control, states=states, rewards=entropy_lab.Seen(24))
    found = saved_state.read(tmp_path, control=control, controllers=control.controllers)
    assert (found.states, found.rewards, found.differences) == (states, entropy_lab.Seen(24), [])
    unshaped = replace(control, rewards=AS_GIVEN)
    with pytest.raises(
        saved_state.StateFileError, match=r"reward shaping 'entropy_lab:Surprise', .* set to 'none'; set entropy_.*rew"
    ):
        saved_state.read(tmp_path, control=unshaped, controllers=control.controllers)

    other = parse(block())
    with pytest.raises(
        saved_state.StateFileError, match=r"controller 'entropy_lab:Swing', and the run is set to 'const"
    ):
        saved_state.read(tmp_path, control=other, controllers=other.controllers)
    file = tmp_path / saved_state.NAME
    content = json.loads(file.read_text())
    content["bonus"]["state"]["turns"] = 3
    file.write_text(json.dumps(content))
    with pytest.raises(saved_state.StateFileError, match=r"unknown fields \['turns'\]"):
        saved_state.read(tmp_path, control=control, controllers=control.controllers)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"functional": {"name": "entropy_lab:TopK", "arguments": {"k": 0}}}, "TopK' .*'k': 0}: k=0 .* at least 1; it"),
        (
            {"functional": {"name": "entropy_lab:TopK", "arguments": {"n": 3}}},
            "unexpected keyword argument 'n'.*Select",
        ),
        ({"functional": {"name": "entropy_lab:Swing"}}, "entropy_lab:Swing' .*a class derived from Selector"),
        ({"bonus": {"name": "no.such:Class"}}, "bonus.name='no.such:Class' .*ModuleNotFoundError.*importable on every"),
        ({"bonus": {"name": "entropy_lab:Missing"}}, "bonus.name='entropy_lab:Missing' .*no attribute 'Missing'"),
        ({"bonus": {"name": "entropy_lab:Centred"}}, "must be the path .* frozen dataclass derived from BonusForm"),
        ({"bonus": {"name": "entropy_lab:tsallis"}}, "frozen dataclass derived from BonusForm"),
        ({"bonus": {"name": "aent_verl.methods.axes:BonusForm"}}, "frozen dataclass derived from BonusForm"),
        ({"bonus": {"name": "entropy_lab:Squared"}}, "bonus.strength=None .*entropy_lab:Squared needs a number"),
        ({"bonus": {"name": "entropy_lab:Squared", "strength": "much"}}, "strength='much' .*must be a number"),
        ({"bonus": {"name": "entropy_lab:Squared", "strength": -1.0}}, "bonus.strength=-1.0 .*must be > 0"),
        ({"bonus": {"name": "entropy_lab:Squared", "strenth": 1.0}}, "bonus.strenth is not a known key; .*strength"),
        ({"bonus": {"controller": {**SWING, "size": 0.5}}}, r"bonus.controller.size=0.5 .*in \(0, top=0.35\]"),
        (
            {"advantages": {"name": "entropy_lab:Centred", "controller": {"name": "constant", "init": 3.0}}},
            r"advantages.controller.init=3.0 .*\[0, 2\], the range of the coefficient of .*entropy_lab:Centred",
        ),
        ({"bonus": {"token_mask": {"name": "entropy_lab:Early", "tokens_kept": 1.5}}}, "must be a whole number"),
        ({"rewards": {"name": "entropy_lab:Surprise", "scale": -1.0}}, r"rewards.scale=-1.0 .*must be >= 0"),
        ({"rewards": {"name": "entropy_lab:Swing"}}, "frozen dataclass derived from RewardShaping"),
    ],
)
def test_what_does_not_fit_is_named(entropy_lab: ModuleType, own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"entropy_control.*{message}"):
        parse(block(**own))


def test_a_class_without_the_interface_says_what_it_lacks(entropy_lab: ModuleType) -> None:
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Empty(axes.Shaping):
        pass

    entropy_lab.Empty = Empty  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"advantages\.name='entropy_lab:Empty' .*does not define shape"):
        parse(block(advantages={"name": "entropy_lab:Empty"}))


@pytest.mark.parametrize("value", [float("nan"), {1}, (1, 2)], ids=repr)
def test_a_state_that_is_not_json_is_refused_before_anything_trains(entropy_lab: ModuleType, value: Any) -> None:
    class Bad(entropy_lab.Swing):  # type: ignore[name-defined, misc]
        def initial_state(self) -> Any:
            return entropy_lab.SwingState(coefficient=0.1, last_turn=value)

    entropy_lab.Bad = Bad  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"controller\.name='.*' is not allowed: its state .*JSON"):
        parse(block(bonus={"controller": {**SWING, "name": "entropy_lab:Bad"}}))


def test_so_is_one_of_a_shaping_of_rewards(entropy_lab: ModuleType) -> None:
    class Bad(entropy_lab.Surprise):  # type: ignore[name-defined, misc]
        def initial_state(self) -> Any:
            return entropy_lab.Seen({1})

    entropy_lab.Bad = Bad  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"rewards\.name='.*' is not allowed: its state .*JSON"):
        parse(block(rewards={"name": "entropy_lab:Bad", "scale": 1.0}))


def test_a_neutral_coefficient_is_said_to_have_no_effect_only_where_it_has_none(
    entropy_lab: ModuleType, recwarn: pytest.WarningsRecorder
) -> None:
    one = {"name": "constant", "init": 1.0}
    parse(block(advantages={"name": "entropy_lab:Centred", "controller": one}))
    assert [str(warning.message) for warning in recwarn] == []
    parse(block(advantages={"name": "positive_reweight", "controller": one}))
    assert "keeps its coefficient at 1" in str(recwarn.pop().message)


def test_a_controller_that_leaves_the_range_is_named(entropy_lab: ModuleType) -> None:
    control = parse(EVERYTHING)
    for axis, value in (("bonus", -7.0), ("bonus", 7.0), ("advantages", 0.0), ("advantages", 2.0)):
        control.check_coefficient(axis, value)
    for value in (-0.1, 2.1, float("nan")):
        with pytest.raises(
            ValueError, match=r"advantages\.controller\.name=entropy_lab:Swing gave .*in \[0, 2\]; correct"
        ):
            control.check_coefficient("advantages", value)
    for value in (float("inf"), float("nan")):
        with pytest.raises(
            ValueError, match=r"bonus\.controller\.name=entropy_lab:Swing gave the coefficient (inf|nan)"
        ):
            control.check_coefficient("bonus", value)


def test_settings_of_ours_are_not_used_by_it_and_said_so(entropy_lab: ModuleType) -> None:
    with pytest.warns(
        UserWarning, match=r"bonus\.gamma=1\.0 has no effect: .*name=entropy_lab:Squared does not use it"
    ):
        control = parse(block(bonus={"name": "entropy_lab:Squared", "strength": 1.0, "gamma": 1.0}))
    assert isinstance(control, EntropyControlConfig)
    assert control.bonus.controller == ConstantController(init=0.1)
