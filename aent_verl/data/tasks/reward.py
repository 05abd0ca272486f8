r"""Reward of the reasoning-gym tasks, in the interface of verl's `reward.custom_reward_function`.

    reward.custom_reward_function.path=pkg://aent_verl.data.tasks.reward
    reward.custom_reward_function.name=compute_score

reasoning-gym scorers are graded: a wrong answer that contains the right one gets the ratio of the lengths ("1234" for
"12": 0.5; for some generators any wrong answer gets 0.01). Such scores would pay for rambling. Here `acc` is 1.0 for
exactly the full score and 0.0 for anything less, and `score`, what GRPO optimises, equals `acc`.

`extra_info["extract"]` says which part of a response is the answer. "whole": all of it. "last_number": the last number
in it, for chat models that wrap a right number in a sentence ("The answer is 7."); only the last one, so that listing
many numbers does not pay more than naming one. "last_line": the last line, for responses that work step by step first.

Some scorers let Python evaluate the answer, which a model could keep busy indefinitely ("9**9**9"): theirs must be
plain arithmetic.
"""

import ast
import functools
import json
import re
from ast import Add, BinOp, Constant, Div, Expression, Mult, Sub, UAdd, UnaryOp, USub
from collections.abc import Callable, Mapping
from typing import Any

from aent_verl import _util

DATA_SOURCE_PREFIX = "reasoning_gym/"

# A response ends where the model says so. verl decodes without special tokens, other callers may not.
_END_OF_TURN = re.compile(r"<\|im_end\|>|<\|endoftext\|>|<\|eot_id\|>|</s>")
# Their scorers evaluate an answer with sympy's `parse_expr`, that is, with `eval`.
_EVALUATED = frozenset({"countdown", "puzzle24"})
_PLAIN_ARITHMETIC = (Expression, BinOp, UnaryOp, Constant, Add, Sub, Mult, Div, USub, UAdd)
# The sign must not belong to an expression such as "5-3".
_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?|\d[\d,]*(?:\.\d+)?")


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> dict[str, Any]:
    """Score one response with the scorer of the generator that made the question.

    Args:
        data_source: "reasoning_gym/<generator>".
        solution_str: The decoded response.
        ground_truth: The generator's answer; used alone when `extra_info` has no entry.
        extra_info: The data set's column of that name: "entry" (JSON) and "extract".
        **kwargs: verl adds reward-model addresses here when one is configured; unused.

    Returns:
        {"score", "acc"}, both 1.0 for an exactly right answer and 0.0 otherwise, and "pred", the answer, by which verl
        and `aent-verl evaluate` count votes. Not where an answer is an expression: equal ones look different.

    Raises:
        ValueError: unknown `data_source`, or unknown `extra_info["extract"]`.
    """
    scorer = _scorer(data_source)
    extra_info = extra_info or {}
    answer = _extract(solution_str, extra_info.get("extract") or "whole")
    entry = json.loads(extra_info["entry"]) if extra_info.get("entry") else {"answer": ground_truth, "metadata": {}}
    try:
        acc = float(_is_safe(answer, data_source) and scorer(answer, entry) >= 1.0)
    except Exception:
        # Some scorers raise on answers that they cannot parse (prime_factorization on a word), and the run would end
        # there. That the record itself is sound was checked when the data was built.
        acc = 0.0
    return {"score": acc, "acc": acc} | ({} if _is_expression(data_source) else {"pred": answer})


def _extract(solution: str, how: str) -> str:
    text = _END_OF_TURN.split(solution, maxsplit=1)[0].strip()
    if how == "whole":
        return text
    if how == "last_number":
        numbers = _NUMBER.findall(text)
        return numbers[-1].rstrip(",") if numbers else ""
    if how == "last_line":
        return text.rpartition("\n")[2].strip()
    raise ValueError(f"extra_info['extract']={how!r}: must be 'whole', 'last_number' or 'last_line'")


def _is_expression(data_source: str) -> bool:
    return data_source.removeprefix(DATA_SOURCE_PREFIX) in _EVALUATED


def _is_safe(answer: str, data_source: str) -> bool:
    """Check that evaluating the answer can do no harm; raises what `ast.parse` raises."""
    if not _is_expression(data_source):
        return True
    nodes = list(ast.walk(ast.parse(answer, mode="eval")))
    return all(isinstance(node, _PLAIN_ARITHMETIC) for node in nodes) and all(
        type(node.value) is int for node in nodes if isinstance(node, Constant)
    )


@functools.cache
def _scorer(data_source: str) -> Callable[[str, dict[str, Any]], float]:
    _util.require("data", "this reward", "reasoning_gym")
    import reasoning_gym  # takes about a second, so not at import

    name = data_source.removeprefix(DATA_SOURCE_PREFIX)
    try:
        if name == data_source:
            raise ValueError(f"it does not start with {DATA_SOURCE_PREFIX!r}")
        return reasoning_gym.get_score_answer_fn(name)
    except ValueError as error:
        raise ValueError(f"data_source={data_source!r} is not one that this reward can score: {error}") from error
