"""Peak resident memory of a piece of code, in a process of its own."""

import os
import subprocess
import sys
from textwrap import dedent

MIB = 2**20

# A tensor above this size has pages of its own, which go back when it is freed. Left to itself glibc raises the limit
# as it goes and takes tensors from a heap instead: its holes were counted as memory in use, up to 17 MiB, by chance.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(64 * 1024)}

_SCRIPT = """
import torch

def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))

{setup}
before = status("VmRSS:")
# The kernel keeps one high-water mark per process: nothing that set-up freed again may stand above it.
assert status("VmHWM:") - before < 8 * 2**20, "set-up had a peak of its own"
{run}
print(status("VmHWM:") - before)
"""


def peak_extra(setup: str, run: str) -> int:
    """Bytes by which the peak of the resident memory during ``run`` exceeds what ``setup`` left behind."""
    script = _SCRIPT.format(setup=dedent(setup), run=dedent(run))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **_MALLOC})
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return int(done.stdout)
