"""Are the data files there, readable and in the form that verl reads?"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from aent_verl.preflight.errors import PreflightError

# Rows of each file that are looked at; verl itself reads the rest.
SAMPLE = 64
FORMATS = (".parquet", ".json", ".jsonl")

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sample:
    """The first rows of each file, by its path; both empty where the data cannot be looked at."""

    train: Mapping[str, Rows] = field(default_factory=dict)
    validation: Mapping[str, Rows] = field(default_factory=dict)

    @property
    def rows(self) -> Rows:
        """Training rows, then validation rows."""
        return list(itertools.chain(*self.train.values(), *self.validation.values()))

    @property
    def files(self) -> dict[str, Rows]:
        """Training and validation files; one that is both is there once."""
        return {**self.train, **self.validation}


@dataclass(frozen=True)
class File:
    """What a file says about itself, and its first rows."""

    columns: set[str]
    count: int
    rows: Rows


def check(cfg: DictConfig) -> tuple[Sample, list[str]]:
    """Check training and validation files.

    Returns:
        The first rows of each, and one line for each passed check.

    Raises:
        PreflightError: a file that is missing, unreadable, empty, or has not the columns or prompts that verl needs;
            fewer rows than a batch.
    """
    if OmegaConf.select(cfg, "data.custom_cls.path"):
        return Sample(), [f"data: left to your data set class {cfg.data.custom_cls.path}"]
    rows, lines = [], []
    for split, limit in (("train", "train_max_samples"), ("val", "val_max_samples")):
        key = f"data.{split}_files"
        first, count = check_files(cfg, key)
        rows.append(first)
        if count is None:
            lines.append(f"{key}: remote, left to verl")
            continue
        wanted = cfg.data.get(limit, -1)
        if split == "train":
            _check_batch(cfg, count if wanted is None or wanted < 0 else min(count, wanted))
        lines.append(f"{key}: {count} rows with prompt, data source and ground truth")
    return Sample(*rows), lines


def check_files(cfg: DictConfig, key: str) -> tuple[dict[str, Rows], int | None]:
    """First rows of each file at ``key`` and the number of all rows; None where a file is not on this machine."""
    paths = named_files(cfg, key)
    if any("://" in path for path in paths):
        return {}, None
    first, count = {}, 0
    for path in paths:
        found = _read(key, path)
        _check_columns(cfg, key, path, found.columns)
        _check_prompts(key, path, found.rows, cfg.data.prompt_key)
        first[path] = found.rows
        count += found.count
    return first, count


def named_files(cfg: DictConfig, key: str) -> list[str]:
    """The files at ``key``, which is one name or a list of names.

    Raises:
        PreflightError: none is named.
    """
    value = OmegaConf.select(cfg, key)
    paths = list(value) if isinstance(value, list | tuple | ListConfig) else [value]
    if not paths or any(not isinstance(path, str) or not path for path in paths):
        raise PreflightError(
            key,
            value,
            "no data set is named",
            expected="a file, or a list of files",
            hint=f"Set {key}=<file>.parquet, or try the built-in task with experiment=cpu_arithmetic",
        )
    return paths


def _read(key: str, path: str) -> File:
    hint = f"Set {key} to your data set, or make one with `aent-verl prepare`"
    if not os.path.isfile(path):
        if path.startswith("~"):
            hint = f"verl does not expand '~': write {os.path.expanduser(path)}, if that is where it is"
        raise PreflightError(key, path, "there is no such file", expected="a file that exists", hint=hint)
    suffix = os.path.splitext(path)[1]
    if suffix not in FORMATS:
        raise PreflightError(
            key, path, "verl does not know this format", expected=f"a name that ends in {', '.join(FORMATS)}", hint=hint
        )
    try:
        found = _read_parquet(path) if suffix == ".parquet" else _read_json(path)
    except Exception as error:
        raise PreflightError(
            key,
            path,
            f"the file cannot be read ({type(error).__name__}: {error})",
            expected=f"a {suffix[1:]} file",
            hint="It may be damaged or only half copied: make it again",
        ) from error
    if found.count == 0:
        raise PreflightError(key, path, "the file has no rows", expected="at least one row", hint=hint)
    return found


def _read_parquet(path: str) -> File:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        columns = set(file.schema_arrow.names)
        # Images and the like stay where they are.
        light = [name for name in file.schema_arrow.names if name not in ("images", "videos", "audios")]
        batch = next(file.iter_batches(batch_size=SAMPLE, columns=light), None)
        return File(columns, file.metadata.num_rows, [] if batch is None else batch.to_pylist())


def _read_json(path: str) -> File:
    """JSON lines, or one array of objects."""
    with open(path, encoding="utf-8") as file:
        start = file.read(1)
        file.seek(0)
        rows: Iterable[Any] = json.load(file) if start == "[" else map(json.loads, filter(str.strip, file))
        rows = iter(rows)
        first = list(itertools.islice(rows, SAMPLE))
        count = len(first) + sum(1 for _ in rows)
    if not all(isinstance(row, dict) for row in first):
        raise ValueError("its rows are not objects")
    return File(set().union(*first), count, first)


def _check_columns(cfg: DictConfig, key: str, path: str, columns: set[str]) -> None:
    # verl's reward loop reads data_source under that name, whatever data.reward_fn_key says.
    needed = {
        cfg.data.prompt_key: "data.prompt_key",
        cfg.data.reward_fn_key: "data.reward_fn_key",
        "data_source": "read by verl's reward loop",
        "reward_model": '{"ground_truth": ...}, read by verl\'s reward loop',
    }
    missing = [f"{name!r} ({why})" for name, why in needed.items() if name not in columns]
    if missing:
        raise PreflightError(
            key,
            path,
            f"the file has no column {', '.join(missing)}",
            expected=f"the columns {', '.join(map(repr, needed))}, it has {', '.join(map(repr, sorted(columns)))}",
            hint="Convert the file, or name its columns with data.prompt_key and data.reward_fn_key",
        )


def _check_prompts(key: str, path: str, rows: Rows, prompt_key: str) -> None:
    for index, row in enumerate(rows):
        prompt = row.get(prompt_key)
        if not isinstance(prompt, list) or not prompt or not all(map(_is_message, prompt)):
            raise PreflightError(
                key,
                path,
                f"{prompt_key!r} of row {index} is {_short(prompt)}",
                expected='chat messages, as in [{"role": "user", "content": "..."}]',
                hint="Convert the file, or name another column with data.prompt_key",
            )


def _is_message(message: Any) -> bool:
    return (
        isinstance(message, Mapping)
        and isinstance(message.get("role"), str)
        and isinstance(message.get("content"), str | list)
    )


def _check_batch(cfg: DictConfig, rows: int) -> None:
    # verl drops a last batch that is not full, so that too few rows mean no batch at all.
    for name in ("train_batch_size", "gen_batch_size"):
        size = cfg.data.get(name)
        if size is not None and rows < size:
            raise PreflightError(
                f"data.{name}",
                size,
                f"the training data has only {rows} rows",
                expected=f"at most {rows}",
                hint=f"Set data.{name}={rows} or lower, or train on more data (see data.train_max_samples, too)",
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
