"""Every preset through the real engine: neither micro-batches nor ranks nor the layout change what it computes."""

from dataclasses import replace

import pytest

from aent_verl.plugin import measurements
from tests.e2e.family import COMBINATIONS, PRESETS
from tests.engine_harness import SEQUENCES, Case, Result, run, step

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5
POLICY_LOSS = "actor_rollout_ref.actor.policy_loss."
# On eight short sequences of a random model the published shares choose one token, or none.
ENOUGH_TOKENS = {
    "clip_cov": (POLICY_LOSS + "clip_cov_lb=0.0", POLICY_LOSS + "clip_cov_ratio=0.1"),
    "kl_cov": (POLICY_LOSS + "kl_cov_ratio=0.1",),
}
FAMILY = [
    *(Case(preset=(f"entropy_control={name}", *ENOUGH_TOKENS.get(name, ())), coefficient=0.3) for name in PRESETS),
    *(Case(preset=overrides, coefficient=0.3) for overrides in COMBINATIONS if "token_dump" not in overrides[-1]),
]
ids = pytest.mark.parametrize("case", FAMILY, ids=lambda case: " ".join(o.split(".")[-1] for o in case.preset))


@pytest.fixture(scope="module")
def results(tiny_model_folder: str) -> dict[tuple[int, Case], Result]:
    found = {}
    for ranks in (1, 2):
        whole = SEQUENCES // ranks
        cases = [replace(case, micro_batch=size) for case in FAMILY for size in (whole, 1)]
        cases += [replace(case, micro_batch=2, remove_padding=False) for case in FAMILY]
        cases += [replace(case, dynamic=True) for case in FAMILY]
        for case, result in zip(cases, run(tiny_model_folder, ranks, cases), strict=True):
            found[ranks, case] = result
    return found


def assert_same(one: Result, other: Result, case: Case) -> None:
    assert one.loss == pytest.approx(other.loss, rel=TOLERANCE, abs=TOLERANCE)
    scale = max(1.0, other.gradient.abs().max().item())
    assert (one.gradient - other.gradient).abs().max().item() <= TOLERANCE * scale
    assert other.gradient.abs().max().item() > 1e-3
    mine, theirs = (
        measurements.of_step(measurements.taken(dict(result.metrics)), step(case)) for result in (one, other)
    )
    assert mine == pytest.approx(theirs, rel=TOLERANCE, abs=TOLERANCE)


@ids
def test_micro_batches_do_not_change_the_result(results: dict[tuple[int, Case], Result], case: Case) -> None:
    for ranks in (1, 2):
        whole = results[ranks, replace(case, micro_batch=SEQUENCES // ranks)]
        assert_same(results[ranks, replace(case, micro_batch=1)], whole, case)
        assert_same(results[ranks, replace(case, micro_batch=2, remove_padding=False)], whole, case)
        assert_same(results[ranks, replace(case, dynamic=True)], whole, case)


@ids
def test_ranks_do_not_change_the_result(results: dict[tuple[int, Case], Result], case: Case) -> None:
    one, two = (results[ranks, replace(case, micro_batch=SEQUENCES // ranks)] for ranks in (1, 2))
    assert_same(two, one, case)


@ids
def test_every_method_but_grpo_changes_the_gradient(results: dict[tuple[int, Case], Result], case: Case) -> None:
    """Compared with the same policy loss without control; clip_higher is that already, with another clip range."""
    grpo = results[1, replace(FAMILY[0], micro_batch=SEQUENCES)]
    difference = (results[1, replace(case, micro_batch=SEQUENCES)].gradient - grpo.gradient).abs().max()
    # All cases have the coefficient .3: grpo, entreg, skywork and linear_decay differ in their controllers only.
    same = ("grpo", "entreg", "skywork", "linear_decay")
    assert (difference < 1e-6) == (case.preset[0].removeprefix("entropy_control=") in same)
