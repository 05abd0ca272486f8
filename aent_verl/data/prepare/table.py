r"""The public data sets, each as one entry: where it lies, which columns count, how its answers are written.

Nothing here has been tried against the hub itself. Repositories, configs, splits, columns and numbers of rows are from
public code that reads these data sets: lighteval's tasks (`tasks/tasks/{math,math_500,aime,gsm8k,olympiade_bench}.py`),
verl's `examples/data_preprocess/{gsm8k,math_dataset}.py`, Qwen2.5-Math's `evaluation/data`, open-r1 and others;
`verified` says what each entry rests on. A revision is given where public code pins that commit more than once.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aent_verl.data.prepare.answers import after_hashes, boxed, whole

# What stands before and after each problem of DAPO's training and evaluation files.
DAPO_WRAPPING = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem.\n\n",
    '\n\nRemember to put your answer on its own line after "Answer:".',
)


@dataclass(frozen=True)
class DataSet:
    """A public data set of mathematical problems with one final answer each.

    Attributes:
        name: What users type; also its `data_source`, so the key of its validation metrics.
        about: What it is, for `--list`.
        repository: Its id on the Hugging Face hub.
        splits: Our split, "train" or "test", to the hub's.
        rows: Published number of rows of our splits; another number is reported.
        problem: Column of the problem: text, or chat messages of which the last user message counts.
        answer: Column of the answer; a dot leads into a nested record.
        extract: Takes the ground truth out of the answer column.
        config: The hub's configuration, None for the default.
        revision: Commit on the hub that is read unless the user names another; None for the newest.
        keep: Column to the only value with which a row is kept.
        unwrap: Text that stands before and after every problem and does not belong to it.
        license: What its card says.
        verified: What this entry rests on.
    """

    name: str
    about: str
    repository: str
    splits: Mapping[str, str]
    rows: Mapping[str, int]
    problem: str
    answer: str
    extract: Callable[[Any], str]
    license: str
    verified: str
    config: str | None = None
    revision: str | None = None
    keep: Mapping[str, Any] = field(default_factory=dict)
    unwrap: tuple[str, str] = ("", "")


_ENTRIES = (
    DataSet(
        name="math",
        about="MATH by Hendrycks et al. in its original splits",
        repository="DigitalLearningGmbH/MATH-lighteval",
        revision="0530c78699ea5e8eb5530600900e1f328b48acad",
        splits={"train": "train", "test": "test"},
        rows={"train": 7500, "test": 5000},
        problem="problem",
        answer="solution",
        extract=boxed,
        license="MIT",
        verified="lighteval math.py; verl math_dataset.py; revision pinned by several projects",
    ),
    DataSet(
        name="math-hard",
        about="the problems of level 5 in MATH's test split",
        repository="DigitalLearningGmbH/MATH-lighteval",
        revision="0530c78699ea5e8eb5530600900e1f328b48acad",
        splits={"test": "test"},
        rows={"test": 5000},
        problem="problem",
        answer="solution",
        extract=boxed,
        keep={"level": "Level 5"},
        license="MIT",
        verified="as math; lighteval/MATH-Hard, a copy of the same problems, has 1,324",
    ),
    DataSet(
        name="math12k",
        about="MATH with 4,500 of the test problems moved to train; its test split is MATH-500",
        repository="hiyouga/math12k",
        splits={"train": "train", "test": "test"},
        rows={"train": 12000, "test": 500},
        problem="problem",
        answer="answer",
        extract=whole,
        license="not stated in the sources read; MATH itself is MIT",
        verified="EasyR1's example configuration and other scripts (columns, splits); rows by its name only",
    ),
    DataSet(
        name="gsm8k",
        about="grade-school word problems",
        repository="openai/gsm8k",
        config="main",
        revision="740312add88f781978c0658806c59bc2815b9866",
        splits={"train": "train", "test": "test"},
        rows={"train": 7473, "test": 1319},
        problem="question",
        answer="answer",
        extract=after_hashes,
        license="MIT",
        verified="lighteval gsm8k.py; verl gsm8k.py; revision pinned by several projects",
    ),
    DataSet(
        name="dapo-math-17k",
        about="DAPO's training problems, each once and bare, English and Chinese (--config en: English only)",
        repository="open-r1/DAPO-Math-17k-Processed",
        config="all",
        splits={"train": "train"},
        rows={"train": 17398},
        problem="prompt",
        answer="solution",
        extract=whole,
        unwrap=DAPO_WRAPPING,
        license="not stated in the sources read; the original is Apache-2.0",
        verified="several public training scripts (configs, columns, rows)",
    ),
    DataSet(
        name="dapo-math-17k-original",
        about="the same as first published: each problem about a hundred times, in DAPO's own instructions",
        repository="BytedTsinghua-SIA/DAPO-Math-17k",
        revision="65877096c24ffa7abc4e4fa5edb95cf3413a5674",
        splits={"train": "train"},
        rows={"train": 1791700},
        problem="prompt",
        answer="reward_model.ground_truth",
        extract=whole,
        unwrap=DAPO_WRAPPING,
        license="Apache-2.0",
        verified="columns, wrapping, rows and revision in several projects",
    ),
    DataSet(
        name="openr1-math",
        about="OpenR1-Math-220k, default config, word problems only: proofs and multiple choice are left out",
        repository="open-r1/OpenR1-Math-220k",
        revision="e4e141ec9dea9f8326f4d347be56105859b2bd68",
        splits={"train": "train"},
        rows={"train": 93733},
        problem="problem",
        answer="answer",
        extract=whole,
        keep={"question_type": "math-word-problem"},
        license="Apache-2.0",
        verified="open-r1's sft example; columns, rows, question types and revision in several projects",
    ),
    DataSet(
        name="math500",
        about="MATH-500, a sample of MATH's test split",
        repository="HuggingFaceH4/MATH-500",
        revision="6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be",
        splits={"test": "test"},
        rows={"test": 500},
        problem="problem",
        answer="answer",
        extract=whole,
        license="not stated in the sources read; MATH itself is MIT",
        verified="lighteval math_500.py; revision pinned by several projects",
    ),
    DataSet(
        name="aime24",
        about="AIME 2024, I and II",
        repository="HuggingFaceH4/aime_2024",
        revision="2fe88a2f1091d5048c0f36abc874fb997b3dd99a",
        splits={"test": "train"},
        rows={"test": 30},
        problem="problem",
        answer="answer",
        extract=whole,
        license="not declared on its card",
        verified="lighteval aime.py; revision pinned by several projects",
    ),
    DataSet(
        name="aime25",
        about="AIME 2025, I and II",
        repository="math-ai/aime25",
        revision="563bb8404243c5f09de6ec262f2db674fe5bce9b",
        splits={"test": "test"},
        rows={"test": 30},
        problem="problem",
        answer="answer",
        extract=whole,
        license="Apache-2.0",
        verified="columns, rows and revision pinned by several projects",
    ),
    DataSet(
        name="amc23",
        about="AMC 12 2023, the problems whose answer is a number",
        repository="math-ai/amc23",
        revision="80815d37005feb82cd7f8fbc6901d5d3eff43057",
        splits={"test": "test"},
        rows={"test": 40},
        problem="question",
        answer="answer",
        extract=whole,
        license="Apache-2.0",
        verified="columns, rows and revision pinned by several projects; the same 40 as in Qwen2.5-Math",
    ),
    DataSet(
        name="minerva",
        about="Minerva Math: university science courses, MIT OpenCourseWare",
        repository="math-ai/minervamath",
        revision="ee46ddc498933b1977577953250ca5c66be64f96",
        splits={"test": "test"},
        rows={"test": 272},
        problem="question",
        answer="answer",
        extract=whole,
        license="not stated in the sources read",
        verified="columns, rows and revision pinned by several projects; the same 272 as in Qwen2.5-Math",
    ),
    DataSet(
        name="olympiadbench",
        about="OlympiadBench, English open-ended text-only mathematics, problems with a single answer",
        repository="Hothan/OlympiadBench",
        config="OE_TO_maths_en_COMP",
        revision="91184b52131e7fc9455fef848035173aea8cc01a",
        splits={"test": "train"},
        rows={"test": 674},
        problem="question",
        answer="final_answer",
        extract=whole,
        keep={"is_multiple_answer": False},
        license="not stated in the sources read",
        verified="lighteval olympiade_bench.py; rows and revision in two files of one project",
    ),
)

TABLE: dict[str, DataSet] = {entry.name: entry for entry in _ENTRIES}


def listing() -> str:
    """The table as text: name, rows of each split, what it is, repository and licence."""
    lines = []
    for entry in TABLE.values():
        rows = ", ".join(f"{split} {count:,}" for split, count in entry.rows.items())
        read = f"{rows} before that choice" if entry.keep else rows
        lines += [
            f"{entry.name}: {entry.about}",
            f"    {read}; {entry.repository}{f' ({entry.config})' if entry.config else ''}; licence: {entry.license}",
        ]
    return "\n".join(
        [
            *lines,
            "reasoning-gym:NAME: any of reasoning-gym's generators, such as reasoning-gym:countdown",
            "FILE.parquet, FILE.jsonl: your own, with --problem and --answer",
        ]
    )


def unknown(name: str) -> ValueError:
    """The error for a name that is neither in the table nor a file; it suggests near names."""
    near = difflib.get_close_matches(name.lower(), TABLE, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return ValueError(
        f"{name!r} is no data set and no file: {hint}There are {', '.join(TABLE)}, reasoning-gym:GENERATOR, "
        "and your own .parquet, .jsonl or .json files (aent-verl prepare --list)"
    )
