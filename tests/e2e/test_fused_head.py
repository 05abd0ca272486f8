"""With verl's `use_fused_kernels` our op runs from hidden states: the same numbers as from logits, on two ranks."""

from dataclasses import replace

import pytest
import torch

from aent_verl.integration.trainer import step_means
from tests.e2e.test_engine import assert_same
from tests.engine_harness import Case, Result, run

GRPO = Case(temperature=0.7)
ENTREG = Case(coefficient=0.3, temperature=0.7)
AENT = Case(coefficient=0.3, clamp_p=0.33, temperature=0.7)
OLD_LOG_PROBS = Case(evaluate=True, temperature=0.7)
BOTH_LAYOUTS = [replace(case, remove_padding=r) for r in (True, False) for case in (GRPO, ENTREG, AENT, OLD_LOG_PROBS)]


def fused(case: Case, head: str = "torch") -> Case:
    return replace(case, fused_head=head)


@pytest.fixture(scope="module")
def results(tiny_model_folder: str) -> dict[Case, Result]:
    with_head = [fused(case) for case in BOTH_LAYOUTS]
    found = [*run(tiny_model_folder, 2, BOTH_LAYOUTS), *run(tiny_model_folder, 2, with_head)]
    return dict(zip([*BOTH_LAYOUTS, *with_head], found, strict=True))


@pytest.mark.parametrize("case", [case for case in BOTH_LAYOUTS if not case.evaluate], ids=str)
def test_same_as_from_logits(results: dict[Case, Result], case: Case) -> None:
    mine, expected = results[fused(case)], results[case]
    assert_same(mine, expected)
    means, expected_means = (step_means(dict(r.metrics), sent=case.coefficient) for r in (mine, expected))
    for key, value in expected_means.items():
        assert means[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize("case", [case for case in BOTH_LAYOUTS if case.evaluate], ids=str)
def test_old_log_probs_are_the_same(results: dict[Case, Result], case: Case) -> None:
    mine, expected = results[fused(case)].outputs, results[case].outputs
    assert set(mine) == {"log_probs", "entropy"}
    inner = torch.ones_like(mine["log_probs"], dtype=torch.bool)
    if not case.remove_padding:
        # verl rolls padded labels within the row here: the last token, which nothing uses, has another label.
        inner = (mine["log_probs"] - expected["log_probs"]).abs() < 1e-4
        assert (~inner).sum() <= 4
    for key, value in expected.items():
        torch.testing.assert_close(mine[key][inner], value[inner], atol=2e-6, rtol=2e-6)


def test_the_weight_is_gathered_as_often_as_without_the_head(results: dict[Case, Result]) -> None:
    assert results[fused(AENT)].gathers == results[AENT].gathers > 0


def test_verls_triton_head_is_replaced_too(tiny_model_folder: str, results: dict[Case, Result]) -> None:
    cases = [fused(AENT, "triton"), fused(replace(AENT, remove_padding=False), "triton")]
    for case, result in zip(cases, run(tiny_model_folder, 1, cases), strict=True):
        assert_same(result, results[replace(case, fused_head=None)], tolerance=2e-6)


def test_forward_without_a_fused_head_stops(tiny_model_folder: str) -> None:
    (error,) = run(tiny_model_folder, 1, [fused(AENT, "none of verl's")])
    assert isinstance(error, RuntimeError)
    assert "set use_fused_kernels=False" in str(error)
