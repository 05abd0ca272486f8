"""A training command as it is typed, and what it lacks for entropy control."""

import pytest

from aent_verl.launch.command_line import OURS, SEARCH_PATH, VERLS, parse


@pytest.mark.parametrize(
    ("typed", "overrides"),
    [
        ("experiment=a b=1", ("experiment=a", "b=1")),
        ("aent-verl train experiment=a b=1", ("experiment=a", "b=1")),
        ("python -m aent_verl.commands.train b=1", ("b=1",)),
        ("", ()),
    ],
)
def test_overrides_of_ours(typed: str, overrides: tuple[str, ...]) -> None:
    line = parse(typed.split())
    assert (line.source, line.name, line.overrides) == (*OURS, overrides)
    assert line.lacks() == ()
    assert line.completed() == line


def test_the_last_value_of_a_key_counts() -> None:
    line = parse(["a=1", "+a=2", "b"])
    assert (line.value("a"), line.value("b")) == ("2", None)


@pytest.mark.parametrize(
    "typed",
    [
        "python -m verl.trainer.main_ppo a=1 b=2",
        "PYTHONUNBUFFERED=1 python3 -u -m verl.trainer.main_ppo a=1 b=2 $@",
        "set -x python3 verl/trainer/main_ppo.py a=1 \\ b=2",
        "ray job submit --address=http://head:8265 -- python3 -m verl.trainer.main_ppo a=1 b=2",
        "python -m verl.trainer.main_ppo --config-name=ppo_trainer a=1 b=2",
        "python -m verl.trainer.main_ppo -c job a=1 b=2 --resolve",
        "python -m verl.trainer.main_ppo --config-path=./config --config-name ppo_trainer a=1 b=2",
    ],
)
def test_a_whole_command_of_verls(typed: str) -> None:
    line = parse(typed.split())
    assert (line.source, line.name, line.overrides) == (*VERLS, ("a=1", "b=2"))
    assert line.lacks() == (SEARCH_PATH, "+entropy_control=aent")
    assert line.completed().overrides == ("a=1", "b=2", SEARCH_PATH, "+entropy_control=aent")


def test_a_configuration_of_ones_own(tmp_path) -> None:
    line = parse(f"python -m verl.trainer.main_ppo --config-path={tmp_path} --config-name=mine a=1".split())
    assert (line.source, line.name) == (str(tmp_path), "mine")


@pytest.mark.parametrize(
    ("typed", "lacks"),
    [
        (f"{SEARCH_PATH} +entropy_control=siren", ()),
        ("hydra.searchpath=[file:///mine,pkg://aent_verl._config] +entropy_control=siren", ()),
        ("+entropy_control=siren", (SEARCH_PATH,)),
        ("hydra.searchpath=[pkg://aent_verl._confg] +entropy_control=siren", (SEARCH_PATH,)),
        (SEARCH_PATH, ("+entropy_control=aent",)),
    ],
)
def test_overrides_that_look_for_our_configuration_are_verls_command(typed: str, lacks: tuple[str, ...]) -> None:
    line = parse(["data.train_batch_size=8", *typed.split()])
    assert line.source == VERLS[0]
    assert line.lacks() == lacks
    assert line.completed().lacks() == ()
    cfg = line.completed().compose()
    assert cfg.entropy_control.method in ("siren", "aent")
    assert cfg.trainer.v1.trainer_mode == "aent_sync"
    assert cfg.data.train_batch_size == 8
