"""Fixtures shared by all tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random two-layer Qwen2 model with a byte tokenizer."""
    from aent_verl.tasks import tiny_model

    folder: Path = tmp_path_factory.mktemp("model")
    tokenizer = tiny_model.build_tokenizer()
    tiny_model.save(tiny_model.build_model(tokenizer, hidden_size=64, layers=2, seed=0), tokenizer, folder)
    return str(folder)
