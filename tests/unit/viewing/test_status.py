"""The runs of a cluster as text."""

import io
from typing import Any

import pytest
from rich.console import Console

from aent_verl.viewing import status

STATE = {"coefficient": 0.0123, "entropy": 1.234, "band_side": -1, "at_bound": False, "initial_entropy": 2.0}
BAND = {"init": 0.01, "low": 2.5, "high": 3.0, "lr": 0.1, "min": 0.0, "max": 0.2}
RUN: dict[str, Any] = {
    "run": "mine",
    "project": "aent_verl",
    "job": "02000000",
    "node": "node-3",
    "folder": "outputs/mine",
    "method": "aent",
    "functional": "clamped(clamp_p=0.3)",
    "trainer_mode": "aent_sync",
    "begun": True,
    "step": 3,
    "total_steps": 40,
    "seconds_since_step": 65.0,
    "axes": {"bonus": {"controller": "band", "settings": BAND, "state": STATE}},
    "history": [
        {"step": step, "time": time, "bonus": {"coefficient": 0.01 * step, "entropy": 2.0 - step}}
        for step, time in ((1, 100.0), (2, 103.0), (3, 124.0))
    ],
    "changes": [
        {
            "key": "entropy_control.bonus.controller.low",
            "old": 2.0,
            "new": 2.5,
            "step": 2,
            "by": "ann@node",
            "at": "now",
        }
    ],
}


def text(*runs: dict[str, Any], **look: bool) -> str:
    file = io.StringIO()
    Console(file=file, width=120).print(status.render(runs, "10.0.0.1:6379", **look))
    return file.getvalue()


def test_a_run_is_a_block() -> None:
    lines = [line.rstrip() for line in text(RUN).splitlines()]
    assert lines == [
        "mine  aent, clamped(clamp_p=0.3), aent_sync, job 02000000",
        "  step 3 of 40, 1 min 5 s ago, 12 s a step",
        "  coefficient  0.0123  ▁▅█  band in [0, 0.2]",
        "  entropy      1.234   █▅▁  below 2.5 to 3 nats",
        "  changed: entropy_control.bonus.controller.low 2.0 -> 2.5, step 2, by ann@node",
    ]


def test_several_runs_and_none() -> None:
    assert text(RUN, RUN | {"run": "other"}).count("of 40") == 2
    assert text().strip() == "no run with entropy control on the Ray cluster at 10.0.0.1:6379"


def test_a_terminal_without_unicode() -> None:
    assert text(RUN, ascii_only=True).isascii()


@pytest.mark.parametrize(("begun", "said"), [(False, "starting"), (True, "first step")])
def test_a_run_without_a_step(begun: bool, said: str) -> None:
    state = STATE | {"entropy": None, "band_side": 0}
    axes = {"bonus": {"controller": "constant", "settings": {"init": 0.1}, "state": state}}
    young = RUN | {"begun": begun, "step": 0, "history": [], "changes": [], "axes": axes}
    assert f"{said}, after step 0 of 40" in text(young)
    assert "constant" in text(young)


@pytest.mark.parametrize(
    ("settings", "side", "said"),
    [
        ({"low": 0.1, "high": 0.2}, 0, "in 0.1 to 0.2 nats"),
        ({"target": 0.2}, 1, "above 0.2 nats"),
        ({"tau": 0.4}, -1, "below 0.8 nats"),
        ({"init": 0.1}, 0, "nats"),
        # What a config leaves open is null.
        ({"low": None, "high": None, "target": None}, 0, "nats"),
    ],
)
def test_what_the_controller_wants(settings: dict[str, Any], side: int, said: str) -> None:
    assert status.aim({"settings": settings, "state": STATE | {"band_side": side}}) == said


def test_a_curve_is_averaged_to_its_width() -> None:
    assert status.sparkline([]) == ""
    assert status.sparkline([1.0, 1.0]) == "▅▅"
    assert status.sparkline([None, 0.0, float("nan"), 7.0]) == " ▁ █"
    long = status.sparkline([float(i) for i in range(1000)])
    assert len(long) == status.WIDTH
    assert list(long) == sorted(long)
    assert (long[0], long[-1]) == ("▁", "█")
