"""The benchmarks run, compare like with like, and measure what they say."""

import json

import pytest
import torch

from benchmarks import actor_update, bounds, data_check, driver_cost, linear_memory, logits_op, selection
from benchmarks.measure import Quantiles, backward, in_fresh_process, peak_growth
from benchmarks.methods import CLAMP_P, METHODS, TOP_P, inputs
from benchmarks.report import MIB
from tests import reference

ON_CPU = [name for name, method in METHODS.items() if "cpu" in method.devices]


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads that wait for one another take long where other processes have the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _entropies(logits):
    rows = logits.detach().tolist()
    return {
        "full": [reference.full_entropy_row(row) for row in rows],
        "clamped": [reference.clamped_entropy_row(row, CLAMP_P) for row in rows],
        "nucleus": [reference.nucleus_entropy_row(row, TOP_P, 10_000) for row in rows],
    }


@pytest.mark.parametrize("name", [*ON_CPU, "ours-clamped-torch"])
def test_each_method_computes_what_its_label_says(name: str) -> None:
    logits, labels = inputs(6, 500, torch.float32, "cpu")
    log_probs, *entropy = METHODS[name].run(logits, labels)
    expected = logits.detach().double().log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-4, rtol=0)
    if name == "stock-logprob":
        assert not entropy
        return
    kind = next((kind for kind in ("nucleus", "clamped") if kind in METHODS[name].label or kind in name), "full")
    torch.testing.assert_close(entropy[0].double(), torch.tensor(_entropies(logits)[kind]).double(), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "same", [("stock-plain", "stock-chunked", "stock-checkpointed", "ours-full"), ("topk", "ours-clamped")]
)
def test_methods_of_one_entropy_write_one_gradient(same: tuple[str, ...]) -> None:
    gradients = []
    for name in same:
        logits, labels = inputs(6, 500, torch.float32, "cpu")
        backward(METHODS[name].run(logits, labels))
        gradients.append(logits.grad)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], atol=1e-5, rtol=0)


def _two_of_three_at_a_time(size: int) -> None:
    first = torch.ones(size, dtype=torch.uint8)
    second = first + 1
    del first
    second * 2


def _peak_growth(size: int) -> int | None:
    _two_of_three_at_a_time(MIB)
    return peak_growth(lambda: _two_of_three_at_a_time(size), "cpu")


@pytest.mark.slow
def test_peak_memory_is_that_of_the_tensors_alive_at_one_time() -> None:
    measured = in_fresh_process(_peak_growth, 40 * MIB)
    if measured is None:
        pytest.skip("the kernel does not keep this process's peak")
    assert measured == pytest.approx(80 * MIB, abs=2 * MIB)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_searches_find_the_same_boundary_tied_or_not(dtype: torch.dtype) -> None:
    block = inputs(3, 2000, dtype, "cpu")[0].detach()
    selection.check(block, 660)
    selection.check(block.round(), 660)


def test_a_search_that_finds_another_boundary_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selection.SEARCHES, "off by one", lambda block, k: selection.by_sort(block, k + 1))
    with pytest.raises(AssertionError, match="off by one"):
        selection.check(inputs(3, 2000, torch.float32, "cpu")[0].detach(), 660)


@pytest.mark.parametrize(("factor", "extra", "words"), [(1.0, 64 * MIB, ["yes"] * 3), (1.01, 64 * MIB + 1, ["NO"] * 3)])
def test_bounds_hold_up_to_their_limit_and_not_beyond(factor: float, extra: int, words: list[str]) -> None:
    gradient = bounds.TOKENS * bounds.VOCABULARY * 4
    seconds = {"ours-clamped": factor, "stock-plain": 2.0, "topk": 4.0}
    _, rows = bounds.on_cpu(seconds, gradient + extra, itemsize=4)
    assert [row[-1] for row in rows] == words


def test_bounds_do_not_judge_what_was_not_run() -> None:
    _, rows = bounds.on_cpu({"ours-clamped": 1.0}, None, itemsize=4)
    assert [row[2:] for row in rows] == [["not measured", ""]] * 3
    _, rows = bounds.on_cuda({"ours-full": 1.1, "ours-logprob": 1.0}, {"ours-full": 0.59}, flash=False)
    assert [row[-1] for row in rows] == ["yes", "NO", "", "", ""]


@pytest.mark.slow
def test_logits_op_prints_and_saves_every_method(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    arguments = ["--device", "cpu", "--tokens", "8", "--vocabularies", "1000", "--rounds", "1"]
    logits_op.main([*arguments, "--selection", "--json", str(file), "--markdown"])
    printed = capsys.readouterr().out
    saved = json.loads(file.read_text())
    assert [result["method"] for result in saved["results"]] == ON_CPU
    assert all(METHODS[name].label in printed for name in ON_CPU)
    assert all(name in printed for name in selection.SEARCHES)
    assert saved["stamp"]["tokens"] == 8
    assert all(result["total"]["median"] > result["forward"]["median"] > 0 for result in saved["results"])


@pytest.mark.slow
def test_linear_memory_grows_with_the_chunk_and_not_with_the_tokens(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_memory, "available_memory", lambda device: 0)
    file = tmp_path / "result.json"
    arguments = ["--device", "cpu", "--hidden", "16", "--vocabulary", "20000", "--json", str(file)]

    def beyond(*more: str) -> list[int]:
        linear_memory.main([*arguments, *more])
        return [result["beyond_gradients"] for result in json.loads(file.read_text())["results"]]

    few, many = beyond("--tokens", "128", "512", "--chunk", "64")
    if few is None:
        pytest.skip("the kernel does not keep this process's peak")
    assert abs(many - few) < 2 * MIB
    assert beyond("--tokens", "512", "--chunk", "256")[0] - many == pytest.approx(192 * 20_000 * 4, rel=0.1)


def test_actor_updates_are_timed_in_alternating_order() -> None:
    order: list[str] = []
    taken = actor_update.paired(
        {kind: (lambda kind=kind: lambda: order.append(kind)) for kind in ("a", "b")}, rounds=2, warm_up=1
    )
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [len(values) for values in taken.values()] == [2, 2]


def test_quantiles() -> None:
    assert Quantiles.of([5.0, 1.0, 2.0, 3.0, 4.0, 6.0]) == Quantiles(3.5, 2.0, 5.0, 6)


@pytest.mark.parametrize(
    ("script", "arguments", "named"),
    [
        (logits_op, ["--tokens", "0"], "--tokens"),
        (logits_op, ["--device", "cpu", "--bounds", "--vocabularies", "1000"], "--bounds"),
        (linear_memory, ["--chunk", "0"], "--chunk"),
        (actor_update, ["--rounds", "0"], "--rounds"),
    ],
)
def test_settings_that_cannot_be_are_refused(script, arguments, named, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert named in capsys.readouterr().err.splitlines()[-1]


def test_checks_of_data_are_timed_in_both_formats() -> None:
    found = data_check.main(["--rows", "300"])
    assert list(found) == ["data, parquet", "model, parquet", "data, jsonl", "model, jsonl"]


@pytest.mark.slow
def test_our_part_on_the_driver_grows_no_faster_than_verls_metadata() -> None:
    """CPU time of 16 times the samples: a loop over samples within one over samples would take 256 times as long."""
    small, large = (
        driver_cost.verls_metadata(step, 8, rounds=2)[:2] + driver_cost.sample_fields(step, rounds=2)
        for step in map(driver_cost.Step.draw, (512, 8192))
    )
    verl, *ours = (sum(large[i] for i in which) / sum(small[i] for i in which) for which in ((0, 1), (2,), (3,)))
    assert max(ours) < 3 * verl


@pytest.mark.slow
def test_our_metrics_cost_the_ranks_no_more_than_a_few_times_verls() -> None:
    """Sent as verl sends its own they took thirty times as long as those."""
    verl, ours = driver_cost.on_each_rank(256, rounds=2)
    assert ours < 4 * verl


def test_parts_of_the_metadata_carry_ours_once_for_each_rank() -> None:
    step = driver_cost.Step.draw(512)
    few, many = (driver_cost.our_metadata(step, ranks, rounds=1)[1] / ranks for ranks in (4, 64))
    assert few == pytest.approx(many, abs=8)
    assert few < 500
