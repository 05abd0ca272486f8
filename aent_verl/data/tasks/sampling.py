"""What a model answers before any reinforcement learning: sampled accuracy and entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aent_verl.data.tasks.reward import compute_score

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def prompt_ids(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of chat messages, up to where the assistant begins."""
    text = tokenizer.apply_chat_template(list(chat), tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    *,
    samples: int,
    max_new_tokens: int,
    seed: int,
) -> dict[str, float]:
    """Sample answers from the plain softmax (temperature 1), as the rollouts do, and score them.

    Args:
        model: Causal LM.
        tokenizer: Its tokenizer.
        rows: Rows in verl's format.
        samples: Answers a row.
        max_new_tokens: Longest answer.
        seed: Seed of the sampling; the caller's random state stays as it is.

    Returns:
        "accuracy" (mean over answers), "solved" (share of rows with a right one among their answers), "entropy" (nats,
        mean over answer tokens including the end-of-turn token), "response_tokens" (mean), "prompt_tokens_max".
    """
    import torch

    prompts = [prompt_ids(tokenizer, row["prompt"]) for row in rows for _ in range(samples)]
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
        compute_score(row["data_source"], text, row["reward_model"]["ground_truth"], row["extra_info"])["acc"]
        for row, text in zip([row for row in rows for _ in range(samples)], texts, strict=True)
    ]
    return {
        "accuracy": sum(hits) / len(hits),
        "solved": sum(any(hits[row : row + samples]) for row in range(0, len(hits), samples)) / len(rows),
        "entropy": entropy[valid].mean().item(),
        "response_tokens": valid.sum(dim=1).float().mean().item(),
        "prompt_tokens_max": width,
    }
