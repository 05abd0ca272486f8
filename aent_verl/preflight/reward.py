r"""Does the reward function tell a right answer from a wrong one, called the way verl calls it?

verl calls it in a thread of a Ray worker, never in the main thread: a function that relies on signals (as some timeouts
do) works in a notebook and scores everything 0 in training. A right answer is made from the row's ground truth in the
usual forms (plain, ``\boxed{}``, ``#### x``, ...), and so is a wrong one.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import math
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.data import Sample
from aent_verl.preflight.errors import PreflightError

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
Pair = tuple[dict[str, Any], str]


@dataclass(frozen=True)
class Verdict:
    """How the function scored one row's answers."""

    right: Scored
    wrong: Scored

    @property
    def best(self) -> float:
        """Highest score of a right answer."""
        return max(score for _, score in self.right)

    @property
    def worst(self) -> float:
        """Highest score of a wrong answer."""
        return max(score for _, score in self.wrong)


def check(cfg: DictConfig, sample: Sample) -> list[str]:
    """Score known-right and known-wrong answers to a few rows, at least one of each data source in each file.

    Returns:
        One line on what was checked, or on why nothing was.

    Raises:
        PreflightError: the function cannot be loaded, fails, or does not score right above wrong.
    """
    key = "reward.custom_reward_function.path"
    settings = cfg.reward.get("custom_reward_function") or {}
    path = settings.get("path")
    if not OmegaConf.select(cfg, "run.check_reward", default=True):
        return ["reward: not checked, run.check_reward=false"]
    if cfg.reward.reward_model.enable:
        return ["reward: not checked, a reward model gives it"]
    if cfg.reward.reward_manager.source != "register":
        return [f"reward: left to your reward manager {cfg.reward.reward_manager.name}"]
    groups = _groups(sample, custom=bool(path))
    if not groups:
        return ["reward: not checked, no answer can be made from the ground truths"]
    judge = partial(_judge, key, path, _load(cfg, key, settings), accuracy=_needs_accuracy(cfg))
    verdicts: list[Verdict] = []
    for index, (where, pairs) in enumerate(groups.items()):
        share = ROWS // len(groups) + (index < ROWS % len(groups))
        found = _verdicts(partial(judge, where), pairs, share)
        _check_verdicts(key, path, where, found)
        verdicts += found
    told = [verdict for verdict in verdicts if verdict.best > verdict.worst]
    return [
        f"reward: {path or 'verl default'} scores right answers {told[0].best:g} and wrong ones at most "
        f"{max(verdict.worst for verdict in told):g} ({len(told)} of {len(verdicts)} rows tell them apart)"
    ]


def _groups(sample: Sample, *, custom: bool) -> dict[str, list[Pair]]:
    """Rows with their ground truth as text, by data source and file, each under its name for messages."""
    groups: dict[tuple[str, str], list[Pair]] = {}
    for file, rows in sample.files.items():
        for row in rows:
            truth = _truth(row)
            if truth is not None and (custom or row["data_source"] not in CODE):
                groups.setdefault((str(row["data_source"]), file), []).append((row, truth))
    files = Counter(source for source, _ in groups)
    return {
        repr(source) if files[source] == 1 else f"{source!r} of {file}": pairs
        for (source, file), pairs in groups.items()
    }


def _verdicts(judge: Callable[[dict[str, Any], str], Verdict], pairs: list[Pair], share: int) -> list[Verdict]:
    """Of ``share`` rows, at least one; of up to ``ROWS``, as long as no right answer gets more than the wrong ones."""
    verdicts: list[Verdict] = []
    for row, truth in pairs[:ROWS]:
        if len(verdicts) >= share and any(verdict.best > verdict.worst for verdict in verdicts):
            break
        verdicts.append(judge(row, truth))
    return verdicts


def _truth(row: Mapping[str, Any]) -> str | None:
    """The ground truth as the text of an answer, where it is one."""
    truth = (row.get("reward_model") or {}).get("ground_truth")
    if isinstance(truth, Mapping):
        truth = truth.get("target")
    if isinstance(truth, list | tuple):
        truth = truth[0] if truth else None
    if isinstance(truth, bool) or not isinstance(truth, str | int | float):
        return None
    return str(truth) or None


def _load(cfg: DictConfig, key: str, settings: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that verl would call."""
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.reward_score import get_default_compute_score

    try:
        function = get_custom_reward_fn(cfg)
    except Exception as error:
        # verl wraps an error of the user's module and says only where it happened.
        cause = error.__cause__ or error
        raise PreflightError(
            key,
            settings.get("path"),
            f"the reward function {settings.get('name')!r} cannot be loaded ({type(cause).__name__}: {cause})",
            expected="a Python file or pkg://module that has it",
            hint="Check path and name of reward.custom_reward_function",
        ) from error
    return function or get_default_compute_score(cfg.reward.reward_manager.name)


def _needs_accuracy(cfg: DictConfig) -> bool:
    """Whether the method weighs samples by the accuracy of their group."""
    from aent_verl.methods.axes import ADVANTAGES, SAMPLE_WEIGHTS

    weight = OmegaConf.select(cfg, "entropy_control.bonus.sample_weight.name", default="uniform")
    shaping = OmegaConf.select(cfg, "entropy_control.advantages.name", default="none")
    return bool(SAMPLE_WEIGHTS[weight].needs_accuracy or ADVANTAGES[shaping].needs_accuracy)


def _judge(
    key: str, path: Any, function: Callable[..., Any], where: str, row: dict[str, Any], truth: str, *, accuracy: bool
) -> Verdict:
    from aent_verl.plugin import samples

    def score(text: str) -> float:
        arguments = {
            "data_source": row["data_source"],
            "solution_str": text,
            "ground_truth": copy.deepcopy(row["reward_model"]["ground_truth"]),
            # verl adds these two.
            "extra_info": copy.deepcopy(row.get("extra_info") or {}) | {"num_turns": None, "rollout_reward_scores": {}},
        }
        try:
            result = off_main_thread(lambda: function(**arguments))
            value = float(result["score"] if isinstance(result, Mapping) else result)
            if not math.isfinite(value):
                raise ValueError(f"the score is {value}")
            if accuracy:
                samples.accuracy_of({samples.EXTRA: result}, value)
            return value
        except Exception as error:
            unknown = isinstance(error, NotImplementedError)
            raise PreflightError(
                key,
                path,
                f"the reward function fails on the answer {text!r} to a row of data source {where} "
                f"({type(error).__name__}: {error})",
                expected="a finite number, or a dict with one under 'score'"
                + (", and an accuracy" if accuracy else ""),
                hint=("Name your own in reward.custom_reward_function.path and .name" if unknown else "Mend it")
                + f"; {SKIP}",
            ) from error

    wrong = ["", *(form.format(_wrong(truth)) for form in FORMS)]
    return Verdict(
        [(text, score(text)) for text in (form.format(truth) for form in FORMS)],
        [(text, score(text)) for text in wrong],
    )


def _wrong(truth: str) -> str:
    """An answer of the same kind that is clearly not ``truth``."""
    try:
        number = float(truth.replace(",", ""))
    except ValueError:
        return "no idea"
    if not math.isfinite(number):
        return "0"
    other = 3 * number + 7
    return f"{other + 1 if other == number else other:.10g}"


def _check_verdicts(key: str, path: Any, where: str, verdicts: list[Verdict]) -> None:
    """Raise if a wrong answer got the full score of this group, which is what its best right answer got."""
    full = max(verdict.best for verdict in verdicts)
    bad = next((verdict for verdict in verdicts if verdict.worst >= full), None)
    if bad is None:
        return
    scores = {score for _, score in bad.right + bad.wrong}
    if len(scores) == 1:
        problem = f"every answer, right or wrong, gets {scores.pop():g}"
    elif bad.worst > bad.best:
        problem = "a wrong answer gets more than any right one"
    else:
        problem = "a wrong answer gets as much as the best right one"
    table = "; ".join(
        f"{kind} {text!r} -> {score:g}" for kind in ("right", "wrong") for text, score in getattr(bad, kind)
    )
    raise PreflightError(
        key,
        path,
        f"on data source {where} {problem} ({table})",
        expected="a right answer, in one of these forms, to score above every wrong one",
        hint="Check which form of answer the function wants and whether it works outside the main thread (signals do "
        f"not); {SKIP}",
    )


def off_main_thread(function: Callable[[], Any]) -> Any:
    """Call ``function`` in a thread, as verl's reward loop does, and wait for a coroutine that it returns.

    Raises:
        TimeoutError: no answer in time; the thread is left behind and dies with the process.
    """
    results: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def work() -> None:
        try:
            value = function()
            results.put((True, asyncio.run(_finished(value)) if inspect.isawaitable(value) else value))
        except BaseException as error:
            results.put((False, error))

    threading.Thread(target=work, name="reward-preflight", daemon=True).start()
    try:
        succeeded, value = results.get(timeout=TIMEOUT_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no score after {TIMEOUT_SECONDS} s") from None
    if succeeded:
        return value
    raise value


async def _finished(awaitable: Any) -> Any:
    return await awaitable
