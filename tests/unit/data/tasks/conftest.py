"""Fixtures of the tasks' tests."""

import pytest

from aent_verl.data.tasks import tiny_model


@pytest.fixture(scope="session")
def tokenizer():
    return tiny_model.build_tokenizer()
