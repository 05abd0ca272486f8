"""The driver's arithmetic and checks, without Ray."""

import math

import pytest

from aent_verl.core.controllers import ConstantController
from aent_verl.integration import loss
from aent_verl.integration.config import EntropyControlConfig, FunctionalConfig
from aent_verl.integration.report import banner
from aent_verl.integration.trainer import PlugInNotActiveError, check_reports, step_means

METRICS = {
    "actor/aent/token_count": 8.0,
    "actor/aent/entropy_sum": 2.0,
    "actor/aent/entropy_full_sum": 4.0,
    "actor/aent/removed_mass_sum": 1.0,
    "actor/aent/bonus_loss": -0.5,
    "actor/aent/coefficient_lowest": 0.25,
    "actor/aent/coefficient_highest": 0.25,
    "actor/pg_loss": 3.0,
}
CONTROL = EntropyControlConfig("entreg", FunctionalConfig("full"), "linear", ConstantController(init=0.1))
REPORT = {
    "rank": 0,
    "engine": "EntropyControlEngine",
    "loss": "entropy_control_loss",
    "method": "entreg",
    "functional": "full",
    "controller": "ConstantController(init=0.1)",
    "coefficient": 0.1,
    "device": "cpu",
}


def test_means_are_ratios_of_sums_and_our_sums_leave_verls_metrics() -> None:
    metrics = dict(METRICS)
    assert step_means(metrics, sent=0.25) == {
        "aent/entropy": 0.25,
        "aent/entropy_full": 0.5,
        "aent/removed_mass": 0.125,
        "aent/bonus_loss": -0.5,
    }
    assert metrics == {"actor/pg_loss": 3.0}


def test_a_step_without_tokens_has_no_entropy() -> None:
    assert math.isnan(step_means(METRICS | {"actor/aent/token_count": 0.0}, sent=0.25)["aent/entropy"])


@pytest.mark.parametrize("key", [key for key in METRICS if "aent" in key])
def test_missing_sums_stop_the_run(key: str) -> None:
    metrics = {k: v for k, v in METRICS.items() if k != key}
    with pytest.raises(PlugInNotActiveError, match=key):
        step_means(metrics, sent=0.25)


@pytest.mark.parametrize("sent", [0.0, 0.3])
def test_a_rank_with_another_coefficient_stops_the_run(sent: float) -> None:
    with pytest.raises(PlugInNotActiveError, match="coefficients"):
        step_means(dict(METRICS), sent=sent)
    with pytest.raises(PlugInNotActiveError, match="coefficients"):
        step_means(METRICS | {"actor/aent/coefficient_lowest": 0.2}, sent=0.25)


def test_names_of_our_sums_are_safe_in_verls_reduction() -> None:
    """verl reduces keys with "max" or "min" by max and min, and sums "sum" and "total" again over local updates."""
    for name in (*loss.SUMS.values(), loss.TOKENS, loss.BONUS_LOSS):
        assert "max" not in name
        assert "min" not in name


def test_matching_reports_pass_and_make_the_banner() -> None:
    check_reports([REPORT, REPORT | {"rank": 1}], CONTROL)
    text = banner([REPORT, REPORT | {"rank": 1}])
    for part in ("2 rank(s)", "method entreg", "functional full", "ConstantController(init=0.1)", "coefficient 0.1"):
        assert part in text


@pytest.mark.parametrize("key", ["engine", "loss", "method", "functional", "controller"])
def test_a_worker_that_runs_something_else_stops_the_run(key: str) -> None:
    with pytest.raises(PlugInNotActiveError, match=f"rank 1 reports {key}='other'"):
        check_reports([REPORT, REPORT | {"rank": 1, key: "other"}], CONTROL)


def test_no_actor_at_all_stops_the_run() -> None:
    with pytest.raises(PlugInNotActiveError, match="no worker"):
        check_reports([{"rank": 0, "role": "ref"}], CONTROL)
