"""Where weights are sent and where vLLM looks for them: names that verl makes, with the run's mark, still agree."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from aent_verl.platforms import vllm_cpu, vllm_plugin, weight_sockets
from aent_verl.verl_api.checks import in_source

VLLM = "verl.workers.rollout.vllm_rollout"
JOB = "01000000"


@pytest.fixture(autouse=True, scope="module")
def vllm_is_known() -> None:
    """verl's rollouts import nothing where there is no distribution of that name."""
    vllm_cpu.provide_vllm_distribution()


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> str:
    mark = weight_sockets.mark_of("outputs/a")
    monkeypatch.setenv(weight_sockets.RUN_ENV, mark)
    monkeypatch.setenv(weight_sockets.JOB_ENV, JOB)
    return mark


def sender() -> SimpleNamespace:
    """As verl's `ServerAdapter` is after its `__init__`."""
    fact = in_source(
        f"{VLLM}.vllm_rollout:ServerAdapter.__init__",
        "job_id = ray.get_runtime_context().get_job_id()",
        'self.zmq_handle = f"ipc:///tmp/rl-colocate-zmq-{job_id}-replica-{self.replica_rank}-rank-{local_rank}.sock"',
        why="",
    )
    assert fact.violation() is None
    return SimpleNamespace(zmq_handle=f"ipc:///tmp/rl-colocate-zmq-{JOB}-replica-0-rank-0.sock")


def receiver() -> str:
    """What verl's extension of vLLM's worker connects to."""
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

    worker = vLLMColocateWorkerExtension.__new__(vLLMColocateWorkerExtension)
    worker.model_runner, worker.local_rank = SimpleNamespace(), 0
    return worker._get_zmq_handle()


@pytest.mark.slow
def test_both_ends_have_the_mark_of_the_run(marked: str):
    rollout = sender()
    assert receiver() == rollout.zmq_handle
    weight_sockets.rename_sender(rollout, JOB)
    assert marked in rollout.zmq_handle
    for _ in range(2):  # vLLM calls plug-ins once in each process, and children inherit the environment
        vllm_plugin.register()
        assert receiver() == rollout.zmq_handle


@pytest.mark.slow
def test_the_server_tells_vllm_the_job_that_the_sender_names():
    fact = in_source(
        f"{VLLM}.vllm_async_server:vLLMHttpServer.__init__",
        f'os.environ["{weight_sockets.JOB_ENV}"] = ray.get_runtime_context().get_job_id()',
        why="",
    )
    assert fact.violation() is None


def test_runs_have_marks_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert weight_sockets.mark_of(tmp_path / "a") != weight_sockets.mark_of(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    assert weight_sockets.mark_of("a") == weight_sockets.mark_of(tmp_path / "a")


def test_without_a_mark_or_a_socket_nothing_is_renamed(marked: str, monkeypatch: pytest.MonkeyPatch):
    weight_sockets.rename_sender(SimpleNamespace(), JOB)
    monkeypatch.delenv(weight_sockets.JOB_ENV)
    weight_sockets.rename_receiver()
    assert weight_sockets.JOB_ENV not in os.environ
    monkeypatch.delenv(weight_sockets.RUN_ENV)
    monkeypatch.setenv(weight_sockets.JOB_ENV, JOB)
    rollout = sender()
    weight_sockets.rename_sender(rollout, JOB)
    weight_sockets.rename_receiver()
    assert receiver() == rollout.zmq_handle == sender().zmq_handle


@pytest.mark.slow
def test_every_sender_of_verls_has_the_mark_and_has_it_once(marked: str, monkeypatch: pytest.MonkeyPatch):
    """Workers make one; with rollouts of their own so do verl's checkpoint engine workers, which are not ours."""
    import ray
    import wrapt
    from verl.workers.rollout.vllm_rollout import vllm_rollout

    handle = sender().zmq_handle

    def build(self: SimpleNamespace) -> None:
        self.zmq_handle = handle

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: JOB))
    stock = vllm_rollout.ServerAdapter
    assert isinstance(stock.__dict__["__init__"], wrapt.FunctionWrapper)  # by our plug-in
    adapter = type("ServerAdapter", (), {"__init__": build})
    monkeypatch.setattr(vllm_rollout, "ServerAdapter", adapter)
    for _ in range(2):
        weight_sockets.mark_senders()
        assert vllm_rollout.ServerAdapter().zmq_handle.count(marked) == 1


def test_another_name_of_the_socket_is_refused(marked: str):
    with pytest.raises(RuntimeError, match=r"sends weights through 'ipc:///tmp/other\.sock'"):
        weight_sockets.rename_sender(SimpleNamespace(zmq_handle="ipc:///tmp/other.sock"), JOB)
