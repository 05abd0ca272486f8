r"""The entropy of what a rollout samples from when it truncates: top-k, then top-p, as vLLM's sampler applies them.

With ``p = softmax(z / T)`` the sampled distribution is ``b = p`` restricted to a set ``S`` and renormalised:

- top-k keeps every token whose logit is at least the k-th largest, so that ties at the boundary all stay;
- top-p then keeps, in the order of falling probability under what top-k left, each token before which the mass is below
  ``top_p``. The token that crosses stays in, unlike in SIREN's nucleus (`entropy`), and at least one token is kept.

``H(b) = -sum_S b log b`` is a statistic: it says how far the rollout is from the policy that trains, and no gradient
flows through it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from aent_verl.core.backends import slices, tokens_per_chunk
from aent_verl.core.numerics import arithmetic_type, x_exp_x

# A chunk's logits; sorting makes a few tensors of that size.
_CHUNK_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Truncation:
    """Which tokens a rollout samples from.

    Attributes:
        top_k: how many of the most likely; 0 or -1 for all.
        top_p: probability that they reach; 1 for all.

    Raises:
        ValueError: out of range.
    """

    top_k: int = -1
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.top_k < -1:
            raise ValueError(f"top_k={self.top_k!r} is not allowed: must be >= 1, or -1 for the whole vocabulary")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p={self.top_p!r} is not allowed: must be in (0, 1]")

    @property
    def active(self) -> bool:
        """Whether a token can be left out."""
        return self.top_k > 0 or self.top_p < 1.0

    @torch.no_grad()
    def entropy(self, logits: Tensor, *, temperature: float | Tensor = 1.0, chunk_size: int | None = None) -> Tensor:
        """Compute the entropy of the sampled distribution; ``[N, V] -> [N]``, nats, at least fp32, no gradient.

        It reads the logits a second time and, with ``top_p``, sorts each row: a cost that only truncated runs have.

        Args:
            logits: before the temperature.
            temperature: one number, or one per token, ``[N]``; greater than 0.
            chunk_size: tokens at a time; None chooses by memory.
        """
        dtype = arithmetic_type(logits.dtype)
        size = tokens_per_chunk(logits.shape[0], logits.shape[1] * dtype.itemsize, _CHUNK_BYTES, chunk_size)
        t = temperature.to(dtype).unsqueeze(-1) if isinstance(temperature, Tensor) else temperature
        values = logits.new_empty(logits.shape[0], dtype=dtype)
        for part in slices(logits.shape[0], size):
            z = logits[part].to(dtype, copy=True)
            z.div_(t[part] if isinstance(t, Tensor) else t)
            values[part] = self._rows(z)
        return values

    def _rows(self, z: Tensor) -> Tensor:
        """``[C, V] -> [C]``; ``z`` is overwritten."""
        if 0 < self.top_k < z.shape[-1]:
            z.masked_fill_(z < z.topk(self.top_k, -1).values[:, -1:], -torch.inf)
        if self.top_p < 1.0:
            z = z.sort(-1, descending=True).values
            before = z.softmax(-1).cumsum(-1, dtype=torch.float64).roll(1, -1)
            before[:, 0] = 0.0
            z.masked_fill_(before >= self.top_p, -torch.inf)
        x = z.sub_(z.amax(-1, keepdim=True))
        normaliser = x.exp().sum(-1)
        return normaliser.log() - x_exp_x(x).sum(-1) / normaliser
