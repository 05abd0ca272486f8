"""Rows of a data set, one dict a row, from the Hugging Face hub, a file, or a folder that `datasets` wrote."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent_verl.data.prepare.table import DataSet

SUFFIXES = (".parquet", ".jsonl", ".json")
_SAVED_BY_DATASETS = ("dataset_dict.json", "dataset_info.json")

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """A split that has been opened: its columns, and a function that reads some of them, row by row."""

    columns: list[str]
    read: Callable[[Sequence[str]], Iterator[Row]]


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        identity: What tells this source from another one, as plain JSON values, for `prepare.json`.
        open: Opens one of our splits.
        splits: Our splits that it has.
    """

    identity: dict[str, Any]
    open: Callable[[str], Rows]
    splits: tuple[str, ...]


def from_hub(entry: DataSet, *, config: str | None, revision: str | None) -> Source:
    """A data set of the table on the hub.

    Args:
        entry: The data set.
        config: Instead of the table's.
        revision: Instead of the table's. Without any, the newest, whose commit is asked for.

    Raises:
        OSError: from `Source.open`, when the hub cannot be reached or has no such data set; says what to do.
    """
    config, revision = config or entry.config, revision or entry.revision or _newest(entry.repository)

    def open_split(split: str) -> Rows:
        import datasets

        try:
            loaded = datasets.load_dataset(entry.repository, config, split=entry.splits[split], revision=revision)
        except Exception as error:  # a dozen kinds, of four libraries, and all mean the same to the user
            raise OSError(_hub_failure(entry, config, entry.splits[split], revision, error)) from error
        return _of_dataset(loaded)

    identity = {"hub": entry.repository, "config": config, "revision": revision}
    return Source(identity, open_split, tuple(entry.splits))


def from_files(named: Mapping[str, Path], *, entry: DataSet | None = None, config: str | None = None) -> Source:
    """Local files, or folders that `datasets` saved, each holding one split; or one folder that holds all of them.

    Args:
        named: Our splits to files or folders of one split, or "" to a folder of all.
        entry: The data set of the table that they are, which names the splits of a folder.
        config: Configuration of a folder, instead of the table's.

    Raises:
        FileNotFoundError: a file that is not there.
    """
    for path in named.values():
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")
    identity = {split or "folder": {"path": path.name, "sha256": sha256(path)} for split, path in named.items()}
    if "" in named:
        assert entry is not None
        return _from_folder(named[""], identity, entry, config or entry.config)
    return Source(identity, lambda split: _open_one(named[split]), tuple(named))


def open_file(path: str | Path) -> Rows:
    """A parquet file, JSON lines, or a JSON array of objects.

    Raises:
        ValueError: another kind of file, or a damaged one; JSON lines are named by their number.
        OSError: it cannot be read.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path}: files end in {', '.join(SUFFIXES)}; convert this one")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".parquet":
        return _of_parquet(path)
    first = next(_json_rows(path), None)
    if first is None:
        raise ValueError(f"{path}: no rows")
    return Rows(list(first), lambda columns: _select(_json_rows(path), columns))


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of a folder's files; hidden ones do not count."""
    digest = hashlib.sha256()
    if path.is_dir():
        for member in sorted(path.rglob("*")):
            name = member.relative_to(path)
            if member.is_file() and not any(part.startswith(".") for part in name.parts):
                digest.update(f"{name.as_posix()} {sha256(member)}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(2**20), b""):
            digest.update(block)
    return digest.hexdigest()


def _from_folder(folder: Path, identity: dict[str, Any], entry: DataSet, config: str | None) -> Source:
    import datasets

    saved = _load_saved(folder)
    if isinstance(saved, datasets.Dataset):
        if len(entry.splits) != 1:
            raise ValueError(f"{folder} holds one split; say which: --from train={folder} or test={folder}")
        saved = datasets.DatasetDict(dict.fromkeys(entry.splits.values(), saved))

    def open_split(split: str) -> Rows:
        hub_split = entry.splits[split]
        if saved is None:
            try:
                return _of_dataset(datasets.load_dataset(str(folder), config, split=hub_split))
            except Exception as error:
                raise ValueError(
                    f"{folder}: `datasets` cannot read its split {hub_split!r} ({type(error).__name__}: {error}); name "
                    f"the file itself: --from {split}=FILE"
                ) from error
        if hub_split not in saved:
            raise ValueError(f"{folder} has no split {hub_split!r}, only {', '.join(saved)}")
        return _of_dataset(saved[hub_split])

    return Source(identity, open_split, tuple(entry.splits))


def _open_one(path: Path) -> Rows:
    import datasets

    if not path.is_dir():
        return open_file(path)
    saved = _load_saved(path)
    if not isinstance(saved, datasets.Dataset):
        raise ValueError(f"{path} is no folder of a single split that `datasets` saved; name a file, or no split")
    return _of_dataset(saved)


def _load_saved(folder: Path) -> Any:
    """What `save_to_disk` wrote into the folder, None where something else is in it."""
    import datasets

    if not any((folder / name).is_file() for name in _SAVED_BY_DATASETS):
        return None
    return datasets.load_from_disk(str(folder))


def _of_dataset(loaded: Any) -> Rows:
    # Traces and pictures in other columns can be far larger than what is needed.
    return Rows(loaded.column_names, lambda columns: iter(loaded.select_columns(list(columns))))


def _of_parquet(path: Path) -> Rows:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = pq.read_schema(path).names
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: not a readable parquet file ({error})") from error

    def read(wanted: Sequence[str]) -> Iterator[Row]:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=list(wanted)):
                yield from batch.to_pylist()

    return Rows(columns, read)


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:  # programs of Windows begin a file with a byte-order mark
        start = file.read(1)
        file.seek(0)
        if start == "[":
            yield from _json_array(path, file.read())
            return
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}): {line.strip()[:80]!r}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {number}: {line.strip()[:80]!r} is not an object with columns")
            yield row


def _json_array(path: Path, text: str) -> list[Row]:
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, item {number}: {str(row)[:80]!r} is not an object with columns")
    return rows


def _select(rows: Iterator[Row], columns: Sequence[str]) -> Iterator[Row]:
    return ({column: row.get(column) for column in columns} for row in rows)


def _newest(repository: str) -> str | None:
    """The newest commit, None when the hub does not say: then loading decides, from its cache or with its error."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(repository, timeout=20).sha
    except Exception:
        return None


def _hub_failure(entry: DataSet, config: str | None, split: str, revision: str | None, error: Exception) -> str:
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    cause = next(iter(str(error).strip().splitlines()), "")
    return (
        f"{entry.name}: cannot load {entry.repository} (config {config or 'default'}, split {split}, revision "
        f"{revision or 'newest'}) from {endpoint}: {type(error).__name__}: {cause}\n"
        "  behind a mirror: set HF_ENDPOINT=https://...; already in the cache of this machine: set HF_HUB_OFFLINE=1\n"
        f"  without the hub: fetch it elsewhere with `hf download {entry.repository} --repo-type dataset --local-dir "
        f"DIR`, copy it here, then `aent-verl prepare {entry.name} --from DIR`, or --from FILE for a single parquet "
        "or JSON lines file of it"
    )
