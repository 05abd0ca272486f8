"""The Triton kernels against float64 brute force, run by Triton's interpreter and, where there is one, a CUDA device.

Triton decides at its first import whether it interprets. So the interpreter lives in a worker process, and no other
test of this run is affected, whatever was imported before.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from aent_verl.core.entropy import clamped_entropy, full_entropy, keep_share, removed_mass, restricted_entropy
from aent_verl.core.kernels import token_entropy
from aent_verl.core.rows import Forward, Rows
from tests.interpreter import interpret

pytestmark = pytest.mark.slow

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CLAMPS = (0.0, 0.25, 0.33, 0.9)
# No multiples of a block of columns; the last has three blocks forward and two backward.
VOCABULARIES = (1, 37, 257, 4500)
# Half the relative distance of neighbouring numbers in fp16; all of it in bf16, to which the interpreter truncates.
EPS = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-11}


class Output(NamedTuple):
    forward: Forward
    rows: Rows
    gradient: Tensor | None


Run = Callable[..., Output]


def run_kernels(
    device: str,
    logits: Tensor,
    labels: Tensor,
    scale: Tensor | None = None,
    *,
    removed: int = 0,
    boundary: tuple[Tensor, Tensor] | None = None,
    statistics: bool = True,
    grad_log_probs: Tensor | None = None,
    grad_entropy: Tensor | None = None,
    stride: int | None = None,
    in_place: bool = False,
) -> Output:
    """Forward, and backward where there is a gradient; NaN in the gaps between rows has to stay there."""

    def padded_rows(fill: float, step: int) -> Tensor:
        count, vocabulary = logits.shape
        edge = min(step - vocabulary, 8)
        memory = torch.empty(count * step + edge, dtype=logits.dtype, device=device)
        rows = memory.as_strided((count, vocabulary + edge), (step, 1)).fill_(torch.nan)
        rows[:, :vocabulary] = fill
        return rows

    def there(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device)

    padded = padded_rows(0.0, stride or logits.shape[1])
    inside = padded[:, : logits.shape[1]].copy_(logits)
    labels, scale = labels.to(device), there(scale)
    assert token_entropy.supported(inside)
    if boundary is not None:
        boundary = boundary[0].to(device), boundary[1].to(device)
    forward, rows = token_entropy.forward(
        inside, labels, scale, removed=removed, boundary=boundary, statistics=statistics
    )
    gradient = None
    if grad_log_probs is not None or grad_entropy is not None:
        padded_out = padded if in_place else padded_rows(1.0, (stride or logits.shape[1]) + 3)
        gradient = padded_out[:, : logits.shape[1]]
        gradients = there(grad_log_probs), there(grad_entropy)
        token_entropy.backward(inside, labels, scale, rows, *gradients, gradient)
        assert padded_out[:, logits.shape[1] :].isnan().all()
        assert in_place or torch.equal(inside.nan_to_num(), logits.to(device).nan_to_num())
        gradient = gradient.cpu().clone()
    return Output(Forward(*(x.cpu() for x in forward)), Rows(*(x.cpu() for x in rows)), gradient)


@pytest.fixture(
    scope="module",
    params=[
        "interpreter",
        pytest.param(
            "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
        ),
    ],
)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """`run_kernels` on the device under test."""
    if request.param == "cuda":
        yield partial(run_kernels, "cuda")
        return
    pytest.importorskip("triton")
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=interpret) as worker:
        yield lambda *args, **kwargs: worker.submit(run_kernels, "cpu", *args, **kwargs).result()


def kinds_of_rows(vocabulary: int) -> Tensor:
    """One row of each kind: random, peaked, equal, tied, zeros of both signs, few -inf, mostly -inf."""
    generator = torch.Generator().manual_seed(vocabulary)
    z = torch.randn(7, vocabulary, generator=generator) * 3
    z[1, vocabulary // 3] += 40
    z[2] = 1.7
    z[3] = z[3].round()
    zero = torch.rand(vocabulary, generator=generator)
    z[4] = torch.where(zero < 0.4, 0.0, torch.where(zero < 0.8, -0.0, z[4]))
    z[5, 1::9] = -torch.inf
    z[6, 3:] = -torch.inf
    return z


def labels_of(z: Tensor) -> Tensor:
    """The first and the last column in turn, a column with -inf in between."""
    columns = torch.tensor([0, z.shape[1] - 1, min(1, z.shape[1] - 1)])
    return columns.repeat(len(z))[: len(z)]


def incoming(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    g, h = torch.randn(2, count, 1, generator=generator)
    return g, h


def temperature_of(count: int) -> Tensor:
    return torch.linspace(0.6, 1.7, count).unsqueeze(-1)


def brute_force(
    logits: Tensor, labels: Tensor, scale: Tensor, keep: Tensor, g: Tensor, h: Tensor
) -> tuple[Forward, Tensor]:
    """Values, and by autograd the gradient, in fp64, of the entropy over tokens weighted by ``keep``."""
    leaf = logits.double().requires_grad_()
    z = leaf * scale.double()
    log_probs = z.log_softmax(-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    entropy = restricted_entropy(z, keep)
    total = (log_probs * g.double().squeeze(-1) + entropy * h.double().squeeze(-1)).sum()
    (gradient,) = torch.autograd.grad(total, leaf)
    return Forward(log_probs.detach(), entropy.detach(), full_entropy(z).detach(), removed_mass(z, keep)), gradient


def assert_same(output: Output, forward: Forward, gradient: Tensor, dtype: torch.dtype) -> None:
    for name, actual, expected in zip(Forward._fields, output.forward, forward, strict=True):
        assert actual.dtype is torch.float32
        torch.testing.assert_close(actual.double(), expected, atol=2e-6, rtol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
    assert output.gradient is not None
    assert output.gradient.dtype is dtype
    torch.testing.assert_close(output.gradient.double(), gradient, atol=2e-7, rtol=EPS[dtype])


def keep_of(boundary: tuple[Tensor, Tensor], logits: Tensor) -> Tensor:
    threshold, share = (x.double() for x in boundary)
    z = logits.double()
    return torch.where(z > threshold, 1.0, torch.where(z == threshold, share, 0.0))


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("clamp_p", CLAMPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_without_the_smallest(run: Run, dtype: torch.dtype, clamp_p: float, vocabulary: int) -> None:
    logits = kinds_of_rows(vocabulary).to(dtype)
    labels, scale, (g, h) = labels_of(logits), temperature_of(len(logits)), incoming(len(logits))
    keep = keep_share(logits.double(), clamp_p)
    removed = int(vocabulary * clamp_p)
    output = run(logits, labels, scale, removed=removed, grad_log_probs=g, grad_entropy=h)
    assert_same(output, *brute_force(logits, labels, scale, keep, g, h), dtype)
    if removed:
        # The boundary itself, by which the backward pass and others know what is kept: the count is exact.
        found = keep_of((output.rows.threshold, output.rows.share), logits)
        torch.testing.assert_close(found, keep, atol=0, rtol=1e-7)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_entropy_with_a_given_boundary(run: Run, dtype: torch.dtype, vocabulary: int) -> None:
    logits = kinds_of_rows(vocabulary).to(dtype)
    labels, scale, (g, h) = labels_of(logits), temperature_of(len(logits)), incoming(len(logits))
    # The median, a value that occurs; of the last row the largest: most others are -inf.
    threshold = logits.float().median(-1, keepdim=True).values
    threshold[-1] = logits[-1].float().amax()
    boundary = threshold, torch.linspace(0.1, 1.0, len(logits)).unsqueeze(-1)
    output = run(logits, labels, scale, boundary=boundary, grad_log_probs=g, grad_entropy=h)
    assert_same(output, *brute_force(logits, labels, scale, keep_of(boundary, logits), g, h), dtype)
    torch.testing.assert_close((output.rows.threshold, output.rows.share), boundary, atol=0, rtol=0)


@pytest.mark.parametrize("clamp_p", [0.0, 0.33])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_gradient_alone_and_no_temperature(run: Run, dtype: torch.dtype, clamp_p: float) -> None:
    logits = kinds_of_rows(257).to(dtype)
    labels, (g, h) = labels_of(logits), incoming(len(logits))
    keep, one, zero = keep_share(logits.double(), clamp_p), torch.ones(len(logits), 1), torch.zeros(len(logits), 1)
    removed = int(257 * clamp_p)
    output = run(logits, labels, removed=removed, grad_log_probs=g)
    assert_same(output, *brute_force(logits, labels, one, keep, g, zero), dtype)
    output = run(logits, labels, removed=removed, grad_entropy=h)
    assert_same(output, *brute_force(logits, labels, one, keep, zero, h), dtype)


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("removed", [0, 800])
def test_rows_apart_and_gradient_over_the_logits(run: Run, removed: int, in_place: bool) -> None:
    """What lies between the rows is neither read nor written, and the gradient may replace the logits."""
    logits = kinds_of_rows(2500).bfloat16()
    labels, scale, (g, h) = labels_of(logits), temperature_of(len(logits)), incoming(len(logits))
    case = partial(run, logits, labels, scale, removed=removed, grad_log_probs=g, grad_entropy=h)
    plain, other = case(), case(stride=2503, in_place=in_place)
    torch.testing.assert_close(other, plain, atol=1e-6, rtol=EPS[torch.bfloat16], equal_nan=True)


def test_rows_beyond_two_gigaelements(run: Run) -> None:
    """Offsets of more than 31 bits; of the memory only the rows themselves are ever touched."""
    logits = kinds_of_rows(37)[:3].bfloat16()
    labels, (g, h) = labels_of(logits), incoming(len(logits))
    case = partial(run, logits, labels, removed=12, grad_log_probs=g, grad_entropy=h)
    torch.testing.assert_close(case(stride=2**30 + 16, in_place=True), case(), atol=1e-6, rtol=EPS[torch.bfloat16])


@pytest.mark.parametrize("removed", [0, 100])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, "all -inf"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_a_distribution_is_nan_and_stays_in_its_row(
    run: Run, dtype: torch.dtype, bad: float | str, removed: int
) -> None:
    logits = kinds_of_rows(257)[:4].to(dtype)
    labels, (g, h) = labels_of(logits), incoming(4)
    case = partial(run, labels=labels, removed=removed, grad_log_probs=g, grad_entropy=h)
    expected = case(logits)
    spoilt = logits.clone()
    if isinstance(bad, str):
        spoilt[2] = -torch.inf
    else:
        spoilt[2, 200] = bad
    output = case(spoilt)
    others = [0, 1, 3]
    for actual, clean in zip((*output.forward, output.gradient), (*expected.forward, expected.gradient), strict=True):
        torch.testing.assert_close(actual[others], clean[others], atol=0, rtol=0)
    assert output.forward.log_probs[2].isnan()
    assert output.forward.entropy[2].isnan()
    assert output.rows.rest[2].isnan()
    assert output.gradient is not None
    assert output.gradient[2].isnan().all()


def test_a_row_without_incoming_gradient_is_zero_whatever_it_holds(run: Run) -> None:
    logits = kinds_of_rows(2500).bfloat16()
    logits[2] = torch.nan
    g, h = incoming(len(logits))
    g[2:4], h[2:5] = 0, -0.0
    output = run(logits, labels_of(logits), grad_log_probs=g, grad_entropy=h)
    assert output.gradient is not None
    assert (output.gradient[2:4] == 0).all()
    assert (output.gradient[4] != 0).any()
    alone = run(logits, labels_of(logits), grad_entropy=h)
    assert (alone.gradient[2:5] == 0).all()
    assert (alone.gradient[5] != 0).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_kept(run: Run, dtype: torch.dtype) -> None:
    """The nucleus where the first token alone crosses the bound: entropy 0, and only the log-prob has a gradient."""
    logits = kinds_of_rows(257).to(dtype)
    labels, (g, h) = labels_of(logits), incoming(len(logits))
    boundary = torch.full((len(logits), 1), torch.inf), torch.zeros(len(logits), 1)
    output = run(logits, labels, boundary=boundary, grad_log_probs=g, grad_entropy=h)
    reference = run(logits, labels, grad_log_probs=g)
    assert (output.forward.entropy == 0).all()
    torch.testing.assert_close(output.forward.removed_mass, torch.ones(len(logits)))
    torch.testing.assert_close(output.forward.entropy_full, reference.forward.entropy, atol=1e-6, rtol=0)
    torch.testing.assert_close(output.gradient, reference.gradient, atol=1e-7, rtol=EPS[dtype])
    assert (run(logits, labels, boundary=boundary, grad_entropy=h).gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_maximum_that_grows_from_block_to_block(run: Run, dtype: torch.dtype) -> None:
    """What was summed under an older maximum is brought to the new one, also where exp of the step is 0."""
    z = torch.linspace(-10, 10, 6000).repeat(4, 1)
    z[1, :2048], z[2, 4096:] = -torch.inf, 1e38
    z[3] = z[3].flip(-1)
    logits = z.to(dtype)
    labels, scale, (g, h) = labels_of(logits), temperature_of(4), incoming(4)
    boundary = torch.zeros(4, 1), torch.ones(4, 1)
    for kept in (None, boundary):
        keep = torch.ones(4, 6000).double() if kept is None else keep_of(kept, logits)
        output = run(logits, labels, scale, boundary=kept, grad_log_probs=g, grad_entropy=h)
        assert_same(output, *brute_force(logits, labels, scale, keep, g, h), dtype)


@pytest.mark.parametrize("removed", [0, 12])
def test_no_rows_no_statistics_and_labels_outside(run: Run, removed: int) -> None:
    z, labels = kinds_of_rows(37), torch.tensor([-100, 37, 3, 0, 0, 0, 36])
    empty = run(z[:0], labels[:0], removed=removed, grad_entropy=torch.zeros(0, 1))
    assert [x.shape for x in empty.forward] == [(0,)] * 4
    assert [x.shape for x in empty.rows] == [(0, 1)] * 6
    full = run(z, labels, removed=removed)
    assert full.forward.log_probs.isnan().tolist() == [True, True] + [False] * 5
    less = run(z, labels, removed=removed, statistics=False).forward
    torch.testing.assert_close(less.entropy, full.forward.entropy, atol=1e-6, rtol=0)
    torch.testing.assert_close(less.entropy_full, less.entropy, atol=0, rtol=0)
    assert (less.removed_mass == 0).all()


@pytest.mark.parametrize("kind", ["random", "flat", "tied", "peaked"])
@pytest.mark.parametrize("clamp_p", [0.0, 0.33])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_error_budget(run: Run, dtype: torch.dtype, clamp_p: float, kind: str, request: pytest.FixtureRequest) -> None:
    """On average no further from the fp64 truth than the plain form in fp32, plus a tenth.

    The gradient is judged in fp32, of logits that are exact in bf16: in less its error is that of rounding it. A device
    has another exponential, off by 2^-22 and, at x = -20 of the peaked rows, by the rounding of ``x log2 e``.
    """
    of_exp = 2.0**-22 + 20 * 2.0**-24 if request.node.callspec.params["run"] == "cuda" else 0.0
    z = torch.randn(16, 2000, generator=torch.Generator().manual_seed(5))
    z = {"random": z * 3, "flat": z * 0.1, "tied": z.round(), "peaked": z}[kind]
    if kind == "peaked":
        z[:, 7] = 20
    logits = z.bfloat16().to(dtype)
    h = torch.ones(16, 1) if dtype is torch.float32 else None
    output = run(logits, torch.zeros(16, dtype=torch.int64), removed=int(2000 * clamp_p), grad_entropy=h)
    exact, plain = logits.double().requires_grad_(), logits.clone().requires_grad_()
    truth, rough = clamped_entropy(exact, clamp_p), clamped_entropy(plain, clamp_p)
    truth.sum().backward()
    rough.sum().backward()

    def error(actual: Tensor | None, expected: Tensor | None) -> float:
        assert actual is not None
        assert expected is not None
        return (actual.detach().double() - expected.detach()).abs().mean().item()

    assert error(output.forward.entropy, truth) <= 1.1 * error(rough, truth) + of_exp * truth.abs().mean()
    if dtype is torch.float32:
        allowed = 1.1 * error(plain.grad, exact.grad) + of_exp * exact.grad.abs().mean()
        assert error(output.gradient, exact.grad) <= allowed


def test_what_is_supported() -> None:
    """In this process, which does not interpret, nothing on the CPU."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        assert not token_entropy.supported(torch.zeros(1, 2))
    assert not token_entropy.supported(torch.zeros(1, 2, dtype=torch.float64))


NUMBERS = ("row_stride", "out_stride", "vocabulary", "removed", "count")


@pytest.mark.parametrize(("dtype", "capability"), [("fp16", 80), ("bf16", 90), ("fp32", 90)])
@pytest.mark.parametrize(
    ("name", "constants"),
    [
        ("forward_without_smallest", {"STATISTICS": True}),
        ("forward_in_one_read", {"thresholds": None, "shares": None, "STATISTICS": False}),
        ("forward_in_one_read", {"scale": None, "STATISTICS": True}),
        ("backward", {}),
        ("backward", {"scale": None, "grad_log_probs": None}),
        ("backward", {"grad_entropy": None}),
    ],
)
def test_compiles_for_devices_that_are_not_here(
    name: str,
    constants: dict[str, object],
    dtype: str,
    capability: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The compiler refuses what the interpreter lets pass; it needs no device, and comes with its own assembler."""
    triton = pytest.importorskip("triton")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from aent_verl.core.kernels import programs

    if not programs.COMPILED:
        pytest.skip("Triton interprets in this process")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernel = getattr(programs, name)
    options = dict(token_entropy._BACKWARD if name == "backward" else token_entropy._FORWARD)
    constants = constants | {"BLOCK": options.pop("BLOCK")}
    if "DIGITS" in kernel.arg_names:
        constants = constants | {"DIGITS": 4 if dtype == "fp32" else 2}
    types = dict.fromkeys(("logits", "out"), "*" + dtype) | dict.fromkeys(NUMBERS, "i32") | {"labels": "*i64"}
    source = ASTSource(
        fn=kernel,
        signature={n: "constexpr" if n in constants else types.get(n, "*fp32") for n in kernel.arg_names},
        constexprs={(kernel.arg_names.index(n),): value for n, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.asm["cubin"]
