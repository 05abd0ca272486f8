"""What leaves the ranks and what the driver makes of it."""

import math
from typing import Any

import pytest
import torch
from verl.utils.metric import Metric

from aent_verl.core.diagnostics import BINS
from aent_verl.methods.step import StepValues
from aent_verl.plugin import measurements
from aent_verl.plugin.measurements import PlugInNotActiveError, of_step, pooled, taken

SENT = StepValues(step=4, total_steps=9, bonus_coefficient=0.25, advantages_coefficient=0.5)
SUMS = {
    "tokens": 8.0,
    "entropy": 2.0,
    "entropy_full": 4.0,
    "removed_mass": 1.0,
    "bonus_weight": 6.0,
    "advantage_change": 2.0,
    "entropy_positive": 1.5,
    "entropy_negative": 0.25,
    "advantage": 4.0,
    "log_prob": -16.0,
    "advantage_log_prob": -12.0,
}
METRICS: dict[str, Any] = {
    **{f"actor/aent/sum/{name}": value for name, value in SUMS.items()},
    **{f"actor/aent/bin/{i:02d}": 0.0 for i in range(BINS)},
    "actor/aent/bin/00": 4.0,
    "actor/aent/bin/40": 4.0,
    "actor/aent/bonus_loss": -0.5,
    "actor/aent/lowest/bonus": 0.25,
    "actor/aent/highest/bonus": 0.25,
    "actor/aent/lowest/advantages": 0.5,
    "actor/aent/highest/advantages": 0.5,
    "actor/aent/stats/chosen_tokens": 3.0,
    "actor/pg_loss": 3.0,
}


def test_means_are_ratios_of_sums_and_our_numbers_leave_verls_metrics() -> None:
    metrics = dict(METRICS)
    measured = of_step(taken(metrics), SENT)
    expected = {
        "aent/entropy": 0.25,
        "aent/entropy_full": 0.5,
        "aent/removed_mass": 0.125,
        "aent/bonus_weight": 0.75,
        "aent/advantage_change": 0.25,
        "aent/bonus_loss": -0.5,
        "aent/entropy_share_positive": 0.75,
        "aent/entropy_share_negative": 0.125,
        "aent/covariance": -12 / 8 - (4 / 8) * (-16 / 8),
        "aent/chosen_tokens": 3.0,
    }
    assert {key: measured[key] for key in expected} == expected
    assert set(measured) - set(expected) == {f"aent/entropy_q{q}" for q in (10, 50, 90, 99)}
    assert 0 < measured["aent/entropy_q10"] < 1e-3 < 1 < measured["aent/entropy_q90"] < 4
    assert metrics == {"actor/pg_loss": 3.0}


def test_updates_of_one_step_are_pooled_by_tokens_and_not_by_samples() -> None:
    first = taken(dict(METRICS))
    second = first | {"aent/sum/tokens": 24.0, "aent/sum/entropy": 30.0, "aent/bonus_loss": -1.5}
    second |= {"aent/bin/40": 20.0, "aent/stats/chosen_tokens": 5.0}
    measured = of_step(pooled([first, second]), SENT)
    assert measured["aent/entropy"] == (2.0 + 30.0) / (8.0 + 24.0)
    assert measured["aent/entropy_full"] == (4.0 + 4.0) / (8.0 + 24.0)
    assert (measured["aent/bonus_loss"], measured["aent/chosen_tokens"]) == (-1.0, 4.0)
    # Of 32 tokens 8 have next to none.
    assert measured["aent/entropy_q10"] < 1e-3 < 1 < measured["aent/entropy_q50"]
    assert pooled([first]) == first
    other = second | {"aent/highest/bonus": 0.5}
    with pytest.raises(PlugInNotActiveError, match=r"ranks used bonus coefficients in \[0\.25, 0\.5\]"):
        of_step(pooled([first, other]), SENT)


def test_a_step_without_tokens_has_no_entropy() -> None:
    empty = METRICS | {"actor/aent/sum/tokens": 0.0, "actor/aent/bin/00": 0.0, "actor/aent/bin/40": 0.0}
    measured = of_step(taken(dict(empty)), SENT)
    assert math.isnan(measured["aent/entropy"])
    assert math.isnan(measured["aent/entropy_q50"])


@pytest.mark.parametrize("key", [key for key in METRICS if "/aent/" in key and "stats" not in key])
def test_missing_numbers_stop_the_run(key: str) -> None:
    metrics = {k: v for k, v in METRICS.items() if k != key}
    with pytest.raises(PlugInNotActiveError, match="our loss did not run"):
        of_step(taken(metrics), SENT)


@pytest.mark.parametrize("axis", measurements.COEFFICIENTS)
def test_a_rank_with_another_coefficient_stops_the_run(axis: str) -> None:
    for bound in ("lowest", "highest"):
        with pytest.raises(PlugInNotActiveError, match=f"ranks used {axis} coefficients"):
            of_step(taken(METRICS | {f"actor/aent/{bound}/{axis}": 0.1}), SENT)


def test_names_are_safe_in_verls_reduction() -> None:
    """verl reduces keys with "max" or "min" by max and min."""
    for name in METRICS:
        assert "max" not in name
        assert "min" not in name


def batch(**changes: torch.Tensor) -> Any:
    from types import SimpleNamespace

    generator = torch.Generator().manual_seed(0)
    shape = (3, 5)
    values = {
        "mask": torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).bool(),
        "log_prob": -torch.rand(shape, generator=generator),
        "advantages": torch.tensor([[1.0], [-2.0], [5.0]]).expand(shape),
        "entropy": torch.rand(shape, generator=generator),
        "entropy_full": torch.rand(shape, generator=generator),
        "removed_mass": torch.rand(shape, generator=generator),
        "entropy_sampled": None,
    }
    return SimpleNamespace(**values | changes)


def sums(b: Any) -> dict[str, float]:
    weight = torch.ones_like(b.entropy)
    metrics = measurements.of_micro_batch(
        b, shaped=0.5 * b.advantages, bonus_weight=weight, bonus_loss=torch.tensor(0.5), step=SENT, stats=STATS
    )
    return {name: metric.aggregate() for name, metric in metrics.items()}


STATS = measurements.MiniBatchStats(report={"largest_change": 2.0})


def test_the_entropy_of_what_a_truncated_rollout_samples_from() -> None:
    b = batch(entropy_sampled=torch.rand(3, 5, generator=torch.Generator().manual_seed(9)))
    found = sums(b)
    assert found["aent/sum/entropy_sampled"] == pytest.approx(float((b.entropy_sampled * b.mask).sum()))
    step = of_step(taken({**METRICS, "actor/aent/sum/entropy_sampled": 3.0}), SENT)
    assert step["aent/entropy_sampled"] == 3.0 / 8
    assert "aent/entropy_sampled" not in of_step(taken(dict(METRICS)), SENT)


def test_sums_are_over_response_tokens_only() -> None:
    b = batch()
    found = sums(b)
    mask = b.mask.double()
    assert found["aent/sum/tokens"] == 8
    assert found["aent/sum/entropy"] == pytest.approx(float((b.entropy * mask).sum()))
    assert found["aent/sum/entropy_positive"] == pytest.approx(float(b.entropy[0, :3].sum()))
    assert found["aent/sum/entropy_negative"] == pytest.approx(float(b.entropy[1].sum()))
    assert found["aent/sum/advantage"] == pytest.approx(3 * 1 - 5 * 2)
    assert found["aent/sum/advantage_change"] == pytest.approx(0.5 * 3 + 5 * 1)
    assert found["aent/sum/advantage_log_prob"] == pytest.approx(float((b.advantages * b.log_prob * mask).sum()))
    assert sum(found[f"aent/bin/{i:02d}"] for i in range(BINS)) == 8
    assert found["aent/bonus_loss"] == 0.5
    assert found["aent/stats/largest_change"] == 2.0
    assert found["aent/lowest/advantages"] == found["aent/highest/advantages"] == 0.5


def test_what_stands_outside_the_response_does_not_matter() -> None:
    b = batch()
    broken = {
        name: getattr(b, name).masked_fill(~b.mask, torch.nan)
        for name in ("log_prob", "advantages", "entropy", "entropy_full", "removed_mass")
    }
    assert sums(batch(**broken)) == sums(b)


def test_a_nan_inside_the_response_is_seen() -> None:
    b = batch()
    b.entropy[0, 0] = torch.nan
    assert math.isnan(sums(b)["aent/sum/entropy"])


@pytest.mark.parametrize("updates", [1, 2, 3, 6, 7, 10, 12])
def test_a_healthy_step_of_any_number_of_updates_is_accepted(updates: int) -> None:
    """verl takes the mean of MIN and MAX over mini-batches; the mean of equal floats may be another float."""
    from verl.utils.metric import Metric, reduce_metrics
    from verl.utils.py_functional import append_to_dict

    for coefficient in (0.1, 0.002, 1 / 3, 0.7):
        sent = StepValues(step=1, total_steps=2, bonus_coefficient=coefficient, advantages_coefficient=1 - coefficient)
        collected: dict[str, Any] = {}
        for _ in range(updates):
            ranks = [
                measurements.of_micro_batch(
                    batch(),
                    shaped=batch().advantages,
                    bonus_weight=torch.ones(3, 5),
                    bonus_loss=torch.tensor(0.5),
                    step=sent,
                    stats=measurements.MiniBatchStats(),
                )
                for _ in range(2)
            ]
            append_to_dict(collected, {key: Metric.aggregate_dp([rank[key] for rank in ranks]) for key in ranks[0]})
        metrics = reduce_metrics({f"actor/{key}": values for key, values in collected.items()})
        assert of_step(taken(metrics), sent)["aent/bonus_loss"] == pytest.approx(0.5)


@pytest.mark.parametrize("ranks", [1, 3])
def test_pooled_over_ranks_is_what_verl_makes_of_all_ranks_metrics(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rank has two micro-batches; verl gathers the metrics of all ranks and calls `aggregate_dp`."""
    generator = torch.Generator().manual_seed(0)

    def of_rank() -> dict[str, Any]:
        kinds = {
            "sum/tokens": "sum",
            "bonus_loss": "sum",
            "stats/x": "mean",
            "lowest/bonus": "min",
            "highest/bonus": "max",
        }
        metrics: dict[str, Any] = {f"aent/{name}": Metric(kind) for name, kind in kinds.items()} | {
            "ppo_kl": Metric("mean")
        }
        for metric in metrics.values():
            metric.extend(torch.randn(2, generator=generator, dtype=torch.float64).tolist())
        return metrics | {"grad_norm": 3.0}

    each = [of_rank() for _ in range(ranks)]
    rows: list[Any] = []

    def gather(into: list[Any], row: Any, group: Any) -> None:
        assert (group, row.nbytes) == ("group", 5 * 8)
        rows.append(row)
        into[:] = rows

    monkeypatch.setattr(measurements.dist, "get_world_size", lambda group: ranks)
    monkeypatch.setattr(measurements.dist, "all_gather_object", gather)
    # The first rank comes last, when the rows of all are there.
    found = []
    for rank in reversed(range(ranks)):
        monkeypatch.setattr(measurements.dist, "get_rank", lambda group, rank=rank: rank)
        found.append(measurements.over_ranks(each[rank], "group"))
    first, others = found[-1], found[:-1]
    assert all(set(other) == {"ppo_kl", "grad_norm"} for other in others)
    assert first["ppo_kl"] is each[0]["ppo_kl"]
    assert set(first) == set(each[0])
    for key in set(first) - {"ppo_kl", "grad_norm"}:
        expected = Metric.aggregate_dp([metrics[key] for metrics in each])
        assert Metric.aggregate_dp([first[key]]) == pytest.approx(expected, rel=1e-14)


def test_metrics_without_ours_or_of_a_single_process_stay_as_they_are() -> None:
    own = {"ppo_kl": Metric("mean", 1.0)}
    assert measurements.over_ranks(own, "group") is own
    both = own | {"aent/bonus_loss": Metric("sum", 1.0)}
    assert measurements.over_ranks(both, None) is both
