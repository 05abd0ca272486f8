"""Reward of the math experiments: math-verify on the boxed or last expression of a response."""

from typing import Any


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **_: Any
) -> dict[str, float]:
    r"""Score a response against the ground truth, 1.0 where math-verify finds them equal, else 0.0.

    verl calls rewards outside the main thread, where math-verify's time limits, which are signals, do not work: with
    them every answer would score 0. So they are off.

    Args:
        data_source: verl's name of the data set; not used.
        solution_str: the response.
        ground_truth: the answer in LaTeX, without ``\boxed``.
        extra_info: verl's extra columns; not used.

    Returns:
        ``score`` for the reward and ``acc`` for validation, equal.

    Raises:
        ImportError: math-verify is not installed; ``pip install 'aent-verl[math]'``.
    """
    try:
        from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
    except ImportError:
        raise ImportError("this reward needs math-verify: pip install 'aent-verl[math]'") from None

    gold = parse(f"\\boxed{{{ground_truth}}}", [LatexExtractionConfig()], parsing_timeout=None)
    answer = parse(solution_str, [ExprExtractionConfig(), LatexExtractionConfig()], parsing_timeout=None)
    correct = float(bool(gold and answer and verify(gold, answer, timeout_seconds=None)))
    return {"score": correct, "acc": correct}
