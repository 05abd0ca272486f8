"""What the fused op refuses, and how much memory it takes."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from aent_verl.core.fused import logprobs_and_entropy
from tests.peak_memory import MIB, peak_extra

Z, Y = torch.zeros(3, 5), torch.zeros(3, dtype=torch.long)


@pytest.mark.parametrize(
    ("logits", "labels", "settings", "message"),
    [
        (torch.zeros(2, 3, 5), Y, {}, r"logits have shape \[2, 3, 5\]; expected \[N, V\]"),
        (torch.zeros(3, 0), Y, {}, r"logits have shape \[3, 0\]; expected \[N, V\] with V >= 1"),
        (Z.long(), Y, {}, "logits: torch.int64 is not allowed"),
        (Z, Y[:2], {}, r"labels are torch.int64 of shape \[2\]; expected int64 of shape \[3\]"),
        (Z, Y.unsqueeze(-1), {}, r"labels are torch.int64 of shape \[3, 1\]"),
        (Z, Y.int(), {}, "labels are torch.int32"),
        (Z, torch.tensor([0, 5, 1]), {}, r"labels\[1\]=5 is outside \[0, 5\)"),
        (Z, torch.tensor([0, 1, -100]), {}, r"labels\[2\]=-100 is outside \[0, 5\)"),
        (Z, Y, {"temperature": 0.0}, "temperature=0.0 is not allowed: must be finite and greater than 0"),
        (Z, Y, {"temperature": math.inf}, "temperature=inf is not allowed"),
        (Z, Y, {"temperature": math.nan}, "temperature=nan is not allowed"),
        (Z, Y, {"temperature": torch.ones(2)}, r"temperature has shape \[2\]; expected a number or shape \[3\]"),
        (Z, Y, {"chunk_size": 0}, "chunk_size=0 is not allowed"),
        (Z, Y, {"kernel": "cuda"}, "kernel='cuda' is not allowed: must be one of auto, triton, torch"),
        (Z, Y, {"kernel": "triton"}, "kernel='triton' cannot run on torch.float32 logits on cpu"),
        (Z, Y, {"functional": "clamped", "clamp_p": 1.0}, r"clamp_p=1.0 is outside \[0, 1\)"),
        (Z, Y, {"clamp_p": 0.3}, "clamp_p: functional='full' does not use it"),
    ],
)
def test_refused(logits: Tensor, labels: Tensor, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logprobs_and_entropy(logits, labels, **settings)


@pytest.mark.slow
@pytest.mark.parametrize(("inplace", "bound"), [(False, 4 * 151_936 * 1024 + 64 * MIB), (True, 64 * MIB)])
def test_peak_memory_is_one_gradient_and_little_more(inplace: bool, bound: int) -> None:
    setup = """
        from aent_verl.core.fused import logprobs_and_entropy
        logits = torch.randn(1024, 151_936)
        labels = torch.randint(151_936, (1024,))
        # An output of some op, as logits are, that shares their memory.
        class Output(torch.autograd.Function):
            forward = staticmethod(lambda ctx, one: logits)
            backward = staticmethod(lambda ctx, gradient: gradient.sum())
        view = Output.apply(torch.ones((), requires_grad=True))
    """
    run = f"""
        outputs = logprobs_and_entropy(view, labels, functional="clamped", clamp_p=0.33, inplace_backward={inplace})
        torch.autograd.grad(sum(o.sum() for o in outputs), view)
    """
    extra = peak_extra(setup, run)
    assert extra <= bound
    if not inplace:
        # The measurement sees what it has to: the gradient is there.
        assert extra >= 4 * 151_936 * 1024
