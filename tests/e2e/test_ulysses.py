"""Ulysses at op level: two ranks with half of the packed tokens each give what one rank with all of them gives."""

import os
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

pytestmark = pytest.mark.slow

LENGTHS = (5, 3, 7)
PAD = 1
VOCABULARY = 31
COEFFICIENT = 0.5


def packed() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits [N + PAD, V] and labels [N + PAD] of the packed batch, padded to a multiple of the two ranks."""
    generator = torch.Generator().manual_seed(5)
    tokens = sum(LENGTHS) + PAD
    return torch.randn(tokens, VOCABULARY, generator=generator), torch.randint(
        VOCABULARY, (tokens,), generator=generator
    )


def outputs(rank: int, world_size: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Our engine's outputs from this rank's share, and the gradient of their sum in its logits."""
    from tensordict import TensorDict

    from aent_verl.methods.settings import FunctionalConfig
    from aent_verl.plugin.engine import EntropyControlEngine

    engine: Any = EntropyControlEngine.__new__(EntropyControlEngine)
    engine.mode = "train"
    engine.use_ulysses_sp = world_size > 1
    engine.functional = FunctionalConfig("clamped", 0.33)
    logits, labels = packed()
    share = slice(rank * len(logits) // world_size, (rank + 1) * len(logits) // world_size)
    mine = logits[share].unsqueeze(0).requires_grad_()
    rows = [torch.zeros(length, dtype=torch.long) for length in LENGTHS]
    micro_batch = TensorDict({"input_ids": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}, batch_size=3)
    result = engine.prepare_model_outputs(
        SimpleNamespace(logits=mine * 1.0),
        {
            "input_ids_rmpad_rolled": labels[share],
            "temperature_rmpad": torch.full((len(labels[share]),), 0.7),
            "pad_size": PAD,
        },
        micro_batch,
        None,
    )
    weights = torch.arange(1.0, sum(LENGTHS) + 1)
    loss = (weights * (result["log_probs"].values() + result["aent_entropy"].values())).sum()
    loss.backward()
    assert mine.grad is not None
    return {key: value.values().detach() for key, value in result.items()}, mine.grad[0]


def _rank(rank: int, world_size: int, folder: str) -> None:
    os.environ.update(VERL_PLATFORM="cpu", RANK=str(rank), WORLD_SIZE="2", DIST_INIT_METHOD=f"file://{folder}/store")
    from verl.utils.ulysses import set_ulysses_sequence_parallel_group

    from aent_verl.platforms import cpu

    cpu.initialize_gloo()
    set_ulysses_sequence_parallel_group(torch.distributed.group.WORLD)
    torch.save(outputs(rank, world_size), Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def halves() -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(2, folder), nprocs=2, join=True)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


def test_every_rank_has_the_outputs_of_the_whole_batch(
    halves: list[tuple[dict[str, torch.Tensor], torch.Tensor]],
) -> None:
    whole, _ = outputs(0, 1)
    assert set(whole) == {"log_probs", "aent_entropy", "aent_entropy_full", "aent_removed_mass"}
    for gathered, _ in halves:
        for key, value in whole.items():
            assert value.shape == (sum(LENGTHS),)
            torch.testing.assert_close(gathered[key], value, atol=1e-6, rtol=1e-6)


def test_gradients_of_the_shares_make_up_the_whole_gradient(
    halves: list[tuple[dict[str, torch.Tensor], torch.Tensor]],
) -> None:
    """verl scales the gradient of a gather by the number of ranks, because FSDP then averages over them."""
    _, whole = outputs(0, 1)
    torch.testing.assert_close(torch.cat([gradient for _, gradient in halves]) / 2, whole, atol=1e-6, rtol=1e-5)
    assert whole[-PAD:].abs().max() == 0
