import logging
import sys

import pytest
import verl  # noqa: F401 - imports our entry point


@pytest.mark.parametrize("level", [logging.WARNING, logging.ERROR])
def test_a_warning_is_printed_once_whatever_the_level_of_the_root_logger(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: int
) -> None:
    (ours,) = logging.getLogger("aent_verl").handlers
    assert isinstance(ours, logging.StreamHandler)
    monkeypatch.setattr(ours, "stream", sys.stderr)
    roots = logging.StreamHandler()
    monkeypatch.setattr(logging.root, "handlers", [roots])
    # As vLLM's server does when it is imported, with its level.
    monkeypatch.setattr(logging.root, "level", level)
    roots.setLevel(level)

    logging.getLogger("aent_verl.core").warning("entropy is nan")
    logging.getLogger("aent_verl.core").info("all is well")
    printed = capsys.readouterr().err
    assert printed.count("entropy is nan") == 1
    assert "all is well" not in printed
