"""Can verl load the model's tokenizer, and does its chat template turn the data's prompts into tokens and back?

Tokenizers compose accents, fold case, or replace U+2126 by U+03A9, which looks the same: text must come back as the
tokenizer's own normalizer leaves it, not as it was.
"""

import bisect
import glob
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from aent_verl.preflight.data import Sample
from aent_verl.preflight.findings import PreflightError, Setting, at

KEY = "actor_rollout_ref.model.path"
CUSTOM_TEMPLATE = "actor_rollout_ref.model.custom_chat_template"
WEIGHTS = ("*.safetensors", "*.bin")
# What the hub accepts as "name" or "organisation/name".
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
# SentencePiece's mark of a blank.
_MARK = "\u2581"
_CONTEXT = 20
_GREETING = [{"role": "user", "content": "How many is 2 + 3?"}]


def check(cfg: DictConfig, sample: Sample) -> list[str | Exception]:
    """Check model folder, tokenizer, chat template and prompt lengths.

    Returns:
        One line for each passed check; what may be wrong is a warning.

    Raises:
        PreflightError: names the setting and what to do.
    """
    path = cfg.actor_rollout_ref.model.path
    check_path(path)
    if "://" in path:
        return [f"{KEY}: {path} is remote, left to verl"]
    loaded = _load(cfg)
    tokenizer = loaded.tokenizer
    _check_special_tokens(path, tokenizer)
    prompts = [row[cfg.data.prompt_key] for row in sample.rows] or [_GREETING]
    template = Template(cfg, loaded)
    warnings = template.check_text(prompts[0])
    longest = template.check_lengths(prompts) if loaded.processor is None else None
    return [
        f"{KEY}: {path}, {type(tokenizer).__name__} with {len(tokenizer)} tokens, end {tokenizer.eos_token!r}, "
        f"padding {tokenizer.pad_token!r}",
        "chat template: the first prompt is encoded and decoded with its text intact"
        + (f"; the longest of {len(prompts)} has {longest} tokens" if longest and sample.rows else ""),
        *warnings,
    ]


def check_path(path: Any) -> None:
    """Check that ``path`` is a model folder, or could be a model on the hub.

    Raises:
        PreflightError: it is neither.
    """
    problem, expected = "", "a model folder or a hub id"
    if not isinstance(path, str) or not path:
        problem = "no model is named"
    elif os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "config.json")):
            problem, expected = "the folder has no config.json", "a model folder"
        elif not any(glob.glob(os.path.join(glob.escape(path), pattern)) for pattern in WEIGHTS):
            problem, expected = "the folder has no weights", f"{' or '.join(WEIGHTS)} alongside config.json"
    elif "://" not in path and not _HUB_ID.fullmatch(path):
        problem = "there is no such folder"
    if problem:
        hint = "to a folder made by save_pretrained, or to a model on the hub such as Qwen/Qwen2.5-0.5B-Instruct"
        raise Setting(KEY, path).error(problem, f"Set {KEY} {hint}", expected)


def _load(cfg: DictConfig) -> Any:
    """Make the model config as verl does, which loads tokenizer, processor and model config as the workers will."""
    from verl.utils.config import omega_conf_to_dataclass

    model = at(cfg, KEY)
    found = "its tokenizer or config" if os.path.isdir(model.value) else "there is no such folder, and the hub's copy"
    try:
        return omega_conf_to_dataclass(cfg.actor_rollout_ref.model)
    except Exception as error:
        raise model.error(
            f"{found} cannot be loaded ({type(error).__name__}: {error})",
            "Check the name, and whether tokenizer files are there; without network, give a local folder",
            "a model that transformers can load",
        ) from error


def _check_special_tokens(path: str, tokenizer: Any) -> None:
    for name in ("eos", "pad"):
        if getattr(tokenizer, f"{name}_token_id", None) is None:
            raise Setting(KEY, path).error(
                f"its tokenizer has no {name} token",
                f"Set tokenizer.{name}_token and save the tokenizer again",
                "both an eos and a pad token",
            )


class Template:
    """The chat template as verl's agent loop applies it."""

    def __init__(self, cfg: DictConfig, loaded: Any) -> None:
        self.cfg = cfg
        self.model = at(cfg, KEY)
        self.tokenizer = loaded.tokenizer
        # With a processor verl sets a custom template there, and copies the tokenizer's where it has none.
        self.template = getattr(loaded.processor or loaded.tokenizer, "chat_template", None)
        if not self.template:
            raise self.model.error(
                "its tokenizer has no chat template",
                f"Use an instruct model, or set {CUSTOM_TEMPLATE}",
                "a chat model",
            )
        text_config = getattr(loaded.hf_config, "text_config", loaded.hf_config)
        self.vocabulary = getattr(text_config, "vocab_size", None)

    def encode(self, prompt: Sequence[Mapping[str, Any]]) -> list[int]:
        """Turn chat messages into token ids, up to where the assistant begins."""
        from verl.utils.tokenizer import normalize_token_ids

        settings = {str(name): value for name, value in (self.cfg.data.get("apply_chat_template_kwargs") or {}).items()}
        if isinstance(self.template, str):
            settings.setdefault("chat_template", self.template)
        settings |= {"add_generation_prompt": True, "tokenize": True}
        try:
            encoded = self.tokenizer.apply_chat_template(list(prompt), **settings)
        except Exception as error:
            raise self.model.error(
                f"its chat template fails on {prompt!r:.200} ({type(error).__name__}: {error})",
                f"Set {CUSTOM_TEMPLATE}, or change the data's messages",
                "a template that knows the roles of the data",
            ) from error
        return list(normalize_token_ids(encoded))

    def check_text(self, prompt: Sequence[Mapping[str, Any]]) -> list[Warning]:
        """Encode and decode a prompt: the text of its last user message must survive, in ids that the model knows.

        Returns:
            A warning where the text has characters that the tokenizer does not know.
        """
        ids = self.encode(prompt)
        if self.vocabulary is not None and ids and max(ids) >= self.vocabulary:
            raise self.model.error(
                f"its chat template gives token {max(ids)}, but the model has {self.vocabulary}",
                "Use the tokenizer that came with the model, or resize the model's embeddings",
                "tokenizer and model that belong together",
            )
        decoded, unk = decode(self.tokenizer, ids), self.tokenizer.unk_token_id
        warnings: list[Warning] = []
        for message in _user_texts(prompt) or [""]:
            alone = encode(self.tokenizer, message)
            kept = decode(self.tokenizer, alone)
            lost = difference(normalise(self.tokenizer, message), kept)
            unknown = alone.count(unk) if unk is not None else 0
            if lost and 0 < unknown <= len(alone) / 2:
                unknown_text = f"{KEY}: its tokenizer does not know all characters of the first prompt: {lost}"
                warnings.append(UserWarning(unknown_text))
            elif lost:
                raise self._loss("tokenizer", message, kept, lost)
            lost = difference(kept, decoded)
            if lost or not ids:
                raise self._loss("chat template", message, decoded, lost)
        return warnings

    def _loss(self, culprit: str, message: str, made: str, lost: str | None) -> PreflightError:
        return self.model.error(
            f"its {culprit} turns the user message {message!r:.200} into {made!r:.200}" + (f"; {lost}" if lost else ""),
            f"Check that all tokenizer files are there, or set {CUSTOM_TEMPLATE}",
            "the message within it",
        )

    def check_lengths(self, prompts: Sequence[Sequence[Mapping[str, Any]]]) -> int:
        """Return the longest prompt in tokens; verl would cut the beginning off a longer one, and only log it."""
        limit = at(self.cfg, "data.max_prompt_length")
        lengths = [len(self.encode(prompt)) for prompt in prompts]
        filtered = self.cfg.data.get("filter_overlong_prompts", False)
        cut = self.cfg.data.get("truncation", "error") != "error"
        too_long = sum(length > limit.value for length in lengths)
        if too_long and not (cut or (filtered and too_long < len(lengths))):
            raise limit.error(
                f"{too_long} of {len(lengths)} prompts (each file's first and longest) are longer, up to "
                f"{max(lengths)} tokens",
                "Raise it, drop them with data.filter_overlong_prompts=true, or cut them with data.truncation=left",
                f"at least {max(lengths)}",
            )
        return max(lengths)


def _user_texts(prompt: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the text of the last user message, in parts if there are pictures between them."""
    contents = [message["content"] for message in prompt if message["role"] == "user"]
    last = contents[-1] if contents else None
    if not isinstance(last, list):
        return [last] if last else []
    return [part["text"] for part in last if isinstance(part, Mapping) and part.get("text")]


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decode ids, including special tokens."""
    # Where a tokenizer asks for it, the clean-up would remove blanks, and more in some versions.
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Encode the text alone, with nothing before or after it."""
    return list(tokenizer.encode(text, add_special_tokens=False))


def normalise(tokenizer: Any, text: str) -> str:
    """Apply the tokenizer's own normalizer to a text, except to added tokens within it."""
    if hasattr(tokenizer, "backend_tokenizer"):
        own = tokenizer.backend_tokenizer.normalizer
        change = own.normalize_str if own else str
    elif hasattr(tokenizer, "sp_model"):
        change = tokenizer.sp_model.normalize
    else:
        return text
    added = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, added))})", text) if added else [text]
    # Every second piece is an added token.
    return "".join(piece if index % 2 else change(piece) for index, piece in enumerate(pieces))


def difference(expected: str, made: str) -> str | None:
    """Describe the first character of ``expected`` that ``made`` does not have in its place; None if it has them all.

    Blanks do not count: templates trim them, and tokenizers add or merge them.
    """
    places = [index for index, character in enumerate(expected) if not _is_blank(character)]
    wanted = "".join(expected[index] for index in places)
    found = "".join(character for character in made if not _is_blank(character))
    if wanted in found:
        return None
    kept = bisect.bisect_left(range(len(wanted)), True, key=lambda end: wanted[: end + 1] not in found)
    place = places[kept]
    around = expected[max(0, place - _CONTEXT) : place + _CONTEXT]
    described = f"{_name(wanted[kept])} at position {place}, in {around!r}, is lost"
    after = found.find(wanted[:kept]) + kept
    return f"{described}, and {_name(found[after])} follows" if kept and after < len(found) else described


def _is_blank(character: str) -> bool:
    return character.isspace() or character == _MARK


def _name(character: str) -> str:
    return f"U+{ord(character):04X} ({unicodedata.name(character, 'no name')})"
