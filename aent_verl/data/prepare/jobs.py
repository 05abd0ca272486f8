"""One data set from request to rows: of the table, of a file of one's own, or from a generator."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from aent_verl.data.prepare import checks, generators, sources, table
from aent_verl.data.prepare.answers import EXTRACTORS
from aent_verl.data.prepare.checks import Finding
from aent_verl.data.prepare.rows import INSTRUCTION, Columns, Item, math_row, normalise, read_items
from aent_verl.data.prepare.sources import Row, Source
from aent_verl.data.tasks import reasoning_gym_data

_DEFAULT_SIZE = 1000
_SPLITS = ("train", "test")


@dataclass
class Outcome:
    """What a job made: rows and findings by split, how many rows were read, and remarks."""

    rows: dict[str, list[Row]] = field(default_factory=dict)
    findings: dict[str, list[Finding]] = field(default_factory=dict)
    read: dict[str, int] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


class Job(Protocol):
    """A data set to prepare."""

    name: str
    splits: tuple[str, ...]
    versions: tuple[str, ...]

    def request(self) -> dict[str, Any]:
        """Everything that decides the output, as plain JSON values, but for what is held out."""

    def test_keys(self) -> set[str]:
        """Normalised problems of the test split as read; they are held out of every training split."""

    def build(self, held_out: Mapping[str, str]) -> Outcome:
        """Rows in verl's format, none of the training rows among the normalised problems held out."""


@dataclass
class MathJob:
    """Problems with answers, from the hub or from files."""

    name: str
    source: Source
    columns: Columns
    splits: tuple[str, ...]
    options: argparse.Namespace
    published: Mapping[str, int]
    versions: tuple[str, ...] = ("datasets", "math-verify", "pyarrow")
    _items: dict[str, tuple[list[Item], int]] = field(default_factory=dict)

    def request(self) -> dict[str, Any]:
        """See `Job`."""
        limit = {"limit": self.options.limit, "seed": self.options.seed} if self.options.limit else {}
        columns = {**asdict(self.columns), "extract": self.columns.extract.__name__}
        return {
            "source": self.source.identity,
            "splits": list(self.splits),
            "columns": columns,
            "instruction": self._instruction,
            "system": self.options.system,
            "keep_unscorable": self.options.keep_unscorable,
            **limit,
        }

    def test_keys(self) -> set[str]:
        """See `Job`."""
        return {item.key for item in self._read("test")[0]} if "test" in self.splits else set()

    def build(self, held_out: Mapping[str, str]) -> Outcome:
        """See `Job`."""
        outcome = Outcome()
        for split in self.splits:
            items, outcome.read[split] = self._read(split)
            kept, findings = checks.check(
                items, split=split, held_out=held_out, keep_unscorable=self.options.keep_unscorable
            )
            if self.columns.keep:
                unwanted = outcome.read[split] - len(items)
                wanted = ", ".join(f"{column} = {value}" for column, value in self.columns.keep.items())
                findings.insert(0, Finding(f"not of the kind that is kept ({wanted})", unwanted, True, []))
            if split == "train":
                kept, drawn = checks.sample(kept, self.options.limit, seed=self.options.seed)
                findings += drawn
            if not kept:
                lines = "; ".join(f"{finding.count} of them: {finding.what}" for finding in findings)
                raise ValueError(f"{self.name}, {split}: none of {outcome.read[split]} rows is left; {lines}")
            outcome.findings[split] = findings
            outcome.rows[split] = [
                math_row(item, name=self.name, split=split, instruction=self._instruction, system=self.options.system)
                for item in kept
            ]
            outcome.remarks += self._remarks(split, outcome.read[split])
        return outcome

    @property
    def _instruction(self) -> str:
        return INSTRUCTION if self.options.instruction is None else self.options.instruction

    def _read(self, split: str) -> tuple[list[Item], int]:
        if split not in self._items:
            self._items[split] = read_items(
                self.source.open(split),
                self.columns,
                where=f"{self.name} ({split})",
                hint="Name the right ones with --problem COLUMN and --answer COLUMN; a dot leads into a nested record",
            )
        return self._items[split]

    def _remarks(self, split: str, read: int) -> list[str]:
        published = self.published.get(split, read)
        if published == read:
            return []
        return [f"{split} has {read:,} rows, {published:,} are published: a part of it, or another version"]


@dataclass
class GeneratorJob:
    """Questions of a reasoning-gym generator."""

    name: str
    config: dict[str, Any]
    options: argparse.Namespace
    versions: tuple[str, ...] = ("reasoning-gym", "pyarrow")

    @property
    def sizes(self) -> dict[str, int]:
        """Rows of each split."""
        train = _DEFAULT_SIZE if self.options.size is None else self.options.size
        return {"train": train, "test": self.options.test_size or 0}

    @property
    def splits(self) -> tuple[str, ...]:
        """See `Job`."""
        return tuple(split for split in _SPLITS if self.sizes[split])

    def request(self) -> dict[str, Any]:
        """See `Job`."""
        return {
            "source": {"reasoning_gym": self.name, "settings": self.config},
            "sizes": self.sizes,
            "seed": self.options.seed,
            "extract": self._extract,
            "instruction": self.options.instruction or "",
            "system": self.options.system,
        }

    def test_keys(self) -> set[str]:
        """See `Job`."""
        if not self.sizes["test"]:
            return set()
        rows, _ = self._build({**self.sizes, "train": 0}, {})
        return {normalise(reasoning_gym_data.question_of(row)) for row in rows["test"]}

    def build(self, held_out: Mapping[str, str]) -> Outcome:
        """See `Job`."""
        rows, findings = self._build(self.sizes, held_out)
        drawn = {split: self.sizes[split] for split in rows}
        return Outcome(rows, {"train": findings} if findings else {}, drawn)

    @property
    def _extract(self) -> str:
        return self.options.extract or "whole"

    def _build(
        self, sizes: Mapping[str, int], held_out: Mapping[str, str]
    ) -> tuple[dict[str, list[Row]], list[Finding]]:
        return generators.build(
            self.name,
            self.config,
            sizes=sizes,
            seed=self.options.seed,
            extract=self._extract,
            instruction=self.options.instruction or "",
            system=self.options.system,
            held_out=held_out,
        )


def of_table(entry: table.DataSet, options: argparse.Namespace) -> MathJob:
    """The job of a public data set, read from the hub, or from where `--from` says."""
    if options.from_:
        if options.revision or (options.config and not Path(options.from_[0]).is_dir()):
            raise ValueError("--revision and --config choose on the hub; they have no effect on the files of --from")
        source = sources.from_files(_named_files(entry, options.from_), entry=entry, config=options.config)
    else:
        source = sources.from_hub(entry, config=options.config, revision=options.revision)
    columns = Columns(
        problem=options.problem or entry.problem,
        answer=options.answer or entry.answer,
        extract=_extractor(options.extract or ("auto" if options.answer else None)) or entry.extract,
        keep=entry.keep,
        unwrap=entry.unwrap,
    )
    splits = tuple(split for split in _SPLITS if split in source.splits)
    return MathJob(entry.name, source, columns, splits, options, entry.rows)


def of_file(path: Path, options: argparse.Namespace) -> MathJob:
    """The job of a file of one's own."""
    split = options.split or "train"
    columns = Columns(
        problem=options.problem or "problem",
        answer=options.answer or "answer",
        extract=_extractor(options.extract or "auto") or EXTRACTORS["auto"],
    )
    source = sources.from_files({split: path})
    return MathJob(options.name or path.stem, source, columns, (split,), options, {})


def of_generator(name: str, words: list[str], options: argparse.Namespace) -> GeneratorJob:
    """The job of a generator with settings such as "max_numbers=4"."""
    if options.extract not in (None, "whole", "last_number"):
        raise ValueError(f"--extract {options.extract}: for reasoning-gym it is whole or last_number")
    job = GeneratorJob(name, generators.settings(words), options)
    if not job.splits:
        raise ValueError("--size 0 without --test-size: nothing is asked for")
    return job


def _extractor(name: str | None) -> Any:
    if name is not None and name not in EXTRACTORS:
        raise ValueError(f"--extract {name}: for problems with answers it is one of {', '.join(EXTRACTORS)}")
    return EXTRACTORS.get(name or "")


def _named_files(entry: table.DataSet, words: list[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for word in words:
        split, equals, rest = word.partition("=")
        if not equals or split not in _SPLITS:
            split, rest = "", word
        path = Path(rest).expanduser()
        if not split and not path.is_dir():
            if len(entry.splits) > 1:
                raise ValueError(f"--from {word}: {entry.name} has train and test; say which, as in train={word}")
            (split,) = entry.splits
        if split and split not in entry.splits:
            raise ValueError(f"--from {word}: {entry.name} has no {split} split, only {', '.join(entry.splits)}")
        if named and (split in named or not split or "" in named):
            raise ValueError(f"--from {' '.join(words)}: one file for each split, or one folder for all of them")
        named[split] = path
    return named
