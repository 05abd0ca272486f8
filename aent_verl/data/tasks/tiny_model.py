"""A Qwen2-architecture model of under a million parameters with a byte tokenizer, as an ordinary model folder.

It loads wherever Qwen2 does: transformers, verl's FSDP engine, vLLM (whose CPU attention wants a head size of 32, 64 or
128). The tokenizer class is Qwen2's own, which transformers picks for this model type whatever the folder says.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from aent_verl._util import whole_number

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_HEAD_DIM = 32


def build_tokenizer() -> PreTrainedTokenizerBase:
    """Build byte-level BPE without merges (each byte is a token), with ChatML's special tokens and chat template."""
    from tokenizers import AddedToken, pre_tokenizers
    from transformers import Qwen2Tokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Qwen2Tokenizer(
        vocab={character: index for index, character in enumerate(alphabet)},
        merges=[],
        unk_token=END_OF_TEXT,
        eos_token=TURN_END,
        pad_token=END_OF_TEXT,
        model_max_length=512,
        chat_template=CHAT_TEMPLATE,
    )
    tokenizer.add_tokens([AddedToken(token, special=True) for token in (END_OF_TEXT, TURN_START, TURN_END)])
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN_START]})
    return tokenizer


def build_model(tokenizer: PreTrainedTokenizerBase, *, hidden_size: int, layers: int, seed: int) -> PreTrainedModel:
    """Build an fp32 Qwen2 with random weights drawn from `seed`; the caller's random state stays as it is.

    Args:
        tokenizer: Gives the size of the vocabulary and the ids of the special tokens.
        hidden_size: Width; a multiple of 64 (two heads of 32 share one key-value head).
        layers: Number of decoder layers.
        seed: Seed of the weights.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: `hidden_size` or `layers` out of range.
    """
    import torch
    from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

    if hidden_size < 64 or hidden_size % 64:
        raise ValueError(f"hidden_size={hidden_size}: must be a positive multiple of 64")
    whole_number("layers", layers, lowest=1)
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids(END_OF_TEXT)]
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // _HEAD_DIM,
        num_key_value_heads=hidden_size // _HEAD_DIM // 2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        initializer_range=hidden_size**-0.5,  # the default of 0.02 suits wide models; here it only delays learning
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    # Plain softmax sampling: training and evaluation must see the model's own distribution.
    model.generation_config = GenerationConfig(
        eos_token_id=ends, pad_token_id=tokenizer.pad_token_id, do_sample=True, temperature=1.0, top_p=1.0, top_k=0
    )
    return model.eval()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write an ordinary model folder: safetensors, config, generation config, tokenizer, chat template."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
