"""With verl's `use_fused_kernels` our op runs from hidden states: the same numbers as from logits, on two ranks."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from aent_verl.plugin import measurements
from tests.e2e.test_engine import STATES, assert_same
from tests.engine_harness import Case, Result, batch, run, step

pytestmark = pytest.mark.slow

GRPO = Case(temperature=0.7)
ENTREG = Case(coefficient=0.3, temperature=0.7)
AENT = Case(coefficient=0.3, clamp_p=0.33, temperature=0.7)
HOT_STATES = replace(STATES, temperature=0.7)
OLD_LOG_PROBS = Case(evaluate=True, temperature=0.7)
BOTH_LAYOUTS = [
    replace(case, remove_padding=r) for r in (True, False) for case in (GRPO, ENTREG, AENT, HOT_STATES, OLD_LOG_PROBS)
]
HALF = replace(AENT, param_dtype="bf16")


def fused(case: Case, head: str = "torch") -> Case:
    return replace(case, fused_head=head)


@pytest.fixture(scope="module")
def results(tiny_model_folder: str) -> dict[Case, Result]:
    cases = [*BOTH_LAYOUTS, HALF]
    with_head = [fused(case) for case in cases]
    found = [*run(tiny_model_folder, 2, cases), *run(tiny_model_folder, 2, with_head)]
    return dict(zip([*cases, *with_head], found, strict=True))


@pytest.mark.parametrize("case", [case for case in BOTH_LAYOUTS if not case.evaluate], ids=str)
def test_same_as_from_logits(results: dict[Case, Result], case: Case) -> None:
    mine, expected = results[fused(case)], results[case]
    assert_same(mine, expected)
    means, expected_means = (
        measurements.of_step(measurements.taken(dict(r.metrics)), step(case)) for r in (mine, expected)
    )
    for key, value in expected_means.items():
        assert means[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize("case", [case for case in BOTH_LAYOUTS if case.evaluate], ids=str)
def test_old_log_probs_are_the_same(results: dict[Case, Result], case: Case) -> None:
    mine, expected = results[fused(case)].outputs, results[case].outputs
    assert set(mine) == {"log_probs", "entropy"}
    torch.testing.assert_close(mine["entropy"], expected["entropy"], atol=2e-6, rtol=2e-6)
    compared = torch.ones_like(mine["log_probs"], dtype=torch.bool)
    if not case.remove_padding:
        # verl rolls padded labels within the row here: the last token, which nothing uses, has another label.
        lengths = [len(row) for row in batch(0, 2)["input_ids"].unbind()]
        compared[torch.tensor(lengths).cumsum(0) - 1] = False
    one, other = (outputs["log_probs"][compared] for outputs in (mine, expected))
    torch.testing.assert_close(one, other, atol=2e-6, rtol=2e-6)


def test_tied_embeddings(tiny_model_folder: str, tmp_path: Path, results: dict[Case, Result]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    tied = shutil.copytree(tiny_model_folder, tmp_path / "tied")
    model.save_pretrained(tied)
    (plain,), (with_head,) = run(tied, 2, [AENT]), run(tied, 2, [fused(AENT)])
    assert plain.gradient.numel() < results[AENT].gradient.numel()
    assert_same(with_head, plain)
    assert with_head.gathers == plain.gathers > 0


def test_mixed_precision(results: dict[Case, Result]) -> None:
    assert (results[HALF].gradient - results[AENT].gradient).abs().max() > 1e-4
    assert_same(results[fused(HALF)], results[HALF], tolerance=1e-3)


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
