"""Every row of a data file: what it lacks, and which rows to look at more closely.

A file is read a batch at a time as Arrow columns, and single rows by their number. Rows are numbered from 0 within
their file; blank lines of JSON files do not count.
"""

import functools
import itertools
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as paj
import pyarrow.parquet as pq

# Rows of a JSON file that say which columns and types to expect, and how much of it is read at a time.
_TYPED_BY = 64
_CHUNK_ROWS, _BLOCK_BYTES = 20_000, 8 << 20
# A JSON array is parsed whole, in Python, in over a second for 64 MiB; of a larger one only so much is read.
_ARRAY_BYTES = 16 << 20
_BEGINNING = 4 << 20
_BETWEEN_ITEMS = re.compile(r"[\s,]*")
# What is looked at more closely in each file: rows at its beginning, rows with most text, rows of each data source.
SAMPLE, LONGEST = 64, 8
PER_SOURCE, MOST_SOURCES = 3, 64
_NAMED = 5
# Names that verl's reward loop reads; no setting changes them.
SOURCE, REWARD, TRUTH = "data_source", "reward_model", "ground_truth"
# What rows may lack.
PROMPTS, RECORDS, TRUTHS, FILLED, SOURCES = "prompts", "records", "truths", "filled truths", "sources"

Rows = list[dict[str, Any]]


def columns(path: str) -> set[str]:
    """Name the file's columns; of a JSON file those of its first rows."""
    if path.endswith(".parquet"):
        return set(pq.read_schema(path).names)
    return set().union(*itertools.islice(_json_rows(path), _TYPED_BY))


def read_in_part(path: str) -> bool:
    """Return whether only the beginning is read: of a large JSON array, which cannot be read in pieces."""
    return not path.endswith(".parquet") and os.path.getsize(path) > _ARRAY_BYTES and _is_array(path)


def batches(path: str, names: Sequence[str], *, fast: bool = True) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows, with those of the columns ``names`` that the file has.

    Where a file holds values of several types in one place, for which Arrow has no type, columns come as `_plain`
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
    """Read rows by their numbers, as verl will see them, with those of the columns ``names`` that the file has."""
    return (_take_parquet if path.endswith(".parquet") else _take_json)(path, names, sorted(set(numbers)))


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
            if here := [number for number in wanted if start <= number < end]:
                table = file.read_row_group(group, columns=present).take([number - start for number in here])
                found.update(zip(here, _decoded(table), strict=True))
            start = end
    return found


def _holds_json(schema: pa.Schema) -> bool:
    """Return whether values of mixed types are stored as JSON, as `datasets` does; verl gets the decoded values."""
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
    """Yield batches of JSON lines in the types of the first rows, without anything else in them."""
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
    """Yield the rows of JSON lines, or of one array of objects, see `read_in_part`."""
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
    """Yield items of the JSON array whose beginning this is, except the last one, which may be cut off."""
    decoder, position = json.JSONDecoder(), text.index("[") + 1
    while True:
        try:
            item, position = decoder.raw_decode(text, _BETWEEN_ITEMS.match(text, position).end())  # type: ignore[union-attr]
        except json.JSONDecodeError:
            return
        yield item


def plain_table(rows: Rows, names: Sequence[str]) -> pa.Table:
    """Turn rows into columns, whatever types are in one place, as `_plain` leaves them."""
    present = [name for name in names if any(name in row for row in rows)]
    return pa.table({name: pa.array(_plain([row.get(name) for row in rows])) for name in present})


def _plain(values: Sequence[Any]) -> list[Any]:
    """Turn each value, message content and ground truth of a column into text, and other forms into null."""
    form = next((type(value) for value in values if isinstance(value, Mapping | list)), None)
    if form is list:
        return [[_record(item) for item in value] if isinstance(value, list) else None for value in values]
    return [(_text if form is None else _record)(value) for value in values]


def _record(value: Any) -> dict[str, Any] | None:
    return {name: _text(item) for name, item in value.items()} if isinstance(value, Mapping) else None


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if value != value or (isinstance(value, Mapping) and all(item is None for item in value.values())):
        return None
    return json.dumps(value, default=str) if value != [] else ""


@dataclass
class Found:
    """Rows that have something in common.

    Attributes:
        count: how many.
        first: numbers of the first few.
    """

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, mask: pa.Array, start: int) -> None:
        """Add the rows that are true in a batch that begins at row ``start``."""
        numbers = mask.to_numpy(zero_copy_only=False).nonzero()[0]
        self.first += [start + int(number) for number in numbers[: _NAMED - len(self.first)]]
        self.count += len(numbers)

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.first))
        more = self.count - len(self.first)
        return f"row{'s' * (self.count > 1)} {numbers}" + (f" and {more} more" if more else "")


@dataclass
class Scan:
    """What one pass over a file found.

    Attributes:
        count: its rows.
        lacking: rows that lack something, by what it is: ``PROMPTS``, a list of messages that each have a role and a
            content; ``RECORDS``, a reward_model that is a record; ``TRUTHS``, a ground truth that is not null, and
            ``FILLED``, one that is neither an empty text nor an empty list; ``SOURCES``, a data source; and a value in
            each column that needs one where it exists, by its name.
        samples: numbers of the rows to look at more closely.
        distinct: data sources, with the number of rows that were taken of each.
    """

    count: int = 0
    lacking: dict[str, Found] = field(default_factory=lambda: defaultdict(Found))
    samples: set[int] = field(default_factory=set)
    distinct: dict[Any, int] = field(default_factory=dict)


def scan(path: str, prompt_key: str, others: Sequence[str]) -> Scan:
    """Read the file's prompts, data sources and ground truths.

    Args:
        path: a file that `batches` reads.
        prompt_key: the column of prompts.
        others: columns that must not be null.

    Raises:
        ValueError, OSError: the file cannot be read.
    """
    names = list(dict.fromkeys([prompt_key, SOURCE, REWARD, *others]))
    found = _scan(batches(path, names), prompt_key, others)
    numbers = {number for rows in found.lacking.values() for number in rows.first}
    if path.endswith(".parquet") or not numbers:
        return found
    # Do the first rows that seem to lack something lack it? The fast way may not look where it is.
    whole = plain_table(list(take(path, names, numbers).values()), names)
    again = _scan(whole.to_batches(), prompt_key, others)
    if all(again.lacking[kind].count >= len(rows.first) for kind, rows in found.lacking.items()):
        return found
    return _scan(batches(path, names, fast=False), prompt_key, others)


def _scan(batches: Iterable[pa.RecordBatch], prompt_key: str, others: Sequence[str]) -> Scan:
    found = Scan()
    sizes = [np.zeros(0, dtype=np.int64)]
    for batch in batches:
        prompts, records, sources = (_column(batch, name) for name in (prompt_key, REWARD, SOURCE))
        truths = _field(records, TRUTH)
        masks = {
            PROMPTS: not_messages(prompts),
            RECORDS: _null_or_not(records, pa.types.is_struct(records.type)),
            TRUTHS: is_missing(truths),
            FILLED: is_empty(truths),
            SOURCES: pc.or_(is_missing(sources), is_empty(sources)),
            **{name: _column(batch, name).is_null() for name in others},
        }
        for kind, mask in masks.items():
            found.lacking[kind].add(mask, found.count)
        _add_sources(found, sources)
        sizes.append(text_sizes(prompts))
        found.count += len(batch)
    longest = (-np.concatenate(sizes)).argsort(kind="stable")[:LONGEST]
    found.samples.update(range(min(SAMPLE, found.count)), longest.tolist())
    return found


def not_messages(array: pa.Array) -> pa.Array:
    """Mark values other than messages that all have a role and a content, `[N] -> [N]` bools."""
    if not _is_list(array.type) or not pa.types.is_struct(array.type.value_type):
        return _null_or_not(array, False)
    messages = array.flatten()
    role, content = _field(messages, "role"), _field(messages, "content")
    silent = _null_or_not(content, _is_text(content.type) or _is_list(content.type))
    # A message that calls tools has no text.
    silent = pc.and_(silent, is_missing(_field(messages, "tool_calls")))
    faulty = pc.or_(silent, _null_or_not(role, _is_text(role.type))).to_numpy(zero_copy_only=False)
    mask = pc.fill_null(pc.equal(pc.list_value_length(array), 0), True).to_numpy(zero_copy_only=False).copy()
    mask[pc.list_parent_indices(array).to_numpy()[faulty]] = True
    return pa.array(mask)


def _null_or_not(array: pa.Array, right: bool) -> pa.Array:
    """Mark nulls, or everything if the array is not of the right type, `[N] -> [N]` bools."""
    return array.is_null() if right else pa.array([True] * len(array), pa.bool_())


def is_missing(array: pa.Array) -> pa.Array:
    """Mark values that are null, NaN or a record of nothing but those, `[N] -> [N]` bools."""
    if not pa.types.is_struct(array.type):
        return array.is_null(nan_is_null=pa.types.is_floating(array.type))
    return functools.reduce(pc.and_, map(is_missing, array.flatten()), _null_or_not(array, False))


def is_empty(array: pa.Array) -> pa.Array:
    """Mark texts and lists with nothing in them, `[N] -> [N]` bools."""
    if not _is_text(array.type) and not _is_list(array.type):
        return pa.array([False] * len(array), pa.bool_())
    length = pc.binary_length if _is_text(array.type) else pc.list_value_length
    return pc.fill_null(pc.equal(length(array), 0), False)


def text_sizes(array: pa.Array) -> np.ndarray[Any, Any]:
    """Count the bytes of all text within each value, `[N] -> [N]`."""
    if _is_text(array.type):
        return np.asarray(pc.fill_null(pc.binary_length(array), 0), dtype=np.int64)
    if _is_list(array.type):
        parents = pc.list_parent_indices(array).to_numpy()
        return np.bincount(parents, text_sizes(array.flatten()), minlength=len(array)).astype(np.int64)
    children = array.flatten() if pa.types.is_struct(array.type) else []
    return sum(map(text_sizes, children), np.zeros(len(array), dtype=np.int64))


def _add_sources(found: Scan, array: pa.Array) -> None:
    """Note the data sources of a batch that begins at row ``found.count``, and take the first few rows of each."""
    if pa.types.is_nested(array.type):
        return
    encoded = array.dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy()
    for code, source in enumerate(encoded.dictionary.to_pylist()):
        taken = found.distinct.setdefault(source, 0)
        if taken < PER_SOURCE and (taken or sum(map(bool, found.distinct.values())) < MOST_SOURCES):
            new = (codes == code).nonzero()[0][: PER_SOURCE - taken]
            found.samples.update(found.count + int(number) for number in new)
            found.distinct[source] += len(new)


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name not in batch.schema.names:
        return pa.nulls(len(batch))
    array = batch.column(name)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _field(array: pa.Array, name: str) -> pa.Array:
    """Take a field of records; nulls if they do not have it."""
    known = pa.types.is_struct(array.type) and array.type.get_field_index(name) >= 0
    return pc.struct_field(array, name) if known else pa.nulls(len(array))


def _is_text(kind: pa.DataType) -> bool:
    return any(is_one(kind) for is_one in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
