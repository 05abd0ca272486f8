"""What is asked of verl's servers, and what is made of their answers."""

import asyncio
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import DictConfig

from aent_verl.evaluation import generation
from aent_verl.evaluation.records import Response

END, LONGEST = 9, 8


class Client:
    """Gives one answer, and keeps what it was asked."""

    def __init__(self, **answer: Any) -> None:
        self.answer = SimpleNamespace(**({"stop_reason": "completed"} | answer))
        self.asked: dict[str, Any] = {}

    async def generate(self, request_id: str, **asked: Any) -> SimpleNamespace:
        self.asked = asked | {"request_id": request_id}
        return self.answer


def servers(cfg: DictConfig, client: Client, count: int = 1) -> generation.Servers:
    tokenizer = SimpleNamespace(
        eos_token_id=END,
        decode=lambda ids, skip_special_tokens: "".join(str(i) for i in ids if i != END or not skip_special_tokens),
    )
    model: Any = SimpleNamespace(tokenizer=tokenizer, generation_config=SimpleNamespace(eos_token_id=[END, 7]))
    return generation.Servers(cfg, model, client, count)


def respond(cfg: DictConfig, tokens: list[int], **answer: Any) -> Response:
    answer = {"log_probs": [-1.0] * len(tokens)} | answer
    return asyncio.run(servers(cfg, Client(token_ids=tokens, **answer)).respond([1, 2]))


@pytest.mark.parametrize(
    ("tokens", "truncated"),
    [
        ([1, END], False),
        ([1] * LONGEST, True),
        ([1] * (LONGEST - 1) + [END], False),
        ([1] * (LONGEST - 1) + [7], False),  # ends by the generation config's other token
        ([], False),
    ],
)
def test_cut_off_is_what_has_the_longest_length_and_no_end(cfg: DictConfig, tokens: list[int], truncated: bool) -> None:
    found = respond(cfg, tokens)
    assert found.truncated == truncated
    assert found.tokens == len(tokens)
    assert found.entropy == (1.0 if tokens else 0.0)
    assert found.text == "".join(str(token) for token in tokens if token != END)


def test_servers_are_asked_for_the_sampling_of_the_config(cfg: DictConfig) -> None:
    values = cfg.actor_rollout_ref.rollout.val_kwargs
    values.temperature, values.top_p, values.top_k = 0.6, 0.95, 20
    client = Client(token_ids=[END], log_probs=[-1.0])
    asked = servers(cfg, client)
    asyncio.run(asked.respond((1, 2)))
    first = client.asked
    assert first["prompt_ids"] == [1, 2]
    assert first["sampling_params"] == {
        "temperature": 0.6, "top_p": 0.95, "top_k": 20, "repetition_penalty": 1.0, "logprobs": True,
        "max_tokens": LONGEST,
    }  # fmt: skip
    # verl's server changes the dict that it is given.
    first["sampling_params"].clear()
    asyncio.run(asked.respond((1, 2)))
    assert client.asked["sampling_params"]
    assert client.asked["request_id"] != first["request_id"]


@pytest.mark.parametrize("answer", [{"stop_reason": "aborted"}, {"log_probs": None}, {"log_probs": [-1.0]}])
def test_an_answer_that_is_none_stops_the_evaluation(cfg: DictConfig, answer: dict[str, Any]) -> None:
    with pytest.raises(RuntimeError, match="ended a response without a result"):
        respond(cfg, [1, 2, END], **answer)


def test_servers_are_kept_busy(cfg: DictConfig) -> None:
    cfg.actor_rollout_ref.rollout.max_num_seqs = 16
    assert servers(cfg, Client(), count=4).capacity == 2 * 4 * 16


def test_at_temperature_0_nothing_is_uncertain(cfg: DictConfig) -> None:
    cfg.actor_rollout_ref.rollout.val_kwargs.temperature = 0
    assert respond(cfg, [1, 2, END]).entropy == 0.0


@pytest.mark.slow
def test_a_young_cluster_is_given_time_to_know_its_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    answers = iter([{}, {"CPU": 4.0}, {"CPU": 4.0, "GPU": 2.0}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: next(answers))
    assert generation.accelerators(2) == 2.0
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"NPU": 1.0})
    monkeypatch.setattr(generation, "RESOURCE_SECONDS", 0.3)
    assert generation.accelerators(2) == 1.0


def test_the_reward_function_can_be_loaded_in_any_process(cfg: DictConfig) -> None:
    load = pickle.loads(pickle.dumps(generation.reward_loader(cfg)))
    arguments = {"data_source": "s", "ground_truth": "5", "extra_info": {}}
    assert load()(solution_str="5", **arguments) == {"score": 1.0, "pred": "5"}
    cfg.reward.custom_reward_function.path = None
    load = pickle.loads(pickle.dumps(generation.reward_loader(cfg)))
    found = load()(solution_str="#### 5", **(arguments | {"data_source": "openai/gsm8k"}))
    assert float(found) == 1.0
