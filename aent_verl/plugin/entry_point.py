"""What verl's plug-in entry point imports, in every process, at ``import verl``: registers our platform and trainers.

It is light: the trainers, which pull in most of verl, are registered when verl's own are imported. By then the platform
is decided, and an error in our trainers reaches whoever asked for them; verl logs one raised here at DEBUG only.
"""

import importlib
import logging

import wrapt

# Its resolvers: verl resolves the config in a worker.
import aent_verl._config  # noqa: F401
from aent_verl._util import DISABLE_ENV, is_disabled
from aent_verl.platforms import cpu, job_queue, vllm_cpu, weight_sockets
from aent_verl.plugin import guard


def _print_what_the_root_logger_drops() -> None:
    """Let this package's warnings through: importing vLLM's server sets the root logger and its handlers to errors."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s:%(asctime)s:%(message)s"))
    handler.addFilter(lambda record: all(record.levelno < other.level for other in logging.root.handlers))
    ours = logging.getLogger("aent_verl")
    ours.addHandler(handler)
    ours.setLevel(ours.level or logging.WARNING)


_print_what_the_root_logger_drops()
if is_disabled():
    logging.getLogger(__name__).warning("aent_verl is switched off by %s", DISABLE_ENV)
else:
    cpu.register()
    # Whatever the platform: composing a config imports verl, and only then can the platform be decided.
    vllm_cpu.provide_vllm_distribution()
    guard.install()
    weight_sockets.mark_senders()
    job_queue.keep_apart()

    @wrapt.when_imported("verl.trainer.ppo.v1")
    def _register_trainers(_module: object) -> None:
        importlib.import_module("aent_verl.plugin.trainers")
