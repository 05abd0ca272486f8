"""Every row of a data file, a batch at a time as Arrow columns, and single rows by their number.

Rows are numbered from 0 within their file; blank lines of JSON files do not count.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json as paj
import pyarrow.parquet as pq

# Rows of a JSON file that say which columns and types to expect.
_TYPED_BY = 64
_CHUNK_ROWS = 20_000
_BLOCK_BYTES = 8 << 20
# A JSON array is parsed whole, in Python, in over a second for 64 MiB; of a larger one only so much is read.
_ARRAY_BYTES = 16 << 20
_BEGINNING = 4 << 20
_BETWEEN_ITEMS = re.compile(r"[\s,]*")

Rows = list[dict[str, Any]]


def columns(path: str) -> set[str]:
    """Names of the file's columns; of a JSON file those of its first rows."""
    if path.endswith(".parquet"):
        return set(pq.read_schema(path).names)
    return set().union(*itertools.islice(_json_rows(path), _TYPED_BY))


def read_in_part(path: str) -> bool:
    """Whether only the beginning of this file is read: of a large JSON array, which cannot be read in pieces."""
    return not path.endswith(".parquet") and os.path.getsize(path) > _ARRAY_BYTES and _is_array(path)


def batches(path: str, names: Sequence[str], *, fast: bool = True) -> Iterator[pa.RecordBatch]:
    """Batches of rows, with those of the columns ``names`` that the file has.

    Where a file holds values of several types in one place, which Arrow has no type for, columns come as `_plain`
    leaves them.

    Args:
        path: a file that ends in .parquet, .json or .jsonl.
        names: the columns.
        fast: of records in JSON lines, read only the names that the first rows have: others come as null.

    Raises:
        ValueError, OSError: the file cannot be read.
    """
    for table in _parquet_tables(path, names) if path.endswith(".parquet") else _json_tables(path, names, fast=fast):
        yield from table.to_batches()


def take(path: str, names: Sequence[str], numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
    """Rows by their numbers, as verl will see them, with those of the columns ``names`` that the file has."""
    wanted = sorted(set(numbers))
    return (_take_parquet if path.endswith(".parquet") else _take_json)(path, names, wanted)


def _parquet_tables(path: str, names: Sequence[str]) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        present = [name for name in names if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=present)
            yield plain_table(_decoded(table), present) if _holds_json(table.schema) else table


def _take_parquet(path: str, names: Sequence[str], wanted: Sequence[int]) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    start = 0
    with pq.ParquetFile(path) as file:
        present = [name for name in names if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            here = [number for number in wanted if start <= number < end]
            if here:
                table = file.read_row_group(group, columns=present).take([number - start for number in here])
                found.update(zip(here, _decoded(table), strict=True))
            start = end
    return found


def _holds_json(schema: pa.Schema) -> bool:
    """Whether values of several types are stored as JSON texts, as `datasets` does; verl gets what they stand for."""
    return "arrow.json" in str(schema)


def _decoded(table: pa.Table) -> Rows:
    rows: Rows = table.to_pylist()
    if not _holds_json(table.schema):
        return rows
    import datasets

    features = datasets.Features.from_arrow_schema(table.schema)
    return [features.decode_example(row) for row in rows]


def _json_tables(path: str, names: Sequence[str], *, fast: bool) -> Iterator[pa.Table]:
    read = 0
    if fast and not _is_array(path):
        try:
            for batch in _arrow_batches(path, names):
                yield pa.Table.from_batches([batch])
                read += batch.num_rows
            return
        except pa.lib.ArrowException:
            pass  # values of several types, or no JSON at all: what follows reads the former and names the latter
    rows = itertools.islice(_json_rows(path), read, None)
    while chunk := list(itertools.islice(rows, _CHUNK_ROWS)):
        yield plain_table(chunk, names)


def _arrow_batches(path: str, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Batches of JSON lines in the types of the first rows, anything else in them left out."""
    first = list(itertools.islice(_json_rows(path), _TYPED_BY))
    present = [name for name in names if any(name in row for row in first)]
    schema = pa.Table.from_pylist([{name: row.get(name) for name in present} for row in first]).schema
    with paj.open_json(
        path,
        read_options=paj.ReadOptions(block_size=_BLOCK_BYTES),
        parse_options=paj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
    ) as reader:
        yield from reader


def _take_json(path: str, names: Sequence[str], wanted: Sequence[int]) -> dict[int, dict[str, Any]]:
    numbers, end = set(wanted), max(wanted, default=-1) + 1
    if _is_array(path):
        rows = {number: row for number, row in enumerate(_json_rows(path)) if number in numbers}
    else:
        with open(path, encoding="utf-8-sig") as file:
            lines = itertools.islice(filter(str.strip, file), end)
            rows = {number: json.loads(line) for number, line in enumerate(lines) if number in numbers}
    return {number: {name: row[name] for name in names if name in row} for number, row in rows.items()}


def _is_array(path: str) -> bool:
    with open(path, encoding="utf-8-sig") as file:
        return file.read(4096).lstrip().startswith("[")


def _json_rows(path: str) -> Iterator[dict[str, Any]]:
    """JSON lines, or one array of objects, see `read_in_part`."""
    # verl's reader takes a byte-order mark, too.
    with open(path, encoding="utf-8-sig") as file:
        if read_in_part(path):
            rows: Iterable[Any] = _first_items(file.read(_BEGINNING))
        else:
            rows = json.load(file) if _is_array(path) else map(json.loads, filter(str.strip, file))
        for number, row in enumerate(rows):
            if not isinstance(row, dict):
                raise ValueError(f"row {number} is not an object")
            yield row


def _first_items(text: str) -> Iterator[Any]:
    """Items of the JSON array whose beginning this is; the last one, which may be cut off, is left out."""
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    while True:
        try:
            item, position = decoder.raw_decode(text, _BETWEEN_ITEMS.match(text, position).end())  # type: ignore[union-attr]
        except json.JSONDecodeError:
            return
        yield item


def plain_table(rows: Rows, names: Sequence[str]) -> pa.Table:
    """Columns of rows, whatever types stand in one place, as `_plain` leaves them."""
    present = [name for name in names if any(name in row for row in rows)]
    return pa.table({name: pa.array(_plain([row.get(name) for row in rows])) for name in present})


def _plain(values: Sequence[Any]) -> list[Any]:
    """A column with each value, message content and ground truth as text, and null where it has another form."""
    form = next((type(value) for value in values if isinstance(value, Mapping | list)), None)
    if form is None:
        return [_text(value) for value in values]
    return [_record(value) if form is not list else _records(value) for value in values]


def _records(value: Any) -> list[Any] | None:
    return [_record(item) for item in value] if isinstance(value, list) else None


def _record(value: Any) -> dict[str, Any] | None:
    return {name: _text(item) for name, item in value.items()} if isinstance(value, Mapping) else None


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if value != value or (isinstance(value, Mapping) and all(item is None for item in value.values())):
        return None
    return json.dumps(value, default=str) if value != [] else ""
