"""What the Triton kernels take of a multiprocessor and of the memory's bandwidth, known from compiling them: no device.

    python -m benchmarks.kernel_resources --markdown

Each kernel is compiled as it is launched for logits whose rows begin at multiples of 16 bytes, with a temperature, for
devices that need not be here. Registers, the stack, which holds what registers had no room for, and static shared
memory are those that `cuobjdump` reads from the machine code; it comes with Triton.

Occupancy: of the warps that a multiprocessor can hold, the share that fits. Registers are given to a warp in units of
256, so 8 per thread, and each of the four schedulers has a quarter of them; a program's shared memory includes 1 KiB
that the system takes::

    warps by registers = 4 * floor(16,384 / (32 * registers rounded up to 8))
    programs = min(floor(warps by registers / warps of a program), floor(shared of a multiprocessor / of a program),
                   64 / warps of a program, 32)
    occupancy = programs * warps of a program / 64

In flight: what the programs of a multiprocessor read at a time, one block of logits each, as the loops do not
prefetch. With P multiprocessors, a memory that moves B bytes per second is busy only if a block takes at most
P * in flight / B from one load to the next.

Instructions per logit: those of the loops over the vocabulary (the backward pass has none: all), of one thread, without
what only a block with a new maximum executes. A multiprocessor issues 4 * 32 of them a clock, and so moves about
128 * bytes per logit / instructions per logit bytes a clock at most.
"""

import argparse
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from aent_verl.core.backends import ByTriton
from aent_verl.core.selection import Nucleus
from benchmarks.bounds import VOCABULARY
from benchmarks.report import DTYPES, Report, Row, add_output_options, progress, stamp

# Shared memory of a multiprocessor; all else that limits its programs is the same for both.
SHARED = {80: 164 * 1024, 90: 228 * 1024}
RESERVED_SHARED = 1024
WARPS, PROGRAMS, REGISTERS_OF_SCHEDULER = 64, 32, 16_384
NUMBERS = ("row_stride", "out_stride", "vocabulary", "removed", "count")
# `do_not_specialize`: what is not compiled in.
ANY_NUMBER = ("removed", "count")
# Bytes of one in the machine code.
_INSTRUCTION = 16
ITEMSIZE = {"bf16": 2, "fp32": 4}
KEPT_ALL: dict[str, Any] = {"thresholds": None, "shares": None}


@dataclass(frozen=True)
class Launch:
    """One kernel with what is compiled into it.

    Attributes:
        label: in the table.
        name: of the kernel in `aent_verl.core.kernels.programs`.
        constants: arguments that are compiled in.
        reads: how often it reads the logits; None stands for once per byte of their type.
        writes: how often it writes as much.
    """

    label: str
    name: str
    constants: dict[str, Any]
    reads: int | None = 1
    writes: int = 0

    def options(self) -> dict[str, int | bool]:
        """Those that `token_entropy` launches it with."""
        from aent_verl.core.kernels import token_entropy

        if self.name == "backward":
            return dict(token_entropy._BACKWARD)
        clamped_with_statistics = self.name == "forward_without_smallest" and self.constants["STATISTICS"]
        return dict(token_entropy._CLAMPED_WITH_STATISTICS if clamped_with_statistics else token_entropy._FORWARD)

    def times_read(self, dtype: str) -> int:
        return ITEMSIZE[dtype] if self.reads is None else self.reads

    def bytes_per_logit(self, dtype: str) -> int:
        """What it moves from and to the device's memory, if no read is answered by a cache."""
        return ITEMSIZE[dtype] * (self.times_read(dtype) + self.writes)


LAUNCHES = (
    Launch("forward, full", "forward_in_one_read", {**KEPT_ALL, "STATISTICS": False}),
    Launch("forward, clamped", "forward_without_smallest", {"STATISTICS": False}, reads=None),
    Launch("forward, clamped, statistics", "forward_without_smallest", {"STATISTICS": True}, reads=None),
    Launch("forward, nucleus, boundary given", "forward_in_one_read", {"STATISTICS": False}),
    Launch("forward, nucleus, statistics", "forward_in_one_read", {"STATISTICS": True}),
    Launch("backward", "backward", {}, writes=1),
    Launch("backward of the log-prob alone", "backward", {"grad_entropy": None}, writes=1),
)


@dataclass(frozen=True)
class Resources:
    """Of one compiled kernel: registers, stack and instructions per logit of a thread, the rest of a program."""

    registers: int
    stack: int
    shared: int
    warps: int
    block_bytes: int
    instructions: float

    def programs(self, capability: int) -> int:
        """How many run on a multiprocessor at a time."""
        per_thread = -(-self.registers // 8) * 8
        by_registers = 4 * (REGISTERS_OF_SCHEDULER // (32 * per_thread)) // self.warps
        by_shared = SHARED[capability] // (self.shared + RESERVED_SHARED)
        return min(by_registers, by_shared, WARPS // self.warps, PROGRAMS)

    def occupancy(self, capability: int) -> float:
        return self.programs(capability) * self.warps / WARPS

    def in_flight(self, capability: int) -> int:
        """Bytes of logits that the programs of a multiprocessor read at a time."""
        return self.programs(capability) * self.block_bytes


def compiled(launch: Launch, dtype: str, capability: int, *, aligned: bool = True) -> Any:
    """The kernel for logits of ``dtype``; ``aligned`` as Triton specialises it for rows at multiples of 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from aent_verl.core.kernels import programs

    kernel = getattr(programs, launch.name)
    options = launch.options()
    constants = launch.constants | {"BLOCK": options.pop("BLOCK")}
    if "DIGITS" in kernel.arg_names:
        constants |= {"DIGITS": ITEMSIZE[dtype]}
    types = dict.fromkeys(("logits", "out"), "*" + dtype) | dict.fromkeys(NUMBERS, "i32") | {"labels": "*i64"}
    signature = {name: "constexpr" if name in constants else types.get(name, "*fp32") for name in kernel.arg_names}
    multiples = [name for name, kind in signature.items() if kind != "constexpr" and name not in ANY_NUMBER]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in multiples if aligned},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def resources(launch: Launch, dtype: str, capability: int, *, aligned: bool = True) -> Resources:
    """Compile it and read its machine code."""
    kernel = compiled(launch, dtype, capability, aligned=aligned)
    used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", _cuobjdump("-res-usage", kernel.asm["cubin"])))
    block = int(launch.options()["BLOCK"])
    warps = kernel.metadata.num_warps
    loops = 0 if launch.name == "backward" else launch.times_read(dtype)
    return Resources(
        registers=int(used["REG"]),
        stack=int(used["STACK"]) + int(used["LOCAL"]),
        shared=kernel.metadata.shared,
        warps=warps,
        block_bytes=block * ITEMSIZE[dtype],
        instructions=_instructions(_cuobjdump("-sass", kernel.asm["cubin"]), loops) / (block / (32 * warps)),
    )


def _cuobjdump(option: str, cubin: bytes) -> str:
    import triton.backends.nvidia

    program = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        return subprocess.run([program, option, file], capture_output=True, text=True, check=True).stdout


def _instructions(code: str, loops: int) -> int:
    """Instructions in the ``loops`` of a kernel, which end with a branch to their beginning; without loops, all."""
    lines = [(int(at, 16), text) for at, text in re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", code)]
    exits = [at for at, text in lines if re.search(r"\bEXIT\b", text)]
    if not loops:
        return sum(at <= exits[-1] for at, _ in lines)
    # Behind the exit there is only what the compiler keeps for warps whose threads have diverged.
    found = ((at, re.search(r"\bBRA\b.* 0x([0-9a-f]+)", text)) for at, text in lines if at < exits[0])
    jumps = [(at, int(to[1], 16)) for at, to in found if to]
    spans = [(to, at) for at, to in jumps if to < at]
    assert len(spans) == loops, f"{len(spans)} loops in the machine code, {loops} in the kernel"
    # A jump this far inside a loop is over the sums that a new maximum rescales.
    skipped = [(at, to) for at, to in jumps if to - at > 32 * _INSTRUCTION and any(a < at < to <= b for a, b in spans)]
    counted = [at for at, _ in lines if not any(first < at < last for first, last in skipped)]
    return sum(first <= at <= last for first, last in spans for at in counted)


class Traffic(TorchDispatchMode):
    """Bytes that torch's ops read and write of tensors with at least so many elements."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.bytes = elements, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in ("gather", "scatter_"):
            # A few elements of each row.
            return result
        arguments = func._schema.arguments
        given = [
            *zip(arguments, args, strict=False),
            *((a, kwargs[a.name]) for a in arguments if a.name in (kwargs or {})),
        ]
        for argument, value in given:
            if not isinstance(value, torch.Tensor) or value.numel() < self.elements:
                continue
            written = argument.alias_info is not None and argument.alias_info.is_write
            view = argument.alias_info is not None and not written
            read = not view and (not written or (name.endswith("_") and name != "copy_"))
            self.bytes += value.numel() * value.element_size() * (written + read)
        return result


def bytes_of_nucleus(dtype: str, vocabulary: int = 50_000) -> float:
    """What torch moves per logit to find the nucleus's boundary for the kernels, at least: top-k as one read."""
    logits = torch.zeros(2, vocabulary, dtype=DTYPES[dtype])
    with Traffic(logits.numel()) as traffic:
        ByTriton(Nucleus(0.8), False)._boundary(logits, torch.ones(2, 1))
    return traffic.bytes / logits.numel()


def table(capabilities: list[int]) -> tuple[Row, list[Row], dict[str, Any]]:
    """Columns, cells and numbers of the kernels; several capabilities share a cell."""
    cells, numbers = [], {}
    for launch in LAUNCHES:
        for dtype in ITEMSIZE:
            progress(f"{launch.label}, {dtype}")
            found = {capability: resources(launch, dtype, capability) for capability in capabilities}
            numbers |= {f"{launch.label}, {dtype}, sm_{key}": vars(value) for key, value in found.items()}
            per_logit = launch.bytes_per_logit(dtype)
            columns = [
                [str(one.registers) for one in found.values()],
                [str(one.stack) for one in found.values()],
                [str(one.shared) for one in found.values()],
                [f"{one.occupancy(capability):.0%}" for capability, one in found.items()],
                [f"{one.in_flight(capability) / 1024:.0f}" for capability, one in found.items()],
                [f"{one.instructions:.0f}" for one in found.values()],
                [f"{128 * per_logit / one.instructions:.1f}" for one in found.values()],
            ]
            same = [values[:1] if len(set(values)) == 1 else values for values in columns]
            cells.append([launch.label, dtype, *(" / ".join(values) for values in same)])
    columns = ["registers", "stack, B", "shared, B", "occupancy", "in flight, KiB", "instructions", "most B/clock"]
    return ["kernel", "logits", *columns], cells, numbers


def traffic(vocabulary: int) -> tuple[Row, list[Row], dict[str, Any]]:
    """Columns, cells and numbers of what a token's logits move, by functional."""
    by_label = {launch.label: launch for launch in LAUNCHES}
    cells, numbers = [], {}
    for dtype in ITEMSIZE:
        backward = by_label["backward"].bytes_per_logit(dtype)
        for name in ("full", "clamped", "nucleus"):
            kernel = by_label["forward, nucleus, boundary given" if name == "nucleus" else f"forward, {name}"]
            of_torch = bytes_of_nucleus(dtype) if name == "nucleus" else 0.0
            found = kernel.bytes_per_logit(dtype) + of_torch
            total = (found + backward) * vocabulary
            numbers[f"{name}, {dtype}"] = {"forward": found, "backward": backward, "bytes_per_token": total}
            cells.append([name, dtype, f"{found:.0f}", str(backward), f"{total / 1e6:.2f}"])
    columns = [
        "functional",
        "logits",
        "forward, B per logit",
        "backward, B per logit",
        f"MB a token, V = {vocabulary:,}",
    ]
    return columns, cells, numbers


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernel_resources",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--capabilities", type=int, nargs="+", choices=SHARED, default=list(SHARED), metavar="SM")
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY, metavar="V")
    add_output_options(parser)
    options = parser.parse_args(arguments)
    # Machine code of another version of Triton must not be taken for this one's.
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        report = Report(options, stamp("cpu"), "kernel_resources")
        columns, cells, numbers = table(options.capabilities)
    where = " / ".join(f"sm_{capability}" for capability in options.capabilities)
    report.table(f"Resources of the compiled kernels, {where}", columns, cells)
    columns, cells, moved = traffic(options.vocabulary)
    report.table("Bytes that move at least", columns, cells)
    report.save(resources=numbers, traffic=moved)


if __name__ == "__main__":
    main()
