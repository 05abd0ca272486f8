"""What docs/performance.md says of the compiled kernels is what the compiler says."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import kernel_resources
from benchmarks.kernel_resources import LAUNCHES, Resources, Traffic, bytes_of_nucleus, resources, traffic

PAGE = (Path(__file__).parents[2] / "docs" / "performance.md").read_text()


def cells(*first: str) -> list[str]:
    """The row of the page that begins with these cells."""
    (row,) = re.findall(rf"^\| {re.escape(' | '.join(first))} \| (.*) \|$", PAGE, flags=re.MULTILINE)
    return row.split(" | ")


def of_capability(cell: str, capability: int) -> str:
    values = cell.split(" / ")
    return values[-1] if capability == 90 else values[0]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "capability"), [("fp32", 80), ("fp32", 90), ("bf16", 90)])
@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda launch: launch.label)
def test_nothing_is_spilled_beyond_what_the_page_says(
    launch: kernel_resources.Launch, dtype: str, capability: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton")
    from aent_verl.core.kernels import programs

    if not programs.COMPILED:
        pytest.skip("Triton interprets in this process")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    found = resources(launch, dtype, capability)
    registers, stack, shared, occupancy, *_ = (of_capability(cell, capability) for cell in cells(launch.label, dtype))
    assert found.registers <= int(registers)
    assert found.stack <= int(stack)
    assert found.shared <= int(shared)
    assert f"{found.occupancy(capability):.0%}" == occupancy


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "capability", "programs"),
    [
        # 8 warps of 32 registers fill the multiprocessor; 33 count as 40, 88 leave each scheduler 5 warps.
        (32, 0, 8, 90, 8),
        (33, 0, 8, 90, 6),
        (88, 0, 8, 90, 2),
        (255, 0, 8, 90, 1),
        # One warp each: no more than 32 programs.
        (16, 0, 1, 90, 32),
        # By shared memory, with the 1 KiB of the system.
        (16, 81 * 1024, 4, 80, 2),
        (16, 82 * 1024, 4, 80, 1),
        (16, 82 * 1024, 4, 90, 2),
    ],
)
def test_programs_of_a_multiprocessor(registers: int, shared: int, warps: int, capability: int, programs: int) -> None:
    found = Resources(registers, 0, shared, warps, 4096, 1.0)
    assert found.programs(capability) == programs
    assert found.occupancy(capability) == programs * warps / 64
    assert found.in_flight(capability) == programs * 4096


def code_of(*instructions: str) -> str:
    return "".join(f"        /*{16 * n:04x}*/                   {text} ;\n" for n, text in enumerate(instructions))


def test_loops_are_counted_from_their_beginning_to_their_branch() -> None:
    code = code_of("MOV", "FADD", "@!P0 BRA 0x40", "FMUL", "@P1 BRA 0x10", "EXIT", "BRA 0x10", "BRA 0x70")
    assert kernel_resources._instructions(code, loops=1) == 4
    assert kernel_resources._instructions(code, loops=0) == 6
    with pytest.raises(AssertionError, match="1 loops in the machine code, 2 in the kernel"):
        kernel_resources._instructions(code, loops=2)


def test_what_a_loop_mostly_jumps_over_is_not_counted() -> None:
    code = code_of("MOV", "FADD", f"@!P0 BRA {16 * 43:#x}", *["FMUL"] * 40, "FADD", "@P1 BRA 0x10", "EXIT")
    assert kernel_resources._instructions(code, loops=1) == 4


def test_traffic_of_torch_is_that_of_its_large_tensors() -> None:
    x, half, small = torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.bfloat16), torch.zeros(2, 1)

    def bytes_of(work) -> float:
        with Traffic(16) as traffic_:
            work()
        return traffic_.bytes / 16

    assert bytes_of(lambda: x.copy_(half)) == 2 + 4
    assert bytes_of(lambda: x.sub_(small)) == 4 + 4
    assert bytes_of(lambda: torch.exp(x, out=x)) == 4 + 4
    assert bytes_of(lambda: x.sum(-1)) == 4
    assert bytes_of(lambda: x[:, :].T) == 0


def test_bytes_on_the_page_are_those_of_the_code() -> None:
    _, rows, _ = traffic(151_936)
    assert [cells(*row[:2]) for row in rows] == [row[2:] for row in rows]
    # The logits are copied in their own type, all else is fp32.
    assert bytes_of_nucleus("fp32") - bytes_of_nucleus("bf16") == 2
