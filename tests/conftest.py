"""Fixtures shared by all tests."""

import gc
import logging
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

# Absent on a bare GPU machine, where only the core is tested.
if find_spec("hydra"):
    from tests import hydra_cache

    hydra_cache.install()


# They start or join Ray clusters, which would take each other's cores and memory, and share a session's runs.
ALONE = """
compare elsewhere evaluate family full_stack jobs killed_on_nodes live live_on_nodes modes nodes separate_async
"""
CLUSTER = {f"tests/e2e/test_{name}.py" for name in ALONE.split()}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under ``--dist loadfile`` a file stays on one worker, as always, and all files of `CLUSTER` on the same one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "cluster" if file in CLUSTER else file

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Leave out of the garbage collector's work what the imports have made; it stays until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def warnings_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Undo what importing vLLM's server does to the root logger and its handlers, pytest's too: errors alone."""
    logging.root.setLevel(logging.WARNING)
    caplog.handler.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random two-layer Qwen2 model with a byte tokenizer."""
    from aent_verl.data.tasks import tiny_model

    folder: Path = tmp_path_factory.mktemp("model")
    tokenizer = tiny_model.build_tokenizer()
    tiny_model.save(tiny_model.build_model(tokenizer, hidden_size=64, layers=2, seed=0), tokenizer, folder)
    return str(folder)


@pytest.fixture(scope="module")
def single_rank_group() -> Iterator[None]:
    """A process group of this process alone, and our policy losses in verl's registry."""
    import torch

    from aent_verl.plugin import losses

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    losses.register()
    yield
    torch.distributed.destroy_process_group()
