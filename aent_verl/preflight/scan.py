"""What the rows of a data file lack, and which of them to look at more closely."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aent_verl.preflight import rows

# What is looked at more closely in each file: rows at its beginning, rows with most text, rows of each data source.
SAMPLE = 64
LONGEST = 8
PER_SOURCE = 3
SOURCES = 64
_NAMED = 5
# Names that verl's reward loop reads; no setting changes them.
SOURCE, REWARD, TRUTH = "data_source", "reward_model", "ground_truth"


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
        count = mask.true_count
        if count and len(self.first) < _NAMED:
            numbers = mask.to_numpy(zero_copy_only=False).nonzero()[0][: _NAMED - len(self.first)]
            self.first += [start + int(number) for number in numbers]
        self.count += count

    def __str__(self) -> str:
        numbers = ", ".join(map(str, self.first))
        more = self.count - len(self.first)
        return f"row{'s' * (self.count > 1)} {numbers}" + (f" and {more} more" if more else "")


@dataclass
class Scan:
    """What one pass over a file found.

    Attributes:
        count: its rows.
        prompts: rows without a list of messages that each have a role and a content.
        records: rows whose reward_model is not a record.
        truths: rows whose ground truth is null; ``empty`` those where it is an empty text or list.
        sources: rows without a data source.
        nulls: rows that have nothing in a column that needs a value where it exists, by column.
        samples: numbers of the rows to look at more closely.
        distinct: data sources, with the number of rows that were taken of each.
    """

    count: int = 0
    prompts: Found = field(default_factory=Found)
    records: Found = field(default_factory=Found)
    truths: Found = field(default_factory=Found)
    empty: Found = field(default_factory=Found)
    sources: Found = field(default_factory=Found)
    nulls: dict[str, Found] = field(default_factory=dict)
    samples: set[int] = field(default_factory=set)
    distinct: dict[Any, int] = field(default_factory=dict)

    @property
    def kinds(self) -> list[Found]:
        """The rows that lack something, by what it is."""
        return [self.prompts, self.records, self.truths, self.empty, self.sources, *self.nulls.values()]


def scan(path: str, prompt_key: str, others: Sequence[str]) -> Scan:
    """Read the file's prompts, data sources and ground truths.

    Args:
        path: a file that `rows.batches` reads.
        prompt_key: the column of prompts.
        others: columns that must not be null.

    Raises:
        ValueError, OSError: the file cannot be read.
    """
    names = list(dict.fromkeys([prompt_key, SOURCE, REWARD, *others]))
    found = _scan(rows.batches(path, names), prompt_key, others)
    if path.endswith(".parquet") or _is_true(found, path, names, prompt_key, others):
        return found
    return _scan(rows.batches(path, names, fast=False), prompt_key, others)


def _is_true(found: Scan, path: str, names: Sequence[str], prompt_key: str, others: Sequence[str]) -> bool:
    """Whether the first rows that seem to lack something do: it may stand where the fast way does not look."""
    numbers = {number for kind in found.kinds for number in kind.first}
    if not numbers:
        return True
    whole = rows.plain_table(list(rows.take(path, names, numbers).values()), names)
    again = _scan(whole.to_batches(), prompt_key, others)
    return all(new.count >= len(old.first) for new, old in zip(again.kinds, found.kinds, strict=True))


def _scan(batches: Iterable[pa.RecordBatch], prompt_key: str, others: Sequence[str]) -> Scan:
    found = Scan(nulls={name: Found() for name in others})
    longest: list[tuple[int, int]] = []
    for batch in batches:
        column = functools.partial(_column, batch)
        prompts = column(prompt_key)
        found.prompts.add(not_messages(prompts), found.count)
        truths = _field(column(REWARD), TRUTH)
        found.records.add(not_records(column(REWARD)), found.count)
        found.truths.add(is_missing(truths), found.count)
        found.empty.add(is_empty(truths), found.count)
        found.sources.add(pc.or_(is_missing(column(SOURCE)), is_empty(column(SOURCE))), found.count)
        for name in others:
            found.nulls[name].add(column(name).is_null(), found.count)
        _add_sources(found, column(SOURCE))
        longest = _longest(longest, text_sizes(prompts), found.count)
        found.count += len(batch)
    found.samples.update(range(min(SAMPLE, found.count)), (number for _, number in longest))
    return found


def not_messages(array: pa.Array) -> pa.Array:
    """Whether each value is something else than messages which all have a role and a content, `[N] -> [N]` bools."""
    if not _is_list(array.type) or not pa.types.is_struct(array.type.value_type):
        return pa.array(np.ones(len(array), dtype=bool))
    bad = pc.fill_null(pc.equal(pc.list_value_length(array), 0), True)
    messages = array.flatten()
    role, content = _field(messages, "role"), _field(messages, "content")
    silent = (
        is_missing(content) if _is_text(content.type) or _is_list(content.type) else pa.array([True] * len(content))
    )
    # A message that calls tools has no text.
    silent = pc.and_(silent, is_missing(_field(messages, "tool_calls")))
    faulty = pc.or_(silent, role.is_null() if _is_text(role.type) else pa.array([True] * len(role)))
    if not faulty.true_count:
        return bad
    parents = pc.list_parent_indices(array).to_numpy()[faulty.to_numpy(zero_copy_only=False)]
    mask = bad.to_numpy(zero_copy_only=False).copy()
    mask[parents] = True
    return pa.array(mask)


def _not_of(array: pa.Array, *kinds: Callable[[pa.DataType], bool]) -> pa.Array:
    return array.is_null() if any(kind(array.type) for kind in kinds) else pa.array([True] * len(array), pa.bool_())


def not_records(array: pa.Array) -> pa.Array:
    """Whether each value is something else than a record, `[N] -> [N]` bools."""
    return _not_of(array, pa.types.is_struct)


def is_missing(array: pa.Array) -> pa.Array:
    """Whether each value is null, NaN or a record of nothing but those, `[N] -> [N]` bools."""
    if not pa.types.is_struct(array.type):
        return array.is_null(nan_is_null=pa.types.is_floating(array.type))
    fields = [is_missing(child) for child in array.flatten()]
    return functools.reduce(pc.and_, fields, pa.array([True] * len(array), pa.bool_()))


def is_empty(array: pa.Array) -> pa.Array:
    """Whether each value is a text or a list with nothing in it, `[N] -> [N]` bools."""
    if _is_text(array.type):
        return pc.fill_null(pc.equal(pc.binary_length(array), 0), False)
    if _is_list(array.type):
        return pc.fill_null(pc.equal(pc.list_value_length(array), 0), False)
    return pa.array([False] * len(array), pa.bool_())


def text_sizes(array: pa.Array) -> np.ndarray[Any, Any]:
    """Bytes of all text within each value, `[N] -> [N]`."""
    if _is_text(array.type):
        return np.asarray(pc.fill_null(pc.binary_length(array), 0), dtype=np.int64)
    if _is_list(array.type):
        parents = pc.list_parent_indices(array).to_numpy()
        return np.bincount(parents, text_sizes(array.flatten()), minlength=len(array)).astype(np.int64)
    if pa.types.is_struct(array.type):
        return sum((text_sizes(child) for child in array.flatten()), np.zeros(len(array), dtype=np.int64))
    return np.zeros(len(array), dtype=np.int64)


def _longest(known: list[tuple[int, int]], sizes: np.ndarray[Any, Any], start: int) -> list[tuple[int, int]]:
    """The rows with most text of those known, each as (-size, number), and of a batch that begins at row ``start``."""
    floor = -known[-1][0] if len(known) == LONGEST else -1
    candidates = (sizes > floor).nonzero()[0]
    best = candidates[(-sizes[candidates]).argsort(kind="stable")[:LONGEST]]
    return heapq.nsmallest(LONGEST, [*known, *((-int(sizes[i]), start + int(i)) for i in best)])


def _add_sources(found: Scan, array: pa.Array) -> None:
    """Note the data sources of a batch that begins at row ``found.count``, and take the first few rows of each."""
    if pa.types.is_nested(array.type):
        return
    encoded = array.dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy()
    for code, source in enumerate(encoded.dictionary.to_pylist()):
        taken = found.distinct.setdefault(source, 0)
        if taken < PER_SOURCE and (taken or sum(map(bool, found.distinct.values())) < SOURCES):
            new = (codes == code).nonzero()[0][: PER_SOURCE - taken]
            found.samples.update(found.count + int(number) for number in new)
            found.distinct[source] += len(new)


def _column(batch: pa.RecordBatch, name: str) -> pa.Array:
    if name not in batch.schema.names:
        return pa.nulls(len(batch))
    array = batch.column(name)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _field(array: pa.Array, name: str) -> pa.Array:
    """A field of records; nulls where they do not have it."""
    known = pa.types.is_struct(array.type) and array.type.get_field_index(name) >= 0
    return pc.struct_field(array, name) if known else pa.nulls(len(array))


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)
