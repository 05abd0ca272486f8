"""``make contract``: whether aent_verl fits the installed verl, or the one of a source tree."""

import argparse
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

# What the list below says in more detail.
LISTED = ("test_the_installed_verl_is_as_assumed", "test_every_fused_forward_method_goes_through_what_we_replace")


def put_first(given: str) -> None:
    """Let this process and those that it starts import verl from the folder that holds the package."""
    folder = Path(given).expanduser().resolve()
    if not (folder / "verl" / "__init__.py").is_file():
        sys.exit(
            f"VERL={given}: there is no {folder / 'verl' / '__init__.py'}; expected the root of a checkout of verl, "
            "or another folder that holds the package verl/"
        )
    # Behind this repository's root, which also stands before PYTHONPATH: a checkout has a folder tests/ of its own.
    sys.path.insert(1, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the contract's tests, then list the assumptions that do not hold; 0 if all is well."""
    parser = argparse.ArgumentParser(prog="python -m tests.contract", description=__doc__)
    parser.add_argument("verl", nargs="?", default="", help="folder that holds verl/ (default: the installed verl)")
    if given := parser.parse_args(arguments).verl:
        put_first(given)

    # From here on verl comes from that folder.
    from aent_verl.verl_api import assumptions, versions

    warnings.filterwarnings("ignore", ".*engine is not available")
    version, folder = versions.imported_verl()
    print(f"verl {version} in {folder}; aent_verl declares verl{versions.PACKAGES['verl']}", flush=True)
    without = [f"--deselect=tests/contract/test_verl_contract.py::{name}" for name in LISTED]
    tests = [sys.executable, "-m", "pytest", "-q", "--tb=short", *without, "tests/contract"]
    failed = subprocess.run(tests).returncode != 0

    checked = [*assumptions.ASSUMPTIONS]
    for model in assumptions.FUSED_MODELS[1:]:
        checked += assumptions.fused_forward_calls(model)
    broken = [(one, found) for one in checked if (found := one.found_instead()) is not None]
    for one, found in broken:
        print(f"\nexpected: {one.what}\nfound: {found}\nneeded because {one.why}")
    held = f"{len(broken)} of {len(checked)} assumptions do not hold" if broken else f"{len(checked)} assumptions hold"
    print(f"\nverl {version}: {held}; the contract's tests {'failed' if failed else 'passed'}")
    return int(failed or bool(broken))


if __name__ == "__main__":
    sys.exit(main())
