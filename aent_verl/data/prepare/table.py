r"""The public data sets, each as one entry: where it lies, which columns count, how its answers are written.

Nothing here has been tried against the hub itself. Repositories, configs, splits, columns and numbers of rows are from
public code that reads these data sets: lighteval's tasks (`tasks/tasks/{math,math_500,aime,gsm8k,olympiade_bench}.py`),
verl's `examples/data_preprocess/{gsm8k,math_dataset}.py`, Qwen2.5-Math's `evaluation/data`, open-r1 and others; the
comment above each entry says what it rests on. A revision is given where public code pins that commit more than once.

The ground truth in the answer column is a bare value, `\boxed{...}` in a solution, or what stands after `####`.
"""

import difflib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# What stands before and after each problem of DAPO's training and evaluation files.
DAPO_WRAPPING = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n",
    '\n\nRemember to put your answer on its own line after "Answer:".',
)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))


def whole(value: Any) -> str:
    """Return the value itself: text without surrounding space and math delimiters, a whole number without ".0".

    A list gives its items joined by commas, so a list of one gives its item. None and NaN give "".

    Raises:
        TypeError: a record or bytes, which have no form that an answer could be compared with.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, Mapping):
        raise TypeError(f"a record with the fields {', '.join(map(repr, value))}")
    if isinstance(value, bytes):
        raise TypeError("bytes")
    if isinstance(value, list | tuple):
        return ", ".join(whole(item) for item in value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _without_delimiters(str(value).strip())


def boxed(value: Any) -> str:
    r"""Return what the last `\boxed{...}` or `\fbox{...}` holds, inner braces included; "" where there is none.

    `\boxed 5`, without braces, holds everything up to the next space or dollar sign.
    """
    text = whole(value)
    starts = [match.end() for match in _BOX.finditer(text)]
    if not starts:
        return ""
    rest = text[starts[-1] :]
    if not rest.startswith("{"):
        return re.split(r"[\s$]", rest, maxsplit=1)[0].rstrip(".,")
    end = _closing_brace(rest)
    return _without_delimiters(rest[1:end].strip()) if end else ""


def after_hashes(value: Any) -> str:
    """Return what follows the last `####`, without thousands separators, as in GSM8K; "" where there is none."""
    _, hashes, answer = whole(value).rpartition("####")
    return answer.strip().replace(",", "") if hashes else ""


def automatic(value: Any) -> str:
    r"""Return `boxed` where there is a `\boxed`, `after_hashes` where there is a `####`, else `whole`."""
    text = whole(value)
    return boxed(text) or after_hashes(text) or text


EXTRACTORS = {"auto": automatic, "whole": whole, "boxed": boxed, "hashes": after_hashes}


def _closing_brace(text: str) -> int | None:
    r"""Find where the brace that opens `text` is closed; `\{` and `\}` are characters, not braces."""
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text, flags=re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0:
            return token.start()
    return None


def _without_delimiters(text: str) -> str:
    for left, right in _DELIMITERS:
        inner = text.removeprefix(left).removesuffix(right)
        if len(inner) == len(text) - len(left) - len(right) and "$" not in inner and left not in inner:
            return inner.strip()
    return text


@dataclass(frozen=True)
class DataSet:
    """A data set of mathematical problems with one final answer each.

    Attributes:
        about: What it is, for `--list`.
        hub: Its id on the Hugging Face hub, with "@" and the commit that is read unless the user names another; without
            one, the newest is.
        rows: Published number of rows of each split that we take, "train" and "test"; another number is reported.
        license: What its card says.
        hub_split: The hub's name of the only split, None where the hub calls the splits as we do.
        config: The hub's configuration, None for the default.
        problem: Column of the problem: text, or chat messages of which the last user message counts.
        answer: Column of the answer; a dot leads into a nested record.
        extract: Takes the ground truth out of the answer column.
        keep: Column to the only value with which a row is kept.
        unwrap: Text that stands before and after every problem and does not belong to it.
    """

    about: str = ""
    hub: str = ""
    rows: Mapping[str, int] = field(default_factory=dict)
    license: str = ""
    hub_split: str | None = None
    config: str | None = None
    problem: str = "problem"
    answer: str = "answer"
    extract: Callable[[Any], str] = whole
    keep: Mapping[str, Any] = field(default_factory=dict)
    unwrap: tuple[str, str] = ("", "")


# By name, which users type; it is also the `data_source`, so the key of the validation metrics.
TABLE = {
    # lighteval math.py; verl math_dataset.py; revision pinned by several projects.
    "math": DataSet(
        about="MATH by Hendrycks et al. in its original splits",
        hub="DigitalLearningGmbH/MATH-lighteval@0530c78699ea5e8eb5530600900e1f328b48acad",
        rows={"train": 7500, "test": 5000},
        answer="solution",
        extract=boxed,
        license="MIT",
    ),
    # As math; lighteval/MATH-Hard, a copy of the same problems, has 1,324.
    "math-hard": DataSet(
        about="the problems of level 5 in MATH's test split",
        hub="DigitalLearningGmbH/MATH-lighteval@0530c78699ea5e8eb5530600900e1f328b48acad",
        rows={"test": 5000},
        answer="solution",
        extract=boxed,
        keep={"level": "Level 5"},
        license="MIT",
    ),
    # EasyR1's example configuration and other scripts (columns, splits); rows by its name only.
    "math12k": DataSet(
        about="MATH with 4,500 of the test problems moved to train; its test split is MATH-500",
        hub="hiyouga/math12k",
        rows={"train": 12000, "test": 500},
        license="not stated in the sources read; MATH itself is MIT",
    ),
    # lighteval gsm8k.py; verl gsm8k.py; revision pinned by several projects.
    "gsm8k": DataSet(
        about="grade-school word problems",
        hub="openai/gsm8k@740312add88f781978c0658806c59bc2815b9866",
        config="main",
        rows={"train": 7473, "test": 1319},
        problem="question",
        extract=after_hashes,
        license="MIT",
    ),
    # Several public training scripts (configs, columns, rows).
    "dapo-math-17k": DataSet(
        about="DAPO's training problems, each once and bare, English and Chinese (--config en: English only)",
        hub="open-r1/DAPO-Math-17k-Processed",
        config="all",
        rows={"train": 17398},
        problem="prompt",
        answer="solution",
        unwrap=DAPO_WRAPPING,
        license="not stated in the sources read; the original is Apache-2.0",
    ),
    # Columns, wrapping, rows and revision in several projects.
    "dapo-math-17k-original": DataSet(
        about="the same as first published: each problem about a hundred times, in DAPO's own instructions",
        hub="BytedTsinghua-SIA/DAPO-Math-17k@65877096c24ffa7abc4e4fa5edb95cf3413a5674",
        rows={"train": 1791700},
        problem="prompt",
        answer="reward_model.ground_truth",
        unwrap=DAPO_WRAPPING,
        license="Apache-2.0",
    ),
    # open-r1's sft example; columns, rows, question types and revision in several projects.
    "openr1-math": DataSet(
        about="OpenR1-Math-220k, default config, word problems only: proofs and multiple choice are left out",
        hub="open-r1/OpenR1-Math-220k@e4e141ec9dea9f8326f4d347be56105859b2bd68",
        rows={"train": 93733},
        keep={"question_type": "math-word-problem"},
        license="Apache-2.0",
    ),
    # lighteval math_500.py; revision pinned by several projects.
    "math500": DataSet(
        about="MATH-500, a sample of MATH's test split",
        hub="HuggingFaceH4/MATH-500@6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        rows={"test": 500},
        license="not stated in the sources read; MATH itself is MIT",
    ),
    # lighteval aime.py; revision pinned by several projects.
    "aime24": DataSet(
        about="AIME 2024, I and II",
        hub="HuggingFaceH4/aime_2024@2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        hub_split="train",
        rows={"test": 30},
        license="not declared on its card",
    ),
    # Columns, rows and revision pinned by several projects.
    "aime25": DataSet(
        about="AIME 2025, I and II",
        hub="math-ai/aime25@563bb8404243c5f09de6ec262f2db674fe5bce9b",
        rows={"test": 30},
        license="Apache-2.0",
    ),
    # Columns, rows and revision pinned by several projects; the same 40 as in Qwen2.5-Math.
    "amc23": DataSet(
        about="AMC 12 2023, the problems whose answer is a number",
        hub="math-ai/amc23@80815d37005feb82cd7f8fbc6901d5d3eff43057",
        rows={"test": 40},
        problem="question",
        license="Apache-2.0",
    ),
    # Columns, rows and revision pinned by several projects; the same 272 as in Qwen2.5-Math.
    "minerva": DataSet(
        about="Minerva Math: university science courses, MIT OpenCourseWare",
        hub="math-ai/minervamath@ee46ddc498933b1977577953250ca5c66be64f96",
        rows={"test": 272},
        problem="question",
        license="not stated in the sources read",
    ),
    # lighteval olympiade_bench.py; rows and revision in two files of one project.
    "olympiadbench": DataSet(
        about="OlympiadBench, English open-ended text-only mathematics, problems with a single answer",
        hub="Hothan/OlympiadBench@91184b52131e7fc9455fef848035173aea8cc01a",
        hub_split="train",
        config="OE_TO_maths_en_COMP",
        rows={"test": 674},
        problem="question",
        answer="final_answer",
        keep={"is_multiple_answer": False},
        license="not stated in the sources read",
    ),
}


def listing() -> str:
    """List the table as text: name, rows of each split, what it is, repository and licence."""
    lines = []
    for name, entry in TABLE.items():
        rows = ", ".join(f"{split} {count:,}" for split, count in entry.rows.items())
        rows += " before that choice" if entry.keep else ""
        config = f" ({entry.config})" if entry.config else ""
        repository = entry.hub.partition("@")[0]
        lines += [f"{name}: {entry.about}", f"    {rows}; {repository}{config}; licence: {entry.license}"]
    lines.append("reasoning-gym:NAME: any of reasoning-gym's generators, such as reasoning-gym:countdown")
    return "\n".join([*lines, "FILE.parquet, FILE.jsonl: your own, with --problem and --answer"])


def unknown(name: str) -> ValueError:
    """Make the error for a name that is neither in the table nor a file; it suggests similar names."""
    near = difflib.get_close_matches(name.lower(), TABLE, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ValueError(
        f"{name!r} is neither a data set nor a file: {hint}There are {', '.join(TABLE)}, reasoning-gym:GENERATOR, "
        "and your own .parquet, .jsonl or .json files (aent-verl prepare --list)"
    )
