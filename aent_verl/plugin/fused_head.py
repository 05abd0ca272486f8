"""verl's fused LM heads (``use_fused_kernels``) compute our op for as long as a forward pass of our engine runs.

verl replaces the forward method of a model by one that hands hidden states and the LM head's weight to one of two
functions, and returns their log-probs and entropy in place of logits. Every model that verl supports there goes through
these two, so they are what we replace, here and nowhere else; `verl_api.assumptions` holds what they look like.

Our op runs as the forward method of the LM head itself. FSDP2 may hold the head as a unit of its own: its hooks then
gather the weight, once, and reduce the weight's gradient, which a head that is bypassed does not get.
"""

import contextlib
import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import verl.utils.experimental.torch_functional as torch_head
import verl.utils.kernel.linear_cross_entropy as triton_head
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

from aent_verl.core.fused import Statistics, WithStatistics, linear_logprobs_and_entropy

logger = logging.getLogger(__name__)

# Names under which model configs say that logits are more than hidden states times weight. verl's fused forward methods
# leave these out.
SCALED_LOGITS = (
    "final_logit_softcapping",
    "logits_soft_cap",
    "output_logit_soft_cap",
    "logit_scale",
    "logits_scaling",
    "logits_scale",
    "lm_head_multiplier",
)


class Head:
    """Stands in for verl's fused heads and keeps what the model's output has no room for."""

    def __init__(self, lm_head: Any, settings: dict[str, Any]) -> None:
        self._lm_head = lm_head
        self._settings = settings
        self._statistics: Statistics | None = None

    def forward(
        self, hidden_states: Tensor, vocab_weights: Tensor, input_ids: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """Compute log-probs and entropy, shaped as ``input_ids``, from ``[..., D]``, ``[V, D]`` and labels ``[...]``.

        ``vocab_weights`` is ignored: it may be one rank's part of the LM head's weight.
        """

        def op(hidden: Tensor) -> WithStatistics:
            result = linear_logprobs_and_entropy(
                hidden.flatten(0, -2),
                self._lm_head.weight,
                input_ids.flatten(),
                temperature=max(temperature, 1e-8),
                statistics=True,
                **self._settings,
            )
            return cast(WithStatistics, result)

        with _replaced(self._lm_head, "forward", op):
            # The call goes through FSDP's hooks.
            log_probs, entropy, self._statistics = self._lm_head(hidden_states)
        return log_probs.view_as(input_ids), entropy.view_as(input_ids)

    def outputs(self, model_output: Any) -> WithStatistics:
        """Return log-probs, entropy and statistics of the forward pass that gave ``model_output``, ``[N]`` each.

        The first two as the model returned them: FSDP prepares its backward pass when a gradient reaches these tensors.

        Raises:
            RuntimeError: the model's forward method is not one of verl's fused ones.
        """
        if self._statistics is None:
            raise RuntimeError(
                "model.use_fused_kernels=True, but the model's forward pass did not call verl's fused LM head: verl "
                "has none for this model, or not this fused_kernel_options.impl_backend; set use_fused_kernels=False"
            )
        return model_output.log_probs.flatten(), model_output.entropy.flatten(), self._statistics


def lm_head_of(model: Any) -> nn.Module:
    """Find the LM head of a Hugging Face model, whose logits must be hidden states times its weight and nothing more.

    Raises:
        ValueError: they are more; verl's fused forward methods would compute other log-probs than the model's.
    """
    lm_head: nn.Module | None = model.get_output_embeddings()
    text_config = model.config.get_text_config()
    scaled = [name for name in SCALED_LOGITS if getattr(text_config, name, None) not in (None, 1.0)]
    reason = None
    if hasattr(lm_head, "base_layer"):
        reason = (
            "the LM head carries an adapter (LoRA), whose part of the logits verl's fused forward method leaves out; "
            "set it to False, or take the LM head out of model.target_modules"
        )
    # A unit of FSDP1 gathers its weight in the forward method that we replace.
    elif lm_head is None or isinstance(lm_head, FullyShardedDataParallel):
        kind = type(lm_head).__name__
        reason = f"the LM head is a {kind}, whose logits are not simply hidden states times its weight; set it to False"
    elif getattr(lm_head, "bias", None) is not None:
        reason = "the LM head has a bias, which verl leaves out"
    elif scaled:
        setting = f"{scaled[0]}={getattr(text_config, scaled[0])!r}"
        reason = f"the model's config has {setting}, which verl's fused forward method leaves out; set it to False"
    if lm_head is None or reason is not None:
        raise ValueError(f"model.use_fused_kernels=True is not allowed: {reason}")
    logger.info("verl's fused LM head computes aent_verl's log-prob and entropy op")
    return lm_head


@contextlib.contextmanager
def replaced(lm_head: nn.Module, settings: dict[str, Any]) -> Iterator[Head]:
    """Replace both of verl's fused heads, while active, with one `Head` that calls the op with ``settings``."""
    head = Head(lm_head, settings)

    def cross_entropy(
        hidden: Tensor, weight: Tensor, labels: Tensor, temperature: float = 1.0, reduction: str = "none"
    ) -> tuple[Tensor, Tensor]:
        assert reduction == "none"
        return head.forward(hidden, weight, labels, temperature)

    # Its arguments choose one of verl's implementations, which differ between versions.
    def linear(*_: Any, **__: Any) -> SimpleNamespace:
        return SimpleNamespace(forward=head.forward)

    with (
        _replaced(torch_head, "FusedLinearForPPO", linear),
        _replaced(triton_head, "linear_cross_entropy", cross_entropy),
    ):
        yield head


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give ``owner`` another attribute of its own for a while; one that only its class has shows again afterwards."""
    before = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if before is None:
            delattr(owner, name)
        else:
            setattr(owner, name, before)
