"""What the engine makes of a model's logits: mode, layouts, temperatures per sequence, and what it was asked for."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, init_device_mesh
from verl.utils import tensordict_utils as tu

from aent_verl.core.entropy import full_entropy
from aent_verl.core.fused import logprobs_and_entropy
from aent_verl.core.sampled import Truncation
from aent_verl.methods.settings import FunctionalConfig
from aent_verl.plugin import engine
from aent_verl.plugin.engine import EntropyControlEngine
from tests.unit.core.test_custom import tsallis

LENGTHS = (5, 3, 7)
CLAMPED = {"functional": "clamped", "clamp_p": 0.33}
FUNCTIONAL = FunctionalConfig("clamped", 0.33)
both_layouts = pytest.mark.parametrize("padded", [False, True], ids=["packed", "padded"])


def packed() -> tuple[Tensor, Tensor]:
    """Logits [N, V] and labels [N] of all sequences."""
    generator = torch.Generator().manual_seed(5)
    tokens = sum(LENGTHS)
    return torch.randn(tokens, 31, generator=generator), torch.randint(31, (tokens,), generator=generator)


def outputs(
    logits: Tensor,
    *,
    padded: bool = False,
    mode: str = "train",
    temperature: float | tuple[float, ...] = (1.0, 1.0, 1.0),
    kernel: str = "auto",
    functional: FunctionalConfig = FUNCTIONAL,
    truncation: Truncation = Truncation(),  # noqa: B008
    **asked_for: bool,
) -> dict[str, Tensor]:
    """Our engine's outputs per token from packed logits [N, V] in the layout of verl."""
    ours: Any = EntropyControlEngine.__new__(EntropyControlEngine)
    ours.mode, ours.kernel, ours.use_ulysses_sp = mode, kernel, False
    ours.functional, ours.truncation = functional, truncation
    rows = [torch.zeros(length, dtype=torch.long) for length in LENGTHS]
    micro_batch = TensorDict({"input_ids": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}, batch_size=3)
    tu.assign_non_tensor(micro_batch, **asked_for)
    if isinstance(temperature, float):
        tu.assign_non_tensor(micro_batch, temperature=temperature)
        temperature = (temperature,) * len(LENGTHS)
    output_args = {"input_ids_rmpad_rolled": packed()[1]}
    if padded:
        logits = torch.nn.utils.rnn.pad_sequence(logits.split(LENGTHS), batch_first=True)
        output_args["temperature"] = torch.tensor(temperature)
    else:
        logits = logits.unsqueeze(0)
        output_args["temperature_rmpad"] = torch.tensor(temperature).repeat_interleave(torch.tensor(LENGTHS))
    result = ours.prepare_model_outputs(SimpleNamespace(logits=logits), output_args, micro_batch, None)
    return {key: value.values() for key, value in result.items()}


@both_layouts
def test_every_sequence_has_its_own_temperature(padded: bool) -> None:
    logits, labels = packed()
    t = (0.5, 1.0, 2.0)
    found = outputs(logits, padded=padded, temperature=t)
    per_token = torch.tensor(t).repeat_interleave(torch.tensor(LENGTHS))
    log_probs, entropy, statistics = logprobs_and_entropy(
        logits, labels, temperature=per_token, statistics=True, **CLAMPED
    )
    torch.testing.assert_close(
        found, {"log_probs": log_probs, "aent_entropy": entropy, **{f"aent_{k}": v for k, v in statistics.items()}}
    )


@both_layouts
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_one_number_for_all_sequences_scales_logits_unless_it_is_one(
    monkeypatch: pytest.MonkeyPatch, padded: bool, temperature: float
) -> None:
    scaled = []

    def op(*args: Any, temperature: float | Tensor, **settings: Any) -> Any:
        scaled.append(isinstance(temperature, Tensor))
        return logprobs_and_entropy(*args, temperature=temperature, **settings)

    monkeypatch.setattr(engine, "logprobs_and_entropy", op)
    logits, labels = packed()
    found = outputs(logits, padded=padded, temperature=temperature)["log_probs"]
    assert scaled == [temperature != 1.0]
    torch.testing.assert_close(found, logprobs_and_entropy(logits, labels, temperature=temperature)[0])


@both_layouts
def test_temperature_of_zero_is_greedy_and_not_nan(padded: bool) -> None:
    logits, labels = packed()
    found = outputs(logits, padded=padded, temperature=(0.0, 0.0, 0.0))
    assert torch.equal(found["log_probs"] == 0.0, logits.argmax(-1) == labels)
    assert found["aent_entropy"].tolist() == [0.0] * len(labels)


@both_layouts
def test_outside_training_the_entropy_is_the_full_one_and_only_if_asked_for(padded: bool) -> None:
    logits, labels = packed()
    log_probs, entropy = logprobs_and_entropy(logits, labels)
    asked = outputs(logits, padded=padded, mode="eval", calculate_entropy=True)
    torch.testing.assert_close(asked, {"log_probs": log_probs, "entropy": entropy})
    torch.testing.assert_close(outputs(logits, padded=padded, mode="eval"), {"log_probs": log_probs})


@both_layouts
def test_sum_of_squared_probabilities_is_that_at_the_temperature(padded: bool) -> None:
    logits, _ = packed()
    found = outputs(logits, padded=padded, temperature=(0.5, 0.5, 0.5), calculate_sum_pi_squared=True)
    torch.testing.assert_close(found["sum_pi_squared"], (logits / 0.5).softmax(-1).square().sum(-1))


def test_gradient_takes_the_place_of_the_logits() -> None:
    leaf = packed()[0].requires_grad_()
    logits = leaf * 1.0
    (gradient,) = torch.autograd.grad(outputs(logits)["log_probs"].sum(), logits)
    assert gradient.data_ptr() == logits.data_ptr()


def test_kernel_of_the_configuration_is_the_one_that_runs() -> None:
    with pytest.raises(ValueError, match="kernel='triton' cannot run"):
        outputs(packed()[0], kernel="triton")


@pytest.fixture
def one_rank() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_distributed_logits_become_whole() -> None:
    logits, _ = packed()
    whole = DTensor.from_local(logits.unsqueeze(0), init_device_mesh("cpu", (1,)), [Replicate()]).squeeze(0)
    found = outputs(whole)
    assert not isinstance(found["log_probs"], DTensor)
    torch.testing.assert_close(found, outputs(logits))


def test_a_custom_functional_runs_in_training_only() -> None:
    logits, _ = packed()
    custom = FunctionalConfig("tests.unit.core.test_custom:tsallis", given=(("q", 2.0),))
    for padded in (False, True):
        trained = outputs(logits.clone(), padded=padded, functional=custom)
        torch.testing.assert_close(trained["aent_entropy"], tsallis(logits, 2.0))
        old = outputs(logits.clone(), padded=padded, functional=custom, mode="eval", calculate_entropy=True)
        torch.testing.assert_close(old["entropy"], full_entropy(logits))
        torch.testing.assert_close(old["log_probs"], trained["log_probs"])
