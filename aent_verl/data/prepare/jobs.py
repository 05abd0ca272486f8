"""One data set from request to rows: from the table, a local file, or a generator."""

from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from aent_verl.data.prepare.checks import Finding, check, sample, short
from aent_verl.data.prepare.rows import INSTRUCTION, Item, math_row, normalise, read_items
from aent_verl.data.prepare.sources import Row, Source, from_files, from_hub
from aent_verl.data.prepare.table import EXTRACTORS, DataSet, automatic, data_sets
from aent_verl.data.tasks.reasoning_gym_data import build_rows, draw_splits

GENERATOR_PREFIX = "reasoning-gym:"
_DEFAULT_SIZE = 1000
_SPLITS = ("train", "test")
# Text that `str.format` leaves as it is.
_LITERAL = str.maketrans({"{": "{{", "}": "}}"})


@dataclass
class Split:
    """What a job made of a split: rows in verl's format, how many were read, what was found, and a remark."""

    rows: list[Row]
    read: int
    findings: list[Finding]
    remark: str = ""


class MathJob:
    """Problems with answers, from the hub or from files.

    Attributes:
        name: Of the data set.
        files: Name of the output file of each split that it has, of "train" and "test".
        versions: The packages that decide its rows.
        reward: The module that scores them.
    """

    versions = ("datasets", "math-verify", "pyarrow")
    reward = "aent_verl.data.tasks.math_reward"

    def __init__(self, name: str, entry: DataSet, source: Source, options: Namespace) -> None:
        self.name, self.files = name, _files(name, source.splits)
        how = options.extract or ("auto" if options.answer else "")
        if how and how not in EXTRACTORS:
            raise ValueError(f"--extract {how}: for problems with answers it is one of {', '.join(EXTRACTORS)}")
        self._entry = replace(
            entry,
            problem=options.problem or entry.problem,
            answer=options.answer or entry.answer,
            extract=EXTRACTORS.get(how, entry.extract),
        )
        self._source, self._options = source, options
        self._instruction = INSTRUCTION if options.instruction is None else options.instruction

    def request(self) -> dict[str, Any]:
        """Return everything that decides the output, as plain JSON values, except for what is held out."""
        entry, options = self._entry, self._options
        columns = {name: getattr(entry, name) for name in ("problem", "answer", "keep", "unwrap")}
        return {
            "source": self._source.identity,
            "splits": list(self.files),
            "columns": {**columns, "extract": entry.extract.__name__},
            "instruction": self._instruction,
            "system": options.system,
            "keep_unscorable": options.keep_unscorable,
            **({"limit": options.limit, "seed": options.seed} if options.limit else {}),
        }

    def test_keys(self) -> set[str]:
        """Return the normalised problems of the test split, if any; they are held out of every training split."""
        return {item.key for item in self._read["test"][0]} if "test" in self.files else set()

    def build(self, held_out: Mapping[str, str]) -> dict[str, Split]:
        """Return each split in verl's format.

        Args:
            held_out: Normalised problems that must not be trained on, each with the name of where it occurs.

        Raises:
            ValueError: columns, answers or a number of rows that cannot be used.
        """
        entry, options = self._entry, self._options
        made = {}
        for split, (items, read) in self._read.items():
            kept, findings = check(items, split=split, held_out=held_out, keep_unscorable=options.keep_unscorable)
            if entry.keep:
                wanted = ", ".join(f"{column} = {value}" for column, value in entry.keep.items())
                findings.insert(0, Finding(f"not of the kind that is kept ({wanted})", read - len(items), True, []))
            if split == "train":
                kept, drawn = sample(kept, options.limit, seed=options.seed)
                findings += drawn
            if not kept:
                lines = "; ".join(f"{finding.count} of them: {finding.what}" for finding in findings)
                raise ValueError(f"{self.name}, {split}: none of {read} rows is left; {lines}")
            shared = {"name": self.name, "split": split, "instruction": self._instruction, "system": options.system}
            published = entry.rows.get(split, read)
            remark = f"{split} has {read:,} rows, {published:,} are published: a part of it, or another version"
            rows = [math_row(item, **shared) for item in kept]
            made[split] = Split(rows, read, findings, remark if published != read else "")
        return made

    @cached_property
    def _read(self) -> dict[str, tuple[list[Item], int]]:
        return {
            split: read_items(self._source.open(split), self._entry, where=f"{self.name} ({split})")
            for split in self.files
        }


class GeneratorJob:
    """Questions of a reasoning-gym generator, for its own scorer; attributes and methods are those of `MathJob`."""

    versions = ("reasoning-gym", "pyarrow")
    reward = "aent_verl.data.tasks.reward"

    def __init__(self, name: str, words: Sequence[str], options: Namespace) -> None:
        self._extract = options.extract or "whole"
        if self._extract not in ("whole", "last_number"):
            raise ValueError(f"--extract {self._extract}: for reasoning-gym it is whole or last_number")
        self._settings, self._options = generator_settings(words), options
        train = _DEFAULT_SIZE if options.size is None else options.size
        self._sizes = {"train": train, "test": options.test_size or 0}
        self.name, self.files = name, _files(name, [split for split, size in self._sizes.items() if size])
        if not self.files:
            raise ValueError("--size 0 without --test-size: nothing is asked for")

    def request(self) -> dict[str, Any]:
        """See `MathJob`."""
        return {
            "source": {"reasoning_gym": self.name, "settings": self._settings},
            "sizes": self._sizes,
            "seed": self._options.seed,
            "extract": self._extract,
            "instruction": self._options.instruction or "",
            "system": self._options.system,
        }

    def test_keys(self) -> set[str]:
        """See `MathJob`."""
        return {normalise(entry["question"]) for entry in self._drawn.get("test", ())}

    def build(self, held_out: Mapping[str, str]) -> dict[str, Split]:
        """See `MathJob`.

        Raises:
            ValueError: unknown generator, a setting that it refuses, or too few questions.
        """
        chat = [{"role": "user", "content": "{question}" + (self._options.instruction or "").translate(_LITERAL)}]
        if self._options.system:
            chat.insert(0, {"role": "system", "content": self._options.system.translate(_LITERAL)})
        made = {}
        for split, entries in self._drawn.items():
            lost = [one for one in entries if split == "train" and normalise(one["question"]) in held_out]
            examples = [short(one["question"]) for one in lost[:1]]
            findings = [Finding("held out: it is in a test split", len(lost), True, examples)] if lost else []
            kept = [one for one in entries if one not in lost]
            rows = build_rows(kept, generator=self.name, split=split, chat=chat, extract=self._extract)
            made[split] = Split(rows, len(entries), findings)
        return made

    @cached_property
    def _drawn(self) -> dict[str, list[dict[str, Any]]]:
        """Splits without a common question; test comes first, so the size of the training split does not affect it."""
        sizes = {split: self._sizes[split] for split in reversed(self.files)}
        return draw_splits(self.name, self._settings, sizes, self._options.seed)


Job = MathJob | GeneratorJob


def job(what: str, words: Sequence[str], options: Namespace) -> Job:
    """Make the job of a generator, of a data set of the table, or of the user's own file.

    Args:
        what: "reasoning-gym:NAME", a name of the table, or a file.
        words: A generator's settings, such as "max_numbers=4".
        options: Of the command line.

    Raises:
        ValueError: an option that cannot be used.
        FileNotFoundError: a file that is not there.
    """
    if what.startswith(GENERATOR_PREFIX):
        return GeneratorJob(what.removeprefix(GENERATOR_PREFIX), words, options)
    if what not in data_sets():
        path = Path(what).expanduser()
        entry = DataSet(extract=automatic)
        source = from_files({options.split or "train": path}, entry)
        return MathJob(options.name or path.stem, entry, source, options)
    entry = data_sets()[what]
    if not options.from_:
        source = from_hub(what, entry, config=options.config, revision=options.revision)
        return MathJob(what, entry, source, options)
    if options.revision or (options.config and not Path(options.from_[0]).is_dir()):
        raise ValueError("--revision and --config choose on the hub; they have no effect on the files of --from")
    source = from_files(_named_files(what, entry, options.from_), entry, options.config)
    return MathJob(what, entry, source, options)


def generator_settings(words: Sequence[str]) -> dict[str, Any]:
    """Parse a generator's settings from words such as "min_numbers=3", the value read as YAML.

    Raises:
        ValueError: a word without "=", or a value that is not YAML.
    """
    import yaml

    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise ValueError(f"{word!r}: a generator's settings are written NAME=VALUE, as in max_numbers=4")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ValueError(f"{word!r}: the value is not YAML ({error})") from error
    return found


def _files(name: str, splits: Collection[str]) -> dict[str, str]:
    return {split: f"{name}-{split}.parquet" for split in _SPLITS if split in splits}


def _named_files(name: str, entry: DataSet, words: list[str]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for word in words:
        split, equals, rest = word.partition("=")
        if not equals or split not in _SPLITS:
            split, rest = "", word
        path = Path(rest).expanduser()
        if not split and not path.is_dir():
            if len(entry.rows) > 1:
                raise ValueError(f"--from {word}: {name} has train and test; say which, as in train={word}")
            (split,) = entry.rows
        if split and split not in entry.rows:
            raise ValueError(f"--from {word}: {name} has no {split} split, only {', '.join(entry.rows)}")
        if named and (split in named or not split or "" in named):
            raise ValueError(f"--from {' '.join(words)}: one file for each split, or one folder for all of them")
        named[split] = path
    return named
