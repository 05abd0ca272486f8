"""What the user asked for: methods, seeds, and the overrides that go to every run.

Settings are Hydra overrides. The keys of `Settings` are the comparison's own, everything else goes to ``train``::

    aent-verl compare experiment=cpu_arithmetic methods=[grpo,aent] seeds=[1,2,3] trainer.total_training_steps=60

``grid=FILE.yaml`` holds the same keys, with the overrides for ``train`` as the list ``overrides``; what the command
line says comes after it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any

from aent_verl._util import number, whole_number
from aent_verl.comparison.stats import TARGETS, Target
from aent_verl.comparison.stats.crossed import check_target
from aent_verl.runs.protocol import SEED_KEYS
from aent_verl.runs.run import read_yaml

LOCAL, RAY = "local", "ray"
LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")
_FILE = "grid"
# What the comparison sets itself, for each run.
_RESERVED = (
    *("run.dir", "trainer.experiment_name", "trainer.validation_data_dir", "trainer.default_local_dir"),
    *("trainer.resume_", "hydra.", *SEED_KEYS),
)
_RESERVED_FOR_EVALUATION = (
    *("model", "output", "overwrite", "run.dir"),
    *("actor_rollout_ref.model.path", "evaluation.output", "evaluation.overwrite"),
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of a comparison.

    Attributes:
        overrides: what every run gets.
        methods: overrides of each method by its label. A label that is a preset needs none: ``aent`` means
            ``entropy_control=aent``.
        seeds: one run per method for each.
        baseline: the method that the others are compared with.
        results: folder of all runs and of the report.
        evaluation: settings of ``aent-verl evaluate`` for the final checkpoint of each run; empty: none, and the last
            validation counts.
        parallel: runs at the same time.
        launcher: ``local``, as processes here, or ``ray``, as jobs on the cluster of RAY_ADDRESS.
        stall_minutes: a run that logs nothing for so long is stopped and counts as failed; 0: wait indefinitely.
        target: what the verdicts are about: ``problems like these``, or ``these problems`` alone.
        title: heading of the report.
    """

    overrides: tuple[str, ...]
    methods: Mapping[str, tuple[str, ...]]
    seeds: tuple[int, ...]
    baseline: str
    results: Path
    evaluation: Mapping[str, Any]
    parallel: int
    launcher: str
    stall_minutes: float
    target: Target
    title: str

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, in the form of a grid file."""
        return asdict(self) | {"results": str(self.results)}


_KEYS = {item.name for item in fields(Settings)}


def parse(arguments: Sequence[str]) -> Settings:
    """Read the command line.

    Args:
        arguments: Hydra overrides.

    Raises:
        ValueError: an invalid setting; the message names key, value and what is allowed.
    """
    given: dict[str, Any] = {}
    from_file: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {"evaluation": {}, "methods": {}}
    overrides: list[str] = []
    for text, key, value in _parsed(arguments):
        name, _, rest = key.partition(".")
        if key == _FILE:
            from_file |= _read_file(Path(str(value)))
        elif name not in _KEYS or name == "overrides":
            overrides.append(text)
        elif name in parts and rest:
            parts[name][rest] = value
        elif rest:
            raise ValueError(f"{key}={value}: {name} has no part {rest!r}")
        else:
            given[name] = value
    given = from_file | given
    for name, more in parts.items():
        if more:
            given[name] = {**_by_label(given.get(name) or {}), **more}
    return _settings(given, overrides)


def _by_label(value: Any) -> Mapping[str, Any]:
    """Turn a list of labels into a mapping from each to no overrides."""
    if isinstance(value, list):
        if len(set(map(str, value))) < len(value):
            raise ValueError(f"methods={value}: names one twice")
        return dict.fromkeys(value)
    return value if isinstance(value, Mapping) else {}


def _parsed(arguments: Sequence[str]) -> Iterator[tuple[str, str, Any]]:
    """Yield text, key and value of each override."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    for text in arguments:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            lost = "[" in text and "'" not in text
            hint = """, or "methods.mine=['entropy_control=aent']" with all quotes""" if lost else ""
            raise ValueError(
                f"{text!r} is not a valid setting ({error}): write key=value{hint}; aent-verl compare --help"
            ) from None
        if override.is_sweep_override():
            raise ValueError(f"{text}: one value per key; methods and seeds are lists, as in seeds=[1,2,3]")
        yield text, override.key_or_group, override.value()


def _read_file(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{_FILE}={path}: no such file ({path.resolve()}); give a YAML file with keys of a comparison, such as the "
            "grid.yaml that each one writes into its results folder"
        )
    allowed = ", ".join(sorted(_KEYS))
    content = read_yaml(path, f"give keys of {allowed}")
    unknown = sorted(content.keys() - _KEYS)
    if unknown:
        raise ValueError(f"{_FILE}={path}: has {', '.join(unknown)}; allowed are {allowed}")
    return content


def _settings(given: dict[str, Any], overrides: Sequence[str]) -> Settings:
    every = (*_strings("overrides", given.get("overrides") or []), *overrides)
    methods = _methods(given.get("methods", ["grpo", "entreg", "aent"]))
    for text in chain(every, *methods.values()):
        key = text.partition("=")[0].lstrip("+~")
        if key.startswith(_RESERVED):
            says = "seeds=[1,2,3] says to what" if key in SEED_KEYS else "results=FOLDER says where all of them go"
            raise ValueError(f"{text}: compare sets {key} for each run; {says}")
    baseline = str(given.get("baseline") or ("grpo" if "grpo" in methods else next(iter(methods))))
    if baseline not in methods:
        raise ValueError(f"baseline={baseline!r}: must be one of methods={list(methods)}")
    evaluation = given.get("evaluation") or {}
    if not isinstance(evaluation, Mapping):
        raise ValueError(f"evaluation={evaluation!r}: give aent-verl evaluate's keys, as in evaluation.data=x.parquet")
    for key in evaluation:
        if key in _RESERVED_FOR_EVALUATION:
            raise ValueError(f"evaluation.{key}: compare sets it, to the final checkpoint and the folder of each run")
    experiments = [text.partition("=")[2] for text in every if text.lstrip("+").startswith("experiment=")]
    name = experiments[-1] if experiments else "runs"
    launcher = given.get("launcher", LOCAL)
    if launcher not in (LOCAL, RAY):
        raise ValueError(f"launcher={launcher!r}: must be {LOCAL} or {RAY}")
    return Settings(
        methods=methods,
        seeds=_seeds(given.get("seeds", [1, 2, 3])),
        baseline=baseline,
        # A folder named by its date is a number to Hydra.
        results=Path(str(given.get("results") or f"outputs/compare/{name}")),
        overrides=every,
        evaluation={str(key): value for key, value in evaluation.items()},
        parallel=whole_number("parallel", given.get("parallel", 1), lowest=1),
        launcher=launcher,
        stall_minutes=number(
            "stall_minutes", given.get("stall_minutes", 60.0), lambda minutes: minutes >= 0, allowed="a number from 0"
        ),
        target=check_target(given.get("target", TARGETS[0])),
        title=str(given.get("title") or name),
    )


def _methods(value: Any) -> dict[str, tuple[str, ...]]:
    methods = {str(label): tuple(_strings(f"methods.{label}", own or [])) for label, own in _by_label(value).items()}
    if not methods:
        raise ValueError(f"methods={value!r}: give a list of presets, methods=[grpo,aent], or overrides by label")
    for label in methods:
        if not LABEL.fullmatch(label):
            raise ValueError(f"methods: {label!r} names folders, so it must be letters, digits and _ . + - only")
    return methods


def _seeds(value: Any) -> tuple[int, ...]:
    seeds = value if isinstance(value, list) else [value]
    if not seeds or any(type(seed) is not int or seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={value!r}: give distinct whole numbers from 0, as in seeds=[1,2,3]")
    return tuple(seeds)


def _strings(key: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"{key}={value!r}: must be a list of overrides, as in ['data.train_batch_size=64']")
    return value
