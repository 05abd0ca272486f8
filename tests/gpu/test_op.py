"""The op on the device under test against fp64: values, both gradients, chunks, statistics, the head."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from aent_verl.core.custom import logprobs_and_custom_entropy
from aent_verl.core.entropy import full_entropy, removed_mass, tre_entropy
from aent_verl.core.fused import linear_logprobs_and_entropy, logprobs_and_entropy
from tests import reference
from tests.gpu.place import QWEN, VOCABULARIES, Place, assert_within_bounds, by_op, decided, errors, share_of, truth
from tests.unit.core.test_fused import FUNCTIONALS, each_functional, plain
from tests.unit.core.test_peaked_rows import FUNCTIONALS as OF_PEAKED_ROWS
from tests.unit.core.test_peaked_rows import RESTS, TEMPERATURE, assert_within_budget, op, peaked
from tests.unit.core.test_peaked_rows import share_of as share_of_peaked
from tests.unit.core.test_peaked_rows import truth as truth_of_peaked

pytestmark = pytest.mark.gpu

Cases = list[dict[str, Any]]
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
# Those that differ in what runs on a device.
MAIN = ("full", "clamped .33", "nucleus .8")
each_main = pytest.mark.parametrize("name", MAIN)


def test_the_reference_on_this_device_is_the_definition(place: Place) -> None:
    """What all else is compared with, against plain Python on the CPU, and autograd."""
    logits, labels, _ = (t.cpu() for t in place.inputs(50_257, torch.bfloat16))
    logits, labels = logits[:, :300], labels % 300
    by_hand = {
        "full": reference.full_entropy_row,
        "clamped .33": partial(reference.clamped_entropy_row, clamp_p=0.33),
        "nucleus .8": partial(reference.nucleus_entropy_row, top_p=0.8, most=10_000),
    }
    for name, row in by_hand.items():
        found = truth(logits.to(place.device), labels.to(place.device), name).result
        expected = torch.tensor([row(values) for values in logits.tolist()], dtype=torch.float64)
        torch.testing.assert_close(found.entropy.cpu(), expected, atol=1e-11, rtol=0)
        leaf = logits.double().requires_grad_()
        plainly = plain(leaf, labels, FUNCTIONALS[name][1])
        gradients = (torch.autograd.grad(value.sum(), leaf)[0] for value in plainly)
        here = [*(value.detach() for value in plainly), *gradients]
        torch.testing.assert_close([t.cpu() for t in found], here, atol=1e-13, rtol=1e-10)


@each_functional
@each_dtype
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_values_and_both_gradients(
    place: Place, kernel: str, vocabulary: int, dtype: torch.dtype, name: str, cases: Cases
) -> None:
    logits, labels, temperature = place.inputs(vocabulary, dtype)
    found = by_op(logits, labels, temperature=temperature, kernel=kernel, **FUNCTIONALS[name][0])
    case = errors(found, truth(logits, labels, name, temperature), place.output_rounding(dtype))
    cases.append({"kernel": kernel, "vocabulary": logits.shape[1], "tokens": len(logits), "functional": name, **case})
    assert_within_bounds(case)


@each_main
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_one_temperature(place: Place, kernel: str, temperature: float, name: str, cases: Cases) -> None:
    logits, labels, _ = place.inputs(QWEN, torch.float32)
    found = by_op(logits, labels, temperature=temperature, kernel=kernel, **FUNCTIONALS[name][0])
    case = errors(found, truth(logits, labels, name, torch.full(labels.shape, temperature, dtype=torch.float64)), 0.0)
    cases.append({"kernel": kernel, "vocabulary": logits.shape[1], "functional": name, **case})
    assert_within_bounds(case)


@each_main
@each_dtype
def test_triton_gives_what_torch_gives(place: Place, dtype: torch.dtype, name: str, cases: Cases) -> None:
    if "triton" not in place.kernels:
        pytest.skip("the Triton kernels do not run here")
    logits, labels, temperature = place.inputs(QWEN, dtype)
    by = partial(by_op, logits, labels, temperature=temperature, **FUNCTIONALS[name][0])
    true = truth(logits, labels, name, temperature)
    # Each may be as far from the truth as it is allowed to be.
    case = errors(by(kernel="triton"), true._replace(result=by(kernel="torch")), place.output_rounding(dtype))
    cases.append({"functional": name, "triton against torch": case["max_error"]})
    assert max(case["of_bound"].values()) <= 2


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("settings", OF_PEAKED_ROWS, ids=str)
def test_small_numbers_keep_their_digits(place: Place, kernel: str, settings: dict[str, Any], rest: float) -> None:
    """Rows in which one token has nearly all probability: the relative error of what the others have."""
    logits, labels = peaked(rest)
    found = op(logits.to(place.device), labels.to(place.device), kernel, settings)
    expected = truth_of_peaked(logits, labels, share_of_peaked(logits, settings), TEMPERATURE)
    assert_within_budget(type(found)(*(t.cpu() for t in found)), expected)


@each_functional
@each_dtype
def test_statistics(place: Place, kernel: str, dtype: torch.dtype, name: str) -> None:
    logits, labels, temperature = place.inputs(QWEN, dtype)
    settings = FUNCTIONALS[name][0]
    run = partial(logprobs_and_entropy, logits, labels, temperature=temperature, kernel=kernel, **settings)
    log_probs, entropy, statistics = run(statistics=True)
    torch.testing.assert_close((log_probs, entropy), run(), atol=1e-5, rtol=1e-6)
    z = logits.double() / temperature.double().unsqueeze(-1)
    torch.testing.assert_close(statistics["entropy_full"].double(), full_entropy(z), atol=1e-5, rtol=1e-5)
    judged = decided(z, settings)
    mass = removed_mass(z, share_of(z, settings))[judged]
    torch.testing.assert_close(statistics["removed_mass"].double()[judged], mass, atol=1e-7, rtol=1e-4)


@each_main
@each_dtype
def test_inplace_backward(place: Place, kernel: str, dtype: torch.dtype, name: str) -> None:
    """The gradient replaces the logits, is the same to the last bit, and autograd knows that the values are gone."""
    logits, labels, temperature = place.inputs(QWEN, dtype)
    leaf = logits.clone().requires_grad_()
    settings = {"temperature": temperature, "kernel": kernel, **FUNCTIONALS[name][0]}

    def gradient(z: Tensor, **more: Any) -> Tensor:
        log_probs, entropy = logprobs_and_entropy(z, labels, **settings, **more)
        return torch.autograd.grad((log_probs - 0.7 * entropy).sum(), z)[0]

    expected = gradient(leaf)
    produced = leaf * 1.0
    version = produced._version
    found = gradient(produced, inplace_backward=True)
    assert torch.equal(found, expected)
    assert found.data_ptr() == produced.data_ptr()
    assert produced._version > version


@each_main
def test_same_bits_every_time(place: Place, kernel: str, name: str) -> None:
    logits, labels, temperature = place.inputs(QWEN, torch.bfloat16)
    by = partial(by_op, logits, labels, temperature=temperature, kernel=kernel, **FUNCTIONALS[name][0])
    for one, other in zip(by(), by(), strict=True):
        assert torch.equal(one, other)


@each_main
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_chunks_of_the_torch_path(place: Place, chunk_size: int, name: str) -> None:
    logits, labels, temperature = place.inputs(QWEN, torch.float32)
    by = partial(by_op, logits, labels, temperature=temperature, kernel="torch", **FUNCTIONALS[name][0])
    case = errors(by(chunk_size=chunk_size), truth(logits, labels, name, temperature), 0.0)
    assert_within_bounds(case)


@each_main
@each_dtype
@pytest.mark.parametrize("chunk_size", [None, 8])
def test_from_hidden_states(
    place: Place, kernel: str, chunk_size: int | None, dtype: torch.dtype, name: str, cases: Cases
) -> None:
    """Against fp64 of the same states and head; in bf16 the logits of a chunk are rounded, as everyone's are."""
    vocabulary, width, tokens = place.size(50_257), 64, 37
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(tokens, width, generator=generator), torch.randn(vocabulary, width, generator=generator)]
    inputs[0] *= 3 * width**-0.5
    hidden, weight = (t.to(place.device, dtype).requires_grad_() for t in inputs)
    labels = torch.randint(vocabulary, (tokens,), generator=generator).to(place.device)
    temperature = torch.linspace(0.6, 1.4, tokens).to(place.device)
    settings, entropy_of = FUNCTIONALS[name]
    found = linear_logprobs_and_entropy(
        hidden, weight, labels, temperature=temperature, chunk_size=chunk_size, kernel=kernel, **settings
    )
    exact = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    # Which tokens are kept is decided by the logits that are there, the rounded ones.
    product = exact[0] @ exact[1].T
    rounded = (hidden @ weight.T).detach().double()
    z = (product + (rounded - product).detach()) / temperature.double().unsqueeze(-1)
    expected = plain(z, labels, entropy_of)
    case: dict[str, float] = {}
    for output, one, other in zip(("log_probs", "entropy"), found, expected, strict=True):
        case[output] = (one.detach().double() - other.detach()).abs().max().item()
        of_found = torch.autograd.grad(one.sum(), (hidden, weight), retain_graph=True)
        of_exact = torch.autograd.grad(other.sum(), exact, retain_graph=True)
        for input_, mine, true in zip(("hidden", "weight"), of_found, of_exact, strict=True):
            distance = (mine.double() - true).norm() / true.norm()
            case[f"{output} by {input_}, relative"] = distance.item()
    cases.append({"kernel": kernel, "functional": name, "max_error": case})
    # Of bf16: the gradient of the logits and that of the inputs are rounded to 2^-8 each.
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    assert not {key: value for key, value in case.items() if not value <= tolerance}


def test_a_custom_entropy(place: Place, kernel: str) -> None:
    logits, labels, temperature = place.inputs(QWEN, torch.float32)
    leaf = logits.clone().requires_grad_()
    function = partial(tre_entropy, top_p=0.8)
    log_probs, entropy, _ = logprobs_and_custom_entropy(leaf, labels, function, temperature=temperature, kernel=kernel)
    exact = logits.double().requires_grad_()
    expected = plain(exact / temperature.double().unsqueeze(-1), labels, function)
    torch.testing.assert_close((log_probs.double(), entropy.double()), expected, atol=1e-4, rtol=1e-5)
    (log_probs + entropy).sum().backward()
    sum(expected).sum().backward()
    assert leaf.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(leaf.grad.double(), exact.grad, atol=1e-5, rtol=1e-4)
