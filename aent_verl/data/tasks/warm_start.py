"""A warm start: a tiny model learns from demonstrations until it is right now and then, for RL to start from.

`build` makes the model folder of a task, `train` is the short supervised phase, `measure` samples the result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aent_verl._util import number, whole_number, write_json
from aent_verl.data.tasks import tiny_model
from aent_verl.data.tasks.reward import compute_score

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Chat = Sequence[Mapping[str, str]]
# Chat messages up to the question, and the answer.
Pairs = Sequence[tuple[Chat, str]]

MEASUREMENT = "warm_start.json"
FILES = ("model", MEASUREMENT)
_IGNORE = -100
_WARMUP_STEPS = 30
_DECAY = 0.95


def build(
    folder: Path,
    pairs: Pairs,
    settings: Mapping[str, Any],
    *,
    held_out: Sequence[dict[str, Any]],
    samples: int,
    max_new_tokens: int,
) -> dict[str, Any]:
    """Write `model/` and `warm_start.json` into `folder`: a tiny model, trained for a while and measured.

    Args:
        folder: Where the two go.
        pairs: (chat messages, response) to learn from.
        settings: "hidden_size" and "layers" of the model (see `tiny_model.build_model`), those of `train`, and "seed",
            which decides weights, order and samples.
        held_out: Rows in verl's format to measure the trained model on; no pair may ask one of their questions.
        samples: Responses per row when it is measured.
        max_new_tokens: Longest of them.

    Returns:
        What `measure` and `train` return, in one dict, as in `warm_start.json`.
    """
    seed = settings["seed"]
    tokenizer = tiny_model.build_tokenizer()
    hidden_size, layers = settings["hidden_size"], settings["layers"]
    model = tiny_model.build_model(tokenizer, hidden_size=hidden_size, layers=layers, seed=seed)
    trained = train(model, tokenizer, pairs, settings)
    measured = measure(model, tokenizer, held_out, samples=samples, max_new_tokens=max_new_tokens, seed=seed)
    tiny_model.save(model, tokenizer, folder / "model")
    result = {**measured, **trained}
    write_json(folder / MEASUREMENT, result)
    return result


def check(settings: Mapping[str, Any], *, lowest: Mapping[str, int]) -> None:
    """Refuse settings of `build` that are out of range, and whole numbers of a task below their `lowest`.

    Raises:
        ValueError: names the setting, its value and the range.
    """
    for name, bound in {**lowest, "warm_start_max_steps": 1, "warm_start_batch_size": 1, "seed": 0}.items():
        whole_number(name, settings[name], lowest=bound)
    for name in ("warm_start_loss", "learning_rate"):
        number(name, settings[name], lambda value: value > 0, allowed="above 0")
    smoothing = "warm_start_label_smoothing"
    number(smoothing, settings[smoothing], lambda value: 0 <= value < 1, allowed="in [0, 1)")


def train(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pairs: Pairs, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Train in place on the answers to chat prompts until the loss is low enough; the same seed gives the same weights.

    It stops at a loss, not after a number of steps: sums are learned in one sudden drop, so after a fixed number one
    seed or one machine's rounding would still be ignorant and the next one finished. The rate is constant after its
    warm-up for the same reason: a decay would need to know the end. Muon gets through that drop in less than half the
    steps that AdamW needs; embeddings, LM head and vectors are left to AdamW, as Muon's authors advise.

    Args:
        model: Causal LM; ends in evaluation mode.
        tokenizer: Its tokenizer, with a chat template.
        pairs: What it learns.
        settings: These of a task's:
            "warm_start_loss": Stop once the moving average of the loss (nats) is below this.
            "warm_start_label_smoothing": Share of each target that is spread over the whole vocabulary: the model then
            knows more than it dares to say, which is what reinforcement learning can sharpen. It adds to the loss.
            "warm_start_max_steps": Stop here at the latest.
            "warm_start_batch_size": Pairs per update.
            "learning_rate": Reached after the warm-up, of both optimizers.
            "seed": Of the order of the pairs, which come in a fresh random order each time round.

    Returns:
        "steps" (number of updates) and "loss" (the moving average at the end, nats).
    """
    import torch

    inputs, labels = encode(tokenizer, pairs)
    batch_size, learning_rate = settings["warm_start_batch_size"], settings["learning_rate"]
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    inside = {id(weight) for weight in matrices}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    optimizers: list[torch.optim.Optimizer] = [
        # The adjustment gives Muon's update the size of AdamW's, so that one learning rate serves both.
        torch.optim.Muon(matrices, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    generator = torch.Generator().manual_seed(settings["seed"])
    order = torch.empty(0, dtype=torch.long)
    average, weight = 0.0, 0.0
    model.train()
    with _one_thread():
        for step in range(1, settings["warm_start_max_steps"] + 1):
            while len(order) < batch_size:
                order = torch.cat([order, torch.randperm(len(inputs), generator=generator)])
            batch, order = order[:batch_size], order[batch_size:]
            loss = answer_loss(model, inputs[batch], labels[batch], settings["warm_start_label_smoothing"])
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * min(1.0, step / _WARMUP_STEPS)
                optimizer.step()
            average = _DECAY * average + (1.0 - _DECAY) * loss.item()
            weight = _DECAY * weight + (1.0 - _DECAY)  # takes the bias of starting at zero out of the average
            if average / weight < settings["warm_start_loss"]:
                break
    model.eval()
    return {"steps": step, "loss": average / weight}


def answer_loss(
    model: PreTrainedModel, inputs: torch.Tensor, labels: torch.Tensor, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Compute the mean cross-entropy (nats) of the labelled tokens: [B, T], [B, T] -> []."""
    from torch.nn.functional import cross_entropy

    # Position t predicts token t + 1. Only answer positions go through the LM head.
    hidden = model.model(input_ids=inputs[:, :-1]).last_hidden_state
    target = labels[:, 1:]
    answers = target != _IGNORE
    return cross_entropy(model.lm_head(hidden[answers]), target[answers], label_smoothing=label_smoothing)


def encode(tokenizer: PreTrainedTokenizerBase, pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode (chat messages, answer) pairs as token ids and labels, padded on the right.

    Returns:
        Two [B, T] tensors of int64: ids, and labels that are -100 outside the answer and its end-of-turn token. Causal
        attention keeps padding on the right out of every answer, so no mask is needed.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    inputs, labels = [], []
    for chat, answer in pairs:
        prompt = prompt_ids(tokenizer, chat)
        response = [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        inputs.append(torch.tensor(prompt + response))
        labels.append(torch.tensor([_IGNORE] * len(prompt) + response))
    padding = tokenizer.pad_token_id
    return pad_sequence(inputs, True, padding_value=padding), pad_sequence(labels, True, padding_value=_IGNORE)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, chat: Chat) -> list[int]:
    """Encode chat messages as token ids, up to where the assistant begins."""
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
        samples: Answers per row.
        max_new_tokens: Longest answer.
        seed: Seed of the sampling; the caller's random state stays as it is.

    Returns:
        "accuracy" (mean over answers), "solved" (share of rows with a right one among their answers), "entropy" (nats,
        mean over answer tokens including the end-of-turn token), "response_tokens" (mean), "prompt_tokens_max".
    """
    import torch

    prompts = [prompt_ids(tokenizer, row["prompt"]) for row in rows for _ in range(samples)]
    width = max(map(len, prompts))
    # Left padding: generation continues at the right end.
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
            output_logits=True,
            return_dict_in_generate=True,
        )
    responses = output.sequences[:, width:]
    ends = torch.isin(responses, torch.tensor(model.generation_config.eos_token_id))
    valid = ends.cumsum(dim=1) - ends.int() == 0  # everything up to and including the first end token
    log_probs = torch.stack(output.logits, dim=1).float().log_softmax(dim=-1)
    entropy = torch.special.entr(log_probs.exp()).sum(dim=-1)
    texts = tokenizer.batch_decode(list(map(torch.masked_select, responses, valid)), skip_special_tokens=True)
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


@contextmanager
def _one_thread() -> Iterator[None]:
    """Use one thread: sums do not depend on the number of cores, and busy ones are not waited for."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
