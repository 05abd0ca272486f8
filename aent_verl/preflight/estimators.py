"""Advantage estimators of verl's registry tried on a few rows, with only what a v1 trainer passes to them."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from torch import Tensor

WIDTH = 6


@dataclass(frozen=True)
class Trial:
    """What an estimator made of rows that score 0 or 1.

    Attributes:
        advantages: ``[B, T]``, 0 outside the responses.
        mask: response mask ``[B, T]``.
        scores: ``[B]``.
    """

    advantages: Tensor
    mask: Tensor
    scores: Tensor

    def mean(self, score: float) -> float:
        """Return the mean advantage of the response tokens of rows with this score."""
        tokens = self.mask.bool() & (self.scores == score).unsqueeze(-1)
        return float(self.advantages[tokens].mean())

    def same_as(self, other: Trial) -> bool:
        """Return whether both give the same advantages but for rounding and the epsilons of a division."""
        return self.advantages.allclose(other.advantages, rtol=0.0, atol=1e-4)


def parameters(name: str) -> Collection[str]:
    """Name the estimator's parameters; those that compare the samples of one prompt have an ``index``.

    Raises:
        ValueError: verl's registry has no estimator of that name.
    """
    from verl.trainer.ppo.core_algos import get_adv_estimator_fn

    return inspect.signature(get_adv_estimator_fn(name)).parameters


def trial(cfg: DictConfig, name: str, *, values: bool = True, flip: bool = False, **settings: Any) -> Trial:
    """Run the estimator ``name`` as ``_compute_advantage`` of verl's v1 trainers does.

    Args:
        cfg: the composed config; gives the number of samples of a prompt and the block `algorithm`.
        name: in verl's registry.
        values: whether there is a critic.
        flip: other values of the critic.
        settings: values of the block `algorithm` to use instead.

    Raises:
        Exception: whatever the estimator raises.
    """
    import numpy as np
    import torch
    from tensordict import TensorDict
    from verl.protocol import DataProto
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    algorithm = cfg.algorithm.copy()
    with open_dict(algorithm):
        # Resampling is random, and wrong for every estimator; see `algorithm`.
        algorithm.update({"use_pf_ppo": False, **settings})
    n = max(1, int(OmegaConf.select(cfg, "actor_rollout_ref.rollout.n", default=1)))
    prompts = 2 if n > 1 else 4
    rows = torch.arange(prompts * n)
    lengths = WIDTH - rows % 3
    mask = (torch.arange(WIDTH) < lengths.unsqueeze(1)).long()
    # One right answer in each group, and in every second one where a group is a single sample.
    scores = ((rows % n == 1) if n > 1 else (rows % 2 == 1)).float()
    rewards = torch.zeros(len(rows), WIDTH)
    rewards[rows, lengths - 1] = scores
    fields = {
        "response_mask": mask,
        "rm_scores": rewards,
        "token_level_scores": rewards,
        "token_level_rewards": rewards.clone(),
        "rollout_log_probs": torch.full((len(rows), WIDTH), -1.0),
        "old_log_probs": torch.full((len(rows), WIDTH), -1.0),
    }
    if values:
        ramp = torch.linspace(0.1, 0.6, WIDTH).expand(len(rows), WIDTH)
        fields["values"] = ramp.flip(-1) ** 2 if flip else ramp.clone()
    data = DataProto(batch=TensorDict(fields, batch_size=len(rows)))
    data.non_tensor_batch["uid"] = np.array([f"prompt{row // n}" for row in rows.tolist()], dtype=object)
    result = compute_advantage_for_multi_trajectories(
        data,
        batch_keys=[f"prompt{row // n}_{row % n}_0" for row in rows.tolist()],
        adv_estimator=name,
        gamma=algorithm.gamma,
        lam=algorithm.lam,
        num_repeat=n,
        norm_adv_by_std_in_grpo=algorithm.get("norm_adv_by_std_in_grpo", True),
        config=algorithm,
    )
    return Trial(result.batch["advantages"] * mask, mask, scores)


def fault(cfg: DictConfig, name: str, *, values: bool) -> str | None:
    """Explain why the estimator cannot be used with a v1 trainer; None if it can."""
    try:
        tried = trial(cfg, name, values=values)
    except Exception as error:
        return f"verl's v1 trainers do not give it what it needs ({type(error).__name__}: {error})"
    wrong, right = tried.mean(0.0), tried.mean(1.0)
    if not (tried.advantages.isfinite().all() and right - wrong > 1e-4):
        return f"answers that score 1 and 0 get the advantages {right:.3g} and {wrong:.3g}"
    return None
