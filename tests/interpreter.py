"""Triton decides at its first import whether it interprets: that has to happen in a worker process of its own."""

import os
import sys

import torch


def interpret() -> None:
    """First thing in the worker: the kernels' module has been imported by then, Triton must not have been."""
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
