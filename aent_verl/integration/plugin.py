"""What verl's plug-in entry point imports, in every process, at ``import verl``: registers our platform and trainers.

It is light: the trainers, which pull in most of verl, are registered when verl's own are imported. By then the platform
is decided, and an error in our trainers reaches whoever asked for them; verl logs one raised here at DEBUG only.
"""

import importlib

import wrapt

# Its resolvers: verl resolves the config in a worker.
import aent_verl._config  # noqa: F401
from aent_verl.integration import platform_cpu, vllm_cpu

platform_cpu.register()
if platform_cpu.is_selected():
    vllm_cpu.provide_vllm_distribution()


@wrapt.when_imported("verl.trainer.ppo.v1")
def _register_trainers(_module: object) -> None:
    importlib.import_module("aent_verl.integration.trainer")
