"""The runs that a comparison consists of."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aent_verl._util import hydra_quoted
from aent_verl.comparison.grid import plan
from aent_verl.comparison.grid.check import check
from aent_verl.comparison.grid.settings import parse

NO_TASK = ["run.task=null", "data.train_files=t.parquet", "data.val_files=v.parquet", "actor_rollout_ref.model.path=m"]
CPU = ["experiment=cpu_arithmetic", "methods=[grpo,aent]", "seeds=[1,2]"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_runs_differ_in_method_seed_and_folder_alone(here: Path):
    grid = plan.cells(parse([*CPU, "results=" + hydra_quoted(here / "it's a grid")]))
    assert [cell.name for cell in grid] == ["grpo seed 1", "aent seed 1", "grpo seed 2", "aent seed 2"]
    for cell in grid:
        config = cell.config
        assert config.entropy_control.method == cell.method
        assert config.data.seed == config.actor_rollout_ref.actor.data_loader_seed == cell.seed
        assert config.actor_rollout_ref.rollout.seed == cell.seed
        assert config.run.dir == str(cell.folder) == f"{here}/it's a grid/runs/{cell.method}_seed{cell.seed}"
        assert config.trainer.default_local_dir == f"{cell.folder}/checkpoints"
        assert config.trainer.validation_data_dir == f"{cell.folder}/validation"
        assert cell.total_steps == 40
    assert len({cell.config.trainer.experiment_name for cell in grid}) == 4


def test_a_label_with_a_preset_of_its_own(here: Path):
    chosen = parse([*CPU, "methods={grpo:[],wide:['entropy_control=aent','entropy_control.bonus.controller.low=0.3']}"])
    wide = plan.cells(chosen)[1].config
    assert wide.entropy_control.method == "aent"
    assert wide.entropy_control.bonus.controller.low == 0.3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["methods=[grpo,aentt]"], "method aentt"),
        (["trainer.no_such_key=1"], "no_such_key"),
        (["entropy_control=aent"], "methods="),
    ],
)
def test_what_does_not_compose_is_named_before_anything_runs(here: Path, arguments: list[str], says: str):
    with pytest.raises(ValueError, match=says):
        plan.cells(parse([*CPU, *arguments]))


def test_the_evaluation_of_a_checkpoint(here: Path):
    cell = plan.cells(parse([*CPU, "evaluation.data=[a.parquet,b.parquet]", "evaluation.n=8"]))[0]
    command = cell.evaluate_command(here / "x" / "global_step_3")
    assert "data=['a.parquet','b.parquet']" in command
    assert "n=8" in command
    assert f"model='{here}/x/global_step_3'" in command
    assert f"output='{cell.folder}/evaluation'" in command


def test_values_of_an_evaluation_keep_their_types(here: Path):
    values = [
        "evaluation.temperature=1.0",
        "evaluation.n=1",
        "evaluation.run.check_reward=false",
        "evaluation.scorers=null",
    ]
    found = plan.cells(parse([*CPU, *values]))[0].evaluation
    assert found == ("temperature=1.0", "n=1", "run.check_reward=false", "scorers=null")


@pytest.mark.parametrize(
    "text", ["it's", "a,b", "a=b", "(x)", "16", "null", "[1]", "a\\b", "a\\", "a\\'b", "\\\\'", "$x", " "]
)
def test_a_text_stays_what_it_is_through_an_override(text: str):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"key={hydra_quoted(text)}").value() == text


def test_methods_under_different_protocols_are_refused_before_they_train(here: Path):
    grid = plan.cells(parse([*CPU, *NO_TASK, "methods.big=['entropy_control=aent','actor_rollout_ref.rollout.n=8']"]))
    with pytest.raises(ValueError, match=r"rollout\.n: 4 in grpo, aent; 8 in big"):
        check(grid)


def test_an_evaluation_needs_a_checkpoint(here: Path):
    grid = plan.cells(parse([*CPU, *NO_TASK, "trainer.save_freq=-1", "evaluation.n=2"]))
    with pytest.raises(ValueError, match="save_freq=-1"):
        check(grid)


def test_adapters_cannot_be_evaluated(here: Path):
    lora = "actor_rollout_ref.model.lora_rank=8"
    with pytest.raises(ValueError, match="lora_rank=8: must be 0, because evaluation"):
        check(plan.cells(parse([*CPU, *NO_TASK, lora, "evaluation.n=2"])))


def test_an_evaluation_uses_the_machines_of_the_training(here: Path):
    command = plan.cells(parse([*CPU, "evaluation.n=8"]))[0].evaluate_command(here)
    assert {"platform=cpu", "gpus=1", "trainer.nnodes=1"} <= set(command)
    gpus = [*CPU, "experiment=qwen2.5_math_1.5b_math", "trainer.n_gpus_per_node=4", "evaluation.n=8"]
    other = plan.cells(parse([*gpus, "evaluation.gpus=2"]))[0].evaluate_command(here)
    assert "gpus=2" in other
    assert not {"gpus=4", "platform=cpu"} & set(other)


def test_without_evaluation_settings_there_is_none(here: Path):
    assert plan.cells(parse(CPU))[0].evaluation is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["evaluation.nn=16"], "evaluation: .*nn"),
        (["evaluation.temperature=hot"], "evaluation: temperature='hot'"),
        (["evaluation.gpus=abc"], "evaluation: gpus='abc'"),
        (["evaluation.data=missing.parquet"], r"evaluation: data=.*missing\.parquet"),
        (["evaluation.data=other.parquet"], "data_source='mine'"),
    ],
)
def test_an_evaluation_is_checked_before_anything_trains(here: Path, arguments: list[str], says: str):
    task(here)
    grid = plan.cells(parse([*CPU, *NO_TASK, "evaluation.n=2", "evaluation.platform=cpu", *arguments]))
    with pytest.raises(ValueError, match=says):
        check(grid)


def test_an_evaluation_takes_data_and_reward_of_the_training(here: Path):
    task(here)
    check(plan.cells(parse([*CPU, *NO_TASK, "evaluation.n=2"])))


def task(folder: Path) -> None:
    """Data and model by the names of NO_TASK, and data that no reward of verl's knows."""
    row = {
        "prompt": [{"role": "user", "content": "1 + 2 ="}],
        "data_source": "reasoning_gym/basic_arithmetic",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"split": "test"},
    }
    for name in ("t", "v"):
        pq.write_table(pa.Table.from_pylist([row]), folder / f"{name}.parquet")
    pq.write_table(pa.Table.from_pylist([row | {"data_source": "mine"}]), folder / "other.parquet")
