"""The shaping of a step's rewards: AEPO with its state, and what it refuses."""

import random
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch

from aent_verl.methods.parsing import parse
from aent_verl.methods.rewards import Ares, AresState, Responses
from tests.unit.core.test_rewards import added, quantile, window_means

ARES = Ares(window=2, quantile=0.75, decay=0.9, init=0.5, lr=0.3, max=0.6)
WORDS = {1: "Ġwait", 2: " However", 3: "the", 4: "▁WAIT"}


def step(seed: int, groups: int = 8, rollouts: int = 3, width: int = 10) -> Responses:
    """Responses of prompts from easy to hard, in any order."""
    chance = random.Random(seed)
    prompts = [g for g in range(groups) for _ in range(rollouts)]
    chance.shuffle(prompts)
    lengths = [chance.randint(1, width) for _ in prompts]
    entropy = [[chance.uniform(0, 1 + 0.1 * g) for _ in range(width)] for g in prompts]
    accuracy = [float(chance.random() < g / (groups - 1)) for g in prompts]
    return Responses(
        reward=torch.tensor(accuracy, dtype=torch.float64) * 2 - 1,
        mask=torch.tensor([[t < length for t in range(width)] for length in lengths]),
        tokens=torch.tensor([[chance.randint(1, 4) for _ in range(width)] for _ in prompts]),
        entropy=torch.tensor(entropy, dtype=torch.float64),
        group=torch.tensor(prompts),
        text=WORDS.__getitem__,
        accuracy=torch.tensor(accuracy, dtype=torch.float64),
    )


class Plain:
    """AEPO as its text reads, with what it remembers."""

    def __init__(self, words: set[int]) -> None:
        self.words, self.theta, self.alpha = words, None, {"easy": 0.5, "medium": 0.5, "hard": 0.5}

    def rewards(self, r: Responses) -> list[float]:
        assert r.accuracy is not None
        windows = [
            window_means(row, mask, 2) for row, mask in zip(r.entropy.tolist(), r.mask.int().tolist(), strict=True)
        ]
        highs = sorted(quantile(k, 0.75) for row in windows if (k := [w for w in row if w == w]))
        middle = len(highs) // 2
        median = highs[middle] if len(highs) % 2 else (highs[middle - 1] + highs[middle]) / 2
        theta = median if self.theta is None else self.theta
        self.theta = 0.9 * theta + 0.1 * median
        n = [
            sum(w >= theta and token in self.words for w, token in zip(row, tokens, strict=True))
            for row, tokens in zip(windows, r.tokens.tolist(), strict=True)
        ]
        of_group: dict[int, list[int]] = defaultdict(list)
        for i, g in enumerate(r.group.tolist()):
            of_group[g].append(i)
        level, mean = {}, defaultdict(list)
        for g, members in of_group.items():
            rate = sum(r.accuracy[i].item() for i in members) / len(members)
            level[g] = "easy" if rate >= 2 / 3 - 1e-9 else "medium" if rate >= 1 / 3 - 1e-9 else "hard"
            mean[level[g]].append(sum(n[i] for i in members) / len(members))
        target = {}
        for name, means in mean.items():
            average = sum(means) / len(means)
            target[name] = round(average)
            move = average - target[name]
            self.alpha[name] = min(max(self.alpha[name] + 0.3 * (-move if name == "hard" else move), 0), 0.6)
        return [
            r.reward[i].item()
            + added(n[i], target[level[g]], r.accuracy[i].item() == 1, level[g], self.alpha[level[g]])
            for i, g in enumerate(r.group.tolist())
        ]


@pytest.mark.parametrize(("words", "ids"), [(None, {1, 2, 3, 4}), (["wait", "HOWEVER"], {1, 2, 4})])
def test_aepo_over_many_steps_is_its_plain_form(words: list[str] | None, ids: set[int]) -> None:
    shaping, plain = replace(ARES, trigger_words=words), Plain(ids)
    state = shaping.initial_state()
    for seed in range(12):
        responses = step(seed)
        shaped, state = shaping.shape(responses, state)
        expected = torch.tensor(plain.rewards(responses), dtype=torch.float64)
        torch.testing.assert_close(shaped, expected, rtol=0, atol=1e-10)
        assert state.threshold == pytest.approx(plain.theta, rel=1e-12)
        assert state.alphas == pytest.approx(tuple(plain.alpha.values()), rel=1e-12)
        # Through a checkpoint.
        assert AresState.from_dict(state.to_dict()) == state
    assert len(set(state.alphas)) == 3


def test_the_order_of_the_responses_does_not_matter() -> None:
    responses = step(1)
    order = torch.randperm(len(responses.reward), generator=torch.Generator().manual_seed(0))
    names = ("reward", "mask", "tokens", "entropy", "group", "accuracy")
    mixed = replace(responses, **{name: getattr(responses, name)[order] for name in names})
    start = AresState(0.5, 0.4, 0.4, 0.4)
    (one, after), (other, same) = ARES.shape(responses, start), ARES.shape(mixed, start)
    torch.testing.assert_close(one[order], other, rtol=0, atol=1e-12)
    assert same.alphas == pytest.approx(after.alphas, rel=1e-12)


def test_responses_shorter_than_a_window_count_no_deliberation() -> None:
    responses = replace(step(2), mask=torch.arange(10) < torch.ones(24, 1))
    shaped, state = ARES.shape(responses, ARES.initial_state())
    assert shaped.isfinite().all()
    assert (state.threshold, state.deliberations) == (None, 0.0)
    assert "ares_threshold" not in ARES.metrics(state)
    assert ARES.metrics(replace(state, threshold=0.5))["ares_threshold"] == 0.5


def block(**own: Any) -> dict[str, Any]:
    bonus = {"name": "linear", "controller": {"name": "constant", "init": 0.0}}
    return {"method": "mine", "functional": {"name": "full"}, "bonus": bonus, "rewards": {"name": "ares", **own}}


GIVEN = {"window": 4, "quantile": 0.95, "decay": 0.99, "init": 0.5, "lr": 0.05, "max": 2.0}


def test_settings_become_the_shaping() -> None:
    control = parse(block(**GIVEN, trigger_words=["Wait", "hmm"]))
    assert control.rewards == Ares(**GIVEN, trigger_words=("wait", "hmm"))  # type: ignore[arg-type]
    assert control.shapes_rewards
    assert control.rewards_name == "ares"
    plain = parse(block() | {"rewards": {"name": "none"}})
    assert not plain.shapes_rewards
    assert plain == parse({key: value for key, value in block().items() if key != "rewards"})


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"window": 0}, "window=0 is not allowed: must be a whole number from 1"),
        ({"quantile": 1.5}, r"quantile=1\.5 .* in \[0, 1\]"),
        ({"decay": -0.1}, r"decay=-0\.1 .* in \[0, 1\]"),
        ({"init": 3.0}, r"init=3\.0 .* in \[0, max=2\.0\]"),
        ({"max": 0.0}, r"max=0\.0 .* > 0"),
        ({"lr": "fast"}, "lr='fast' is not allowed: must be"),
        ({"trigger_words": "wait"}, "trigger_words='wait' .* null, or a list of words"),
        ({"trigger_words": []}, r"trigger_words=\[\] .* null, or a list of words"),
        ({"window": None}, "window=None is not allowed: .*name=ares needs a whole number"),
        ({"name": "tests.lab:TopK"}, "frozen dataclass derived from RewardShaping"),
    ],
)
def test_what_is_out_of_range_is_named(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"entropy_control\.rewards\.?.*{message}"):
        parse(block(**(GIVEN | own)))


def test_settings_without_shaping_have_no_effect() -> None:
    with pytest.warns(UserWarning, match=r"rewards\.lr=0\.1 has no effect: .*rewards.name=none does not use it"):
        parse(block() | {"rewards": {"name": "none", "lr": 0.1}})
