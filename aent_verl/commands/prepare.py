"""The command `aent-verl prepare`: names in, checked parquet files in verl's format and a report out."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from aent_verl import _util
from aent_verl._util import locked

HELP = """\
Turn public data sets, files of your own or reasoning-gym generators into parquet files that verl trains on, and check
them: columns, empty rows, repeats, overlap between train and test, answers that the reward cannot score. Writes
NAME-train.parquet and NAME-test.parquet, where there are such splits, and prepare.json, which says how they were made.
"""
EXAMPLES = """\
examples:
  aent-verl prepare --list                                             what there is
  aent-verl prepare math --output data                                 from the Hugging Face hub
  aent-verl prepare math500 aime24 aime25 amc23 --output data          several at once
  aent-verl prepare openr1-math math500 --limit 40000 --output data    40,000 to train on, none of them in MATH-500
  aent-verl prepare aime24 --from aime24.jsonl --output data           without the hub: its file, as published
  aent-verl prepare math --from train=a.parquet test=b.parquet --output data
  aent-verl prepare mine.jsonl --problem question --answer solution --against data/math500-test.parquet --output data
  aent-verl prepare reasoning-gym:countdown min_numbers=3 max_numbers=4 --size 2000 --test-size 200 --output data
"""
_MATH_REWARD = "aent_verl.data.tasks.math_reward"
_GENERATOR_REWARD = "aent_verl.data.tasks.reward"
_LOCK = ".prepare.lock"

# Options that only some kinds of data have a use for.
_ONLY_FOR = {
    "size": ("--size", "generator"),
    "test_size": ("--test-size", "generator"),
    "from_": ("--from", "table"),
    "revision": ("--revision", "table"),
    "config": ("--config", "table"),
    "name": ("--name", "file"),
    "split": ("--split", "file"),
    "problem": ("--problem", "table file"),
    "answer": ("--answer", "table file"),
    "limit": ("--limit", "table file"),
    "keep_unscorable": ("--keep-unscorable", "table file"),
}
_KINDS = {"generator": "reasoning-gym:NAME", "table": "a public data set", "file": "a file of your own"}


def add_parser(commands: Any) -> None:
    """Add `prepare` to the sub-parsers of `aent-verl`."""
    parser = commands.add_parser(
        "prepare",
        help="make checked parquet files in verl's format from public data sets, files or reasoning-gym",
        description=HELP,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "what", nargs="*", metavar="WHAT", help="names of data sets, reasoning-gym:NAME [KEY=VALUE ...], or files"
    )
    parser.add_argument("--list", action="store_true", help="list the data sets by name and stop")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where the files go")
    parser.add_argument("--overwrite", action="store_true", help="replace files that were made differently")
    source = parser.add_argument_group("where it is read")
    source.add_argument("--from", dest="from_", nargs="+", metavar="[SPLIT=]FILE", help="read these, not the hub")
    source.add_argument("--revision", help="commit on the hub; default: the one that the table pins")
    source.add_argument("--config", help="configuration on the hub, such as en of dapo-math-17k")
    source.add_argument("--problem", metavar="COLUMN", help="column of the problem")
    source.add_argument("--answer", metavar="COLUMN", help="column of the answer")
    source.add_argument(
        "--extract",
        metavar="HOW",
        help="answer in that column: auto, whole, boxed or hashes; of a response to "
        "reasoning-gym: whole or last_number",
    )
    source.add_argument("--split", choices=("train", "test"), help="what a file of your own is; default: train")
    source.add_argument("--name", help="name of a file of your own; default: the file's")
    prompt = parser.add_argument_group("what is written")
    prompt.add_argument("--instruction", metavar="TEXT", help="put after each problem; default: reason, then box it")
    prompt.add_argument("--system", metavar="TEXT", help="system message; default: none")
    prompt.add_argument("--limit", type=int, metavar="N", help="a random sample of the training problems")
    prompt.add_argument("--size", type=int, metavar="N", help="questions to train on, for reasoning-gym")
    prompt.add_argument("--test-size", type=int, metavar="N", help="questions to validate on, for reasoning-gym")
    prompt.add_argument("--seed", type=int, default=0, help="of --limit and of reasoning-gym; default: 0")
    checks = parser.add_argument_group("checks")
    checks.add_argument("--against", nargs="+", default=[], metavar="FILE", help="train on nothing that is in these")
    checks.add_argument("--keep-unscorable", action="store_true", help="keep answers that the reward cannot score")
    checks.add_argument("--tokenizer", metavar="MODEL", help="report the length of prompts in tokens")
    checks.add_argument("--max-prompt-length", type=int, metavar="N", help="and how many are longer than this")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Prepare what the options ask for.

    Returns:
        The report.

    Raises:
        ValueError: an option, a file or data that cannot be used; the message says what to do.
        OSError: the hub cannot be reached, or a file cannot be read or written.
        ImportError: the reward's package is not installed.
    """
    from aent_verl.data.prepare import table

    if options.list:
        return table.listing()
    _util.require("data", "aent-verl prepare")
    jobs = _jobs(options)
    folder = Path(options.output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: is a file, not a folder")
    return "\n".join(_prepare(folder, jobs, options))


def _jobs(options: argparse.Namespace) -> list[Any]:
    from aent_verl.data.prepare import jobs, table
    from aent_verl.data.prepare.generators import PREFIX
    from aent_verl.data.prepare.sources import SUFFIXES

    names = [word for word in options.what if "=" not in word or Path(word).suffix in SUFFIXES]
    words = [word for word in options.what if word not in names]
    kinds = {name: _kind(name, PREFIX, table.TABLE, SUFFIXES) for name in names}
    _check_options(options, names, words, set(kinds.values()))
    made: list[Any] = []
    for name, kind in kinds.items():
        if kind == "generator":
            made.append(jobs.of_generator(name.removeprefix(PREFIX), words, options))
        elif kind == "table":
            made.append(jobs.of_table(table.TABLE[name], options))
        elif kind == "file":
            made.append(jobs.of_file(Path(name).expanduser(), options))
        else:
            raise table.unknown(name)
    repeated = {job.name for job in made if sum(other.name == job.name for other in made) > 1}
    if repeated:
        raise ValueError(f"two data sets are named {', '.join(sorted(repeated))}; prepare them one by one with --name")
    return made


def _kind(name: str, prefix: str, known: Mapping[str, Any], suffixes: tuple[str, ...]) -> str:
    if name.startswith(prefix):
        return "generator"
    if name in known:
        return "table"
    return "file" if Path(name).suffix in suffixes else ""


def _check_options(options: argparse.Namespace, names: list[str], words: list[str], kinds: set[str]) -> None:
    if not names:
        raise ValueError("name what to prepare, as in aent-verl prepare math --output data; --list shows what there is")
    if not options.output:
        raise ValueError(f"--output is missing: where the files go, as in aent-verl prepare {names[0]} --output data")
    if words and "generator" not in kinds:
        raise ValueError(f"{words[0]!r}: settings belong to reasoning-gym:NAME")
    if len(names) > 1 and (options.from_ or options.name):
        raise ValueError(f"--{'from' if options.from_ else 'name'} is for one data set at a time, not {len(names)}")
    if words and len(names) > 1:
        raise ValueError(f"{words[0]!r}: prepare a generator with settings by itself")
    for key, (option, allowed) in _ONLY_FOR.items():
        if getattr(options, key) not in (None, False) and not kinds & set(allowed.split()):
            raise ValueError(f"{option} is for {' or '.join(_KINDS[kind] for kind in allowed.split())} only")
    for key, lowest in (("limit", 1), ("size", 0), ("test_size", 0), ("max_prompt_length", 1), ("seed", 0)):
        value = getattr(options, key)
        if value is not None and value < lowest:
            raise ValueError(f"--{key.replace('_', '-')} {value}: must be at least {lowest}")
    if options.max_prompt_length and not options.tokenizer:
        raise ValueError("--max-prompt-length counts tokens: name the model's --tokenizer, too")


def _prepare(folder: Path, jobs: list[Any], options: argparse.Namespace) -> list[str]:
    from aent_verl.data.prepare import manifest, report

    tokenizer = _tokenizer(options.tokenizer)
    training = [job for job in jobs if "train" in job.splits]
    requests = {job.name: _request(job, jobs, options) for job in jobs}
    files = {job.name: {split: f"{job.name}-{split}.parquet" for split in job.splits} for job in jobs}

    def is_done(name: str) -> bool:
        return not options.overwrite and manifest.is_done(folder, name, requests[name], list(files[name].values()))

    done: set[str] = set()
    if folder.exists():
        with _alone(folder):
            done = {job.name for job in jobs if is_done(job.name)}
    held_out: dict[str, str] = {}
    if any(job.name not in done for job in training):
        for job in jobs:
            if "test" in job.splits:
                written = folder / files[job.name]["test"] if job.name in done else None
                keys = _keys(written, options) if written else job.test_keys()
                held_out.update(dict.fromkeys(keys, f"{job.name}-test"))
        for file in options.against:
            held_out.update(dict.fromkeys(_keys(file, options), Path(file).name))
    lines = []
    for job in jobs:
        if job.name not in done:
            print(f"{job.name}: reading and checking ...", file=sys.stderr, flush=True)
            outcome = job.build(held_out)
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                if is_done(job.name):  # by another process, meanwhile
                    done.add(job.name)
                else:
                    entry = _write(folder, job, outcome, requests[job.name], files[job.name], tokenizer, options)
                    manifest.write(folder, job.name, entry)
                    lines += report.describe(folder, job.name, entry)
        if job.name in done:
            lines.append(f"{job.name}: already in {folder}, made from the same data in the same way; nothing to do")
        if job.name in done and tokenizer:
            for file in files[job.name].values():
                measured = report.lengths(folder / file, tokenizer, options.max_prompt_length)
                lines += report.length_lines(folder, file, measured)
    if not training:
        for key, option in (("against", "--against"), ("limit", "--limit")):
            lines += [f"warning: {option} has no effect: nothing here is trained on"] if getattr(options, key) else []
    by_split = {split: [files[job.name][split] for job in jobs if split in job.splits] for split in ("train", "test")}
    return [*lines, *report.usage(folder, by_split, list(dict.fromkeys(map(_reward, jobs))))]


def _request(job: Any, jobs: list[Any], options: argparse.Namespace) -> dict[str, Any]:
    from aent_verl.data.prepare.sources import sha256

    request: dict[str, Any] = job.request()
    if "train" in job.splits:
        others = sorted(other.name for other in jobs if "test" in other.splits)
        request["held_out"] = {"sets": others, "against": sorted(sha256(Path(file)) for file in options.against)}
    return request


def _keys(file: str | Path, options: argparse.Namespace) -> Iterator[str]:
    from aent_verl.data.prepare.rows import keys_of
    from aent_verl.data.prepare.sources import open_file

    return keys_of(open_file(file), where=str(file), instruction=options.instruction or "")


def _alone(folder: Path) -> AbstractContextManager[None]:
    """Hold the output folder, so that its files and `prepare.json` are those of one process at a time."""
    if not os.access(folder, os.W_OK):
        return nullcontext()  # what is there already can still be used
    return locked(folder / _LOCK, note=f"--output {folder}: waiting for another aent-verl prepare that works there ...")


def _write(
    folder: Path,
    job: Any,
    outcome: Any,
    request: dict[str, Any],
    files: Mapping[str, str],
    tokenizer: Any,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Write a job's files; returns its entry for `prepare.json`."""
    from aent_verl._util import atomic_path
    from aent_verl._version import __version__
    from aent_verl.data.prepare import report
    from aent_verl.data.prepare.sources import sha256
    from aent_verl.data.tasks.cache import package_versions
    from aent_verl.data.tasks.reasoning_gym_data import write_parquet

    splits: dict[str, dict[str, Any]] = {}
    for split, file in files.items():
        with atomic_path(folder / file) as partial:
            write_parquet(outcome.rows[split], partial)
        splits[split] = {
            "file": file,
            "rows": len(outcome.rows[split]),
            "read": outcome.read[split],
            "findings": [finding.to_dict() for finding in outcome.findings.get(split, [])],
        }
        if tokenizer:
            splits[split]["lengths"] = report.lengths(folder / file, tokenizer, options.max_prompt_length)
    return {
        "request": request,
        "files": {file: {"sha256": sha256(folder / file)} for file in files.values()},
        "splits": splits,
        "remarks": outcome.remarks,
        "versions": {"aent-verl": __version__, **package_versions(*job.versions)},
    }


def _tokenizer(model: str | None) -> Any:
    if not model:
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def _reward(job: Any) -> str:
    return _GENERATOR_REWARD if "reasoning-gym" in job.versions else _MATH_REWARD
