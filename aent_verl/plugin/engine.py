"""FSDP engine whose log-probs and entropies come from one op, on logits or in place of verl's fused LM heads."""

import contextlib
from typing import Any, cast

import torch
import verl.utils.torch_functional as verl_F
from tensordict import TensorDict
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.workers.engine import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead

from aent_verl.core.backends import Kernel
from aent_verl.core.custom import logprobs_and_custom_entropy
from aent_verl.core.fused import WithStatistics, logprobs_and_entropy
from aent_verl.core.sampled import Truncation
from aent_verl.methods.settings import FunctionalConfig
from aent_verl.plugin import measurements
from aent_verl.plugin.fused_head import Head, lm_head_of, replaced
from aent_verl.plugin.micro_batch import (
    ENTROPY,
    ENTROPY_FULL,
    ENTROPY_SAMPLED,
    HIDDEN_STATES,
    MEASURE,
    REMOVED_MASS,
)
from aent_verl.plugin.minibatch_stats import StatsPass

MODEL_TYPE = "aent_language_model"


class EntropyControlEngine(FSDPEngineWithLMHead):
    """verl's FSDP engine with our op between the model and the loss.

    In training it returns log-probs, the configured entropy and its statistics. Elsewhere (old log-probs) it returns
    what verl's own does, log-probs and, if asked for, the full entropy, from the same op: the two log-probs of a policy
    ratio must have one precision. If the driver asks for it, it returns the configured entropy there, too.

    ``functional``, ``kernel``, ``stats_pass``, ``truncation`` and ``needs_hidden_states`` are set by the worker before
    the first step.
    """

    functional: FunctionalConfig
    kernel: Kernel = "auto"
    stats_pass: StatsPass | None = None
    # How the rollout cuts the distribution off: then the entropy of what is left is measured, too.
    truncation: Truncation = Truncation()
    # Whether a method reads the last hidden states; those of a forward pass, as the model's LM head got them.
    needs_hidden_states: bool = False
    _hidden_states: Tensor | None = None
    # With ``use_fused_kernels``: the model's LM head, and what stands in for verl's while a forward pass runs.
    _lm_head: nn.Module | None = None
    _head: Head | None = None

    def __init__(self, model_config: Any, *args: Any, **kwargs: Any) -> None:
        # The registry row was found by our model type; verl's own module building branches on its name for it.
        model_config.model_type = "language_model"
        super().__init__(model_config, *args, **kwargs)

    def forward_backward_batch(self, data: TensorDict, loss_function: Any, forward_only: bool = False) -> Any:
        """Do as verl's; in training first run the pass without gradient that the method needs over all of ``data``.

        After it our metrics are pooled over ranks, see `measurements.over_ranks`.
        """
        if not forward_only and self.stats_pass is not None and self.stats_pass.needed:
            output = super().forward_backward_batch(data, None, forward_only=True)["model_output"]
            self.stats_pass(output, data, self.get_data_parallel_group())
            del output
        output = super().forward_backward_batch(data, loss_function, forward_only=forward_only)
        if not forward_only:
            output["metrics"] = measurements.over_ranks(output["metrics"], self.get_data_parallel_group())
        return output

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> Any:
        """Do as verl's; with ``use_fused_kernels`` the model's LM head runs our op."""
        with contextlib.ExitStack() as stack:
            if tu.get_non_tensor_data(data=micro_batch, key="use_fused_kernels", default=False):
                self._lm_head = self._lm_head or lm_head_of(self.module)
                self._head = stack.enter_context(replaced(self._lm_head, self._settings(micro_batch)))
                stack.callback(setattr, self, "_head", None)
            if self.needs_hidden_states and self.mode == "train":
                stack.callback(self._keep_hidden_states().remove)
                stack.callback(setattr, self, "_hidden_states", None)
            return super().forward_step(micro_batch, loss_function, forward_only)

    def _keep_hidden_states(self) -> Any:
        """Keep what the LM head is called with from now on; returns a handle whose ``remove`` ends it."""

        def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._hidden_states = inputs[0]

        return self.module.get_output_embeddings().register_forward_pre_hook(keep)

    def _measures(self, micro_batch: TensorDict) -> bool:
        """Tell whether the configured entropy is wanted: in training, and where the driver asks for it."""
        return self.mode == "train" or bool(tu.get_non_tensor_data(micro_batch, MEASURE, False))

    def _settings(self, micro_batch: TensorDict) -> dict[str, Any]:
        """Return the arguments of the op."""
        functional = self.functional if self._measures(micro_batch) else FunctionalConfig("full")
        return {**functional.arguments(), "kernel": self.kernel}

    def prepare_model_outputs(
        self, output: Any, output_args: dict[str, Any], micro_batch: TensorDict, logits_processor_func: Any
    ) -> dict[str, Tensor]:
        """Return results per token as nested ``[B, j]`` tensors, whatever the layout of the batch."""
        asked_for = {
            key: tu.get_non_tensor_data(data=micro_batch, key=key, default=False)
            for key in ("calculate_entropy", "calculate_sum_pi_squared")
        }
        real, sampled = _real_tokens(output_args, micro_batch), dict[str, Tensor]()
        if self._head is not None:
            log_probs, entropy, statistics = self._head.outputs(output)
            if asked_for["calculate_sum_pi_squared"]:
                raise NotImplementedError(
                    "calculate_sum_pi_squared=True needs logits; set model.use_fused_kernels=False"
                )
        else:
            logits, labels, temperature = _rows(output.logits, output_args, micro_batch, real)
            function = self.functional.function if self._measures(micro_batch) else None
            if function is not None:
                result = logprobs_and_custom_entropy(
                    logits, labels, function, temperature=temperature, kernel=self.kernel
                )
            else:
                # In place: verl lets go of the logits after this; autograd would raise if their values were needed.
                result = logprobs_and_entropy(
                    logits,
                    labels,
                    temperature=temperature,
                    statistics=True,
                    inplace_backward=True,
                    **self._settings(micro_batch),
                )
            log_probs, entropy, statistics = cast(WithStatistics, result)
            # Not in the pass for statistics, which computes without gradient.
            if self.truncation.active and self.mode == "train" and torch.is_grad_enabled():
                sampled[ENTROPY_SAMPLED] = self.truncation.entropy(logits, temperature=temperature)
        results = {"log_probs": log_probs}
        if self._measures(micro_batch):
            results[ENTROPY] = entropy
        if self.mode == "train":
            results |= {ENTROPY_FULL: statistics["entropy_full"], REMOVED_MASS: statistics["removed_mass"]} | sampled
        elif asked_for["calculate_entropy"]:
            results["entropy"] = statistics["entropy_full"]
        if asked_for["calculate_sum_pi_squared"]:
            with torch.no_grad():
                if isinstance(temperature, Tensor):
                    logits = logits / temperature.to(logits.dtype).unsqueeze(-1)
                results["sum_pi_squared"] = verl_F.calculate_sum_pi_squared_from_logits(logits)
        if self._hidden_states is not None:
            results[HIDDEN_STATES] = self._hidden_states.flatten(0, -2)
        if real is not None:
            places = real.flatten().nonzero().squeeze(-1)
            results = {key: value[places] for key, value in results.items()}
        offsets, pad_size = micro_batch["input_ids"].offsets(), output_args.get("pad_size", 0)
        return {
            key: torch.nested.nested_tensor_from_jagged(self._gather_and_unpad_packed(value, pad_size), offsets)
            for key, value in results.items()
        }


def _real_tokens(output_args: dict[str, Any], micro_batch: TensorDict) -> Tensor | None:
    """Return the mask ``[B, T]`` of tokens that are not padding; None in the layout from which padding was removed."""
    if "temperature_rmpad" in output_args:
        return None
    lengths = micro_batch["input_ids"].offsets().diff()
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths.unsqueeze(1)


def _rows(
    logits: Tensor | DTensor, output_args: dict[str, Any], micro_batch: TensorDict, real: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | float]:
    """Line up logits, labels and temperatures of all tokens, with padding: ``[N, V], [N], [N]``; copies no logits.

    Padding gets label 0; as its results are dropped it has no incoming gradient, and its own is 0.
    """
    if isinstance(logits, DTensor):
        logits = logits.full_tensor()
    labels = output_args["input_ids_rmpad_rolled"]
    if real is None:
        logits, temperature = logits.squeeze(0), output_args["temperature_rmpad"]
    else:
        logits = logits.flatten(0, 1)
        labels = torch.zeros_like(real, dtype=labels.dtype).masked_scatter(real, labels).flatten()
        temperature = output_args["temperature"].repeat_interleave(real.shape[1])
    # One number for all samples, or one for each. At 1 nothing is scaled.
    asked_for = tu.get_non_tensor_data(data=micro_batch, key="temperature", default=None)
    if not isinstance(asked_for, Tensor) and asked_for == 1.0:
        return logits, labels, 1.0
    return logits, labels, temperature.clamp(min=1e-8)


def register() -> None:
    """Register the engine for every device that verl's FSDP engine supports, and CPU; a second call has no effect."""
    if MODEL_TYPE in EngineRegistry._engines:
        return
    EngineRegistry.register(model_type=MODEL_TYPE, backend=["fsdp", "fsdp2"], device=["cuda", "npu"])(
        EntropyControlEngine
    )
    # FSDP1 refuses CPU modules.
    EngineRegistry.register(model_type=MODEL_TYPE, backend="fsdp2", device="cpu")(EntropyControlEngine)
