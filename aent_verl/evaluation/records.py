"""The files of an evaluation: a summary, a line of scores for each problem, and its responses.

``evaluation.json`` is written last, when the other two are complete.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aent_verl._util import atomic_path, read_json
from aent_verl.runs.problems import problem_id

FORMAT = 1
SUMMARY = "evaluation.json"
SCORES = "scores.jsonl"
RESPONSES = "responses.jsonl"
# What must be equal for two evaluations to be the same.
IDENTITY = (
    *("format", "model", "weights", "data", "sampling", "prompts"),
    *("reward", "reward_settings", "reward_sha256"),
)


@dataclass(frozen=True)
class Problem:
    """One row of the data.

    Attributes:
        data_source: its data set.
        messages: the prompt, as chat messages.
        ground_truth: the right answer, in the form that the reward function expects.
        extra_info: what else the row has for the reward function.
    """

    data_source: str
    messages: Sequence[Mapping[str, Any]]
    ground_truth: Any
    extra_info: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The same in all evaluations and runs that have this problem: a hash of data source and prompt."""
        prompt = json.dumps([dict(message) for message in self.messages], sort_keys=True, ensure_ascii=False)
        return problem_id(self.data_source, prompt)


@dataclass(frozen=True)
class Response:
    """One response to a problem.

    Attributes:
        text: without special tokens, as the reward function gets it.
        tokens: its length, the token that ends it included.
        truncated: it was cut off at the longest length allowed.
        entropy: nats per token: the mean of -log p of its tokens, see `entropy_of`.
        score: of the reward function.
        answer: what the reward function extracted, or None.
        error: why the reward function gave no score, or None.
    """

    text: str
    tokens: int
    truncated: bool
    entropy: float
    score: float = 0.0
    answer: str | None = None
    error: str | None = None


def entropy_of(log_probs: Sequence[float]) -> float:
    r"""Estimate a response's entropy in nats per token: the mean of :math:`-\log p(y_t)` over its tokens; 0 for none.

    ``p`` is the distribution that the token was drawn from: after temperature, top-p and top-k (vLLM's
    ``processed_logprobs``). Given the tokens before it, :math:`-\log p(y_t)` has that distribution's entropy for its
    mean, so its sum over all tokens of many responses, divided by their number, estimates the mean entropy of the
    distributions that the model samples from. The mean of this figure over responses does not: a response's length
    depends on what was drawn. At temperature 1 without top-p and top-k it is the entropy of the model itself, which
    training reports as ``aent/entropy_full``.

    Raises:
        ValueError: a log-probability is not a number, or positive: the model's weights are broken.
    """
    if not log_probs:
        return 0.0
    wrong = next((value for value in log_probs if not -1e9 < value < 1e-3), None)
    if wrong is not None:
        raise ValueError(f"a sampled token has log-probability {wrong}: the model gives NaN or infinite logits")
    return max(0.0, -sum(log_probs) / len(log_probs))


@dataclass(frozen=True)
class Answered:
    """A problem with its n responses."""

    problem: Problem
    responses: Sequence[Response]

    def scores_line(self) -> dict[str, Any]:
        """Return its line of ``scores.jsonl``."""
        return {
            "problem": self.problem.id,
            "data_source": self.problem.data_source,
            "scores": [one.score for one in self.responses],
            "answers": [one.answer for one in self.responses],
            "response_tokens": [one.tokens for one in self.responses],
            "truncated": [one.truncated for one in self.responses],
            "entropy": [one.entropy for one in self.responses],
        }

    def responses_line(self) -> dict[str, Any]:
        """Return its line of ``responses.jsonl``."""
        truth = self.problem.ground_truth
        return {
            "problem": self.problem.id,
            "prompt": "\n\n".join(str(message["content"]) for message in self.problem.messages),
            "ground_truth": truth if isinstance(truth, str) else json.dumps(truth, ensure_ascii=False, default=str),
            "responses": [one.text for one in self.responses],
        }


def distinct(problems: Iterable[Problem]) -> list[Problem]:
    """Drop repetitions: some data sets hold each problem many times over, for verl to sample it often.

    Raises:
        ValueError: one prompt has two right answers.
    """
    found: dict[str, Problem] = {}
    for problem in problems:
        first = found.setdefault(problem.id, problem)
        if first.ground_truth != problem.ground_truth:
            raise ValueError(
                f"data: the prompt {problem.messages[-1]['content']!r:.200} of data source {problem.data_source!r} "
                f"occurs with the right answers {first.ground_truth!r:.80} and {problem.ground_truth!r:.80}; expected "
                "one. Remove one of these rows"
            )
    return list(found.values())


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Read ``evaluation.json`` of a folder; None if there is no complete evaluation in it.

    Raises:
        ValueError: the file is damaged.
    """
    if not all((folder / name).is_file() for name in (SUMMARY, SCORES, RESPONSES)):
        return None
    return read_json(folder / SUMMARY, "remove it, or set overwrite=true")


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Describe where two evaluations differ; empty if they do not."""
    new = json.loads(json.dumps(new))
    return [f"{key}: {old.get(key)} there, {new.get(key)} here" for key in IDENTITY if old.get(key) != new.get(key)]


def write(folder: Path, summary: Mapping[str, Any], answered: Sequence[Answered]) -> None:
    """Write all three files; what another evaluation left there is replaced."""
    (folder / SUMMARY).unlink(missing_ok=True)
    _write(folder / SCORES, (json.dumps(one.scores_line(), allow_nan=False) for one in answered))
    _write(folder / RESPONSES, (json.dumps(one.responses_line(), ensure_ascii=False) for one in answered))
    _write(folder / SUMMARY, [json.dumps(summary, indent=2, allow_nan=False)])


def _write(file: Path, lines: Iterable[str]) -> None:
    # A response may hold half of a surrogate pair, which UTF-8 cannot.
    with atomic_path(file) as partial, partial.open("w", encoding="utf-8", errors="replace") as stream:
        stream.writelines(line + "\n" for line in lines)
