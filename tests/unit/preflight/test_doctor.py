import importlib.metadata
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

import aent_verl
from aent_verl import doctor, train
from aent_verl.integration import compat


@pytest.fixture
def overrides(settings, monkeypatch):
    """What a user would type for ``settings``; the platform is decided without touching the environment."""
    monkeypatch.setattr("aent_verl.train.choose_platform", lambda cfg: "cpu")
    return [
        "experiment=cpu_arithmetic",
        "run.task=null",
        "data.train_batch_size=16",
        *(
            f"{key}={OmegaConf.select(settings, key)}"
            for key in (
                "data.train_files",
                "data.val_files",
                "actor_rollout_ref.model.path",
                "reward.custom_reward_function.path",
            )
        ),
    ]


def failed(arguments):
    """Details of the failed rows, by check."""
    return {row.check: row.detail for row in doctor.examine(arguments) if row.state == doctor.FAILED}


def test_doctor_reports_every_check_and_returns_0(overrides, capsys):
    assert doctor.main(overrides) == 0
    report = capsys.readouterr().out
    for check in ("verl", "torch", "ray", "vllm", "config", "platform", "plug-in", "verl API", "settings", "preflight"):
        assert check in report
    assert "method aent" in report
    assert "checks passed" in report


def test_doctor_returns_1_where_preflight_fails(overrides, capsys):
    arguments = [*overrides, "data.val_files=/no/such/file.parquet"]
    assert doctor.main(arguments) == 1
    assert "1 of " in capsys.readouterr().out
    assert "data.val_files='/no/such/file.parquet'" in failed(arguments)["preflight"]


def test_doctor_does_not_miss_data_that_the_run_would_build(overrides, tmp_path):
    task = ["run.task={_target_: aent_verl.tasks.arithmetic.prepare}", f"data.train_files={tmp_path}/later.parquet"]
    rows = list(doctor.examine([item for item in overrides if item != "run.task=null"] + task))
    assert not [row for row in rows if row.state == doctor.FAILED]
    assert (
        "will be built by aent_verl.tasks.arithmetic.prepare"
        in [row for row in rows if row.state == doctor.NOTE][-1].detail
    )


@pytest.mark.parametrize(
    ("override", "check", "problem"),
    [
        ("no.such.key=1", "config", "no.such.key"),
        ("entropy_control=no_such_preset", "config", "no_such_preset"),
        ("entropy_control.functional.clamp_p=2", "settings", "clamp_p=2"),
        ("actor_rollout_ref.actor.entropy_coeff=0.1", "settings", "entropy_coeff=0.1"),
    ],
)
def test_doctor_reports_a_config_that_does_not_compose_or_validate(overrides, override, check, problem):
    assert problem in failed([*overrides, override])[check]


def test_doctor_reports_a_platform_that_does_not_fit(overrides, monkeypatch):
    def refuse(cfg):
        raise train.TrainingError("there is no accelerator here")

    monkeypatch.setattr(train, "choose_platform", refuse)
    last = list(doctor.examine(overrides))[-1]
    assert (last.check, last.state) == ("platform", doctor.FAILED)


def test_doctor_stops_at_a_wrong_version(monkeypatch):
    def refuse():
        raise compat.VersionError("verl 0.8 is installed")

    monkeypatch.setattr(compat, "check_versions", refuse)
    rows = list(doctor.examine([]))
    assert [(row.check, row.detail) for row in rows if row.state == doctor.FAILED] == [
        ("versions", "VersionError: verl 0.8 is installed")
    ]
    assert "config" not in [row.check for row in rows]


def test_doctor_reports_a_plug_in_that_is_not_registered(overrides, monkeypatch):
    from verl.trainer.ppo.v1 import trainer_base

    monkeypatch.setattr(trainer_base, "TRAINER_REGISTRY", {"sync": trainer_base.TRAINER_REGISTRY["sync"]})
    assert failed(overrides) == {"plug-in": "RuntimeError: not registered: trainer mode aent_sync"}


def test_doctor_reports_each_broken_fact(overrides, monkeypatch):
    monkeypatch.setattr(compat, "violations", lambda: ["expected: this; found: that"])
    monkeypatch.setattr(compat, "check_contract", lambda: None)
    assert failed(overrides) == {"verl API": "expected: this; found: that"}


@pytest.mark.parametrize(
    ("change", "state"),
    [({}, "ok"), ({"aent_verl": "0.0.1"}, "FAILED"), ({"plug-in loaded": False, "aent_verl": None}, "FAILED")],
)
def test_doctor_compares_each_node_with_this_process(monkeypatch, change, state):
    import ray

    found = {"plug-in loaded": True, "aent_verl": aent_verl.__version__, "verl": importlib.metadata.version("verl")}
    task = SimpleNamespace(options=lambda **kwargs: SimpleNamespace(remote=lambda: None))
    monkeypatch.setattr(ray, "remote", lambda function: task)
    monkeypatch.setattr(ray, "get", lambda handle, timeout: found | change)
    row = doctor.ask_node({"NodeID": "a" * 56, "NodeManagerAddress": "10.0.0.2"})
    assert (row.check, row.state) == ("node 10.0.0.2", state)
    assert not change or "install the same versions on every node" in row.detail
