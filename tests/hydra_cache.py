"""Spares Hydra repeated work: of a session's thousands of composes most read the same files, many are the same.

Only configs inside packages are remembered, which do not change while tests run; files in folders are read each time.
Every compose gets a copy of its own, so that tests may change what they get.
"""

import functools
import gc
import os
import pickle
from typing import Any

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins

_files: dict[tuple[str, ...], bytes] = {}
_composed: dict[tuple[Any, ...], bytes] = {}


def install() -> None:
    """Wrap Hydra's reader of packaged YAML and its composing, in this process, and let garbage wait.

    With torch and verl imported a full collection takes a tenth of a second, and at Python's thresholds composing a
    config starts several.
    """
    gc.set_threshold(100_000, 20, 50)
    # Hydra loads its plug-ins as modules of their own: an import of the class would be another one.
    Plugins.instance()
    source: Any = SourcesRegistry.instance().resolve("pkg")
    read, compose = source.load_config, ConfigLoaderImpl.load_configuration

    @functools.wraps(read)
    def load_config(self: Any, config_path: str) -> Any:
        key = (self.provider, self.path, config_path)
        if key not in _files:
            _files[key] = pickle.dumps(read(self, config_path))
        return pickle.loads(_files[key])

    @functools.wraps(compose)
    def load_configuration(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> Any:
        places = [element.path for element in self.get_search_path().get_path()]
        key = (repr((args, sorted(kwargs.items()))), tuple(places), os.getcwd(), version.getbase())
        if key in _composed:
            return pickle.loads(_composed[key])
        config = compose(self, *args, **kwargs)
        if all(place.schema != "file" for place in config.hydra.runtime.config_sources):
            _composed[key] = pickle.dumps(config)
        return config

    source.load_config = load_config
    ConfigLoaderImpl.load_configuration = load_configuration  # type: ignore[method-assign]
