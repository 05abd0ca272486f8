"""Statistics of a mini-batch: what they are by definition, and the same on one rank and on two, however it is split."""

import math
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from aent_verl.methods.step import MiniBatchStats, StepValues
from aent_verl.plugin.micro_batch import CHOSEN, VerlMicroBatch, minibatch_stats
from aent_verl.plugin.minibatch_stats import (
    GroupRanks,
    StatsPass,
    initial_entropy,
    summed,
)
from tests import preset_harness as harness
from tests import reference, reference_presets
from tests.preset_harness import Sequence

pytestmark = pytest.mark.usefixtures("single_rank_group")

STEP = StepValues(step=3, total_steps=10, bonus_coefficient=0.3, initial_entropy=1.1)
PRESETS = ("siren", "siren+difficulty", "steer", "clip_cov", "kl_cov")
EVERY = list(range(harness.SEQUENCES))
# The last leaves one rank without a token in the loss.
SPLITS = {
    "halves": (EVERY[:6], EVERY[6:]),
    "interleaved": (EVERY[::2], EVERY[1::2][::-1]),
    "one against the rest": (EVERY[7:8], EVERY[:7] + EVERY[8:]),
    "nothing on one": ([harness.MASKED_OUT], [i for i in EVERY if i != harness.MASKED_OUT]),
}
Found = tuple[MiniBatchStats, dict[int, list[bool]], dict[int, torch.Tensor], float]


def find(config: Any, mine: list[Sequence], whole: list[Sequence], ranks: int) -> Found:
    """Statistics, chosen tokens of each sample, and this rank's gradients and loss with them."""
    data = harness.to_verl(mine, STEP, whole, ranks=ranks)
    harness.run_stats_pass(config, mine, data)
    outcome = harness.run_loss(config, mine, data)
    samples = [s.sample for s in mine]
    rows = data[CHOSEN].unbind() if CHOSEN in data else [torch.zeros(0)] * len(mine)
    chosen = {sample: row.bool().tolist() for sample, row in zip(samples, rows, strict=True)}
    return minibatch_stats(data), chosen, dict(zip(samples, outcome.gradients, strict=True)), outcome.loss


def _rank(rank: int, folder: str, configs: dict[str, Any]) -> None:
    from aent_verl.plugin import losses

    torch.set_num_threads(1)
    # Ranks that do not ask for the same would wait for each other; not for verl's half hour.
    minute = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=minute)
    losses.register()
    batch = harness.batch()
    found = {
        (preset, split): find(config, [batch[i] for i in parts[rank]], batch, 2)
        for preset, config in configs.items()
        for split, parts in SPLITS.items()
    }
    mine = torch.arange(3.0) + 10 * rank
    helpers = {
        "summed": summed(mine.clone(), None),
        "of ranks": (GroupRanks(None).sum(mine), GroupRanks(None).max(-mine), mine),
    }
    torch.save((found, helpers), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def configs() -> dict[str, Any]:
    return {preset: harness.shipped(preset) for preset in PRESETS}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, configs: dict[str, Any]) -> list[Any]:
    """What each of two processes found, and what the helpers gave them."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, args=(str(folder), configs), nprocs=2, join=True)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def one_rank(configs: dict[str, Any], single_rank_group: None) -> dict[str, Found]:
    batch = harness.batch()
    return {preset: find(config, batch, batch, 1) for preset, config in configs.items()}


def tokens(batch: list[Sequence]) -> list[list[reference_presets.Token]]:
    return reference_presets.responses(batch, [s.logits for s in batch])


def in_mask(chosen: dict[int, list[bool]], batch: list[Sequence]) -> list[bool]:
    """At the tokens in the loss; none outside it may be chosen."""
    pairs = [(chosen[s.sample][t], bool(s.mask[t])) for s in batch for t in range(len(s.mask))]
    assert not any(c and not m for c, m in pairs)
    return [c for c, m in pairs if m]


def test_siren_aggregates_as_its_definition(one_rank: dict[str, Found]) -> None:
    found = one_rank["siren"][0]
    expected = reference_presets.aggregate_of_peaks(tokens(harness.batch())).item()
    assert found.aggregate == found.report["bonus_aggregate"] == pytest.approx(expected, rel=1e-8)
    assert found.shaping == {}
    assert set(found.report) == {"bonus_aggregate"}


def test_siren_starts_at_its_anchor_with_a_masked_out_response_too(configs: dict[str, Any]) -> None:
    config, batch = configs["siren"], harness.batch()
    data = harness.to_verl(batch, STEP)
    harness.run_stats_pass(config, batch, data)
    seen = VerlMicroBatch.of(harness.model_output(config, data, torch.cat([s.logits for s in batch])), data)
    anchor = initial_entropy(
        config.entropy_control,
        seen.entropy,
        seen.mask,
        accuracy=None,
        loss_agg_mode="token-mean",
        loss_scale_factor=None,
    )
    assert minibatch_stats(data).aggregate == pytest.approx(anchor, rel=1e-12)


def test_steer_finds_the_largest_absolute_change(one_rank: dict[str, Found]) -> None:
    found = one_rank["steer"][0]
    each = [t for response in tokens(harness.batch()) for t in response]
    changes = [reference.steer_change(t.log_p.item(), t.old, t.advantage, t.full) for t in each]
    # Its sign is negative in this batch: the maximum is of the absolute value.
    assert max(changes) < -min(changes)
    assert found.shaping == found.report == {"largest_change": pytest.approx(-min(changes), rel=1e-12)}
    assert found.aggregate is None


@pytest.mark.parametrize("preset", ["clip_cov", "kl_cov"])
def test_covariance_losses_choose_and_report_by_definition(preset: str, one_rank: dict[str, Found]) -> None:
    found, chosen, _, _ = one_rank[preset]
    batch = harness.batch()
    seen = tokens(batch)
    if preset == "clip_cov":
        eligible, expected = reference_presets.dropped_by_clip_cov(seen)
    else:
        expected = reference_presets.penalised_by_kl_cov(seen)
        eligible = [True] * len(expected)
    assert in_mask(chosen, batch) == expected
    values = sorted(reference_presets.covariances(seen)[1])
    n = len(values)
    assert dict(found.report) == pytest.approx(
        {
            "covariance_tokens": math.fsum(values) / n,
            "covariance_q01": values[math.floor(0.01 * (n - 1))],
            "covariance_q50": values[math.floor(0.5 * (n - 1))],
            "covariance_q99": values[math.floor(0.99 * (n - 1))],
            "chosen_tokens": sum(expected),
            "eligible_tokens": sum(eligible),
        },
        rel=1e-9,
    )


@pytest.mark.slow
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("preset", PRESETS)
def test_two_ranks_find_what_one_does(
    preset: str, split: str, one_rank: dict[str, Found], two_ranks: list[Any]
) -> None:
    whole, chosen, gradients, loss = one_rank[preset]
    parts = [found[preset, split] for found, _ in two_ranks]
    for statistics, *_ in parts:
        assert statistics.aggregate == statistics.report.get("bonus_aggregate")
        assert statistics.shaping.get("largest_change") == statistics.report.get("largest_change")
        assert dict(statistics.report) == pytest.approx(dict(whole.report), rel=1e-9, abs=1e-12)
    assert parts[0][0] == parts[1][0]
    assert parts[0][1] | parts[1][1] == chosen
    # verl averages over ranks.
    assert (parts[0][3] + parts[1][3]) / 2 == pytest.approx(loss, rel=0, abs=1e-12)
    for sample, gradient in (parts[0][2] | parts[1][2]).items():
        torch.testing.assert_close(gradient / 2, gradients[sample], rtol=0, atol=1e-13)


@pytest.mark.slow
def test_values_of_all_ranks_come_to_each_of_them(two_ranks: list[Any]) -> None:
    # What a method hands over stays as it is.
    assert [helpers["of ranks"][2].tolist() for _, helpers in two_ranks] == [[0.0, 1.0, 2.0], [10.0, 11.0, 12.0]]
    for _, helpers in two_ranks:
        assert helpers["summed"].tolist() == [10.0, 12.0, 14.0]
        total, largest, _ = helpers["of ranks"]
        assert (total.tolist(), largest.tolist()) == ([10.0, 12.0, 14.0], [0.0, -1.0, -2.0])


@pytest.mark.parametrize("preset", ["siren", "steer", "clip_cov", "kl_cov"])
def test_what_ranks_exchange_does_not_grow_with_the_tokens(
    preset: str, configs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counting(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.nbytes)
        return all_reduce(tensor, *args, **kwargs)

    def refused(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("gathers tokens")

    monkeypatch.setattr(dist, "all_reduce", counting)
    for name in ("all_gather", "all_gather_into_tensor", "all_gather_object", "gather", "all_to_all"):
        monkeypatch.setattr(dist, name, refused)
    whole, seen = harness.batch(), []
    for batch in (whole[:2], whole, [replace(s, sample=s.sample + 100 * k) for k in range(20) for s in whole]):
        sent.clear()
        harness.run_stats_pass(configs[preset], batch, harness.to_verl(batch, STEP))
        seen.append((len(sent), sum(sent)))
    histogram = 2048 * 8
    rounds = {"clip_cov": (6, 6 * histogram), "kl_cov": (12, 12 * histogram)}
    few = {"siren": (1, 2 * 8), "steer": (1, 8)}
    if preset in few:
        expected = few[preset]
    else:
        # Means, choice, totals, and three quantiles at once.
        expected = 1 + rounds[preset][0] + 1 + 6, 24 + rounds[preset][1] + 24 + 6 * 3 * histogram
    assert seen == [expected] * 3


def test_a_mini_batch_without_a_token_in_the_loss_has_no_statistics(configs: dict[str, Any]) -> None:
    empty = [replace(s, mask=torch.zeros_like(s.mask)) for s in harness.batch()]
    whole = {}
    for preset, config in configs.items():
        data = harness.to_verl(empty, STEP)
        harness.run_stats_pass(config, empty, data)
        whole[preset] = minibatch_stats(data)
    assert whole["siren"].report == {"bonus_aggregate": 0.0}
    # The loss itself is NaN, verl's policy loss over no token.
    none = harness.run(configs["siren"], empty, STEP)
    assert none.metrics[0]["aent/bonus_loss"].values[0] == 0.0
    assert not any(gradient.any() for gradient in none.gradients)
    assert whole["siren"].aggregate is None
    assert whole["steer"].shaping == {"largest_change": 0.0}
    for preset in ("clip_cov", "kl_cov"):
        assert dict(whole[preset].report) == {"chosen_tokens": 0.0, "eligible_tokens": 0.0}


@pytest.mark.parametrize("preset", ["clip_cov", "kl_cov"])
def test_a_choice_needs_the_samples_indices(preset: str, configs: dict[str, Any]) -> None:
    batch = harness.batch()
    data = harness.to_verl(batch, STEP)
    del data["aent_sample"]
    with pytest.raises(RuntimeError, match="aent_sample"):
        harness.run_stats_pass(configs[preset], batch, data)


@pytest.mark.parametrize("preset", ["clip_cov", "kl_cov"])
def test_the_choice_of_another_mini_batch_is_not_used(preset: str, configs: dict[str, Any]) -> None:
    batch = harness.batch()
    find(configs[preset], batch, batch, 1)
    with pytest.raises(RuntimeError, match="no chosen tokens"):
        harness.run_loss(configs[preset], batch, harness.to_verl(batch, STEP))


def test_an_anchor_needs_the_initial_entropy(configs: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="no initial entropy"):
        harness.run(configs["siren"], harness.batch(), replace(STEP, initial_entropy=None))


def test_what_no_method_asks_for_is_not_measured() -> None:
    config = harness.config("grpo")
    assert not StatsPass(config).needed
    batch = harness.batch()
    data = harness.to_verl(batch, STEP)
    logits = torch.cat([s.logits for s in batch])
    StatsPass(config)(harness.model_output(config, data, logits), data, None)
    assert minibatch_stats(data) == MiniBatchStats()
    assert CHOSEN not in data
