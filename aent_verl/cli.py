"""Console script ``aent-verl``."""

import argparse
import gc
import sys

from aent_verl import __version__, extras
from aent_verl.prepare import command as prepare

TRAIN_HELP = """\
usage: aent-verl train [key=value ...]

Train with verl and entropy control. Settings are Hydra overrides; every key of verl's ppo_trainer can be set.

  aent-verl train experiment=cpu_arithmetic                         AEnt on a tiny model, on the CPU
  aent-verl train experiment=cpu_arithmetic entropy_control=grpo    the same without entropy control
  aent-verl train data.train_files=train.parquet data.val_files=test.parquet \\
      actor_rollout_ref.model.path=Qwen/Qwen2.5-1.5B-Instruct ...   your own data and model, on GPUs

Choices: experiment=NAME  platform=cpu
         entropy_control=grpo|entreg|aent|skywork|aer|siren|epo|par_stage|par_epoch|par_entropy|steer|entropy_adv|
                         progrpo|clip_cov|kl_cov|clip_higher|linear_decay
         entropy_control/functional=full|clamped|nucleus  entropy_control/controller=constant|band|step_to_target|...
         and the other axes: docs/methods.md has the methods in a table, docs/configuration.md all settings
Show the composed config without running: --cfg job [--resolve]    more of Hydra: --hydra-help
Resume: the same command again; the controller goes on where it was.
"""

DOCTOR_HELP = """\
Check everything that a training run needs, without starting it: versions, plug-in, verl's API, every setting, data,
model, reward function and machines. Takes the overrides of `aent-verl train`, or a whole command, verl's too, old or
new: it names each key that verl no longer has, and what the command lacks for entropy control.
"""
DOCTOR_EXAMPLES = """\
examples:
  aent-verl doctor experiment=cpu_arithmetic
  aent-verl doctor --assume gpus=8,nodes=2 experiment=qwen2.5_math_1.5b_math data.train_files=...   on a login node
  aent-verl doctor python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo data.train_files=...
"""

# The extra without which a command cannot begin; the others say themselves what they lack.
NEEDS = {"train": "verl", "evaluate": "verl", "doctor": "verl", "compare": "compare"}

TOKENS_HELP = """\
Write a page of responses whose tokens are coloured by entropy, advantage or policy weight; it opens in any browser.
The run has to be trained with entropy_control.token_dump=4 (responses a step).
"""
TOKENS_EXAMPLES = """\
examples:
  aent-verl tokens outputs/aent_verl/cpu_arithmetic_aent                      the whole dump of a run
  aent-verl tokens outputs/aent_verl/cpu_arithmetic_aent --step 1 20 40       three of its steps
  aent-verl tokens outputs/aent_verl/cpu_arithmetic_aent/tokens -o page.html  the dump's folder; where the page goes
"""


def build_parser() -> argparse.ArgumentParser:
    """The top-level parser; `train` takes Hydra overrides and is handed over to Hydra whole."""
    parser = argparse.ArgumentParser(
        prog="aent-verl", description="Entropy control for reinforcement learning in verl."
    )
    parser.add_argument("--version", action="version", version=f"aent-verl {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands.add_parser("train", help="train with Hydra overrides; aent-verl train --help", add_help=False)
    commands.add_parser(
        "compare", help="methods x seeds, evaluated, and a report of what can be told; compare --help", add_help=False
    )
    commands.add_parser(
        "doctor",
        help="check versions, plug-in, settings, data, model, reward and machines; doctor --help",
        add_help=False,
    )
    commands.add_parser("evaluate", help="sample, score and sum up a model's answers; evaluate --help", add_help=False)
    plot = commands.add_parser("plot", help="draw reward, entropy and coefficient of a run as a PNG")
    plot.add_argument("folder", help="the run's folder (run.dir), with its metrics.jsonl")
    plot.add_argument("--output", help="where to write the PNG; default: in the run's folder")
    prepare.add_parser(commands)
    tokens = commands.add_parser(
        "tokens",
        help="show a run's responses, each token coloured by its entropy, as an HTML page",
        description=TOKENS_HELP,
        epilog=TOKENS_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    tokens.add_argument("paths", nargs="+", metavar="PATH", help="a run's folder, its folder tokens, or files of it")
    tokens.add_argument("-o", "--output", help="where to write the page; default: tokens.html in the first folder")
    tokens.add_argument("--step", nargs="+", type=int, metavar="N", help="only these training steps")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the process's exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments in (["train", "--help"], ["train", "-h"]):
        print(TRAIN_HELP, end="")
        return 0
    if arguments and (extra := NEEDS.get(arguments[0])):
        try:
            extras.require(extra, f"aent-verl {arguments[0]}")
        except ImportError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    if arguments[:1] == ["train"]:
        return _train(arguments[1:])
    if arguments[:1] == ["doctor"]:
        return _doctor(arguments[1:])
    if arguments[:1] == ["compare"]:
        from aent_verl.compare import command as compare

        return compare.main(arguments[1:])
    if arguments[:1] == ["evaluate"]:
        from aent_verl.evaluation import command as evaluate

        return evaluate.main(arguments[1:])
    options = build_parser().parse_args(arguments)
    run = {"plot": _plot, "prepare": prepare.run, "tokens": _tokens}[options.command]
    try:
        print(run(options))
    except (OSError, ValueError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _plot(options: argparse.Namespace) -> str:
    extras.require("compare", "the plot", "matplotlib", "omegaconf")
    from aent_verl.plot import plot_run

    return str(plot_run(options.folder, output=options.output))


def _tokens(options: argparse.Namespace) -> str:
    extras.require("compare", "the page of tokens", "jinja2", "markupsafe")
    from aent_verl.tokens.page import write_page

    page, count = write_page(options.paths, output=options.output, steps=options.step)
    return f"{page}: {count} response{'s' if count != 1 else ''}"


def _doctor(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="aent-verl doctor",
        usage="%(prog)s [--cluster] [--assume gpus=8,nodes=2] [key=value ... | a training command]",
        description=DOCTOR_HELP,
        epilog=DOCTOR_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--cluster", action="store_true", help="start or join Ray, and ask every node")
    parser.add_argument("--assume", metavar="gpus=8,nodes=2", help="check for these machines instead of this one")
    # The rest are overrides, or another command's words with its own flags.
    options, words = parser.parse_known_args(arguments)
    # Nearly all of its time are imports, whose objects live until it ends: the collector would look at them in vain.
    gc.disable()
    from aent_verl import doctor

    try:
        assume = options.assume and doctor.Machines.parse(options.assume)
    except ValueError as error:
        parser.error(str(error))
    return doctor.main(words, cluster=options.cluster, assume=assume)


def _train(overrides: list[str]) -> int:
    from aent_verl import train

    # Hydra reads the command line itself.
    sys.argv = ["aent-verl train", *overrides]
    train.main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
