"""A short supervised phase, so that reinforcement learning starts from a model that is right now and then."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_IGNORE = -100


def train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> float:
    """Train in place on the answers to chat prompts: AdamW, linear warm-up over a tenth of the steps, then cosine.

    Args:
        model: Causal LM; ends in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        pairs: (user message, answer).
        steps: Number of updates; the pairs are gone through in a fresh random order each time round.
        batch_size: Pairs an update.
        learning_rate: The peak.
        seed: Seed of the order of the pairs.

    Returns:
        Mean cross-entropy of the answer tokens over the last tenth of the steps, in nats.
    """
    import torch
    from torch.nn.functional import cross_entropy

    inputs, labels = encode(tokenizer, pairs)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, warmup=warmup, steps=steps))
    generator = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    losses = []
    model.train()
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(inputs), generator=generator)])
        batch, order = order[:batch_size], order[batch_size:]
        # Position t predicts token t + 1. Only answer positions go through the LM head.
        hidden = model.model(input_ids=inputs[batch, :-1]).last_hidden_state
        target = labels[batch, 1:]
        answers = target != _IGNORE
        loss = cross_entropy(model.lm_head(hidden[answers]), target[answers])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    tail = losses[-warmup:]
    return sum(tail) / len(tail)


def encode(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels of (user message, answer) pairs, padded on the right.

    Returns:
        Two [B, T] tensors of int64: ids, and labels that are -100 outside the answer and its end-of-turn token. Causal
        attention keeps padding on the right out of every answer, so no mask is needed.
    """
    import torch

    rows = []
    for question, answer in pairs:
        prompt = prompt_ids(tokenizer, question)
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


def prompt_ids(tokenizer: PreTrainedTokenizerBase, message: str) -> list[int]:
    """Token ids of one user message, up to where the assistant begins."""
    chat = [{"role": "user", "content": message}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
    score: Callable[..., dict[str, float]],
) -> dict[str, float]:
    """Sample answers from the plain softmax (temperature 1) and score them.

    Args:
        model: Causal LM.
        tokenizer: Its tokenizer.
        rows: Rows in verl's format.
        samples: Answers a row.
        max_new_tokens: Longest answer.
        seed: Seed of the sampling; the caller's random state stays as it is.
        score: `aent_verl.tasks.reward.compute_score`.

    Returns:
        "accuracy" (mean over answers), "entropy" (nats a token, mean over answer tokens including the end-of-turn token),
        "response_tokens" (mean), "prompt_tokens_max".
    """
    import torch

    prompts = [prompt_ids(tokenizer, row["prompt"][0]["content"]) for row in rows for _ in range(samples)]
    width = max(map(len, prompts))
    # Left padding: generation goes on at the right end.
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        output = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=max_new_tokens,
            pad_token_id=tokenizer.pad_token_id,
            output_logits=True,
            return_dict_in_generate=True,
        )
    responses = output.sequences[:, width:]
    ends = torch.isin(responses, torch.tensor(model.generation_config.eos_token_id))
    valid = ends.cumsum(dim=1) - ends.int() == 0  # everything up to and including the first end token
    log_probs = torch.stack(output.logits, dim=1).float().log_softmax(dim=-1)
    entropy = torch.special.entr(log_probs.exp()).sum(dim=-1)
    texts = tokenizer.batch_decode(
        [response[keep] for response, keep in zip(responses, valid, strict=True)], skip_special_tokens=True
    )
    hits = [
        score(row["data_source"], text, row["reward_model"]["ground_truth"], row["extra_info"])["acc"]
        for row, text in zip([row for row in rows for _ in range(samples)], texts, strict=True)
    ]
    return {
        "accuracy": sum(hits) / len(hits),
        "entropy": entropy[valid].mean().item(),
        "response_tokens": valid.sum(dim=1).float().mean().item(),
        "prompt_tokens_max": width,
    }


def _rate(step: int, *, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
