"""What vLLM calls in each of its processes (entry point ``vllm.general_plugins``)."""

from aent_verl._util import is_disabled
from aent_verl.platforms import vllm_cpu, weight_sockets

NAME = "aent_verl"


def register() -> None:
    """Make weight updates work on the CPU, and reach the right run; may be called again."""
    if is_disabled():
        return
    weight_sockets.rename_receiver()
    vllm_cpu.register()


def allowed(plugins: str | None) -> dict[str, str]:
    """Return ``VLLM_PLUGINS``, the plug-ins that vLLM may load, with ours; nothing where it is not set."""
    if plugins is None or NAME in plugins.split(","):
        return {}
    return {"VLLM_PLUGINS": ",".join(filter(None, [*plugins.split(","), NAME]))}
