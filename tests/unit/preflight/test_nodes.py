"""What the check of a cluster's nodes makes of their answers; real nodes are those of tests/e2e/test_nodes.py."""

import os
import shutil
from contextlib import nullcontext

import pytest
from omegaconf import open_dict

from aent_verl.platforms import cpu
from aent_verl.preflight import nodes
from aent_verl.preflight.findings import PreflightError


def node(number, alive=True, **resources):
    return {
        "NodeID": f"{number:056x}",
        "NodeManagerAddress": f"10.0.0.{number}",
        "NodeManagerHostname": f"gpu-{number}",
        "NodeName": f"10.0.0.{number}",
        "Alive": alive,
        "Resources": resources or {"CPU": 8.0, "GPU": 8.0},
    }


@pytest.fixture
def answers(settings, tmp_path, monkeypatch):
    """Two nodes that answer as they look at this machine's files; a test spoils an answer by the node's number."""
    settings.run.dir = str(tmp_path / "run")
    spoilt = {}

    def ask(there, function, tokens, **_):
        for each in there:
            number = int(each["NodeID"], 16)
            yield each, spoilt.get(number, lambda found: found)(function(tokens))

    monkeypatch.setattr(cpu, "joined_cluster", lambda *_: nullcontext(True))
    monkeypatch.setattr("ray.nodes", lambda: [node(0, memory=1.0), node(1), node(2), node(3, alive=False)])
    monkeypatch.setattr(nodes, "ask", ask)
    return spoilt


def test_one_line_where_all_nodes_fit(settings, answers, tmp_path):
    (line,) = nodes.check(settings)
    assert line.startswith("nodes: 2 have aent_verl ")
    assert line.endswith(f"and write in {tmp_path}")
    assert not list(tmp_path.glob(".aent*"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_starts_ray_itself_has_no_nodes_to_ask(settings, answers, monkeypatch):
    monkeypatch.setattr(cpu, "joined_cluster", lambda *_: nullcontext(False))
    assert list(nodes.check(settings)) == []


def test_nodes_are_asked_in_the_environment_of_the_run(settings, answers, monkeypatch):
    joined = []

    def join(*arguments):
        joined.append(arguments)
        return nullcontext(True)

    monkeypatch.setattr(cpu, "joined_cluster", join)
    list(nodes.check(settings))
    with open_dict(settings):
        settings.ray_kwargs.ray_init.runtime_env = {"working_dir": "there", "env_vars": {"HF_HOME": "${run.dir}/hub"}}
        settings.ray_kwargs.ray_init.address = "10.0.0.9:6379"
    list(nodes.check(settings))
    environment = {"working_dir": "there", "env_vars": {"HF_HOME": f"{settings.run.dir}/hub"}}
    assert joined == [(None, {}), ("10.0.0.9:6379", environment)]


def test_each_node_with_other_versions_is_named(settings, answers):
    answers[1] = lambda found: found | {"aent_verl": "0.0.1"}
    answers[2] = lambda found: found | {"verl": None}
    first, second = map(str, nodes.check(settings))
    assert first.startswith("node gpu-1 (10.0.0.1, id 00000000) has aent_verl 0.0.1, and this process ")
    assert second.startswith("node gpu-2 (10.0.0.2, id 00000000) has verl not installed, and this process ")
    assert "install the same versions on every node" in first


def test_a_node_that_does_not_answer_is_named(settings, answers):
    answers[2] = lambda found: TimeoutError("180 s")
    (error,) = nodes.check(settings)
    assert str(error).startswith("node gpu-2 (10.0.0.2, id 00000000) does not answer: TimeoutError: 180 s")


def test_a_folder_that_a_node_does_not_see_is_named(settings, answers, tmp_path, monkeypatch):
    settings.trainer.default_local_dir = str(tmp_path / "elsewhere" / "checkpoints")
    (tmp_path / "elsewhere").mkdir()
    look = nodes._look_function()

    def apart(tokens):
        """Sees the folder of the run, and has another in the place of that of the checkpoints."""
        return look({key: token.replace("elsewhere", "local") for key, token in tokens.items()})

    monkeypatch.setattr(nodes, "_look_function", lambda: apart)
    errors = list(nodes.check(settings))
    assert len(errors) == 2
    assert all(isinstance(error, PreflightError) and error.key == "trainer.default_local_dir" for error in errors)
    assert "node gpu-1 (10.0.0.1, id 00000000) does not see what this machine writes in " in str(errors[0])
    assert "run.dir=" in str(errors[0])


def test_a_folder_that_cannot_be_written_here(settings, answers, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(nodes, "_token", refuse)
    first, second, _ = nodes.check(settings)
    assert (first.key, second.key) == nodes.FOLDERS
    assert "this machine cannot write there ([Errno 13] Permission denied)" in str(first)


def test_a_node_that_cannot_write_is_told_from_one_that_sees_nothing(tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.touch()
    look = nodes._look_function()
    assert look({"run.dir": str(token)})["folders"] == {"run.dir": None}
    assert list(tmp_path.iterdir()) == [token]
    (tmp_path / f"token.{os.getpid()}").touch()  # in the place of a file system that is read-only: root writes anywhere
    assert "but cannot write in it" in look({"run.dir": str(token)})["folders"]["run.dir"]
    shutil.rmtree(tmp_path)
    assert "does not see" in look({"run.dir": str(token)})["folders"]["run.dir"]


def test_tokens_of_checks_at_the_same_time_stay_apart_and_old_ones_are_removed(tmp_path):
    left = tmp_path / f"{nodes.TOKEN}left"
    left.touch()
    os.utime(left, (1, 1))
    with nodes._token(tmp_path) as one, nodes._token(tmp_path / "not" / "there") as other:
        assert one != other
        assert sorted(tmp_path.iterdir()) == sorted([one, other])
    assert not list(tmp_path.iterdir())
