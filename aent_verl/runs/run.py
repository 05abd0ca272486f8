"""One run of a comparison: method, seed, metrics, scores of each problem, and the conditions it was made under."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from aent_verl._util import read_json
from aent_verl.runs.metrics import OLDER, REWARD, Metrics, read_metrics
from aent_verl.runs.problems import EVALUATION, ProblemScores, read_evaluation, read_validation, validations
from aent_verl.runs.protocol import STEPS, Protocol, flatten, protocol_of, settings_of

RECORD = "run.json"
# What libraries and workers print during a training.
LOG = "train.log"
RECORD_FORMAT = 1
# A record's state once nothing is left to do.
COMPLETE = "complete"
# Where a run's config may lie: ours, Hydra's by our output_subdir, Hydra's own.
CONFIGS = (Path("config.yaml"), Path("hydra", "config.yaml"), Path(".hydra", "config.yaml"))


@dataclass(frozen=True)
class Run:
    """A run.

    Attributes:
        method: what the comparison calls its method.
        seed: seed of data order and rollouts.
        path: its folder or metrics file.
        metrics: by training step, in ascending order.
        scores: of each problem after training; None if nothing of that was stored.
        protocol: what has to be equal in all runs; empty if not known.
        settings: all else of its config, by dotted key; empty if not known.
        record: what `aent-verl compare` wrote about it; empty for a run made elsewhere.
        notes: why scores that are there do not count.
    """

    method: str
    seed: int
    path: Path
    metrics: dict[int, Metrics]
    scores: ProblemScores | None = None
    protocol: Protocol = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Method and seed, as in "aent seed 3"."""
        return f"{self.method} seed {self.seed}"

    @property
    def last_step(self) -> int:
        """The last step that was trained or validated."""
        return max(self.metrics)


def load_run(path: Path, *, method: str | None = None, seed: int | None = None) -> Run:
    """Read a run from its folder or metrics file.

    Args:
        path: see `read_metrics`.
        method: its method; None: as its record or config says.
        seed: its seed; None: likewise.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a damaged file, no reward in the metrics, or method or seed not known.
    """
    metrics = read_metrics(path)
    if not any(REWARD in data for data in metrics.values()):
        raise ValueError(f"{path} has no {REWARD!r} at any step: verl did not train there, or not to its first step")
    home = _home(path)
    record, config = read_record(home) or {}, read_config(home)
    flat = dict(flatten(config))
    method = method or record.get("method") or flat.get("entropy_control.method")
    seed = next((one for one in (seed, record.get("seed"), flat.get("data.seed")) if one is not None), None)
    if isinstance(seed, str) and not seed.isdecimal():
        seed = None  # An interpolation of a config that is not resolved.
    if method is None or seed is None:
        unknown = "method" if method is None else "seed"
        raise ValueError(f"{path}: its {unknown} is not recorded there; name it: --from METHOD:SEED={path}")
    scores, notes = _scores(path, max(metrics))
    return Run(
        method=str(method),
        seed=int(seed),
        path=path,
        metrics=metrics,
        scores=scores,
        protocol=record.get("protocol") or (protocol_of(config) if config else {}),
        settings=settings_of(config),
        record=record,
        notes=notes,
    )


def load_runs(
    paths: Iterable[str | Path], *, method: str | None = None, seed: int | None = None
) -> tuple[list[Run], list[str]]:
    """Read those runs that are finished, and say of the others why they are not.

    Returns:
        The runs; and a sentence for each method and reason, without a full stop.

    Raises:
        FileNotFoundError, ValueError: see `load_run`.
    """
    runs: list[Run] = []
    unfinished: dict[tuple[str, str], list[str]] = {}
    for path in map(Path, paths):
        home = _home(path)
        known = read_record(home) or {}
        reason = _unfinished(home, known) if known else None
        if reason is None:
            run = load_run(path, method=method, seed=seed)
            # The config of a run that compare did not make may say how long it was to be.
            planned = "" if known else run.protocol.get(STEPS, "")
            if not planned.isdecimal() or run.last_step >= int(planned):
                runs.append(run)
                continue
            known, reason = vars(run), f"not finished: it is at step {run.last_step} of {planned}"
        names = (method or known.get("method"), known.get("seed") if seed is None else seed)
        what, which = ("run", path.name) if None in names else (f"{names[0]} seed", str(names[1]))
        unfinished.setdefault((what, reason), []).append(which)
    return runs, [
        f"{what} {which[0]} is {reason}" if len(which) == 1 else f"{what}s {', '.join(which)} are {reason}"
        for (what, reason), which in unfinished.items()
    ]


def read_record(folder: Path) -> dict[str, Any] | None:
    """Read what `aent-verl compare` wrote about a run; None if it wrote nothing.

    Raises:
        ValueError: damaged, or of a later version.
    """
    file = folder / RECORD
    record = read_json(file, "restore it, or remove the run's folder to train it again")
    if record is not None and record.get("format") != RECORD_FORMAT:
        raise ValueError(f"{file}: expected format {RECORD_FORMAT}; update aent_verl, or remove the file")
    return record


def read_config(folder: Path) -> dict[str, Any]:
    """Read the resolved config of a run; empty if its folder has none.

    Raises:
        ValueError: damaged.
    """
    file = next((folder / name for name in CONFIGS if (folder / name).is_file()), None)
    return {} if file is None else read_yaml(file, "restore it, or remove it", resolve=True)


def read_yaml(file: Path, remedy: str, *, resolve: bool = False) -> dict[str, Any]:
    """Read the mapping in a YAML file, its interpolations resolved if asked for and possible.

    Raises:
        ValueError: damaged, or not a mapping; the message ends with the remedy.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        loaded = OmegaConf.load(file)
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{file} is not readable YAML ({error}): {remedy}") from None
    try:
        content = OmegaConf.to_container(loaded, resolve=resolve)
    except OmegaConfBaseException:
        content = OmegaConf.to_container(loaded)
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds no keys with values: {remedy}")
    return {str(key): value for key, value in content.items()}


def by_method(runs: Iterable[Run], first: str | None = None) -> dict[str, list[Run]]:
    """Group runs by method, `first` first and the others as they come, each group by ascending seed.

    Raises:
        ValueError: two runs of the same method and seed.
    """
    groups: dict[str, list[Run]] = {first: []} if first is not None else {}
    for run in runs:
        groups.setdefault(run.method, []).append(run)
    for method, group in groups.items():
        group.sort(key=lambda run: run.seed)
        for one, two in pairwise(group):
            if one.seed == two.seed:
                raise ValueError(
                    f"{one.path} and {two.path} are both {method} seed {one.seed}: leave one out, or name them apart "
                    "with --from METHOD:SEED=PATH"
                )
    return groups


def _unfinished(folder: Path, record: Mapping[str, Any]) -> str | None:
    """Say what is left to do for a run of compare's; None if nothing is."""
    if record.get("state") != COMPLETE:
        return f"not finished: the state is {record.get('state')!r}, not {COMPLETE!r}"
    if record.get("evaluation") is not None and not (folder / EVALUATION).is_file():
        return f"not finished: {EVALUATION} is missing"
    return None


def _home(path: Path) -> Path:
    """Return the folder of a run's record and config; the path itself, which has none, of one of several logs."""
    logs = {file.name for file in path.parent.glob("*.jsonl") if not OLDER.fullmatch(file.name)}
    return path.parent if logs == {path.name} and path.is_file() else path


def _scores(path: Path, last_step: int) -> tuple[ProblemScores | None, tuple[str, ...]]:
    """Read the scores of the model after a run's last step, and say why those that are there do not count."""
    evaluation, dumps = read_evaluation(path), validations(path)
    if evaluation is not None:
        if evaluation.step in (None, last_step):
            return evaluation, ()
        note = f"the evaluation is of step {evaluation.step}, not of the last, {last_step}, so it does not count"
    elif not dumps:
        return None, ()
    elif last_step not in dumps:
        note = (
            f"responses of validations are there up to step {max(dumps)}, but not those at the end of training, step "
            f"{last_step}, so they do not count"
        )
    else:
        try:
            return read_validation(dumps[last_step]), ()
        except ValueError as error:
            # Days of training are not lost for it: the seeds' validation accuracy remains.
            reason = str(error).removeprefix(f"{dumps[last_step]}: ")
            note = f"the responses of the last validation do not count: {reason}"
    return None, (note,)
