r"""Does the reward function tell right answers from wrong ones, when called the way verl calls it?

verl calls it in a thread of a Ray worker, never in the main thread: a function that relies on signals (as some timeouts
do) works in a notebook and scores everything 0 in training. A right answer is made from the row's ground truth in the
usual forms (plain, ``\boxed{}``, ``#### x``, ...), and so is a wrong one.
"""

import asyncio
import copy
import inspect
import math
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.data import Rows, Sample
from aent_verl.preflight.findings import PreflightError, Setting, at

ROWS = 3
TIMEOUT_SECONDS = 120
SKIP = "run.check_reward=false skips this check"
FORMS = (
    "{}",
    "\\boxed{{{}}}",
    "#### {}",
    "<answer>{}</answer>",
    "The answer is {}.",
    "Answer: {}",
    "<think>\nLet me see.\n</think>\n<answer>\\boxed{{{}}}</answer>",
)
# verl scores these by running code against test cases; an answer cannot be made from those.
CODE = frozenset({"codecontests", "apps", "codeforces", "taco"})

Scored = list[tuple[str, float]]


class Verdict(NamedTuple):
    """How the function scored one row's answers."""

    right: Scored
    wrong: Scored


def best(scored: Scored) -> float:
    """Return the highest score of these answers."""
    return max(score for _, score in scored)


def check(cfg: DictConfig, sample: Sample) -> list[str]:
    """Score known-right and known-wrong answers to a few rows, at least one of each data source in each file.

    Returns:
        One line on what was checked, or why nothing was.

    Raises:
        PreflightError: the function cannot be loaded, fails, or does not score right above wrong.
    """
    path = at(cfg, "reward.custom_reward_function.path")
    if not OmegaConf.select(cfg, "run.check_reward", default=True):
        return ["reward: not checked, run.check_reward=false"]
    if cfg.reward.reward_model.enable:
        return ["reward: not checked, a reward model gives it"]
    if cfg.reward.reward_manager.source != "register":
        return [f"reward: left to your reward manager {cfg.reward.reward_manager.name}"]
    groups = _groups(sample, custom=bool(path.value))
    if not groups:
        return ["reward: not checked, no answer can be made from the ground truths"]
    judge = Judge(path, _load(cfg, path), _needs_accuracy(cfg))
    verdicts: list[Verdict] = []
    for index, (where, rows) in enumerate(groups.items()):
        share = ROWS // len(groups) + (index < ROWS % len(groups))
        verdicts += judge.verdicts(where, rows, share)
    told = [verdict for verdict in verdicts if best(verdict.right) > best(verdict.wrong)]
    return [
        f"reward: {path.value or 'verl default'} scores right answers {best(told[0].right):g} and wrong ones at most "
        f"{max(best(verdict.wrong) for verdict in told):g} ({len(told)} of {len(verdicts)} rows tell them apart)"
    ]


def _groups(sample: Sample, *, custom: bool) -> dict[str, Rows]:
    """Group rows whose ground truth is a text by data source and file, each under its name for messages."""
    groups: dict[tuple[str, str], Rows] = {}
    for file, rows in sample.files.items():
        for row in rows:
            if _truth(row) is not None and (custom or row["data_source"] not in CODE):
                groups.setdefault((str(row["data_source"]), file), []).append(row)
    files = Counter(source for source, _ in groups)
    return {
        repr(source) if files[source] == 1 else f"{source!r} of {file}": rows for (source, file), rows in groups.items()
    }


def _truth(row: Mapping[str, Any]) -> str | None:
    """Return the ground truth as the text of an answer; None if it is not one."""
    truth = (row.get("reward_model") or {}).get("ground_truth")
    if isinstance(truth, Mapping):
        truth = truth.get("target")
    if isinstance(truth, list | tuple):
        truth = truth[0] if truth else None
    if isinstance(truth, bool) or not isinstance(truth, str | int | float):
        return None
    return str(truth) or None


def _load(cfg: DictConfig, path: Setting) -> Callable[..., Any]:
    """Load the function that verl would call."""
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.reward_score import get_default_compute_score

    try:
        function = get_custom_reward_fn(cfg)
    except Exception as error:
        # verl wraps an error of a custom module and says only where it happened.
        cause = error.__cause__ or error
        name = cfg.reward.custom_reward_function.name
        raise path.error(
            f"the reward function {name!r} cannot be loaded ({type(cause).__name__}: {cause})",
            "Check path and name of reward.custom_reward_function",
            "a Python file or pkg://module that has it",
        ) from error
    return function or get_default_compute_score(cfg.reward.reward_manager.name)


def _needs_accuracy(cfg: DictConfig) -> bool:
    """Return whether the method needs the accuracies of the samples' groups."""
    from aent_verl.methods.parsing import class_named

    axes = ("bonus", "bonus.sample_weight", "advantages", "rewards")
    blocks = [f"entropy_control.{axis}" for axis in axes]
    names = ((block, OmegaConf.select(cfg, f"{block}.name")) for block in blocks)
    return any(name is not None and class_named(block, name).needs_accuracy for block, name in names)


@dataclass(frozen=True)
class Judge:
    """The reward function at work.

    Attributes:
        path: the setting that names it.
        function: called as verl calls it.
        accuracy: whether it has to give an accuracy, too.
    """

    path: Setting
    function: Callable[..., Any]
    accuracy: bool

    def verdicts(self, where: str, rows: Rows, share: int) -> list[Verdict]:
        """Judge ``share`` rows, at least one, and up to `ROWS` while no right answer scores above the wrong ones.

        Raises:
            PreflightError: a wrong answer got the full score of these rows, which is what their best right answer got.
        """
        verdicts: list[Verdict] = []
        for row in rows[:ROWS]:
            if len(verdicts) >= share and any(best(verdict.right) > best(verdict.wrong) for verdict in verdicts):
                break
            truth = str(_truth(row))
            wrong = ["", *(form.format(_wrong(truth)) for form in FORMS)]
            answers = [form.format(truth) for form in FORMS], wrong
            verdicts.append(Verdict(*([(text, self.score(where, row, text)) for text in each] for each in answers)))
        full = max(best(verdict.right) for verdict in verdicts)
        bad = next((verdict for verdict in verdicts if best(verdict.wrong) >= full), None)
        if bad is not None:
            raise self._fault(where, bad)
        return verdicts

    def score(self, where: str, row: dict[str, Any], text: str) -> float:
        """Score one answer.

        Raises:
            PreflightError: the function fails, or gives no finite number.
        """
        from aent_verl.plugin import samples

        arguments = {
            "data_source": row["data_source"],
            "solution_str": text,
            "ground_truth": copy.deepcopy(row["reward_model"]["ground_truth"]),
            # verl adds these two.
            "extra_info": copy.deepcopy(row.get("extra_info") or {}) | {"num_turns": None, "rollout_reward_scores": {}},
        }
        try:
            result = off_main_thread(lambda: self.function(**arguments))
            value = float(result["score"] if isinstance(result, Mapping) else result)
            if not math.isfinite(value):
                raise ValueError(f"the score is {value}")
            if self.accuracy:
                samples.accuracy_of({samples.EXTRA: result}, value)
            return value
        except Exception as error:
            unknown = isinstance(error, NotImplementedError)
            raise self.path.error(
                f"the reward function fails on the answer {text!r} to a row of data source {where} "
                f"({type(error).__name__}: {error})",
                f"{'Name your own in reward.custom_reward_function.path and .name' if unknown else 'Fix it'}; {SKIP}",
                "a finite number, or a dict with one under 'score'" + (", and an accuracy" if self.accuracy else ""),
            ) from error

    def _fault(self, where: str, bad: Verdict) -> PreflightError:
        right, wrong = best(bad.right), best(bad.wrong)
        more = "more than any right one" if wrong > right else "as much as the best right one"
        alike = len({score for _, score in bad.right + bad.wrong}) == 1
        problem = f"every answer, right or wrong, gets {right:g}" if alike else f"a wrong answer gets {more}"
        scored = bad._asdict().items()
        table = "; ".join(f"{kind} {text!r} -> {score:g}" for kind, each in scored for text, score in each)
        return self.path.error(
            f"on data source {where} {problem} ({table})",
            "Check which form of answer the function expects, and whether it works outside the main thread (signals do "
            f"not); {SKIP}",
            "a right answer, in one of these forms, to score above every wrong one",
        )


def _wrong(truth: str) -> str:
    """Make an answer of the same kind that is clearly not ``truth``."""
    try:
        number = float(truth.replace(",", ""))
    except ValueError:
        return "no idea"
    if not math.isfinite(number):
        return "0"
    other = 3 * number + 7
    return f"{other + 1 if other == number else other:.10g}"


def off_main_thread(function: Callable[[], Any]) -> Any:
    """Call ``function`` in a thread, as verl's reward loop does, and wait for a coroutine that it returns.

    Raises:
        TimeoutError: no answer in time; the thread is left behind and dies with the process.
    """
    result: Future[Any] = Future()

    def work() -> None:
        try:
            value = function()
            result.set_result(asyncio.run(asyncio.wait_for(value, None)) if inspect.isawaitable(value) else value)
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, name="reward-preflight", daemon=True).start()
    if not wait([result], TIMEOUT_SECONDS).done:
        raise TimeoutError(f"no score after {TIMEOUT_SECONDS} s")
    return result.result()
