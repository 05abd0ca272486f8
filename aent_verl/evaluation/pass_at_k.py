"""pass@k: the probability that at least one of k samples of a problem is right."""

import numpy as np


def pass_at_all_k(scores: np.ndarray) -> np.ndarray:
    """Estimate pass@k of each problem, unbiased, ``[..., n]`` -> ``[..., n]`` (Chen et al. 2021, 2107.03374, eq. 1).

    For each k = 1, 2, ..., n along the last axis 1 - C(n - c, k) / C(n, k), with c right samples of n: the share of all
    subsets of k samples that hold a right one.

    Args:
        scores: 1 for a right sample, 0 for a wrong one.

    Raises:
        ValueError: a score is neither 0 nor 1: pass@k asks whether a sample is right, and has no meaning for others.
    """
    scores = np.asarray(scores, dtype=float)
    wrong = (scores != 0) & (scores != 1)
    if wrong.any():
        raise ValueError(
            f"pass@k needs scores that are 0 or 1, found {scores[wrong][0]:g}: use mean@n for graded rewards, or score "
            "correctness apart from the reward"
        )
    # The ratio of binomials is a product of k factors (n - c - j) / (n - j) in [0, 1], which cannot overflow.
    left = scores.shape[-1] - np.arange(scores.shape[-1])
    all_wrong = np.clip(left - scores.sum(axis=-1, keepdims=True), 0, None) / left
    return 1 - np.cumprod(all_wrong, axis=-1)
