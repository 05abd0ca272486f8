"""The default task: sums of two two-digit numbers, and a tiny model that gets about half of them right.

    prepare(cache=".aent_cache/arithmetic")

Questions come from reasoning-gym's `basic_arithmetic` and are scored by its scorer. The prompt is the bare sum
("12 + 34 ="), the right response the bare number, so that a trajectory has some 33 tokens.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from aent_verl.data.tasks import cache as caches
from aent_verl.data.tasks import warm_start
from aent_verl.data.tasks.reasoning_gym_data import draw_entries, draw_splits, fill, question_of, write_splits

GENERATOR = "basic_arithmetic"
CHAT = ({"role": "user", "content": "{metadata[expression]} ="},)
MAX_RESPONSE_TOKENS = 8

# Raise this when the code builds something else from the same settings: caches made before are then rebuilt.
_RECIPE = 2
_WARM_START_PAIRS = 6144
_SAMPLES = 8


def prepare(
    cache: str,
    *,
    train_size: int = 4096,
    validation_size: int = 128,
    max_terms: int = 2,
    operators: str = "+",
    hidden_size: int = 128,
    layers: int = 2,
    warm_start_loss: float = 1.3,
    warm_start_label_smoothing: float = 0.15,
    warm_start_max_steps: int = 1000,
    warm_start_batch_size: int = 64,
    learning_rate: float = 3e-3,
    seed: int = 0,
) -> dict[str, Any]:
    """Build the data and the warm-started model once; later calls with the same settings return immediately.

    Args:
        cache: Folder for `train.parquet`, `validation.parquet`, `model/`, the manifest and what was measured.
        train_size: Questions to train on.
        validation_size: Questions to validate on; none of them is in the training file or in the warm start.
        max_terms: Most numbers in a question, from 2.
        operators: Which of `+` and `-` occur.
        hidden_size: Width of the model, a multiple of 64.
        layers: Its decoder layers.
        warm_start_loss: Smoothed cross-entropy of answer tokens (nats) at which the supervised phase ends; a lower one
            makes a model that knows more sums. Its floor is the entropy of the smoothed target, 1.26 nats by default.
        warm_start_label_smoothing: Share of each target spread over the vocabulary, in [0, 1): more makes a model that
            knows as much but samples the answer less often. The defaults make one that is right about half the time.
        warm_start_max_steps: Where it ends at the latest.
        warm_start_batch_size: Questions per update.
        learning_rate: Of the supervised phase.
        seed: Decides questions, weights and order.

    Returns:
        Paths "train", "validation", "model", and "warm_start": "accuracy", "entropy" (nats per token) and
        "response_tokens" on validation questions at temperature 1, "prompt_tokens_max", "steps", "loss".

    Raises:
        ImportError: the extra `data` is not installed.
        ValueError: a setting out of range, or `cache` holds files of that name that we did not make.
    """
    settings = {name: value for name, value in locals().items() if name != "cache"}
    warm_start.check(settings, lowest={"train_size": 1, "validation_size": 1, "max_terms": 2})
    if not operators or not set(operators) <= set("+-"):
        raise ValueError(f"operators={operators!r}: must be '+', '-' or '+-'")
    paths, measured = caches.build_task(
        cache,
        "arithmetic",
        recipe=_RECIPE,
        settings=settings,
        files=("train.parquet", "validation.parquet", *warm_start.FILES),
        build=lambda folder: _build(folder, settings),
    )
    print(
        f"arithmetic task: warm start answers {measured['accuracy']:.0%} of sampled validation questions, "
        f"entropy {measured['entropy']:.2f} nats per token",
        flush=True,
    )
    return {**paths, "warm_start": measured}


def sums(*, max_terms: int = 2, digits: int = 2, operators: str = "+") -> dict[str, Any]:
    """Return the generator's settings for plain sums of numbers with that many digits."""
    return {
        "min_terms": 2,
        "max_terms": max_terms,
        "min_digits": digits,
        "max_digits": digits,
        "operators": list(operators),
        "allow_parentheses": False,
        "allow_negation": False,
    }


def _build(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    config = sums(max_terms=settings["max_terms"], operators=settings["operators"])
    sizes = {split: settings[f"{split}_size"] for split in ("validation", "train")}
    splits = draw_splits(GENERATOR, config, sizes, settings["seed"])
    held_out = write_splits(splits, folder, generator=GENERATOR, chat=CHAT)["validation"]
    pairs = _warm_start_pairs(config, held_out=held_out, seed=settings["seed"])
    return warm_start.build(
        folder, pairs, settings, held_out=held_out, samples=_SAMPLES, max_new_tokens=MAX_RESPONSE_TOKENS
    )


def _warm_start_pairs(
    config: dict[str, Any], *, held_out: list[dict[str, Any]], seed: int
) -> list[tuple[warm_start.Chat, str]]:
    """Draw (chat messages, answer) pairs from the same generator, without the validation questions."""
    asked = {question_of(row) for row in held_out}
    entries = draw_entries(GENERATOR, config, size=_WARM_START_PAIRS, seed=seed, stream="warm_start", exclude=asked)
    return [(fill(CHAT, entry), entry["answer"]) for entry in entries]
