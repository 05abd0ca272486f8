"""LoRA through verl's engine and ours on the same batch: equal without a bonus, and the adapter is what trains."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.e2e.test_engine import assert_same
from tests.engine_harness import Case, Result, run

pytestmark = pytest.mark.slow

LAYOUTS = (True, False)
GRPO = [Case(temperature=0.7, remove_padding=r) for r in LAYOUTS]
ENTROPY_BONUS = [Case(stock_entropy_coeff=0.3, remove_padding=r) for r in LAYOUTS]
AENT = Case(coefficient=0.3, clamp_p=0.33)
OLD_LOG_PROBS = Case(evaluate=True, temperature=0.7)
REFERENCE = replace(OLD_LOG_PROBS, reference=True)
# Runs without an adapter; the other layout keeps it apart from `OLD_LOG_PROBS` in the results.
BASE = Case(engine="stock", evaluate=True, temperature=0.7, remove_padding=False)


def save_adapter(model: str, folder: Path) -> str:
    """An adapter of rank 8 none of whose matrices is zero: one that starts at zero has no gradient for its first."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(folder)
    return str(folder)


def stock(case: Case) -> Case:
    return replace(case, engine="stock")


def ours(case: Case) -> Case:
    return replace(case, engine="ours", coefficient=case.coefficient or case.stock_entropy_coeff, stock_entropy_coeff=0)


def fused(case: Case) -> Case:
    return replace(case, fused_head="torch")


@pytest.fixture(scope="module")
def adapter(tiny_model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_adapter(tiny_model_folder, tmp_path_factory.mktemp("adapter"))


@pytest.fixture(scope="module")
def results(tiny_model_folder: str, adapter: str) -> dict[Case, Result]:
    """Results by the case without its adapter, on two ranks."""
    compared = [*GRPO, *ENTROPY_BONUS, OLD_LOG_PROBS, REFERENCE]
    cases = [*map(stock, compared), *map(ours, [*compared, AENT])]
    with_adapter = [replace(case, adapter=adapter) for case in cases]
    heads = [fused(ours(AENT)), fused(ours(OLD_LOG_PROBS))]
    found = run(tiny_model_folder, 2, [*with_adapter, BASE])
    found += run(tiny_model_folder, 2, [replace(case, adapter=adapter) for case in heads])
    return dict(zip([*cases, BASE, *heads], found, strict=True))


@pytest.mark.parametrize("case", [*GRPO, *ENTROPY_BONUS], ids=str)
def test_loss_and_gradient_are_verls(results: dict[Case, Result], case: Case) -> None:
    assert_same(results[ours(case)], results[stock(case)])


def test_only_the_adapter_has_a_gradient(results: dict[Case, Result], adapter: str) -> None:
    from safetensors.torch import load_file

    weights = load_file(Path(adapter) / "adapter_model.safetensors")
    gradient = results[ours(GRPO[0])].gradient
    assert gradient.numel() == sum(value.numel() for value in weights.values())
    assert (gradient != 0).float().mean() > 0.9
    assert (results[ours(AENT)].gradient - gradient).abs().max() > 1e-4


@pytest.mark.parametrize("case", [OLD_LOG_PROBS, REFERENCE], ids=["policy", "reference"])
def test_log_probs_are_verls(results: dict[Case, Result], case: Case) -> None:
    mine, expected = results[ours(case)].outputs, results[stock(case)].outputs
    assert set(mine) == set(expected)
    for key, value in expected.items():
        torch.testing.assert_close(mine[key], value, atol=2e-6, rtol=2e-6)


def test_the_reference_is_the_model_without_the_adapter(results: dict[Case, Result]) -> None:
    base = results[BASE].outputs["log_probs"]
    torch.testing.assert_close(results[ours(REFERENCE)].outputs["log_probs"], base, atol=2e-5, rtol=2e-5)
    assert (results[ours(OLD_LOG_PROBS)].outputs["log_probs"] - base).abs().max() > 0.1


def test_a_fused_head_under_an_adapter_gives_the_same(results: dict[Case, Result]) -> None:
    assert_same(results[fused(ours(AENT))], results[ours(AENT)])
    mine, expected = (results[case].outputs for case in (fused(ours(OLD_LOG_PROBS)), ours(OLD_LOG_PROBS)))
    for key, value in expected.items():
        torch.testing.assert_close(mine[key], value, atol=2e-6, rtol=2e-6)
