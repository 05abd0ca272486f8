"""What stands in for verl's fused LM heads: the functions that it replaces, the models that it refuses."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import verl.utils.experimental.torch_functional as torch_head
import verl.utils.kernel.linear_cross_entropy as triton_head

from aent_verl.core.fused import logprobs_and_entropy
from aent_verl.plugin.fused_head import lm_head_of, replaced

SETTINGS = {"functional": "clamped", "clamp_p": 0.33}


def model(lm_head: torch.nn.Module, **config: Any) -> Any:
    text_config = SimpleNamespace(**config)
    return SimpleNamespace(
        get_output_embeddings=lambda: lm_head, config=SimpleNamespace(get_text_config=lambda: text_config)
    )


def through_torch(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch_head.FusedLinearForPPO(impl_backend="liger").forward(
        hidden_states=hidden, vocab_weights=weight, input_ids=labels, temperature=0.7
    )


def through_triton(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return triton_head.linear_cross_entropy(hidden, weight, labels, 0.7, "none")


@pytest.mark.parametrize("call", [through_torch, through_triton])
def test_both_of_verls_functions_are_the_op_while_it_lasts(call: Any) -> None:
    torch.manual_seed(0)
    lm_head = torch.nn.Linear(8, 31, bias=False)
    hidden, labels = torch.randn(2, 5, 8), torch.randint(31, (2, 5))
    expected = logprobs_and_entropy(
        lm_head(hidden).flatten(0, 1), labels.flatten(), temperature=0.7, statistics=True, **SETTINGS
    )
    before = torch_head.FusedLinearForPPO, triton_head.linear_cross_entropy
    with replaced(lm_head, SETTINGS) as head:
        log_probs, entropy = call(hidden, lm_head.weight, labels)
        assert log_probs.shape == entropy.shape == (2, 5)
        found = head.outputs(SimpleNamespace(log_probs=log_probs, entropy=entropy))
    assert (torch_head.FusedLinearForPPO, triton_head.linear_cross_entropy) == before
    assert lm_head(hidden).shape == (2, 5, 31)
    assert "forward" not in vars(lm_head)
    torch.testing.assert_close(found, expected)


def test_an_error_inside_restores_verls_functions() -> None:
    lm_head = torch.nn.Linear(8, 31, bias=False)
    before = torch_head.FusedLinearForPPO, triton_head.linear_cross_entropy
    with pytest.raises(ValueError, match="outside"), replaced(lm_head, SETTINGS):
        through_torch(torch.zeros(1, 1, 8), lm_head.weight, torch.tensor([[99]]))
    assert (torch_head.FusedLinearForPPO, triton_head.linear_cross_entropy) == before
    assert lm_head(torch.zeros(1, 8)).shape == (1, 31)


def test_a_forward_pass_that_used_another_head_is_noticed() -> None:
    with (
        replaced(torch.nn.Linear(8, 31, bias=False), SETTINGS) as head,
        pytest.raises(RuntimeError, match="did not call"),
    ):
        head.outputs(SimpleNamespace(log_probs=torch.zeros(1), entropy=torch.zeros(1)))


def test_a_forward_method_of_the_instance_comes_back() -> None:
    lm_head = torch.nn.Linear(8, 31, bias=False)
    own = lm_head.forward = lambda hidden: hidden
    with replaced(lm_head, SETTINGS):
        through_triton(torch.zeros(1, 1, 8), lm_head.weight, torch.tensor([[3]]))
    assert lm_head.forward is own


def test_temperature_of_zero_is_greedy_and_not_nan() -> None:
    torch.manual_seed(0)
    lm_head = torch.nn.Linear(8, 31, bias=False)
    hidden = torch.randn(2, 5, 8)
    with replaced(lm_head, SETTINGS) as head:
        log_probs, entropy = head.forward(hidden, lm_head.weight, lm_head(hidden).argmax(-1), 0.0)
    assert log_probs.tolist() == entropy.tolist() == [[0.0] * 5] * 2


def test_weight_is_the_modules_and_not_the_one_that_is_passed() -> None:
    """What is passed may be one rank's part of it."""
    lm_head = torch.nn.Linear(8, 31, bias=False)
    hidden, labels = torch.randn(2, 5, 8), torch.randint(31, (2, 5))
    with replaced(lm_head, SETTINGS):
        whole = through_torch(hidden, lm_head.weight, labels)
        part = through_torch(hidden, lm_head.weight[:16], labels)
    torch.testing.assert_close(part, whole)


def test_op_runs_inside_a_call_of_the_head_and_outputs_are_the_models() -> None:
    lm_head = torch.nn.Linear(8, 31, bias=False)
    calls = []
    lm_head.register_forward_hook(lambda *_: calls.append("head"))
    log_probs, entropy = torch.ones(2, 5), torch.zeros(2, 5)
    with replaced(lm_head, SETTINGS) as head:
        through_torch(torch.randn(2, 5, 8), lm_head.weight, torch.zeros(2, 5, dtype=torch.long))
        found = head.outputs(SimpleNamespace(log_probs=log_probs, entropy=entropy))
    assert calls == ["head"]
    assert found[0].tolist() == [1.0] * 10
    assert found[1].tolist() == [0.0] * 10


def test_plain_heads_are_accepted() -> None:
    lm_head = torch.nn.Linear(8, 31, bias=False)
    assert lm_head_of(model(lm_head, logit_scale=1.0, final_logit_softcapping=None)) is lm_head


@pytest.mark.parametrize(
    ("bias", "config", "message"),
    [
        (True, {}, "the LM head has a bias"),
        (False, {"final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0"),
        (False, {"logit_scale": 0.0625}, "logit_scale=0.0625"),
        (False, {"logits_scale": 0.5}, "logits_scale=0.5"),
        (False, {"logits_scaling": 8.0}, "logits_scaling=8.0"),
        (False, {"lm_head_multiplier": 0.04}, "lm_head_multiplier=0.04"),
    ],
)
def test_models_whose_logits_are_more_than_a_product_are_refused(
    bias: bool, config: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        lm_head_of(model(torch.nn.Linear(8, 31, bias=bias), **config))


def test_heads_that_are_not_one_weight_are_refused() -> None:
    with pytest.raises(ValueError, match="not simply hidden states times its weight"):
        lm_head_of(model(None))


def test_a_head_with_an_adapter_is_refused_and_one_under_an_adapter_accepted(tiny_model_folder: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    def adapted(targets: str | list[str]) -> torch.nn.Module:
        base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        return get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets))

    assert type(lm_head_of(adapted("all-linear"))) is torch.nn.Linear
    with pytest.raises(ValueError, match=r"the LM head carries an adapter \(LoRA\).*model.target_modules"):
        lm_head_of(adapted(["q_proj", "lm_head"]))
