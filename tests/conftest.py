"""Fixtures shared by all tests."""

import gc
import importlib.util
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hydra_cache

hydra_cache.install()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under ``--dist loadgroup`` a file stays on one worker, and all files that start clusters on the same one."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def pytest_collection_finish() -> None:
    """Leave out of the garbage collector's work what the imports have made; it stays until the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def yaml_parsed_once() -> Iterator[None]:
    """Hydra parses the same forty YAML files for each config that it composes, which takes half of its time."""
    if importlib.util.find_spec("hydra") is None:
        yield  # an installation of the core alone
        return
    from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource

    parsed: dict[tuple[str, str], bytes] = {}
    load = ImportlibResourcesConfigSource.load_config

    def load_config(self: ImportlibResourcesConfigSource, config_path: str) -> object:
        key = self.path, config_path
        if key not in parsed:
            parsed[key] = pickle.dumps(load(self, config_path))
        return pickle.loads(parsed[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImportlibResourcesConfigSource, "load_config", load_config)
        yield


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
