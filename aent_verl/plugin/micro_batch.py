"""What our code puts into verl's batches and reads back, and the tokens of a micro-batch as padded tensors."""

from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils import tensordict_utils as tu
from verl.workers.utils.padding import no_padding_2_padding, response_to_nested

from aent_verl.methods.micro_batch import MicroBatch
from aent_verl.methods.step import MiniBatchStats, StepValues
from aent_verl.plugin.actor_config import EntropyControlActorConfig

# Metadata: the driver's `StepValues`, the mini-batch's `MiniBatchStats`, and whether the pass over old log-probs is to
# return the configured entropy, too.
STEP = "aent_step"
MINIBATCH_STATS = "aent_minibatch_stats"
MEASURE = "aent_measure"
# Fields per sample, where a method needs them, and the tokens that Clip-Cov or KL-Cov chose.
SAMPLE = "aent_sample"
ACCURACY = "aent_accuracy"
CHOSEN = "aent_chosen"
# Outputs of our engine.
ENTROPY = "aent_entropy"
ENTROPY_FULL = "aent_entropy_full"
ENTROPY_SAMPLED = "aent_entropy_sampled"
REMOVED_MASS = "aent_removed_mass"
HIDDEN_STATES = "aent_hidden_states"
# What verl's policy and KL losses read of a batch apart from the mask, nested [B, j] over the response.
_READ_BY_LOSSES = ("old_log_probs", "advantages", "rollout_is_weights", "ref_log_prob")


def step_values(data: TensorDict) -> StepValues:
    """Read the values that the driver sent with this batch.

    Raises:
        RuntimeError: the batch carries none, so the driver does not run our trainer.
    """
    values = tu.get_non_tensor_data(data=data, key=STEP, default=None)
    if values is None:
        raise RuntimeError(
            "this batch carries no entropy coefficient: the driver does not run an aent_verl trainer; "
            "set trainer.v1.trainer_mode=aent_sync"
        )
    assert isinstance(values, StepValues)
    return values


def minibatch_stats(data: TensorDict) -> MiniBatchStats:
    """Read the statistics of the mini-batch of this micro-batch; empty where no method needs them."""
    found = tu.get_non_tensor_data(data=data, key=MINIBATCH_STATS, default=None)
    return MiniBatchStats() if found is None else found


@dataclass(frozen=True, kw_only=True)
class VerlMicroBatch(MicroBatch):
    """A micro-batch of verl's, or a rank's mini-batch.

    Attributes:
        data: verl's batch.
        all_log_probs: nested ``[B, j]`` over prompt and response, position ``i`` holding that of token ``i + 1``.
        all_hidden_states: likewise, nested ``[B, j, D]``; None where no choice needs them.
    """

    data: TensorDict
    all_log_probs: Tensor
    all_hidden_states: Tensor | None = None

    @classmethod
    def of(cls, model_output: dict[str, Tensor], data: TensorDict) -> "VerlMicroBatch":
        """Pad what the engine returned and what the batch holds.

        Raises:
            RuntimeError: the engine returned no entropy, so the worker does not run our engine.
        """
        if ENTROPY not in model_output:
            raise RuntimeError("the engine returned no aent_entropy: the worker does not run aent_verl's engine")
        padded = data.select("response_mask", "old_log_probs", "advantages").to_padded_tensor()
        # As one tensor: verl cuts the responses out one by one, and on a GPU waits for the device at each.
        keys = ["log_probs", ENTROPY, ENTROPY_FULL, REMOVED_MASS]
        keys += [ENTROPY_SAMPLED] * (ENTROPY_SAMPLED in model_output)
        together = torch.stack([model_output[key].values() for key in keys], dim=-1)
        names = ("log_prob", "entropy", "entropy_full", "removed_mass", "entropy_sampled")
        return cls(
            mask=padded["response_mask"].bool(),
            old_log_prob=padded["old_log_probs"],
            advantages=padded["advantages"],
            data=data,
            all_log_probs=model_output["log_probs"],
            all_hidden_states=model_output.get(HIDDEN_STATES),
            # The last name has no tensor where the rollout truncates nothing.
            **dict(zip(names, no_padding_2_padding(together, data).unbind(-1), strict=False)),
        )

    @property
    def accuracy(self) -> Tensor:
        """Mean accuracy of each sample's group, ``[B]``."""
        return self._per_sample(ACCURACY)

    @property
    def sample(self) -> Tensor:
        """Index of each sample in the step's batch, ``[B]``: the same whatever rank and micro-batch it is in."""
        return self._per_sample(SAMPLE)

    @property
    def chosen(self) -> Tensor:
        """Tokens that Clip-Cov or KL-Cov chose, ``[B, T]``."""
        return self.data.select(CHOSEN).to_padded_tensor()[CHOSEN].bool()

    @property
    def hidden_states(self) -> Tensor:
        """See `MicroBatch`.

        Raises:
            RuntimeError: no choice of the method has ``needs_hidden_states``.
        """
        if self.all_hidden_states is None:
            raise RuntimeError(
                "the engine returned no hidden states: the class that reads them must say needs_hidden_states = True"
            )
        return no_padding_2_padding(self.all_hidden_states, self.data)

    def prompt_log_probs(self) -> tuple[Tensor, Tensor]:
        """See `MicroBatch`."""
        values = self.all_log_probs.detach().to_padded_tensor(0.0)
        lengths = self.data["prompts"].offsets().diff() - 1
        return values, torch.arange(values.shape[1], device=values.device) < lengths.unsqueeze(1)

    def nested(self, value: Tensor) -> Tensor:
        """Convert a padded per-token tensor to the layout of the batch; ``[B, T]`` to nested ``[B, j]``."""
        return response_to_nested(value, self.data["response_mask"])

    def for_policy_loss(self, advantages: Tensor) -> tuple[Tensor, TensorDict]:
        """Copy log-probs and batch for verl's losses, 0 at every token outside ``mask``; nested ``[B, j]`` as before.

        Two of verl's aggregations multiply the loss by the mask, and NaN times 0 is NaN. So nothing outside the
        mask may enter it; finite values there add 0 to loss and gradient, as these zeros do.

        Args:
            advantages: after shaping, ``[B, T]``.
        """
        mask, log_probs = self.data["response_mask"], self.all_log_probs
        kept, place = mask.values().bool(), response_places(log_probs, mask)
        in_loss = torch.zeros(len(log_probs.values()), dtype=torch.bool, device=kept.device).index_copy(0, place, kept)

        data = self.data.copy()
        if advantages is not self.advantages:
            data["advantages"] = self.nested(advantages)
        for key in _READ_BY_LOSSES:
            if key in data:
                data[key] = _zero_unless(kept, data[key], longest=self.mask.shape[1])
        return _zero_unless(in_loss, log_probs), data

    def aggregate_bonus(self, term: Tensor, config: EntropyControlActorConfig) -> Tensor:
        """Aggregate this micro-batch's part of a term of the bonus, ``[B, T]``, with verl's ``agg_loss``.

        The parts of all micro-batches add up, and the ranks' average, to the aggregate over the mini-batch. An anchored
        bonus replaces the response mask; the divisors that verl gives for the mini-batch, its tokens and its responses,
        stay those of all response tokens.
        """
        bonus = config.control.bonus
        sizes = ("dp_size", "batch_num_tokens", "global_batch_size")
        return agg_loss(
            loss_mat=term,
            loss_mask=bonus.averaged_tokens(self.entropy, self.mask),
            loss_agg_mode=bonus.loss_agg_mode or config.loss_agg_mode,
            loss_scale_factor=config.loss_scale_factor,
            **{key: tu.get_non_tensor_data(self.data, key, None) for key in sizes},
        )

    def _per_sample(self, key: str) -> Tensor:
        if key not in self.data:
            raise RuntimeError(f"this batch carries no {key}: the driver does not run this version of aent_verl")
        return self.data[key]


def response_places(of_all: Tensor, of_response: Tensor) -> Tensor:
    """Find where each response token's value is among those over prompt and response, ``[response tokens]``.

    The value of a token stands one place before it, behind those of the prompt.

    Args:
        of_all: nested ``[B, j]`` over prompt and response, as the engine returns it.
        of_response: nested ``[B, j]`` over the response.
    """
    ends, lengths = of_response.offsets(), of_response.offsets().diff()  # type: ignore[attr-defined]
    count = len(of_response.values())
    ahead = (of_all.offsets() - ends)[1:] - 1  # type: ignore[attr-defined]
    return torch.arange(count, device=ends.device) + ahead.repeat_interleave(lengths, output_size=count)


def _zero_unless(kept: Tensor, value: Tensor, longest: int | None = None) -> Tensor:
    """Copy the nested tensor ``value`` with 0 where ``kept``, ``[total tokens]``, is false.

    ``longest`` is the width that it is padded to; without it torch takes the number of all tokens.
    """
    values = value.values().masked_fill(~kept, 0.0)
    offsets: Tensor = value.offsets()  # type: ignore[attr-defined]
    return torch.nested.nested_tensor_from_jagged(values, offsets, max_seqlen=longest)
