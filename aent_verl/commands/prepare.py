"""The command `aent-verl prepare`: names in, checked parquet files in verl's format and a report out."""

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from aent_verl import _util
from aent_verl.data.prepare import jobs, output, sources, table
from aent_verl.data.prepare.rows import keys_of

HELP = """\
Turn public data sets, your own files or reasoning-gym generators into parquet files that verl trains on, and check
them: columns, empty rows, duplicates, overlap between train and test, answers that the reward cannot score. Writes
NAME-train.parquet and NAME-test.parquet, where there are such splits, and prepare.json, which says how they were made.
"""
EXAMPLES = """\
examples:
  aent-verl prepare --list                                             the available data sets
  aent-verl prepare math --output data                                 from the Hugging Face hub
  aent-verl prepare math500 aime24 aime25 amc23 --output data          several at once
  aent-verl prepare openr1-math math500 --limit 40000 --output data    40,000 to train on, none of them in MATH-500
  aent-verl prepare aime24 --from aime24.jsonl --output data           without the hub: its file, as published
  aent-verl prepare math --from train=a.parquet test=b.parquet --output data
  aent-verl prepare mine.jsonl --problem question --answer solution --against data/math500-test.parquet --output data
  aent-verl prepare reasoning-gym:countdown min_numbers=3 max_numbers=4 --size 2000 --test-size 200 --output data
"""
_LOCK = ".prepare.lock"
# Options that apply only to some kinds of data.
_ONLY_FOR = {
    "generator": ("size", "test_size"),
    "table": ("from_", "revision", "config"),
    "file": ("name", "split"),
    "table file": ("problem", "answer", "limit", "keep_unscorable"),
}
_KINDS = {"generator": "reasoning-gym:NAME", "table": "a public data set", "file": "your own file"}
_LOWEST = {"limit": 1, "size": 0, "test_size": 0, "max_prompt_length": 1, "seed": 0}


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
    source = parser.add_argument_group("where it is read from")
    source.add_argument("--from", dest="from_", nargs="+", metavar="[SPLIT=]FILE", help="read these instead of the hub")
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
    source.add_argument("--split", choices=("train", "test"), help="which split your own file is; default: train")
    source.add_argument("--name", help="name of the data set in your own file; default: the file's name")
    prompt = parser.add_argument_group("what is written")
    prompt.add_argument("--instruction", metavar="TEXT", help="put after each problem; default: reason, then box it")
    prompt.add_argument("--system", metavar="TEXT", help="system message; default: none")
    prompt.add_argument("--limit", type=int, metavar="N", help="draw a random sample of the training problems")
    prompt.add_argument("--size", type=int, metavar="N", help="questions to train on, for reasoning-gym")
    prompt.add_argument("--test-size", type=int, metavar="N", help="questions to validate on, for reasoning-gym")
    prompt.add_argument("--seed", type=int, default=0, help="seed of --limit and of reasoning-gym; default: 0")
    checks = parser.add_argument_group("checks")
    checks.add_argument("--against", nargs="+", default=[], metavar="FILE", help="do not train on anything in these")
    checks.add_argument("--keep-unscorable", action="store_true", help="keep answers that the reward cannot score")
    checks.add_argument("--tokenizer", metavar="MODEL", help="report the length of prompts in tokens")
    checks.add_argument("--max-prompt-length", type=int, metavar="N", help="also report how many are longer than this")
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
    if options.list:
        return table.listing()
    _util.require("data", "aent-verl prepare")
    names = [word for word in options.what if "=" not in word or Path(word).suffix in sources.SUFFIXES]
    words = [word for word in options.what if word not in names]
    _check_options(options, names, words)
    made = [jobs.job(name, words, options) for name in dict.fromkeys(names)]
    if repeated := {job.name for job in made if sum(other.name == job.name for other in made) > 1}:
        raise ValueError(f"two data sets are named {', '.join(sorted(repeated))}; prepare them one by one with --name")
    folder = Path(options.output).expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: is a file, not a folder")
    return "\n".join(_prepare(folder, made, options))


def _check_options(options: argparse.Namespace, names: list[str], words: list[str]) -> None:
    if not names:
        raise ValueError("name what to prepare, as in aent-verl prepare math --output data; --list shows all names")
    if not options.output:
        raise ValueError(f"--output is missing: name a folder, as in aent-verl prepare {names[0]} --output data")
    kinds = set(map(_kind, names))
    if words and "generator" not in kinds:
        raise ValueError(f"{words[0]!r}: settings belong to reasoning-gym:NAME")
    if len(names) > 1 and (options.from_ or options.name):
        raise ValueError(f"--{'from' if options.from_ else 'name'} is for one data set at a time, not {len(names)}")
    if words and len(names) > 1:
        raise ValueError(f"{words[0]!r}: prepare a generator with settings by itself")
    for allowed, keys in _ONLY_FOR.items():
        for key in keys:
            if getattr(options, key) not in (None, False) and not kinds & set(allowed.split()):
                raise ValueError(f"{_flag(key)} is for {' or '.join(_KINDS[kind] for kind in allowed.split())} only")
    for key, lowest in _LOWEST.items():
        value = getattr(options, key)
        if value is not None and value < lowest:
            raise ValueError(f"{_flag(key)} {value}: must be at least {lowest}")
    if options.max_prompt_length and not options.tokenizer:
        raise ValueError("--max-prompt-length counts tokens: name the model's --tokenizer, too")


def _kind(name: str) -> str:
    if name.startswith(jobs.GENERATOR_PREFIX):
        return "generator"
    if name not in table.data_sets() and Path(name).suffix not in sources.SUFFIXES:
        raise table.unknown(name)
    return "table" if name in table.data_sets() else "file"


def _flag(key: str) -> str:
    return f"--{key.rstrip('_').replace('_', '-')}"


def _prepare(folder: Path, made: list[jobs.Job], options: argparse.Namespace) -> list[str]:
    tokenizer, limit = _tokenizer(options.tokenizer), options.max_prompt_length
    training = [job for job in made if "train" in job.files]
    requests = {job.name: _request(job, made, options.against) for job in made}

    def is_done(job: jobs.Job) -> bool:
        return not options.overwrite and output.is_done(folder, job, requests[job.name])

    with _alone(folder):
        done = {job.name for job in made if is_done(job)}
    held_out = _held_out(folder, made, done, options) if any(job.name not in done for job in training) else {}
    lines = []
    for job in made:
        if job.name not in done:
            print(f"{job.name}: reading and checking ...", file=sys.stderr, flush=True)
            splits = job.build(held_out)
            folder.mkdir(parents=True, exist_ok=True)
            with _alone(folder):
                if is_done(job):  # by another process, meanwhile
                    done.add(job.name)
                else:
                    request = requests[job.name]
                    entry = output.write(folder, job, splits, request=request, tokenizer=tokenizer, limit=limit)
                    lines += output.describe(folder, job.name, entry)
        if job.name in done:
            lines.append(f"{job.name}: already in {folder}, made from the same data in the same way; nothing to do")
            paths = [folder / file for file in job.files.values()] if tokenizer else []
            lines += [f"  {path}: {output.describe_lengths(output.lengths(path, tokenizer, limit))}" for path in paths]
    for key in () if training else ("against", "limit"):
        lines += [f"warning: {_flag(key)} has no effect: nothing here is trained on"] if getattr(options, key) else []
    return [*lines, *output.usage(folder, made)]


def _request(job: jobs.Job, made: list[jobs.Job], against: list[str]) -> dict[str, Any]:
    if "train" not in job.files:
        return job.request()
    others = sorted(other.name for other in made if "test" in other.files)
    hashes = sorted(sources.sha256(Path(file)) for file in against)
    return {**job.request(), "held_out": {"sets": others, "against": hashes}}


def _held_out(folder: Path, made: list[jobs.Job], done: set[str], options: argparse.Namespace) -> dict[str, str]:
    """Collect the normalised problems of all test sets, each with the name of the last one that it is in."""
    instruction = options.instruction or ""

    def keys(file: str | Path) -> Iterator[str]:
        return keys_of(sources.open_file(file), where=str(file), instruction=instruction)

    found: dict[str, str] = {}
    for job in made:
        if "test" in job.files:
            problems = keys(folder / job.files["test"]) if job.name in done else job.test_keys()
            found.update(dict.fromkeys(problems, f"{job.name}-test"))
    for file in options.against:
        found.update(dict.fromkeys(keys(file), Path(file).name))
    return found


def _alone(folder: Path) -> AbstractContextManager[None]:
    """Hold the output folder, so that its files and `prepare.json` are those of one process at a time."""
    if not os.access(folder, os.W_OK):
        return nullcontext()  # nothing is there yet, or what is there can still be used
    note = f"--output {folder}: waiting for another aent-verl prepare that works there ..."
    return _util.locked(folder / _LOCK, note=note)


def _tokenizer(model: str | None) -> Any:
    if not model:
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)
