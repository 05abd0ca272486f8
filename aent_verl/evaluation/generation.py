"""Responses from verl's own vLLM servers without a trainer, along the path of verl's validation.

Data set, chat template, servers and load balancer are verl's, so that an evaluation samples what a validation would.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from omegaconf import DictConfig, OmegaConf, open_dict

from aent_verl.evaluation.records import Response, entropy_of

if TYPE_CHECKING:
    from verl.workers.config import HFModelConfig

SINGLE_TURN = "single_turn_agent"
# How long a Ray cluster may take to know its nodes.
RESOURCE_SECONDS = 20
# What every process that scores responses needs.
REWARD_MODULES = ("verl.trainer.ppo.reward", "verl.utils.reward_score")


def load_model(cfg: DictConfig) -> HFModelConfig:
    """Load the model's config and tokenizer, as verl's workers do."""
    from verl.utils.config import omega_conf_to_dataclass

    return omega_conf_to_dataclass(cfg.actor_rollout_ref.model)


def load_rows(cfg: DictConfig, file: str, model: HFModelConfig) -> list[dict[str, Any]]:
    """Read rows of a file, with their chat messages under ``raw_prompt``, through verl's data set."""
    from verl.trainer.ppo.utils import create_rl_dataset

    limit = cfg.data.get("val_max_samples", -1)
    data = create_rl_dataset(
        [file], cfg.data, model.tokenizer, model.processor, is_train=False, max_samples=-1 if limit is None else limit
    )
    return [data[index] for index in range(len(data))]


def prompt_encoder(cfg: DictConfig, model: HFModelConfig) -> Callable[[Sequence[Mapping[str, Any]]], list[int]]:
    """Return what turns chat messages into token ids, as verl's agent loops do."""
    from verl.utils.tokenizer.continuous_token_wiring import create_continuous_token_builder

    kind = getattr(model.hf_config, "model_type", None)
    builder = create_continuous_token_builder(
        model.tokenizer,
        hf_model_type=kind if isinstance(kind, str) else None,
        chat_template_kwargs=cfg.data.get("apply_chat_template_kwargs", {}),
        mm_processor_kwargs=cfg.data.get("mm_processor_kwargs", {}),
        processor=model.processor,
    )
    return lambda messages: list(builder.build_initial_tokens([dict(message) for message in messages]))


def reward_loader(cfg: DictConfig) -> Callable[[], Callable[..., Any]]:
    """Return what loads, in any process, the reward function that training would call."""
    return functools.partial(_load_reward, OmegaConf.to_container(cfg.reward, resolve=True))


def _load_reward(reward: Any) -> Callable[..., Any]:
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.reward_score import get_default_compute_score

    cfg = OmegaConf.create({"reward": reward})
    return get_custom_reward_fn(cfg) or get_default_compute_score(cfg.reward.reward_manager.name)


def prepare_servers(cfg: DictConfig) -> None:
    """Set what the servers need to stand alone: real weights, log-probabilities as sampled, room for all responses."""
    rollout = cfg.actor_rollout_ref.rollout
    with open_dict(cfg):
        rollout.nnodes = cfg.trainer.nnodes
        rollout.n_gpus_per_node = cfg.trainer.n_gpus_per_node
        rollout.max_model_len = cfg.data.max_prompt_length + cfg.data.max_response_length
        # verl's default is dummy: in training the weights come from the actor.
        rollout.load_format = "auto"
        # Of the distribution that a token was drawn from; vLLM's own default is before temperature and top-p.
        rollout.logprobs_mode = "processed_logprobs"


class Servers:
    """verl's vLLM servers, one for each ``tensor_model_parallel_size`` accelerators, and the way to ask them.

    Make one with `start`, within a running event loop.
    """

    def __init__(self, cfg: DictConfig, model: HFModelConfig, client: Any, count: int) -> None:
        self._client = client
        self._tokenizer = model.tokenizer
        given = getattr(model.generation_config, "eos_token_id", None)
        # At which vLLM ends a response: the tokenizer's and the generation config's.
        self._ends = {model.tokenizer.eos_token_id, *(given if isinstance(given, list | tuple) else [given])} - {None}
        self._longest = cfg.data.max_response_length
        values = cfg.actor_rollout_ref.rollout.val_kwargs
        self._sampling = {
            **{key: values[key] for key in ("temperature", "top_p", "top_k")},
            "repetition_penalty": 1.0,
            "logprobs": True,
            "max_tokens": self._longest,
        }
        # Twice what they can work on at a time, so that none waits for us.
        self.capacity = 2 * count * cfg.actor_rollout_ref.rollout.max_num_seqs

    @classmethod
    async def start(cls, cfg: DictConfig, model: HFModelConfig) -> Servers:
        """Start the servers and wait until all have loaded the model; takes minutes."""
        from verl.workers.rollout.llm_server import LLMServerManager

        manager = await LLMServerManager.create(config=cfg)
        return cls(cfg, model, manager.get_client(), len(manager.get_replicas()))

    async def respond(self, prompt_ids: Sequence[int]) -> Response:
        """Sample one response, which is not scored.

        Raises:
            RuntimeError: the server gave none.
        """
        output = await self._client.generate(
            uuid4().hex, prompt_ids=list(prompt_ids), sampling_params=dict(self._sampling)
        )
        tokens, log_probs = list(output.token_ids), output.log_probs
        if output.stop_reason == "aborted" or log_probs is None or len(log_probs) != len(tokens):
            raise RuntimeError(
                f"a vLLM server ended a response without a result (stop reason {output.stop_reason!r}, {len(tokens)} "
                f"tokens, {'no' if log_probs is None else len(log_probs)} log-probabilities)"
            )
        ended = bool(tokens) and tokens[-1] in self._ends
        text = self._tokenizer.decode(tokens, skip_special_tokens=True)
        # The likeliest token is certain; vLLM gives the log-probability that it would have at temperature 1.
        entropy = 0.0 if self._sampling["temperature"] == 0 else entropy_of(log_probs)
        return Response(text, len(tokens), len(tokens) >= self._longest and not ended, entropy)


def accelerators(needed: int) -> float:
    """Count the Ray cluster's accelerators, including logical ones; wait a while until there are as many as needed."""
    import ray

    deadline = time.monotonic() + RESOURCE_SECONDS
    while True:
        resources = ray.cluster_resources()
        found = float(resources.get("GPU", 0) or resources.get("NPU", 0))
        if found >= needed or time.monotonic() > deadline:
            return found
        time.sleep(0.2)  # a cluster that has just been started does not know its resources yet
