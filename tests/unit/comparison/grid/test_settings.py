"""What `aent-verl compare` was asked for."""

from pathlib import Path

import pytest

from aent_verl.comparison.grid.settings import parse


def test_methods_seeds_and_everything_else():
    chosen = parse(["experiment=cpu_arithmetic", "methods=[grpo,aent]", "seeds=[3,1]", "trainer.test_freq=5", "+a.b=1"])
    assert chosen.methods == {"grpo": (), "aent": ()}
    assert chosen.seeds == (3, 1)
    assert chosen.overrides == ("experiment=cpu_arithmetic", "trainer.test_freq=5", "+a.b=1")
    assert chosen.baseline == "grpo"
    assert chosen.results == Path("outputs/compare/cpu_arithmetic")
    assert chosen.title == "cpu_arithmetic"


def test_without_grpo_the_first_method_is_the_baseline():
    assert parse(["methods=[entreg,aent]"]).baseline == "entreg"


def test_a_name_that_looks_like_a_number_is_a_name():
    chosen = parse(["methods=[5,grpo]", "baseline=5", "results=20260105"])
    assert (chosen.baseline, chosen.results) == ("5", Path("20260105"))
    with pytest.raises(ValueError, match=r"baseline='\['grpo'\]'|baseline=\"\['grpo'\]\""):
        parse(["baseline=[grpo]"])


def test_a_method_may_have_overrides_of_its_own():
    chosen = parse(
        ["methods.wide=['entropy_control=aent','entropy_control.bonus.controller.low=0.3']", "baseline=wide"]
    )
    assert chosen.methods == {"wide": ("entropy_control=aent", "entropy_control.bonus.controller.low=0.3")}


def test_a_list_and_methods_of_their_own_add_up_in_any_order(tmp_path: Path):
    file = tmp_path / "grid.yaml"
    file.write_text("methods: [grpo, aent]\nevaluation: {data: a.parquet}\n")
    mine = "methods.mine=['entropy_control=aent']"
    for arguments in (["methods=[grpo,aent]", mine], [mine, "methods=[grpo,aent]"], [f"grid={file}", mine]):
        assert list(parse(arguments).methods) == ["grpo", "aent", "mine"]
    for arguments in (["evaluation.n=4", f"grid={file}"], [f"grid={file}", "evaluation.n=4"]):
        assert parse(arguments).evaluation == {"data": "a.parquet", "n": 4}


@pytest.mark.parametrize(
    "key", ["run.dir", "data.seed", "trainer.default_local_dir", "trainer.resume_mode", "+trainer.experiment_name"]
)
def test_what_compare_sets_is_refused_wherever_it_stands(key: str, tmp_path: Path):
    file = tmp_path / "grid.yaml"
    file.write_text(f"overrides: ['{key}=1']\n")
    for arguments in ([f"{key}=1"], [f"grid={file}"], [f"methods.mine=['{key}=1']"]):
        with pytest.raises(ValueError, match="compare sets"):
            parse(arguments)


@pytest.mark.parametrize("key", ["model", "output", "overwrite"])
def test_an_evaluation_is_of_the_final_checkpoint_and_in_the_runs_folder(key: str):
    with pytest.raises(ValueError, match="compare sets it"):
        parse([f"evaluation.{key}=x"])


def test_evaluation_settings_are_collected():
    chosen = parse(["evaluation.data=[a.parquet,b.parquet]", "evaluation.n=8"])
    assert chosen.evaluation == {"data": ["a.parquet", "b.parquet"], "n": 8}


def test_a_grid_file_says_the_same_as_the_command_line(tmp_path: Path):
    arguments = [
        "experiment=cpu_arithmetic",
        "methods={grpo:[],hi:['entropy_control=aent']}",
        "seeds=[1,2]",
        "parallel=2",
    ]
    from omegaconf import OmegaConf

    file = tmp_path / "grid.yaml"
    OmegaConf.save(OmegaConf.create(parse(arguments).to_dict()), file)
    assert parse([f"grid={file}"]) == parse(arguments)


def test_the_command_line_comes_after_the_grid_file(tmp_path: Path):
    file = tmp_path / "grid.yaml"
    file.write_text("overrides: [experiment=cpu_arithmetic]\nseeds: [1]\nmethods: {grpo: []}\n")
    for arguments in (
        [f"grid={file}", "seeds=[7]", "trainer.test_freq=5"],
        ["seeds=[7]", "trainer.test_freq=5", f"grid={file}"],
    ):
        chosen = parse(arguments)
        assert chosen.seeds == (7,)
        assert chosen.overrides == ("experiment=cpu_arithmetic", "trainer.test_freq=5")
        assert list(chosen.methods) == ["grpo"]


@pytest.mark.parametrize(
    ("argument", "says"),
    [
        ("seeds=[]", "distinct whole numbers"),
        ("seeds=[1,1]", "distinct whole numbers"),
        ("seeds=[-1]", "distinct whole numbers"),
        ("seeds=[1.5]", "distinct whole numbers"),
        ("seeds=1,2", "one value per key"),
        ("methods=[]", "give a list of presets"),
        ("methods=grpo", "give a list of presets"),
        ("methods=[grpo,grpo]", "twice"),
        ("methods=[a/b]", "names folders"),
        ("methods={a:x}", "must be a list of overrides"),
        ("baseline=skywork", "must be one of methods"),
        ("parallel=0", "whole number from 1"),
        ("launcher=slurm", "local or ray"),
        ("stall_minutes=-1", "number from 0"),
        ("evaluation=3", "aent-verl evaluate"),
        ("seeds.first=1", "has no part"),
        ("run.dir=x", "results=FOLDER"),
        ("trainer.experiment_name=x", "results=FOLDER"),
        ("grid=missing.yaml", r"no such file \(/.*missing\.yaml\); give a YAML file"),
        ("no setting", "write key=value"),
        ("methods.grpo=[entropy_control=grpo]", "with all quotes; aent-verl compare"),
    ],
)
def test_what_is_not_a_setting_is_refused_with_what_is(argument: str, says: str):
    with pytest.raises(ValueError, match=says):
        parse([argument])


@pytest.mark.parametrize(
    ("text", "says"), [("typo: 1\n", "has typo; allowed"), ("- 1\n", "give keys of"), ("a: [", "YAML")]
)
def test_a_grid_file_that_is_none(tmp_path: Path, text: str, says: str):
    file = tmp_path / "grid.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=says):
        parse([f"grid={file}"])
