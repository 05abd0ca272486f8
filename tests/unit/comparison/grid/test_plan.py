"""The runs that a comparison consists of."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from aent_verl._util import hydra_quoted
from aent_verl.comparison.grid import plan
from aent_verl.comparison.grid.plan import GridRun
from aent_verl.comparison.grid.settings import parse
from aent_verl.launch import compose

CPU = ["experiment=cpu_arithmetic", "run.task=null", "data.train_files=t.parquet", "data.val_files=v.parquet"]
METHODS = "methods={grpo:[],aent:[],wide:['entropy_control=aent','entropy_control.bonus.controller.low=0.3']}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data that CPU names, and other.parquet, which no reward of verl's knows."""
    folder = tmp_path_factory.mktemp("task")
    row = {
        "prompt": [{"role": "user", "content": "1 + 2 ="}],
        "data_source": "reasoning_gym/basic_arithmetic",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"split": "test"},
    }
    for name in ("t", "v"):
        pq.write_table(pa.Table.from_pylist([row]), folder / f"{name}.parquet")
    pq.write_table(pa.Table.from_pylist([row | {"data_source": "mine"}]), folder / "other.parquet")
    return folder


@pytest.fixture(scope="module")
def grid(folder: Path) -> list[GridRun]:
    results = hydra_quoted(folder / "it's a grid")
    model = "actor_rollout_ref.model.path=m"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return plan.plan_runs(parse([*CPU, model, METHODS, "seeds=[1,2]", f"results={results}"]))


@pytest.fixture
def changed(folder: Path, grid: list[GridRun], monkeypatch: pytest.MonkeyPatch) -> Callable[..., GridRun]:
    """A run of the grid with other settings, to be checked in the folder of the data."""
    monkeypatch.chdir(folder)

    def changed(place: int = 0, evaluation: tuple[str, ...] | None = ("n=2",), **settings: object) -> GridRun:
        config = grid[place].config.copy()
        for key, value in settings.items():
            OmegaConf.update(config, key, value)
        return replace(grid[place], config=config, evaluation=evaluation)

    return changed


def test_runs_differ_in_method_seed_and_folder_alone(grid: list[GridRun], folder: Path):
    names = [f"{method} seed {seed}" for seed in (1, 2) for method in ("grpo", "aent", "wide")]
    assert [run.name for run in grid] == names
    for run in grid:
        config = run.config
        assert config.entropy_control.method == ("grpo" if run.method == "grpo" else "aent")
        assert config.data.seed == config.actor_rollout_ref.actor.data_loader_seed == run.seed
        assert config.actor_rollout_ref.rollout.seed == run.seed
        assert config.run.dir == str(run.folder) == f"{folder}/it's a grid/runs/{run.method}_seed{run.seed}"
        assert config.trainer.default_local_dir == f"{run.folder}/checkpoints"
        assert config.trainer.validation_data_dir == f"{run.folder}/validation"
        assert run.total_steps == 40
        assert run.evaluation is None
    assert len({run.config.trainer.experiment_name for run in grid}) == 6


def test_a_run_is_what_its_command_composes(grid: list[GridRun]):
    config = compose.compose(grid[-1].overrides)
    compose.make_paths_absolute(config)
    assert OmegaConf.to_container(grid[-1].config) == OmegaConf.to_container(config)
    assert "trainer.experiment_name=wide_seed2" in grid[-1].overrides, "as in the records of runs that were begun"


def test_a_label_with_a_preset_of_its_own(grid: list[GridRun]):
    assert grid[2].config.entropy_control.bonus.controller.low == 0.3
    assert grid[1].config.entropy_control.bonus.controller.low != 0.3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["methods=[aentt]"], "method aentt"),
        (["methods=[aent]", "trainer.no_such_key=1"], "no_such_key"),
        (["entropy_control=aent"], "methods="),
    ],
)
def test_what_does_not_compose_is_named_before_anything_runs(arguments: list[str], says: str):
    with pytest.raises(ValueError, match=says):
        plan.plan_runs(parse([*CPU, *arguments]))


def test_the_evaluation_of_a_checkpoint(grid: list[GridRun], tmp_path: Path):
    values = ["data=[a.parquet,b.parquet]", "n=8", "temperature=1.0", "run.check_reward=false", "scorers=null"]
    chosen = parse([*CPU, "methods=[grpo]", "seeds=[1]", *(f"evaluation.{value}" for value in values)])
    (run,) = plan.plan_runs(chosen)
    assert run.evaluation == ["data=['a.parquet','b.parquet']", *values[1:]]
    command = run.evaluate_command(tmp_path / "global_step_3")
    assert command[:2] == ["-m", "aent_verl.commands.evaluate"]
    assert set(run.evaluation) <= set(command)
    assert f"model='{tmp_path}/global_step_3'" in command
    assert f"output='{run.folder}/evaluation'" in command


@pytest.mark.parametrize(
    "text", ["it's", "a,b", "a=b", "(x)", "16", "null", "[1]", "a\\b", "a\\", "a\\'b", "\\\\'", "$x", " "]
)
def test_a_text_stays_what_it_is_through_an_override(text: str):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"key={hydra_quoted(text)}").value() == text


def test_an_evaluation_uses_the_machines_of_the_training(changed: Callable[..., GridRun], tmp_path: Path):
    command = changed().evaluate_command(tmp_path)
    assert {"platform=cpu", "gpus=1", "trainer.nnodes=1"} <= set(command)
    gpus = {"trainer.device": "cuda", "trainer.n_gpus_per_node": 4}
    assert "gpus=4" in changed(**gpus).evaluate_command(tmp_path)
    other = changed(evaluation=["n=8", "gpus=2"], **gpus).evaluate_command(tmp_path)
    assert "gpus=2" in other
    assert not {"gpus=4", "platform=cpu"} & set(other)


def test_methods_under_different_protocols_are_refused_before_they_train(changed: Callable[..., GridRun]):
    big = replace(changed(**{"actor_rollout_ref.rollout.n": 8}), method="big")
    with pytest.raises(ValueError, match=r"rollout\.n: 4 in grpo, aent; 8 in big"):
        plan.check([changed(), changed(1), big])


def test_what_an_evaluation_needs_of_the_training(changed: Callable[..., GridRun]):
    with pytest.raises(ValueError, match=r"method aent: trainer\.save_freq=-1"):
        plan.check([changed(1, **{"trainer.save_freq": -1})])
    with pytest.raises(ValueError, match="lora_rank=8: must be 0, because evaluation"):
        plan.check([changed(**{"actor_rollout_ref.model.lora_rank": 8})])


def test_each_method_is_checked(changed: Callable[..., GridRun]):
    wrong = changed(1, evaluation=None, **{"entropy_control.bonus.controller.low": 9.0})
    with pytest.raises(ValueError, match=r"method aent: entropy_control\.bonus\.controller\.high=.* low=9"):
        plan.check([wrong])


@pytest.mark.slow
def test_an_evaluation_is_checked_before_anything_trains(
    changed: Callable[..., GridRun], monkeypatch: pytest.MonkeyPatch
):
    """With data and reward of the training, where it does not name its own."""
    plan.check([changed()])
    # What comes before it is the same for all.
    monkeypatch.setattr("aent_verl.preflight.check_settings", lambda config: [])
    for wrong, says in {
        "nn=16": "evaluation: .*nn",
        "temperature=hot": "evaluation: temperature='hot'",
        "gpus=abc": "evaluation: gpus='abc'",
        "data=missing.parquet": r"evaluation: data=.*missing\.parquet",
        "data=other.parquet": "data_source='mine'",
    }.items():
        with pytest.raises(ValueError, match=says):
            plan.check([changed(evaluation=["n=2", "platform=cpu", wrong])])
