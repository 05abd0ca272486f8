"""Peak memory of `linear_logprobs_and_entropy` against the number of tokens: it should grow with the chunk, not with N.

    python -m benchmarks.linear_memory

Forward and backward pass of log-prob and clamped entropy from hidden states ``[N, D]`` and the LM head ``[V, D]``. What
grows with N in any case are the hidden states and their gradient; "beyond gradients" is the rest of the peak. For
comparison: the same op on full logits, where the machine has the memory. Each measurement is made in a fresh process.
"""

import argparse
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from aent_verl.core.fused import linear_logprobs_and_entropy, logprobs_and_entropy
from benchmarks.measure import available_memory, backward, in_fresh_process, peak_growth
from benchmarks.methods import CLAMPED
from benchmarks.report import DTYPES, Report, Row, add_output_options, mebibytes, progress, stamp

TOKENS = (1024, 4096, 16_384)


@dataclass(frozen=True)
class Shape:
    """Sizes of one measurement."""

    tokens: int
    hidden: int
    vocabulary: int
    chunk: int
    dtype: torch.dtype
    device: str


@dataclass(frozen=True)
class Result:
    """Bytes; a peak is None where it was not measured."""

    tokens: int
    hidden: int
    gradients: int
    peak: int | None
    peak_full_logits: int | None

    @property
    def beyond(self) -> int | None:
        """The part of the peak that is not the gradients of hidden states and LM head."""
        return None if self.peak is None else self.peak - self.gradients


def linear(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> tuple[Tensor, ...]:
    return linear_logprobs_and_entropy(hidden, weight, labels, chunk_size=chunk, **CLAMPED)[:2]


def full_logits(hidden: Tensor, weight: Tensor, labels: Tensor, chunk: int) -> tuple[Tensor, ...]:
    return logprobs_and_entropy(hidden @ weight.T, labels, **CLAMPED)[:2]


FORMS = {"linear": linear, "full logits": full_logits}


def _inputs(shape: Shape, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(shape.device).manual_seed(0)
    random = partial(torch.randn, generator=generator, device=shape.device)
    # A spread of the logits of 2.5.
    hidden = random(tokens, shape.hidden).mul_(2.5 * shape.hidden**-0.5).to(shape.dtype).requires_grad_()
    weight = random(shape.vocabulary, shape.hidden).to(shape.dtype).requires_grad_()
    return hidden, weight, torch.randint(shape.vocabulary, (tokens,), generator=generator, device=shape.device)


def peak(form: str, shape: Shape) -> int | None:
    """Bytes that one forward and backward pass needs at its peak beyond its inputs."""
    # At least two chunks, as whatever the first leaves behind is then there.
    backward(FORMS[form](*_inputs(shape, min(shape.tokens, 2 * shape.chunk)), shape.chunk))
    tensors = _inputs(shape, shape.tokens)
    return peak_growth(lambda: backward(FORMS[form](*tensors, shape.chunk)), shape.device)


def measure(shape: Shape) -> Result:
    itemsize = shape.dtype.itemsize
    run = in_fresh_process if shape.device == "cpu" else lambda function, *arguments: function(*arguments)
    hidden = shape.tokens * shape.hidden * itemsize
    # Logits and their gradient, and room for others.
    fits = 2.5 * shape.tokens * shape.vocabulary * itemsize < available_memory(shape.device)
    return Result(
        tokens=shape.tokens,
        hidden=hidden,
        gradients=hidden + shape.vocabulary * shape.hidden * itemsize,
        peak=run(peak, "linear", shape),
        peak_full_logits=run(peak, "full logits", shape) if fits else None,
    )


def rows(results: list[Result]) -> list[Row]:
    """Cells of the table."""
    return [
        [
            f"{result.tokens:,}",
            mebibytes(result.hidden),
            mebibytes(result.gradients),
            mebibytes(result.peak),
            mebibytes(result.beyond),
            mebibytes(result.peak_full_logits),
        ]
        for result in results
    ]


def growth(results: list[Result]) -> str:
    """The sentence that the table is for."""
    first, last = results[0], results[-1]
    if first.beyond is None or last.beyond is None:
        return "peak memory cannot be measured here: it needs Linux with glibc, or CUDA"
    more = last.beyond - first.beyond
    return (
        f"N from {first.tokens:,} to {last.tokens:,}: {mebibytes(more)} MiB more beyond gradients, "
        f"{more / max(1, last.tokens - first.tokens):,.0f} bytes per token"
    )


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.linear_memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), metavar="N")
    parser.add_argument("--hidden", type=int, default=256, metavar="D", help="width of the hidden states")
    parser.add_argument("--vocabulary", type=int, default=49_152, metavar="V")
    parser.add_argument("--chunk", type=int, default=256, help="tokens whose logits exist at one time")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add_output_options(parser)
    options = parser.parse_args(arguments)
    if min(*options.tokens, options.hidden, options.vocabulary, options.chunk) < 1:
        parser.error("--tokens, --hidden, --vocabulary and --chunk must be at least 1")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    sizes = {name: getattr(options, name) for name in ("hidden", "vocabulary", "chunk")}
    report = Report(options, stamp(options.device, dtype=options.dtype, **sizes), "linear_memory")
    results = []
    for tokens in options.tokens:
        progress(f"N = {tokens:,}")
        results.append(measure(Shape(tokens, **sizes, dtype=DTYPES[options.dtype], device=options.device)))
    columns = ["N", "hidden", "its and the head's gradient", "peak extra", "beyond gradients", "peak with full logits"]
    report.table(
        "Memory of log-prob and clamped entropy from hidden states, forward and backward, MiB", columns, rows(results)
    )
    report.text(growth(results))
    report.save(results=[vars(result) | {"beyond_gradients": result.beyond} for result in results])


if __name__ == "__main__":
    main()
