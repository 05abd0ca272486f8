"""Can verl load the model's tokenizer, and does its chat template turn the data's prompts into tokens and back?"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from aent_verl.preflight import text
from aent_verl.preflight.data import Sample
from aent_verl.preflight.errors import PreflightError

KEY = "actor_rollout_ref.model.path"
WEIGHTS = ("*.safetensors", "*.bin")
# What the hub accepts as "name" or "organisation/name".
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
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
    hint = f"Set {KEY} to a folder made by save_pretrained, or to a model on the hub such as Qwen/Qwen2.5-0.5B-Instruct"
    expected = "a model folder or a hub id"
    if not isinstance(path, str) or not path:
        raise PreflightError(KEY, path, "no model is named", expected=expected, hint=hint)
    if os.path.isdir(path):
        if not os.path.isfile(os.path.join(path, "config.json")):
            raise PreflightError(KEY, path, "the folder has no config.json", expected="a model folder", hint=hint)
        if not any(glob.glob(os.path.join(glob.escape(path), pattern)) for pattern in WEIGHTS):
            raise PreflightError(
                KEY, path, "the folder has no weights", expected=f"{' or '.join(WEIGHTS)} beside config.json", hint=hint
            )
    elif "://" not in path and not _HUB_ID.fullmatch(path):
        raise PreflightError(KEY, path, "there is no such folder", expected=expected, hint=hint)


def _load(cfg: DictConfig) -> Any:
    """Model config as verl makes it, which loads tokenizer, processor and the model's config as the workers will."""
    from verl.utils.config import omega_conf_to_dataclass

    path = cfg.actor_rollout_ref.model.path
    found = "the folder's tokenizer or config" if os.path.isdir(path) else "there is no such folder, and the hub's copy"
    try:
        return omega_conf_to_dataclass(cfg.actor_rollout_ref.model)
    except Exception as error:
        raise PreflightError(
            KEY,
            path,
            f"{found} cannot be loaded ({type(error).__name__}: {error})",
            expected="a model that transformers can load",
            hint="Check the name, and whether tokenizer files are there; without network, give a local folder",
        ) from error


def _check_special_tokens(path: str, tokenizer: Any) -> None:
    for name in ("eos", "pad"):
        if getattr(tokenizer, f"{name}_token_id", None) is None:
            raise PreflightError(
                KEY,
                path,
                f"its tokenizer has no {name} token",
                expected="both an eos and a pad token",
                hint=f"Set tokenizer.{name}_token and save the tokenizer again",
            )


class Template:
    """The chat template as verl's agent loop applies it."""

    def __init__(self, cfg: DictConfig, loaded: Any) -> None:
        self.cfg = cfg
        self.path = cfg.actor_rollout_ref.model.path
        self.tokenizer = loaded.tokenizer
        # With a processor verl sets a custom template there, and copies the tokenizer's where it has none.
        self.template = getattr(loaded.processor or loaded.tokenizer, "chat_template", None)
        if not self.template:
            raise PreflightError(
                KEY,
                self.path,
                "its tokenizer has no chat template",
                expected="a model that knows chat messages",
                hint="Use an instruct model, or set actor_rollout_ref.model.custom_chat_template",
            )
        text_config = getattr(loaded.hf_config, "text_config", loaded.hf_config)
        self.vocabulary = getattr(text_config, "vocab_size", None)

    def encode(self, prompt: Sequence[Mapping[str, Any]]) -> list[int]:
        """Token ids of chat messages, up to where the assistant begins."""
        from verl.utils.tokenizer import normalize_token_ids

        settings = {str(name): value for name, value in (self.cfg.data.get("apply_chat_template_kwargs") or {}).items()}
        if isinstance(self.template, str):
            settings.setdefault("chat_template", self.template)
        try:
            encoded = self.tokenizer.apply_chat_template(
                list(prompt), **{**settings, "add_generation_prompt": True, "tokenize": True}
            )
        except Exception as error:
            raise PreflightError(
                KEY,
                self.path,
                f"its chat template fails on {prompt!r:.200} ({type(error).__name__}: {error})",
                expected="a template that knows the roles of the data",
                hint="Set actor_rollout_ref.model.custom_chat_template, or change the data's messages",
            ) from error
        return list(normalize_token_ids(encoded))

    def check_text(self, prompt: Sequence[Mapping[str, Any]]) -> list[Warning]:
        """Encode and decode a prompt: the text of its last user message must survive, in ids that the model knows.

        Returns:
            A warning where the text has characters that the tokenizer does not know.
        """
        ids = self.encode(prompt)
        if self.vocabulary is not None and ids and max(ids) >= self.vocabulary:
            raise PreflightError(
                KEY,
                self.path,
                f"its chat template gives token {max(ids)}, the model has {self.vocabulary}",
                expected="tokenizer and model that belong together",
                hint="Use the tokenizer that came with the model, or resize the model's embeddings",
            )
        decoded = text.decode(self.tokenizer, ids)
        warnings: list[Warning] = []
        for message in _user_texts(prompt) or [""]:
            alone = text.encode(self.tokenizer, message)
            kept = text.decode(self.tokenizer, alone)
            lost = text.difference(text.normalise(self.tokenizer, message), kept)
            unknown = alone.count(self.tokenizer.unk_token_id) if self.tokenizer.unk_token_id is not None else 0
            if lost and 0 < unknown <= len(alone) / 2:
                unknown_text = f"{KEY}: its tokenizer does not know all characters of the first prompt: {lost}"
                warnings.append(UserWarning(unknown_text))
            elif lost:
                raise self._loss("tokenizer", message, kept, lost)
            lost = text.difference(kept, decoded)
            if lost or not ids:
                raise self._loss("chat template", message, decoded, lost)
        return warnings

    def _loss(self, culprit: str, message: str, made: str, lost: str | None) -> PreflightError:
        return PreflightError(
            KEY,
            self.path,
            f"its {culprit} makes {made!r:.200} of the user message {message!r:.200}" + (f"; {lost}" if lost else ""),
            expected="the message within it",
            hint="Check that all tokenizer files are there, or set actor_rollout_ref.model.custom_chat_template",
        )

    def check_lengths(self, prompts: Sequence[Sequence[Mapping[str, Any]]]) -> int:
        """Longest prompt in tokens; verl would cut the beginning off a longer one, and only log it."""
        limit = self.cfg.data.max_prompt_length
        lengths = [len(self.encode(prompt)) for prompt in prompts]
        filtered = self.cfg.data.get("filter_overlong_prompts", False)
        cut = self.cfg.data.get("truncation", "error") != "error"
        too_long = sum(length > limit for length in lengths)
        if too_long and not (cut or (filtered and too_long < len(lengths))):
            raise PreflightError(
                "data.max_prompt_length",
                limit,
                f"{too_long} of the {len(lengths)} prompts looked at (each file's first and longest) are longer, up to "
                f"{max(lengths)} tokens",
                expected=f"at least {max(lengths)}",
                hint="Raise it, drop such prompts with data.filter_overlong_prompts=true, or allow cutting with "
                "data.truncation=left",
            )
        return max(lengths)


def _user_texts(prompt: Sequence[Mapping[str, Any]]) -> list[str]:
    """Text of the last user message, in parts where pictures stand between them."""
    contents = [message["content"] for message in prompt if message["role"] == "user"]
    last = contents[-1] if contents else None
    if not isinstance(last, list):
        return [last] if last else []
    return [part["text"] for part in last if isinstance(part, Mapping) and part.get("text")]
