"""Runs the loss of any preset on a small fp64 batch, in verl's layout and cut into micro-batches, without an engine."""

import functools
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

VOCABULARY = 11
SEQUENCES = 12
MASKED_OUT = 4
ACCURACIES = (0.0, 0.0, 0.25, 0.25, 0.25, 0.5, 0.5, 1.0, 1.0, 0.75, 0.75, 0.75)
# With the shipped values a batch of this size has few candidates, and one of them is chosen.
FEWER = {
    "clip_cov": {"policy_loss.clip_cov_lb": 0.1, "policy_loss.clip_cov_ratio": 0.05},
    # Half a step's batch: with all of it KL-Cov and clip ranges would say that they have no effect.
    "clip_higher": {"ppo_mini_batch_size": 16},
    "progrpo": {"ppo_mini_batch_size": 16},
    "kl_cov": {"policy_loss.kl_cov_ratio": 0.1, "ppo_mini_batch_size": 16},
}
# Two methods at once, and AEnt with other policy losses.
COMBINED: dict[str, dict[str, Any]] = {
    "aent+gspo": {"policy_loss.loss_mode": "gspo"},
    "aent+cispo": {"policy_loss.loss_mode": "cispo"},
    "aent+dual_clip": {"clip_ratio_c": 1.5},
    "aent+par": {"advantages.name": "positive_reweight", "advantages.controller": {"name": "stage", "init": None}},
    "aent+peaks": {"bonus.token_mask": {"name": "peak", "quantile": 0.8}},
    "aent+steer": {"advantages": {"name": "steer", "w_min": 0.8, "floor": 0.02}},
    "aent+entropy_adv": {"advantages": {"name": "entropy_adv", "scale": 0.4, "kappa": 2.0}},
    "clip_cov+entropy_adv": {"advantages": {"name": "entropy_adv", "scale": 0.4, "kappa": 1.0}},
    "siren+difficulty": {"bonus.sample_weight": {"name": "difficulty_linear"}},
    "epo+difficulty": {"bonus.sample_weight": {"name": "difficulty_linear"}},
}


@dataclass(frozen=True)
class Sequence:
    """A prompt of ``P`` and a response of ``R`` tokens; position ``i`` of the logits predicts token ``i + 1``."""

    logits: Tensor  # [P + R, V], fp64
    tokens: list[int]
    prompt: int
    old_log_probs: Tensor  # [R]
    advantages: Tensor  # [R]
    mask: Tensor  # [R], 0 or 1
    sample: int
    accuracy: float

    @property
    def log_probs(self) -> Tensor:
        """Of the tokens of the response, ``[R]``."""
        rows = self.logits[self.prompt - 1 : -1].detach().log_softmax(-1)
        return rows[torch.arange(len(rows)), torch.tensor(self.tokens[self.prompt :])]


def batch(seed: int = 44) -> list[Sequence]:
    """Ratios inside and on both sides of every clip range with advantages of both signs; some advantages are 0.

    One response is masked out, others have holes; one prompt has a single token, one response as well.
    """
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    sequences = []
    for index in range(SEQUENCES):
        prompt, response = (1 if index == 2 else chance.randint(2, 7)), (1 if index == 7 else chance.randint(4, 14))
        sharpness = torch.tensor([chance.choice((0.3, 1.0, 2.0, 4.0)) for _ in range(prompt + response)])
        logits = torch.randn(prompt + response, VOCABULARY, dtype=torch.float64, generator=generator)
        sequence = Sequence(
            logits=logits * sharpness.unsqueeze(-1),
            tokens=[chance.randrange(VOCABULARY) for _ in range(prompt + response)],
            prompt=prompt,
            old_log_probs=torch.zeros(response),
            advantages=_doubles(_advantage(chance, index) for _ in range(response)),
            mask=torch.tensor([float(index != MASKED_OUT and chance.random() < 0.85) for _ in range(response)]),
            sample=index,
            accuracy=ACCURACIES[index],
        )
        moved = _doubles(_log_ratio(chance) + (0.3, 0.0, -0.4)[index % 3] for _ in range(response))
        sequences.append(replace(sequence, old_log_probs=sequence.log_probs - moved))
    return sequences


def _advantage(chance: random.Random, index: int) -> float:
    sign = (1 if index % 2 else -1) * chance.choice((1, 1, 1, -1, 0))
    return 0.0 if index == 9 else sign * chance.uniform(0.3, 2.0)


def _log_ratio(chance: random.Random) -> float:
    near, edge, far = chance.uniform(0.01, 0.15), chance.uniform(0.185, 0.245), chance.uniform(0.5, 2.0)
    return chance.choice((-1, 1)) * chance.choice((near, near, edge, far))


def _doubles(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def live(sequences: list[Sequence]) -> list[Sequence]:
    """Those with a token in the loss."""
    return [s for s in sequences if s.mask.any()]


def with_ratios(sequences: list[Sequence], ratios: tuple[float, ...]) -> list[Sequence]:
    """The same with the policy ratios taken from ``ratios`` in turn."""
    result = []
    for s in sequences:
        moved = _doubles(ratios[i % len(ratios)] for i in range(len(s.mask))).log()
        result.append(replace(s, old_log_probs=s.log_probs - moved))
    return result


def _composed(preset: str) -> Any:
    from hydra import compose, initialize_config_module

    with initialize_config_module("aent_verl._config", version_base=None):
        return compose("aent_trainer", overrides=["experiment=cpu_arithmetic", f"entropy_control={preset}"])


def config(preset: str, **overrides: Any) -> Any:
    """The actor config of a preset as shipped, with ``overrides`` as on the command line.

    Their keys are relative to ``actor_rollout_ref.actor``, or to ``entropy_control`` if they begin with an axis.
    """
    from omegaconf import OmegaConf
    from verl.utils.config import omega_conf_to_dataclass

    cfg = _composed(preset)
    for key, value in (FEWER.get(preset, {}) | overrides).items():
        ours = key.split(".")[0] in ("functional", "bonus", "advantages")
        OmegaConf.update(
            cfg, f"{'entropy_control' if ours else 'actor_rollout_ref.actor'}.{key}", value, force_add=ours
        )
    return omega_conf_to_dataclass(cfg.actor_rollout_ref.actor)


@functools.cache
def shipped(name: str) -> Any:
    """The actor config of a preset or of one of the combinations."""
    return config(name.split("+")[0], **COMBINED.get(name, {}))


def to_verl(sequences: list[Sequence], step: Any, whole: list[Sequence] | None = None, *, ranks: int = 1) -> TensorDict:
    """A rank's mini-batch as verl hands it to the engine; ``whole`` is that of all ranks."""
    from verl.utils import tensordict_utils as tu

    from aent_verl.plugin.micro_batch import ACCURACY, SAMPLE, STEP

    rows = {
        "input_ids": [torch.tensor(s.tokens) for s in sequences],
        "prompts": [torch.tensor(s.tokens[: s.prompt]) for s in sequences],
        "responses": [torch.tensor(s.tokens[s.prompt :]) for s in sequences],
        "response_mask": [s.mask for s in sequences],
        "old_log_probs": [s.old_log_probs for s in sequences],
        "advantages": [s.advantages for s in sequences],
    }
    per_sample = {
        SAMPLE: torch.tensor([s.sample for s in sequences]),
        ACCURACY: torch.tensor([s.accuracy for s in sequences]),
    }
    data = TensorDict(
        {key: torch.nested.as_nested_tensor(values, layout=torch.jagged) for key, values in rows.items()} | per_sample,
        batch_size=len(sequences),
    )
    whole = whole or sequences
    tokens = sum(int(s.mask.sum()) for s in whole)
    settings = {"dp_size": ranks, "batch_num_tokens": tokens, "global_batch_size": len(whole)}
    tu.assign_non_tensor(data, **{STEP: step}, **settings)
    return data


def model_output(config: Any, data: TensorDict, logits: Tensor) -> dict[str, Tensor]:
    """What our engine returns for logits ``[total tokens, V]`` of ``data``."""
    from aent_verl.core.custom import logprobs_and_custom_entropy
    from aent_verl.core.fused import logprobs_and_entropy
    from aent_verl.plugin.micro_batch import ENTROPY, ENTROPY_FULL, REMOVED_MASS

    ids = data["input_ids"]
    labels = torch.roll(ids.values(), -1)
    functional = config.entropy_control.functional
    if functional.function is not None:
        result = logprobs_and_custom_entropy(logits, labels, functional.function)
    else:
        result = logprobs_and_entropy(logits, labels, statistics=True, **functional.arguments())
    log_probs, entropy, statistics = result
    values = {"log_probs": log_probs, ENTROPY: entropy}
    values |= {ENTROPY_FULL: statistics["entropy_full"], REMOVED_MASS: statistics["removed_mass"]}
    return {key: torch.nested.nested_tensor_from_jagged(value, ids.offsets()) for key, value in values.items()}


def run_stats_pass(config: Any, sequences: list[Sequence], data: TensorDict) -> None:
    """The pass over all of a rank's ``data``, if the configuration needs one."""
    from aent_verl.plugin.minibatch_stats import StatsPass

    stats_pass = StatsPass(config)
    if stats_pass.needed:
        logits = torch.cat([s.logits for s in sequences]).detach()
        stats_pass(model_output(config, data, logits), data, None)


@dataclass(frozen=True)
class Outcome:
    """Sum of the losses of all micro-batches, its gradient by each sequence's logits, and verl's metrics of each."""

    loss: float
    gradients: list[Tensor]
    metrics: list[dict[str, Any]]


def run(config: Any, sequences: list[Sequence], step: Any, parts: list[list[int]] | None = None) -> Outcome:
    """Our loss on micro-batches that consist of the sequences in ``parts``; None: all in one."""
    data = to_verl(sequences, step)
    run_stats_pass(config, sequences, data)
    return run_loss(config, sequences, data, parts)


def run_loss(config: Any, sequences: list[Sequence], data: TensorDict, parts: list[list[int]] | None = None) -> Outcome:
    """The same on a rank's ``data`` after its statistics pass."""
    from verl.utils import tensordict_utils as tu

    from aent_verl.plugin.losses import entropy_control_loss

    leaves = [s.logits.detach().clone().requires_grad_() for s in sequences]
    loss, metrics = 0.0, []
    for part in parts or [list(range(len(sequences)))]:
        micro_batch = tu.index_select_tensor_dict(data, part)
        output = model_output(config, micro_batch, torch.cat([leaves[i] for i in part]))
        value, measured = entropy_control_loss(config, output, micro_batch)
        value.backward()
        loss += value.item()
        metrics.append(measured)
    return Outcome(loss, [leaf.grad for leaf in leaves], metrics)


def stock(sequences: list[Sequence], **settings: float) -> Outcome:
    """verl's own loss under verl's own config."""
    from verl.workers.config import FSDPActorConfig, FSDPEngineConfig
    from verl.workers.utils.losses import ppo_loss

    settings = {"clip_ratio": 0.2} | settings
    settings = {"clip_ratio_low": settings["clip_ratio"], "clip_ratio_high": settings["clip_ratio"]} | settings
    config = FSDPActorConfig(
        strategy="fsdp2",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        fsdp_config=FSDPEngineConfig(strategy="fsdp2"),
        **settings,
    )
    data = to_verl(sequences, None)
    leaves = [s.logits.detach().clone().requires_grad_() for s in sequences]
    output = model_output(shipped("grpo"), data, torch.cat(leaves))
    loss, _ = ppo_loss(config=config, model_output={"log_probs": output["log_probs"]}, data=data)
    loss.backward()
    return Outcome(loss.item(), [leaf.grad for leaf in leaves], [])


def in_loss(sequences: list[Sequence], gradients: list[Tensor]) -> Tensor:
    """Rows of the tokens in the loss, sequence by sequence; ``[tokens, V]``."""
    pairs = zip(sequences, gradients, strict=True)
    return torch.cat([gradient[s.prompt - 1 : -1][s.mask.bool()] for s, gradient in pairs])


def of_tokens(sequences: list[Sequence], name: str) -> Tensor:
    """A field ``[R]`` of each sequence at the tokens in the loss, in the order of `in_loss`; ``[tokens]``."""
    return torch.cat([getattr(s, name)[s.mask.bool()] for s in sequences])
