"""``python -m aent_verl.launch.child PID -m MODULE ...``: run a module that dies with the process PID.

Without this a comparison that is killed would leave its run behind, and the next start would train in the same folder.
Ray's processes die with the one that started them.
"""

import ctypes
import os
import runpy
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie this process to its parent, then become the module."""
    parent, flag, module, *arguments = sys.argv[1:]
    assert flag == "-m"
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit("the comparison that started this run has ended")
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
