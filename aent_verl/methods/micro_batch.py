"""What a method may ask of a micro-batch: tensors only."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """The tokens of a micro-batch, or of a rank's mini-batch, padded; values outside ``mask`` are meaningless.

    ``B`` responses of at most ``T`` tokens.

    Attributes:
        mask: response tokens that take part in the loss, ``[B, T]``.
        log_prob: of the sampled tokens under the current policy, ``[B, T]``, with gradient.
        old_log_prob: the same under the policy of the old-log-prob pass, ``[B, T]``.
        advantages: before shaping, ``[B, T]``.
        entropy: the configured functional, nats, ``[B, T]``, with gradient.
        entropy_full: entropy of the full distribution, nats, ``[B, T]``, no gradient.
        removed_mass: probability that the functional leaves out, ``[B, T]``, no gradient.
        entropy_sampled: entropy of what the rollout samples from, nats, ``[B, T]``, no gradient; None if it truncates
            nothing.
    """

    mask: Tensor
    log_prob: Tensor
    old_log_prob: Tensor
    advantages: Tensor
    entropy: Tensor
    entropy_full: Tensor
    removed_mass: Tensor
    entropy_sampled: Tensor | None = None

    @property
    def accuracy(self) -> Tensor:
        """Mean accuracy of each sample's group, ``[B]``; asked for only if a choice has ``needs_accuracy``."""
        raise NotImplementedError

    @property
    def hidden_states(self) -> Tensor:
        """What the LM head turned into each response token's logits, ``[B, T, D]``, with gradient.

        Asked for only if a choice has ``needs_hidden_states``.
        """
        raise NotImplementedError

    def prompt_log_probs(self) -> tuple[Tensor, Tensor]:
        """Return log-probs of the prompts' tokens but the first, and their mask; both ``[B, P]``, without gradient."""
        raise NotImplementedError
