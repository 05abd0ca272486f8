"""FSDP engine that turns the training pass's logits into log-probs and the configured entropy."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.utils.checkpoint
import verl.utils.torch_functional as verl_F
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from aent_verl.core.entropy import full_entropy, keep_share, removed_mass, restricted_entropy
from aent_verl.integration.config import FunctionalConfig
from aent_verl.integration.loss import ENTROPY, ENTROPY_FULL, REMOVED_MASS, step_coefficient

MODEL_TYPE = "aent_language_model"


def measure(logits: Tensor, functional: FunctionalConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Configured entropy, full entropy and removed probability of each row; ``[N, V] -> 3 x [N]``, nats.

    Only the first is differentiable in ``logits``; the other two are statistics.
    """
    if functional.name == "full":
        entropy = full_entropy(logits)
        return entropy, entropy.detach(), torch.zeros_like(entropy.detach())
    assert functional.clamp_p is not None
    keep = keep_share(logits, functional.clamp_p)
    with torch.no_grad():
        statistics = full_entropy(logits), removed_mass(logits, keep)
    return restricted_entropy(logits, keep), *statistics


def measure_in_chunks(
    logits: Tensor, functional: FunctionalConfig, *, chunk_size: int | None, checkpoint: bool
) -> Sequence[Tensor]:
    """`measure` over chunks of tokens, each recomputed in the backward pass if ``checkpoint``; ``[N, V] -> 3 x [N]``.

    ``split`` rather than slicing: the backward pass of a slice allocates a whole ``[N, V]`` of zeros per chunk.
    """
    run: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]] = lambda part: measure(part, functional)  # noqa: E731
    if checkpoint and torch.is_grad_enabled():
        plain = run
        run = lambda part: torch.utils.checkpoint.checkpoint(plain, part, use_reentrant=False)  # noqa: E731
    if chunk_size is None or logits.shape[0] <= chunk_size:
        return run(logits)
    return [torch.cat(parts) for parts in zip(*map(run, logits.split(chunk_size)), strict=True)]


class EntropyControlEngine(FSDPEngineWithLMHead):
    """verl's FSDP engine; in training it adds the configured entropy, elsewhere it is verl's own.

    ``functional`` is set by the worker before the first training step.
    """

    functional: FunctionalConfig

    def __init__(self, model_config: Any, *args: Any, **kwargs: Any) -> None:
        # The registry row was found by our model type; verl's own module building branches on its name for it.
        model_config.model_type = "language_model"
        super().__init__(model_config, *args, **kwargs)

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, Tensor]:
        """Log-probs as verl's and our entropies, as nested ``[B, j]`` tensors, from logits of either layout.

        Outside training (old and reference log-probs) verl's own method runs, so that its metrics keep their meaning.
        """
        if self.mode != "train":
            return super().prepare_model_outputs(output, output_args, micro_batch, logits_processor_func)
        logits = self._packed_logits(output.logits, output_args, micro_batch)
        config = self.engine_config
        with torch.set_grad_enabled(torch.is_grad_enabled() and step_coefficient(micro_batch) != 0.0):
            entropy, entropy_full, removed = measure_in_chunks(
                logits,
                self.functional,
                chunk_size=config.entropy_from_logits_chunk_size if config.entropy_from_logits_with_chunking else None,
                checkpoint=config.entropy_checkpointing,
            )
        # In-place backward would overwrite the logits that the entropy's backward pass still needs.
        log_probs = verl_F.logprobs_from_logits(logits, output_args["input_ids_rmpad_rolled"], inplace_backward=False)
        packed = {
            "log_probs": log_probs,
            ENTROPY: entropy,
            ENTROPY_FULL: entropy_full,
            REMOVED_MASS: removed,
        }
        if tu.get_non_tensor_data(data=micro_batch, key="calculate_sum_pi_squared", default=False):
            packed["sum_pi_squared"] = verl_F.calculate_sum_pi_squared_from_logits(logits)
        offsets = micro_batch["input_ids"].offsets()
        pad_size = output_args.get("pad_size", 0)
        return {
            key: torch.nested.nested_tensor_from_jagged(self._gather_and_unpad_packed(value, pad_size), offsets)
            for key, value in packed.items()
        }

    def _packed_logits(self, logits: Tensor, output_args: dict[str, Any], micro_batch: TensorDict) -> Tensor:
        """Rows of real tokens divided by the sampling temperature; ``[1, N, V]`` or ``[B, T, V]`` -> ``[N, V]``."""
        if isinstance(logits, DTensor):
            logits = logits.full_tensor()
        if "temperature_rmpad" in output_args:
            logits, temperature = logits.squeeze(0), output_args["temperature_rmpad"]
        else:
            lengths = micro_batch["input_ids"].offsets().diff()
            real = torch.arange(logits.shape[1], device=logits.device) < lengths.unsqueeze(1)
            logits, temperature = logits[real], output_args["temperature"].repeat_interleave(lengths)
        if output_args.get("temperature_is_one", False):
            return logits
        return logits / temperature.clamp(min=1e-8).to(logits.dtype).unsqueeze(-1)


def register() -> None:
    """Register the engine for every device that verl's FSDP engine supports, and CPU; a second call does nothing."""
    if MODEL_TYPE in EngineRegistry._engines:
        return
    EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])(
        EntropyControlEngine
    )
    # FSDP1 refuses CPU modules.
    EngineRegistry.register(model_type=MODEL_TYPE, backend="fsdp2", device="cpu")(EntropyControlEngine)
