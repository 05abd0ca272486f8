"""A tiny model folder from a task's demonstrations: built, trained for a while, measured, saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from aent_verl._util import write_json
from aent_verl.data.tasks import sampling, tiny_model, warm_start

MEASUREMENT = "warm_start.json"
FILES = ("model", MEASUREMENT)


def build_model(
    folder: Path,
    pairs: Sequence[tuple[warm_start.Chat, str]],
    *,
    held_out: Sequence[dict[str, Any]],
    samples: int,
    max_new_tokens: int,
    hidden_size: int,
    layers: int,
    warm_start_loss: float,
    warm_start_label_smoothing: float,
    warm_start_max_steps: int,
    warm_start_batch_size: int,
    learning_rate: float,
    seed: int,
) -> dict[str, Any]:
    """Write `model/` and `warm_start.json` into `folder`.

    Args:
        folder: Where the two go.
        pairs: (chat messages, response) to learn from.
        held_out: Rows in verl's format to measure the trained model on; no pair may ask one of their questions.
        samples: Responses a row when it is measured.
        max_new_tokens: Longest of them.
        hidden_size: Width of the model, a multiple of 64.
        layers: Its decoder layers.
        warm_start_loss: Loss (nats) at which the training ends.
        warm_start_label_smoothing: Share of each target spread over the vocabulary.
        warm_start_max_steps: Where it ends at the latest.
        warm_start_batch_size: Pairs an update.
        learning_rate: Of the training.
        seed: Decides weights, order and samples.

    Returns:
        What `sampling.measure` and `warm_start.train` return, in one dict, as in `warm_start.json`.
    """
    tokenizer = tiny_model.build_tokenizer()
    model = tiny_model.build_model(tokenizer, hidden_size=hidden_size, layers=layers, seed=seed)
    trained = warm_start.train(
        model,
        tokenizer,
        pairs,
        stop_loss=warm_start_loss,
        label_smoothing=warm_start_label_smoothing,
        max_steps=warm_start_max_steps,
        batch_size=warm_start_batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    measured = sampling.measure(model, tokenizer, held_out, samples=samples, max_new_tokens=max_new_tokens, seed=seed)
    tiny_model.save(model, tokenizer, folder / "model")
    result = {**measured, **trained}
    write_json(folder / MEASUREMENT, result)
    return result


def check(settings: Mapping[str, Any], *, lowest: Mapping[str, int]) -> None:
    """Refuse settings of `build_model` out of range, and whole numbers of a task below their `lowest`.

    Raises:
        ValueError: names the setting, its value and the range.
    """
    bounds = {**lowest, "warm_start_max_steps": 1, "warm_start_batch_size": 1, "seed": 0}
    for name, bound in bounds.items():
        if settings[name] < bound:
            raise ValueError(f"{name}={settings[name]}: must be at least {bound}")
    for name in ("warm_start_loss", "learning_rate"):
        if not settings[name] > 0:
            raise ValueError(f"{name}={settings[name]}: must be above 0")
    if not 0 <= settings["warm_start_label_smoothing"] < 1:
        raise ValueError(f"warm_start_label_smoothing={settings['warm_start_label_smoothing']}: must be in [0, 1)")
