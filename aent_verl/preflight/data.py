"""Are the data files there, readable and in the form that verl reads, in every row?

Names of columns are verl's, except `data.prompt_key`: its reward loop reads ``data_source`` and
``reward_model["ground_truth"]``, whatever `data.reward_fn_key` says.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight import rows
from aent_verl.preflight.findings import Setting, at
from aent_verl.preflight.rows import FILLED, PROMPTS, RECORDS, REWARD, SOURCE, SOURCES, TRUTH, TRUTHS, Rows

FORMATS = (".parquet", ".json", ".jsonl")
EXTRA = "extra_info"
# verl reads these of a row where the file has them.
OPTIONAL = ("agent_name", "__rollout_n__")
# verl passes a row's columns to its agent loop as keyword arguments, alongside its own of these names, and writes them
# over the results of these names.
RESERVED = frozenset(
    {"metrics", "mm_processor_kwargs", "mm_processor_output", "num_turns", "output", "prompts", "response_mask"}
    | {"responses", "rm_scores", "rollout_log_probs", "routed_experts", "sampling_params", "self", "session_id"}
    | {"extra_fields", "teacher_ids", "teacher_logprobs", "trace", "trajectory", "validate"}
)
# Who uses the ground truths: a function of verl's, which needs them; custom code, which may; nobody.
NEEDED, PASSED_ON, UNREAD = "needed", "passed on", "unread"


@dataclass(frozen=True)
class Sample:
    """Rows to look at closely, by file; both empty where the data cannot be read.

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
        count: all rows that were read; None where a file is not on this machine.
        content: what every row has, in words.
        warnings: what some rows lack that the run can do without, and files of which only a part was read.
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
    samples: list[Mapping[str, Rows]] = []
    lines: list[str | Exception] = []
    for key in ("data.train_files", "data.val_files"):
        files = read_files(cfg, key)
        samples.append(files.sample)
        if files.count is None:
            lines.append(f"{key}: remote, left to verl")
            continue
        count = files.count if files.whole else f"the first {files.count}"
        lines += [f"{key}: {count} rows with {files.content}", *files.warnings]
        if key == "data.train_files" and files.whole:
            lines += _check_batch(cfg, files.count)
    return Sample(*samples), lines


def read_files(cfg: DictConfig, key: str) -> Files:
    """Check every row of the files at ``key``.

    Raises:
        PreflightError: see `check`.
    """
    paths = named_files(cfg, key)
    if any("://" in path for path in paths):
        return Files({}, None)
    files = [File(cfg, key, path) for path in paths]
    warnings = tuple(warning for file in files for warning in file.check())
    kinds = {PROMPTS: "prompt", SOURCES: "data source", TRUTHS: "ground truth"}
    *most, last = (name for kind, name in kinds.items() if not any(file.scan.lacking[kind].count for file in files))
    content = " and ".join(filter(None, [", ".join(most), last]))
    sample = {file.path: list(file.rows.values()) for file in files}
    count, whole = sum(file.scan.count for file in files), not any(file.in_part for file in files)
    return Files(sample, count, content, warnings, whole)


def named_files(cfg: DictConfig, key: str) -> list[str]:
    """Return the files at ``key``, which is one name or a list of names.

    Raises:
        PreflightError: none is named.
    """
    files = at(cfg, key)
    paths = files.value if isinstance(files.value, list) else [files.value]
    if not paths or any(not isinstance(path, str) or not path for path in paths):
        hint = f"Set {key}=<file>.parquet, or try the built-in task with experiment=cpu_arithmetic"
        raise files.error("no data set is named", hint, "a file, or a list of files")
    return paths


class File:
    """One file, read once.

    Attributes:
        columns: their names.
        scan: what was found in all rows.
        rows: those to look at closely, by number.
        in_part: whether only the beginning was read.

    Raises:
        PreflightError: it is missing, damaged, empty or of another format.
    """

    def __init__(self, cfg: DictConfig, key: str, path: str) -> None:
        self.key, self.path = key, path
        self.prompt_key = cfg.data.prompt_key
        self.use = use_of_truths(cfg)
        self._error = Setting(key, path).error
        self._hint = f"Set {key} to your data set, or make one with `aent-verl prepare`"
        self._check_name()
        try:
            self.in_part = rows.read_in_part(path)
            self.columns = rows.columns(path)
            self.scan = rows.scan(path, self.prompt_key, [name for name in OPTIONAL if name in self.columns])
            self.rows = rows.take(path, [self.prompt_key, SOURCE, REWARD, EXTRA], self.scan.samples)
        except Exception as error:
            raise self._error(
                f"the file cannot be read ({type(error).__name__}: {error})",
                "It may be damaged or only half copied: make it again",
                f"a {os.path.splitext(path)[1][1:]} file",
            ) from error
        if self.scan.count == 0:
            raise self._error("the file has no rows", self._hint, "at least one row")

    def check(self) -> Iterator[Warning]:
        """Check what verl and the reward read of each row.

        Yields:
            A warning for each thing that rows lack and the run can do without.

        Raises:
            PreflightError: the run would fail, or give rows without a ground truth 0 whatever their answer is.
        """
        self._check_columns()
        self._check_prompts()
        self._check_records()
        if self.in_part:
            size, count = os.path.getsize(self.path) >> 20, self.scan.count
            yield self._warning(
                f"is a JSON array of {size} MiB, of which the first {count} rows are checked; of JSON lines all are"
            )
        if self.use != UNREAD:
            yield from self._check_truths()
            yield from self._check_sources()

    def _warning(self, text: str) -> Warning:
        return UserWarning(f"{self.key}: {self.path} {text}")

    def _check_name(self) -> None:
        path = self.path
        if not os.path.isfile(path):
            unexpanded = f"verl does not expand '~': write {os.path.expanduser(path)}, if that is where it is"
            hint = unexpanded if path.startswith("~") else self._hint
            raise self._error("there is no such file", hint, "a file that exists")
        if not path.endswith(FORMATS):
            raise self._error("verl does not know this format", self._hint, f"a name that ends in {', '.join(FORMATS)}")

    def _check_columns(self) -> None:
        needed = {self.prompt_key: "data.prompt_key"}
        if self.use != UNREAD:
            needed[SOURCE] = "read by verl's reward loop"
            needed[REWARD] = '{"ground_truth": ...}, read by verl\'s reward loop'
        if missing := [f"{name!r} ({why})" for name, why in needed.items() if name not in self.columns]:
            names, found = (", ".join(map(repr, each)) for each in (needed, sorted(self.columns)))
            raise self._error(
                f"the file has no column {', '.join(missing)}",
                "Convert the file, or name its column of prompts with data.prompt_key",
                f"the columns {names}, it has {found}",
            )
        if taken := sorted(RESERVED & self.columns):
            raise self._error(
                f"verl has values named {', '.join(map(repr, taken))} itself, and would mix them up with these columns",
                "Rename or drop them",
                "other names for these columns",
            )

    def _check_prompts(self) -> None:
        hint = "Convert the file, or name another column with data.prompt_key"
        self._require(self.prompt_key, PROMPTS, 'chat messages, as in [{"role": "user", "content": "..."}]', hint)
        for name in filter(self.columns.__contains__, OPTIONAL):
            self._require(name, name, "a value in every row", "Fill it in, or drop the column")

    def _check_records(self) -> None:
        """Check reward and extra information, which validation indexes as records even where no reward reads them."""
        if REWARD in self.columns:
            hint = "Store a record, not its JSON text or the bare answer"
            self._require(REWARD, RECORDS, 'a record in every row, as in {"ground_truth": "5"}', hint)
        for number, row in self.rows.items():
            if not isinstance(extra := row.get(EXTRA), Mapping | None):
                raise self._error(
                    f"{EXTRA!r} of row {number} is {extra!r:.80}",
                    "Store a record instead of its JSON text, or drop the column",
                    "a record, or null",
                )

    def _check_truths(self) -> Iterator[Warning]:
        # A null is passed on to the function; where the record lacks the name, verl fails before.
        absent = self.use == PASSED_ON and any(TRUTH not in row[REWARD] for row in self._take(TRUTHS).values())
        if absent or self.use == NEEDED:
            hint = "Fill it in, or drop these rows; a reward that needs none is reward.custom_reward_function.path"
            for kind in (TRUTHS, FILLED):
                self._require(REWARD, kind, f"{{{TRUTH!r}: ...}} with a value in every row", hint)
        yield from self._warned(f"{REWARD}.{TRUTH}", TRUTHS, "null")

    def _check_sources(self) -> Iterator[Warning]:
        if self.use == NEEDED:
            self._require(SOURCE, SOURCES, "a name in every row", "verl's reward goes by the data source: fill it in")
        yield from self._warned(SOURCE, SOURCES, "null or empty")
        distinct = self.scan.distinct
        if untried := sum(not taken for taken in distinct.values()):
            yield self._warning(f"has {len(distinct)} data sources; the reward is not tried on {untried}")

    def _warned(self, name: str, kind: str, state: str) -> Iterator[Warning]:
        if (found := self.scan.lacking[kind]).count:
            yield UserWarning(f"{self.key}: {name} of {found} of {self.path} is {state}, and your reward receives it")

    def _require(self, name: str, kind: str, expected: str, hint: str) -> None:
        """Raise if there are rows that lack something, see `rows.Scan`."""
        if (found := self.scan.lacking[kind]).count:
            value = self._take(kind)[found.first[0]].get(name)
            raise self._error(f"{name!r} of {found} is {value!r:.80}", hint, expected)

    def _take(self, kind: str) -> dict[int, dict[str, Any]]:
        return rows.take(self.path, [self.prompt_key, SOURCE, REWARD, *OPTIONAL], self.scan.lacking[kind].first)


def use_of_truths(cfg: DictConfig) -> str:
    """Tell who uses the ground truths of this config's data: ``NEEDED``, ``PASSED_ON`` or ``UNREAD``."""
    if cfg.reward.reward_manager.source != "register":
        return UNREAD  # by verl, that is; the manager may read anything
    if OmegaConf.select(cfg, "reward.custom_reward_function.path"):
        return PASSED_ON
    if cfg.reward.reward_model.enable:
        return UNREAD
    # A custom agent loop may score its answers itself.
    return PASSED_ON if OmegaConf.select(cfg, "actor_rollout_ref.rollout.agent.agent_loop_config_path") else NEEDED


def _check_batch(cfg: DictConfig, count: int) -> Iterator[Warning]:
    """Compare sizes of batches with the number of training rows.

    Yields:
        A warning where ``data.gen_batch_size`` has no effect.
    """
    # verl's words: max_samples > 0 limits, anything else does not.
    limit = cfg.data.get("train_max_samples", -1)
    if limit is None:
        raise at(cfg, "data.train_max_samples").error("verl compares it with 0", "Set it to -1 for all", "a number")
    count = min(count, limit) if limit > 0 else count
    batch, fetch = at(cfg, "data.train_batch_size"), at(cfg, "data.gen_batch_size")
    if count < batch.value:
        raise batch.error(
            f"the training data has only {count} rows",
            f"Set {batch.key}={count} or lower, or train on more data (see data.train_max_samples, too)",
            f"at most {count}",
        )
    reason = _single_fetches(cfg)
    if reason and fetch.value not in (None, 1):
        yield UserWarning(f"{fetch.key}={fetch.value} has no effect: with {reason} verl fetches prompts one by one")
    if not reason and fetch.value and batch.value % fetch.value:
        raise fetch.error(
            f"verl composes a batch of {batch.key}={batch.value} prompts of whole fetches",
            f"Remove it ({fetch.key}=null) or set a divisor",
            f"a divisor of {batch.value}",
        )


def _single_fetches(cfg: DictConfig) -> str:
    """Find what makes verl's v1 trainers fetch prompts one by one, whatever ``data.gen_batch_size`` is."""
    mode = str(OmegaConf.select(cfg, "trainer.v1.trainer_mode"))
    if mode.removeprefix("aent_") != "sync":
        return f"trainer.v1.trainer_mode={mode}"
    switches = ("algorithm.filter_groups.enable", "trainer.v1.sampler.sync_refill_failed_groups")
    return next((f"{key}=true" for key in switches if OmegaConf.select(cfg, key)), "")
