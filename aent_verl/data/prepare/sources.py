"""Rows of a data set, one dict a row, from the Hugging Face hub, a file, or a folder that `datasets` wrote.

The hub and folders are read by `datasets`. Single files are not: its JSON reader makes a date of an answer such as
2024-01-01 and a float of a long whole number, does not say which line is corrupt, and copies files to its cache.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent_verl._util import file_sha256
from aent_verl.data.prepare.table import DataSet

SUFFIXES = (".parquet", ".jsonl", ".json")

Row = dict[str, Any]


@dataclass(frozen=True)
class Rows:
    """A split that has been opened: its columns, and a function that reads some of them, row by row."""

    columns: list[str]
    read: Callable[[Sequence[str]], Iterable[Row]]


@dataclass(frozen=True)
class Source:
    """Where rows come from.

    Attributes:
        identity: What distinguishes this source from another one, as plain JSON values, for `prepare.json`.
        splits: The splits that it has, of "train" and "test".
        open: Opens one of them.
    """

    identity: dict[str, Any]
    splits: tuple[str, ...]
    open: Callable[[str], Rows]


def from_hub(name: str, entry: DataSet, *, config: str | None, revision: str | None) -> Source:
    """Take a data set of the table from the hub.

    Args:
        name: The data set.
        entry: What the table says about it.
        config: Instead of the table's.
        revision: Instead of the table's. Without any, the newest, whose commit is looked up.

    Raises:
        OSError: from `Source.open`, when the hub cannot be reached or has no such data set; says what to do.
    """
    repository, _, pinned = entry.hub.partition("@")
    config, revision = config or entry.config, revision or pinned or _newest(repository)

    def open_split(split: str) -> Rows:
        import datasets

        split = entry.hub_split or split
        try:
            return _of_dataset(datasets.load_dataset(repository, config, split=split, revision=revision))
        except Exception as error:  # a dozen kinds from four libraries; all mean the same to the user
            endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
            cause = next(iter(str(error).strip().splitlines()), "")
            raise OSError(
                f"{name}: cannot load {repository} (config {config or 'default'}, split {split}, revision "
                f"{revision or 'newest'}) from {endpoint}: {type(error).__name__}: {cause}\n"
                "  behind a mirror: set HF_ENDPOINT=https://...; if it is in this machine's cache: HF_HUB_OFFLINE=1\n"
                f"  without the hub: fetch it elsewhere with `hf download {repository} --repo-type dataset --local-dir "
                f"DIR`, copy it here, then `aent-verl prepare {name} --from DIR`, or --from FILE for one file of it"
            ) from error

    return Source({"hub": repository, "config": config, "revision": revision}, tuple(entry.rows), open_split)


def from_files(named: Mapping[str, Path], entry: DataSet, config: str | None = None) -> Source:
    """Take local files, or folders that `datasets` saved, each with one split; or one folder that has all of them.

    Args:
        named: Splits to files or folders of one split, or "" to a folder of all.
        entry: The data set that they are, which names the splits of a folder.
        config: Configuration of a folder, instead of the table's.

    Raises:
        FileNotFoundError: a file that is not there.
    """
    for path in named.values():
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file or folder")

    def open_split(split: str) -> Rows:
        if "" in named:
            return _of_dataset(_split_of_folder(named[""], split, entry, config or entry.config))
        if named[split].is_dir():
            return _of_dataset(_split_of_folder(named[split], "", DataSet(), None))
        return open_file(named[split])

    identity = {split or "folder": {"path": path.name, "sha256": sha256(path)} for split, path in named.items()}
    return Source(identity, tuple(entry.rows if "" in named else named), open_split)


def open_file(path: str | Path) -> Rows:
    """Open a parquet file, JSON lines, or a JSON array of objects.

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
    return Rows(list(first), lambda columns: ({name: row.get(name) for name in columns} for row in _json_rows(path)))


def sha256(path: Path) -> str:
    """Hash a file, or the names and contents of a folder's files; hidden ones do not count."""
    if not path.is_dir():
        return file_sha256(path)
    digest = hashlib.sha256()
    for member in sorted(path.rglob("*")):
        name = member.relative_to(path)
        if member.is_file() and not any(part.startswith(".") for part in name.parts):
            digest.update(f"{name.as_posix()} {file_sha256(member)}\n".encode())
    return digest.hexdigest()


def _split_of_folder(folder: Path, split: str, entry: DataSet, config: str | None) -> Any:
    """Load a split of a folder that has those of `entry`; without `split`, all of a folder that has a single one."""
    import datasets

    hub_split = entry.hub_split or split
    is_saved = any((folder / name).is_file() for name in ("dataset_dict.json", "dataset_info.json"))
    saved = datasets.load_from_disk(str(folder)) if is_saved else None
    if isinstance(saved, datasets.Dataset):
        if len(entry.rows) > 1:
            raise ValueError(f"{folder} holds one split; say which: --from train={folder} or test={folder}")
        return saved
    if not split:
        raise ValueError(f"{folder} is not a folder of a single split that `datasets` saved; name a file, or no split")
    if saved is None:
        try:
            return datasets.load_dataset(str(folder), config, split=hub_split)
        except Exception as error:
            raise ValueError(
                f"{folder}: `datasets` cannot read its {hub_split!r} ({type(error).__name__}: {error}); "
                f"name the file: --from {split}=FILE"
            ) from error
    if hub_split not in saved:
        raise ValueError(f"{folder} has no split {hub_split!r}, only {', '.join(saved)}")
    return saved[hub_split]


def _of_dataset(loaded: Any) -> Rows:
    # Traces and pictures in other columns can be far larger than what is needed.
    return Rows(loaded.column_names, lambda columns: loaded.select_columns(list(columns)))


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
    with path.open(encoding="utf-8-sig") as file:  # Windows programs begin a file with a byte-order mark
        array = file.read(1) == "["
        file.seek(0)
        found: Iterable[tuple[str, Any]]
        if array:
            found = ((f"item {number}", row) for number, row in enumerate(_parsed(file.read(), str(path))))
        else:
            lines = ((f"line {number}", line.strip()) for number, line in enumerate(file, start=1))
            found = ((where, _parsed(line, f"{path}, {where}", line)) for where, line in lines if line)
        for where, row in found:
            if not isinstance(row, dict):
                shown = json.dumps(row, ensure_ascii=False)[:80]
                raise ValueError(f"{path}, {where}: {shown!r} is not an object with columns")
            yield row


def _parsed(text: str, where: str, shown: str = "") -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON ({error})" + (f": {shown[:80]!r}" if shown else "")) from error


def _newest(repository: str) -> str | None:
    """Look up the newest commit; None when the hub does not answer: loading then uses its cache or fails."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(repository, timeout=20).sha
    except Exception:
        return None
