"""Are the data files there, readable and in the form that verl reads, in every row?

Names of columns are verl's, except `data.prompt_key`: its reward loop reads ``data_source`` and
``reward_model["ground_truth"]``, whatever `data.reward_fn_key` says.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from aent_verl.preflight.errors import PreflightError

if TYPE_CHECKING:
    from aent_verl.preflight.scan import Found, Scan

FORMATS = (".parquet", ".json", ".jsonl")
SOURCE, REWARD, TRUTH, EXTRA = "data_source", "reward_model", "ground_truth", "extra_info"
# verl reads these of a row where the file has them.
OPTIONAL = ("agent_name", "__rollout_n__")
# verl hands a row's columns to its agent loop as keyword arguments, beside its own of these names, and writes them over
# the results of these names.
RESERVED = frozenset(
    {"metrics", "mm_processor_kwargs", "mm_processor_output", "num_turns", "output", "prompts", "response_mask"}
    | {"responses", "rm_scores", "rollout_log_probs", "routed_experts", "sampling_params", "self", "session_id"}
    | {"extra_fields", "teacher_ids", "teacher_logprobs", "trace", "trajectory", "validate"}
)
# Who uses the ground truths: a function of verl's, which needs them; code of the user's, which may; nobody.
NEEDED, PASSED_ON, UNREAD = "needed", "passed on", "unread"

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Sample:
    """Rows to look at closely, by file; both empty where the data cannot be looked at.

    Of each file the first, those with most text, and a few of each data source, in the file's order.
    """

    train: Mapping[str, Rows] = field(default_factory=dict)
    validation: Mapping[str, Rows] = field(default_factory=dict)

    @property
    def rows(self) -> Rows:
        """Training rows, then validation rows."""
        return list(itertools.chain(*self.train.values(), *self.validation.values()))

    @property
    def files(self) -> dict[str, Rows]:
        """Training and validation files; one that is both is there once."""
        return {**self.train, **self.validation}


@dataclass(frozen=True)
class Files:
    """What the files at a key hold.

    Attributes:
        sample: rows to look at closely, by file.
        count: all rows that were looked at; None where a file is not on this machine.
        content: what every row has, in words.
        warnings: what some rows lack that the run can do without, and files of which only a part was looked at.
        whole: whether those rows are all.
    """

    sample: Mapping[str, Rows]
    count: int | None
    content: str = ""
    warnings: tuple[Warning, ...] = ()
    whole: bool = True


def check(cfg: DictConfig) -> tuple[Sample, list[str | Exception]]:
    """Check training and validation files.

    Returns:
        Rows of each to look at closely, and one line for each passed check; what may be wrong is a warning.

    Raises:
        PreflightError: a file that is missing, unreadable, empty, or has rows without what verl or the reward reads;
            fewer rows than a batch.
    """
    if OmegaConf.select(cfg, "data.custom_cls.path"):
        return Sample(), [f"data: left to your data set class {cfg.data.custom_cls.path}"]
    rows: list[Mapping[str, Rows]] = []
    lines: list[str | Exception] = []
    for key in ("data.train_files", "data.val_files"):
        files = read_files(cfg, key)
        rows.append(files.sample)
        if files.count is None:
            lines.append(f"{key}: remote, left to verl")
            continue
        count = files.count if files.whole else f"the first {files.count}"
        lines += [f"{key}: {count} rows with {files.content}", *files.warnings]
        if key == "data.train_files" and files.whole:
            lines += _check_batch(cfg, files.count)
    return Sample(*rows), lines


def read_files(cfg: DictConfig, key: str) -> Files:
    """Check every row of the files at ``key``.

    Raises:
        PreflightError: see `check`.
    """
    from aent_verl.preflight import rows

    paths = named_files(cfg, key)
    if any("://" in path for path in paths):
        return Files({}, None)
    sample: dict[str, Rows] = {}
    scans: list[Scan] = []
    warnings: list[Warning] = []
    for path in paths:
        file = File(cfg, key, path)
        warnings += file.check()
        sample[path] = file.sample
        scans.append(file.scan)
    complete = {
        "prompt": True,
        "data source": not any(found.sources.count for found in scans),
        "ground truth": not any(found.truths.count for found in scans),
    }
    names = [name for name, holds in complete.items() if holds]
    content = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    whole = not any(rows.read_in_part(path) for path in paths)
    return Files(sample, sum(found.count for found in scans), content, tuple(warnings), whole)


def named_files(cfg: DictConfig, key: str) -> list[str]:
    """The files at ``key``, which is one name or a list of names.

    Raises:
        PreflightError: none is named.
    """
    value = OmegaConf.select(cfg, key)
    paths = list(value) if isinstance(value, list | tuple | ListConfig) else [value]
    if not paths or any(not isinstance(path, str) or not path for path in paths):
        raise PreflightError(
            key,
            value,
            "no data set is named",
            expected="a file, or a list of files",
            hint=f"Set {key}=<file>.parquet, or try the built-in task with experiment=cpu_arithmetic",
        )
    return paths


class File:
    """One file, read once.

    Raises:
        PreflightError: it is missing, damaged, empty or of another format.
    """

    def __init__(self, cfg: DictConfig, key: str, path: str) -> None:
        from aent_verl.preflight import rows
        from aent_verl.preflight.scan import scan

        self.key, self.path = key, path
        self.prompt_key = cfg.data.prompt_key
        self.use = use_of_truths(cfg)
        self._check_name()
        try:
            self.columns = rows.columns(path)
            self.scan = scan(path, self.prompt_key, [name for name in OPTIONAL if name in self.columns])
            self._rows = rows.take(path, [self.prompt_key, SOURCE, REWARD, EXTRA], self.scan.samples)
        except Exception as error:
            raise self._error(
                f"the file cannot be read ({type(error).__name__}: {error})",
                expected=f"a {os.path.splitext(path)[1][1:]} file",
                hint="It may be damaged or only half copied: make it again",
            ) from error
        if self.scan.count == 0:
            raise self._error("the file has no rows", expected="at least one row", hint=self._hint)

    @property
    def sample(self) -> Rows:
        """The rows to look at closely."""
        return list(self._rows.values())

    def check(self) -> list[Warning]:
        """Check what verl and the reward read of each row.

        Returns:
            A warning for each thing that rows lack and the run can do without.

        Raises:
            PreflightError: the run would fail, or give rows without a ground truth 0 whatever their answer is.
        """
        self._check_columns()
        self._check_prompts()
        self._check_records()
        return [*self._check_whole(), *self._check_truths(), *self._check_sources()]

    @property
    def _hint(self) -> str:
        return f"Set {self.key} to your data set, or make one with `aent-verl prepare`"

    def _error(self, problem: str, *, expected: str, hint: str) -> PreflightError:
        return PreflightError(self.key, self.path, problem, expected=expected, hint=hint)

    def _check_name(self) -> None:
        path = self.path
        if not os.path.isfile(path):
            unexpanded = f"verl does not expand '~': write {os.path.expanduser(path)}, if that is where it is"
            hint = unexpanded if path.startswith("~") else self._hint
            raise self._error("there is no such file", expected="a file that exists", hint=hint)
        if not path.endswith(FORMATS):
            expected = f"a name that ends in {', '.join(FORMATS)}"
            raise self._error("verl does not know this format", expected=expected, hint=self._hint)

    def _check_whole(self) -> list[Warning]:
        from aent_verl.preflight import rows

        if not rows.read_in_part(self.path):
            return []
        text = (
            f"{self.key}: {self.path} is a JSON array of {os.path.getsize(self.path) >> 20} MiB, of which the first "
            f"{self.scan.count} rows are checked; as parquet or JSON lines all are"
        )
        return [UserWarning(text)]

    def _check_columns(self) -> None:
        needed = {self.prompt_key: "data.prompt_key"}
        if self.use != UNREAD:
            needed[SOURCE] = "read by verl's reward loop"
            needed[REWARD] = '{"ground_truth": ...}, read by verl\'s reward loop'
        missing = [f"{name!r} ({why})" for name, why in needed.items() if name not in self.columns]
        if missing:
            raise self._error(
                f"the file has no column {', '.join(missing)}",
                expected=f"the columns {', '.join(map(repr, needed))}, it has "
                f"{', '.join(map(repr, sorted(self.columns)))}",
                hint="Convert the file, or name its column of prompts with data.prompt_key",
            )
        taken = sorted(RESERVED & self.columns)
        if taken:
            raise self._error(
                f"verl has values of its own under the names {', '.join(map(repr, taken))}, and would mix up these "
                "columns with them",
                expected="other names for these columns",
                hint="Rename or drop them",
            )

    def _check_prompts(self) -> None:
        self._require(
            self.prompt_key,
            self.scan.prompts,
            expected='chat messages, as in [{"role": "user", "content": "..."}]',
            hint="Convert the file, or name another column with data.prompt_key",
        )
        for name, found in self.scan.nulls.items():
            self._require(name, found, expected="a value in every row", hint="Fill it in, or drop the column")

    def _check_records(self) -> None:
        """Reward and extra information are indexed as records, by validation even where no reward reads them."""
        if REWARD in self.columns:
            self._require(
                REWARD,
                self.scan.records,
                expected='a record in every row, as in {"ground_truth": "5"}',
                hint="Store a record, neither its JSON text nor the bare answer",
            )
        for number, row in self._rows.items():
            extra = row.get(EXTRA)
            if extra is not None and not isinstance(extra, Mapping):
                raise self._error(
                    f"{EXTRA!r} of row {number} is {_short(extra)}",
                    expected="a record, or null",
                    hint="Store a record instead of its JSON text, or drop the column",
                )

    def _check_truths(self) -> list[Warning]:
        if self.use == UNREAD:
            return []
        nulls, empty = self.scan.truths, self.scan.empty
        # A null is passed on to the function; where the record lacks the name, verl fails before.
        absent = self.use == PASSED_ON and any(TRUTH not in row[REWARD] for row in self._take(nulls).values())
        if absent or self.use == NEEDED:
            expected = f"{{{TRUTH!r}: ...}} with a value in every row"
            hint = "Fill it in, or drop these rows; a reward that needs none is reward.custom_reward_function.path"
            for found in (nulls, empty):
                self._require(REWARD, found, expected=expected, hint=hint)
        return self._warned(f"{REWARD}.{TRUTH}", nulls, "null")

    def _check_sources(self) -> list[Warning]:
        if self.use == UNREAD:
            return []
        found, distinct = self.scan.sources, self.scan.distinct
        if self.use == NEEDED:
            hint = "verl's reward goes by the data source: fill it in"
            self._require(SOURCE, found, expected="a name in every row", hint=hint)
        warnings = self._warned(SOURCE, found, "null or empty")
        untried = sum(not taken for taken in distinct.values())
        if untried:
            warnings.append(
                UserWarning(
                    f"{self.key}: {self.path} has {len(distinct)} data sources; the reward is not tried on {untried}"
                )
            )
        return warnings

    def _warned(self, name: str, found: Found, state: str) -> list[Warning]:
        if not found.count:
            return []
        text = f"{self.key}: {name} of {found} of {self.path} is {state}, and your reward gets it like that"
        return [UserWarning(text)]

    def _require(self, name: str, found: Found, *, expected: str, hint: str) -> None:
        """Raise if rows were found that lack something."""
        if found.count:
            value = self._take(found)[found.first[0]].get(name)
            raise self._error(f"{name!r} of {found} is {_short(value)}", expected=expected, hint=hint)

    def _take(self, found: Found) -> dict[int, dict[str, Any]]:
        from aent_verl.preflight import rows

        return rows.take(self.path, [self.prompt_key, SOURCE, REWARD, *OPTIONAL], found.first)


def use_of_truths(cfg: DictConfig) -> str:
    """Who uses the ground truths of this config's data: ``NEEDED``, ``PASSED_ON`` or ``UNREAD``."""
    if cfg.reward.reward_manager.source != "register":
        return UNREAD  # by verl, that is; the manager may read anything
    if OmegaConf.select(cfg, "reward.custom_reward_function.path"):
        return PASSED_ON
    if cfg.reward.reward_model.enable:
        return UNREAD
    # An agent loop of the user's own may score its answers itself.
    own_loop = OmegaConf.select(cfg, "actor_rollout_ref.rollout.agent.agent_loop_config_path")
    return PASSED_ON if own_loop else NEEDED


def _check_batch(cfg: DictConfig, rows: int) -> list[Warning]:
    """Compare sizes of batches with the number of training rows.

    Returns:
        A warning where ``data.gen_batch_size`` has no effect.
    """
    # verl's words: max_samples > 0 limits, anything else does not.
    limit = cfg.data.get("train_max_samples", -1)
    if limit is None:
        raise PreflightError(
            "data.train_max_samples", limit, "verl compares it with 0", expected="a number", hint="Set it to -1 for all"
        )
    rows = min(rows, limit) if limit > 0 else rows
    size, fetched = cfg.data.train_batch_size, cfg.data.get("gen_batch_size")
    if rows < size:
        raise PreflightError(
            "data.train_batch_size",
            size,
            f"the training data has only {rows} rows",
            expected=f"at most {rows}",
            hint=f"Set data.train_batch_size={rows} or lower, or train on more data (see data.train_max_samples, too)",
        )
    reason = _single_fetches(cfg)
    if reason and fetched not in (None, 1):
        text = f"data.gen_batch_size={fetched} has no effect: with {reason} verl fetches prompts one by one"
        return [UserWarning(text)]
    if not reason and fetched and size % fetched:
        raise PreflightError(
            "data.gen_batch_size",
            fetched,
            f"verl puts a batch of data.train_batch_size={size} prompts together from whole fetches",
            expected=f"a divisor of {size}",
            hint="Leave it out (data.gen_batch_size=null) or set a divisor",
        )
    return []


def _single_fetches(cfg: DictConfig) -> str:
    """The setting that makes verl's v1 trainers fetch prompts one by one, whatever ``data.gen_batch_size`` is."""
    mode = str(OmegaConf.select(cfg, "trainer.v1.trainer_mode"))
    if mode.removeprefix("aent_") != "sync":
        return f"trainer.v1.trainer_mode={mode}"
    for key in ("algorithm.filter_groups.enable", "trainer.v1.sampler.sync_refill_failed_groups"):
        if OmegaConf.select(cfg, key):
            return f"{key}=true"
    return ""


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
