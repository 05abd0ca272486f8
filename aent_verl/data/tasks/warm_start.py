"""A short supervised phase, so that reinforcement learning starts from a model that is right now and then."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from aent_verl.data.tasks.sampling import prompt_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Chat = Sequence[Mapping[str, str]]

_IGNORE = -100
_WARMUP_STEPS = 30
_DECAY = 0.95


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[Chat, str]],
    *,
    stop_loss: float,
    label_smoothing: float,
    max_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> dict[str, float]:
    """Train in place on the answers to chat prompts until the loss is low enough; the same seed gives the same weights.

    A loss to stop at, not a number of steps: sums are learned in one sudden drop, so a fixed step would leave one seed
    or one machine's rounding ignorant and the next one finished. The rate is constant after its warm-up for the same
    reason: a decay would need to know the end. Muon gets through that drop in less than half the steps that AdamW
    needs; embeddings, LM head and vectors are left to AdamW, as Muon's authors advise.

    Args:
        model: Causal LM; ends in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        pairs: (chat messages up to the question, answer).
        stop_loss: Stop once the moving average of the loss (nats) is below this.
        label_smoothing: Share of each target that is spread over the whole vocabulary: the model then knows more than
            it dares to say, which is what reinforcement learning can sharpen. It adds to the loss.
        max_steps: Stop here at the latest.
        batch_size: Pairs an update.
        learning_rate: Reached after the warm-up, of both optimizers.
        seed: Seed of the order of the pairs, which are gone through in a fresh random order each time round.

    Returns:
        "steps" (number of updates) and "loss" (the moving average at the end, nats).
    """
    import torch

    inputs, labels = encode(tokenizer, pairs)
    optimizers = _optimizers(model, learning_rate)
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    average, weight = 0.0, 0.0
    model.train()
    with _one_thread():
        for step in range(1, max_steps + 1):
            while len(order) < batch_size:
                order = torch.cat([order, torch.randperm(len(inputs), generator=generator)])
            batch, order = order[:batch_size], order[batch_size:]
            loss = answer_loss(model, inputs[batch], labels[batch], label_smoothing)
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * min(1.0, step / _WARMUP_STEPS)
                optimizer.step()
            average = _DECAY * average + (1.0 - _DECAY) * loss.item()
            weight = _DECAY * weight + (1.0 - _DECAY)  # takes the bias of starting at zero out of the average
            if average / weight < stop_loss:
                break
    model.eval()
    return {"steps": step, "loss": average / weight}


def _optimizers(model: PreTrainedModel, learning_rate: float) -> list[torch.optim.Optimizer]:
    import torch

    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    return [
        # The adjustment gives Muon's update the size of AdamW's, so that one learning rate serves both.
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def answer_loss(
    model: PreTrainedModel, inputs: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean cross-entropy (nats) of the labelled tokens: [B, T], [B, T] -> []."""
    from torch.nn.functional import cross_entropy

    # Position t predicts token t + 1. Only answer positions go through the LM head.
    hidden = model.model(input_ids=inputs[:, :-1]).last_hidden_state
    target = labels[:, 1:]
    answers = target != _IGNORE
    return cross_entropy(model.lm_head(hidden[answers]), target[answers], label_smoothing=label_smoothing)


def encode(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[Chat, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of (chat messages, answer) pairs, padded on the right.

    Returns:
        Two [B, T] tensors of int64: ids, and labels that are -100 outside the answer and its end-of-turn token. Causal
        attention keeps padding on the right out of every answer, so no mask is needed.
    """
    import torch

    rows = []
    for chat, answer in pairs:
        prompt = prompt_ids(tokenizer, chat)
        response = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        rows.append((prompt, response))
    length = max(len(prompt) + len(response) for prompt, response in rows)
    inputs = torch.full((len(rows), length), tokenizer.pad_token_id)
    labels = torch.full((len(rows), length), _IGNORE)
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        inputs[row, :end] = torch.tensor(prompt + response)
        labels[row, len(prompt) : end] = torch.tensor(response)
    return inputs, labels


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums in an order that does not depend on the number of cores, and no waiting for each other on busy ones."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
