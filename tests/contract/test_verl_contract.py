"""The installed verl is what our code relies on, and a verl that is not would be noticed."""

import dataclasses
import importlib

import pytest

from aent_verl.verl_api import assumptions, checks, versions

TRAINER = "verl.trainer.ppo.v1.trainer_base"


def broken(name: str) -> list[str]:
    """Violations of the assumptions whose description holds ``name``."""
    chosen = [assumption for assumption in assumptions.ASSUMPTIONS if name in assumption.what]
    assert chosen, f"no assumption on {name}"
    return [line for assumption in chosen if (line := assumption.violation()) is not None]


def test_the_installed_verl_is_as_assumed():
    assert versions.violations() == []
    versions.check_assumptions()


@pytest.mark.parametrize("model", assumptions.FUSED_MODELS)
def test_every_fused_forward_method_goes_through_what_we_replace(model):
    assert [assumption.violation() for assumption in assumptions.fused_forward_calls(model)] == [None, None]


def test_no_assumption_holds_where_nothing_can_be_imported(monkeypatch):
    def fail(name):
        raise ImportError(f"no module {name}")

    monkeypatch.setattr(checks.importlib, "import_module", fail)
    assert len(versions.violations()) == len(assumptions.ASSUMPTIONS)


def test_every_assumption_is_there_once():
    assert len({assumption.what for assumption in assumptions.ASSUMPTIONS}) == len(assumptions.ASSUMPTIONS)


def test_an_overridden_method_with_another_parameter(monkeypatch):
    trainer = importlib.import_module(TRAINER).PPOTrainer
    monkeypatch.setattr(trainer, "_update_actor", lambda self, batch, metrics, timing=None: batch)
    (line,) = broken("PPOTrainer._update_actor(self, batch, metrics)")
    assert "found: (self, batch, metrics, timing)" in line
    assert "needed because our trainer sends the coefficient" in line


def test_a_called_function_with_a_new_required_parameter(monkeypatch):
    losses = importlib.import_module("verl.workers.utils.losses")
    monkeypatch.setattr(losses, "ppo_loss", lambda config, model_output, data, dp_group, scale: None)
    assert "scale" in broken("losses:ppo_loss can be called")[0]


def test_a_called_function_without_a_parameter(monkeypatch):
    functional = importlib.import_module("verl.utils.torch_functional")
    for other in (lambda scores: None, lambda scores=None: None):
        monkeypatch.setattr(functional, "calculate_sum_pi_squared_from_logits", other)
        assert len(broken("calculate_sum_pi_squared_from_logits")) == 1


def test_a_called_function_may_gain_an_optional_parameter(monkeypatch):
    functional = importlib.import_module("verl.utils.torch_functional")
    monkeypatch.setattr(functional, "calculate_sum_pi_squared_from_logits", lambda logits, new=1: None)
    assert broken("calculate_sum_pi_squared_from_logits") == []


def test_a_dataclass_without_a_field(monkeypatch):
    config = importlib.import_module("verl.workers.config")
    monkeypatch.setattr(config, "TrainingWorkerConfig", dataclasses.make_dataclass("TrainingWorkerConfig", ["kind"]))
    assert "no model_type" in broken("TrainingWorkerConfig")[0]


def test_a_source_that_does_something_else(monkeypatch):
    def init_model(self):
        self.loss_fn = lambda *args: None

    monkeypatch.setattr(
        importlib.import_module("verl.workers.engine_workers").ActorRolloutRefWorker, "init_model", init_model
    )
    assert (
        "no 'self.ref = self.ref_worker_cls(config=' there" in broken("ActorRolloutRefWorker.init_model(self) does")[0]
    )


def test_a_source_in_another_order(monkeypatch):
    def save(self):
        return "latest_checkpointed_iteration.txt", f"global_step_{self.global_steps}"

    monkeypatch.setattr(importlib.import_module(TRAINER).PPOTrainer, "_save_checkpoint", save)
    assert "'latest_checkpointed_iteration.txt' there at its place" in broken("_save_checkpoint(self) does")[0]


def test_a_method_that_is_gone(monkeypatch):
    monkeypatch.delattr(importlib.import_module(TRAINER).PPOTrainer, "_init_resource_pool_mgr")
    (line,) = broken("PPOTrainer._init_resource_pool_mgr")
    assert "AttributeError" in line


def test_sums_of_one_rank_only(monkeypatch):
    metric = importlib.import_module("verl.utils.metric").Metric
    monkeypatch.setattr(metric, "aggregate_dp", lambda metrics: sum(metrics[0].values))
    assert "3.4 instead of 5.1" in broken("ratio of two SUM")[0]


def test_sums_that_are_not_averaged_but_summed_are_fine(monkeypatch):
    metric = importlib.import_module("verl.utils.metric").Metric
    monkeypatch.setattr(metric, "aggregate_dp", lambda metrics: sum(sum(one.values) for one in metrics))
    assert broken("ratio of two SUM") == []


def test_extremes_that_are_averaged(monkeypatch):
    metric = importlib.import_module("verl.utils.metric").Metric
    monkeypatch.setattr(metric, "aggregate_dp", lambda metrics: sum(one.values[0] for one in metrics) / len(metrics))
    assert "(1.5, 1.5)" in broken("MIN and MAX")[0]


def test_non_tensor_data_that_stay_wrapped(monkeypatch):
    tu = importlib.import_module("verl.utils.tensordict_utils")
    monkeypatch.setattr(tu, "get_non_tensor_data", lambda data, key, default: data.get(key, default))
    assert len(broken("get_non_tensor_data")) == 1


def test_a_registry_with_other_rows(monkeypatch):
    registry = importlib.import_module("verl.workers.engine").EngineRegistry
    monkeypatch.setattr(registry, "_engines", {"language_model": {("fsdp", "cuda"): object}})
    assert ["KeyError" in line for line in broken("EngineRegistry._engines")] == [True, True]


def test_trainers_under_other_names(monkeypatch):
    monkeypatch.setattr(importlib.import_module(TRAINER), "TRAINER_REGISTRY", {})
    assert ["found: None" in line for line in broken("verl's registry names")] == [True] * 3


def test_policy_losses_under_other_names(monkeypatch):
    monkeypatch.setattr(importlib.import_module("verl.trainer.ppo.core_algos"), "POLICY_LOSS_REGISTRY", {})
    assert "found: KeyError: 'vanilla'" in broken("POLICY_LOSS_REGISTRY")[0]


def test_workers_without_the_seam(monkeypatch):
    worker = importlib.import_module("verl.workers.engine_workers").ActorRolloutRefWorker
    for seam in ("actor_worker_cls", "ref_worker_cls"):
        monkeypatch.setattr(worker, seam, object)
        assert "found: <class 'object'>" in broken(f"ActorRolloutRefWorker.{seam} is")[0]


def test_a_platform_that_must_do_more(monkeypatch):
    from aent_verl.platforms import cpu

    monkeypatch.setattr(cpu.platform_class(), "__abstractmethods__", frozenset({"new_duty"}))
    assert "also asks for new_duty" in broken("PlatformBase")[0]


def test_the_error_lists_every_violation_and_what_to_install(monkeypatch):
    monkeypatch.delattr(importlib.import_module("verl.utils.tensordict_utils"), "get_non_tensor_data")
    monkeypatch.setattr(importlib.import_module(TRAINER), "TRAINER_REGISTRY", {})
    points = len(versions.violations())
    with pytest.raises(versions.VerlApiError, match=rf"differs in {points} point") as error:
        versions.check_assumptions()
    assert str(error.value).startswith("verl {} ({}) ".format(*versions.imported_verl()))
    assert "pip install" in str(error.value)
    assert "verl's registry names" in str(error.value)
    assert "no attribute 'get_non_tensor_data'" in str(error.value)
    assert len(str(error.value).splitlines()) == 1 + points
