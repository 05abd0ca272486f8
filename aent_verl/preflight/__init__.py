"""Checks made in the driver before Ray starts: each names the setting, what it points to and what to do.

One list for every command. `check_settings` needs the config alone; `check_run` looks at data, model, reward and
machine. Nothing here imports verl before one of them is called: by then the platform is decided.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial

from omegaconf import DictConfig

from aent_verl.preflight import (
    algorithm,
    data,
    keys,
    lengths,
    lora,
    machines,
    model,
    names,
    nodes,
    reward,
    sampling,
    separate,
    settings,
)
from aent_verl.preflight.findings import PreflightError, Row, attempt, say

__all__ = ["PreflightError", "Row", "attempt", "check_api", "check_evaluation", "check_run", "check_settings", "say"]

Check = Callable[[DictConfig], Iterable[str | Exception]]
# In the order in which they report on a key: those that know most about it first.
TRAINING: dict[str, Check] = {
    "algorithm": algorithm.check,
    "sampling": sampling.check,
    "trainer mode": separate.check,
    "lengths": lengths.check,
    "LoRA": lora.check,
    "names": names.check,
    "keys": keys.check,
    "settings": settings.check,
}
EVALUATION: dict[str, Check] = {"LoRA": lora.check_evaluation, "names": names.check, "keys": keys.check}


def check_settings(cfg: DictConfig) -> Iterator[Row]:
    """Check a training run's settings, from its composed config alone; verl's platform must be decided."""
    yield from _each_key_once(TRAINING, cfg)


def check_evaluation(cfg: DictConfig) -> Iterator[Row]:
    """Check an evaluation's settings."""
    yield from _each_key_once(EVALUATION, cfg)


def _each_key_once(checks: Mapping[str, Check], cfg: DictConfig) -> Iterator[Row]:
    """Yield rows of all checks; where several report on a key, those of the first."""
    said: set[str | None] = set()
    for name, check in checks.items():
        rows = [row for row in attempt(name, partial(check, cfg)) if row.key is None or row.key not in said]
        said |= {row.key for row in rows}
        yield from rows


def check_run(cfg: DictConfig, *, skip: Collection[str] = (), check_machines: Check | None = None) -> Iterator[Row]:
    """Check verl's API, data, model, reward function and machines, and each node of a cluster that is joined.

    Args:
        cfg: the composed config.
        skip: checks whose objects are not there yet.
        check_machines: checks the machines, if not those at hand.
    """
    sample = data.Sample()

    def check_data() -> list[str | Exception]:
        nonlocal sample
        sample, lines = data.check(cfg)
        return lines

    yield from check_api()
    checks: dict[str, Callable[[], Iterable[str | Exception]]] = {
        "data": check_data,
        "model": lambda: model.check(cfg, sample),
        "reward": lambda: reward.check(cfg, sample),
        "machines": lambda: (check_machines or machines.check)(cfg),
        "nodes": lambda: nodes.check(cfg) if check_machines is None else (),
    }
    for name, check in checks.items():
        if name not in skip:
            yield from attempt(name, check)


def check_api() -> Iterator[Row]:
    """Check what our code assumes of verl's API."""
    yield from attempt("verl API", _check_assumptions)


def _check_assumptions() -> Iterator[str | Exception]:
    from aent_verl.verl_api import assumptions, versions

    untested = versions.check_assumptions()
    yield f"{len(assumptions.ASSUMPTIONS)} assumptions of our code hold"
    if untested is not None:
        yield untested
