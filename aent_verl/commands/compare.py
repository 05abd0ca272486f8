"""``aent-verl compare``: every method with every seed from the same start, and a report of what the results support."""

import argparse
import shlex
import sys
from collections.abc import Sequence

from aent_verl import _util

HELP = """\
usage: aent-verl compare [key=value ...]
       aent-verl compare --from RUN [RUN ...] [--output FOLDER] [--baseline METHOD] [--target TARGET] [--title TEXT]
                          [--allow-different]

Train every method with every seed from the same start, evaluate the final models, and write a report that says what
the results support and what they do not. Run it again after a kill: finished runs are not repeated, and the others
resume from their last checkpoint; with a higher trainer.total_training_steps, all of them do.

  aent-verl compare experiment=cpu_arithmetic methods=[grpo,entreg,aent] seeds=[1,2,3]
  aent-verl compare experiment=cpu_arithmetic methods=[grpo,aent] seeds=[1,2,3,4,5] evaluation.data=test.parquet \\
      evaluation.n=16 results=outputs/mine
  aent-verl compare grid=mine.yaml launcher=ray parallel=4         as jobs on the cluster at RAY_ADDRESS

Its own keys; all others go to every run, as with aent-verl train:
  methods=[...]        presets; or "methods.LABEL=['entropy_control=aent','actor_rollout_ref.actor.optim.lr=2e-6']"
  seeds=[...]          one run per method for each; at least three, better five                        [1,2,3]
  baseline=METHOD      what the others are compared with                                               grpo
  results=FOLDER       all runs and the report                                     outputs/compare/<experiment>
  evaluation.KEY=...   settings of aent-verl evaluate for the final models, such as evaluation.data=test.parquet
                       evaluation.n=16; without any, the last validation counts
  parallel=N           runs at the same time; on GPUs with launcher=ray, which gives each its own      1
  launcher=local|ray   processes here, or Ray jobs; every node needs the results folder at the same path
  stall_minutes=N      stop a run that has logged nothing for this long; 0: never                      60
  target='these problems'    what the verdicts are about; the default is 'problems like these', of which 20 are needed
  title=TEXT           heading of the report
  grid=FILE            these keys in a YAML file, and the overrides of every run as the list `overrides`

--from builds the report from existing runs: folders of compare or of aent-verl train, a results folder, stock
verl's metrics .jsonl files or folders with TensorBoard files. METHOD:SEED=PATH names a run that does not record them.
The page goes to --output; by default into the results folder, or for other runs to outputs/compare/report.
--allow-different compares runs whose protocol, model or data differ or are unknown; the report then says so.
"""


def main(arguments: Sequence[str]) -> int:
    """Run the comparison and return the process's exit status."""
    help_asked = bool(arguments) and arguments[0] in ("--help", "-h")
    if not help_asked:
        _util.require("compare", "aent-verl compare")
    if help_asked or not arguments:
        print(HELP, end="")
        return 0
    from aent_verl.comparison import compare
    from aent_verl.comparison.grid import settings
    from aent_verl.comparison.report import answer
    from aent_verl.comparison.stats import TARGETS

    command = shlex.join(["aent-verl", "compare", *arguments])
    try:
        if any(text.startswith("--") for text in arguments):
            options = vars(_parser(TARGETS).parse_args(arguments))
            page, failed = compare.report_runs(command=command, **options), 0
        else:
            _util.require("verl", "a comparison that trains")
            page, failed = compare.run_grid(settings.parse(arguments), command)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command resumes from here", file=sys.stderr)
        return 130
    print(*answer(page), f"report: {page}", sep="\n")
    return 1 if failed else 0


def _parser(targets: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="aent-verl compare", usage=HELP.split("\n\n")[0].removeprefix("usage: "))
    parser.add_argument("--from", dest="given", nargs="+", metavar="RUN", required=True)
    parser.add_argument("-o", "--output")
    parser.add_argument("--baseline")
    parser.add_argument("--target", choices=targets)
    parser.add_argument("--title")
    parser.add_argument("--allow-different", action="store_true")
    return parser
