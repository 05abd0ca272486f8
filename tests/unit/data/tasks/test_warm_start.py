import math
from types import SimpleNamespace

import pytest
import torch

from aent_verl.data.tasks import reasoning_gym_data, tiny_model, warm_start


def chat(text):
    return [{"role": "user", "content": text}]


def test_labels_cover_the_answer_and_its_end_only(tokenizer):
    inputs, labels = warm_start.encode(tokenizer, [(chat("1 + 2 ="), "3"), (chat("10 + 2 ="), "12")])
    for row, answer in enumerate(("3", "12")):
        labelled = labels[row] != -100
        assert tokenizer.decode(inputs[row][labelled]) == answer + "<|im_end|>"
        assert torch.equal(labels[row][labelled], inputs[row][labelled])


def test_answer_loss_is_the_loss_of_a_full_forward(tokenizer):
    model = tiny_model.build_model(tokenizer, hidden_size=64, layers=1, seed=0)
    inputs, labels = warm_start.encode(tokenizer, [(chat("1 + 2 ="), "3"), (chat("10 + 2 ="), "12")])
    with torch.no_grad():
        expected = model(input_ids=inputs, labels=labels).loss
        assert torch.allclose(warm_start.answer_loss(model, inputs, labels), expected, atol=1e-6)


def train(tokenizer, **changes):
    settings = {
        "warm_start_loss": 1e-9,
        "warm_start_label_smoothing": 0.0,
        "warm_start_max_steps": 6,
        "warm_start_batch_size": 4,
        "learning_rate": 3e-3,
        "seed": 0,
        **changes,
    }
    model = tiny_model.build_model(tokenizer, hidden_size=64, layers=1, seed=0)
    pairs = [(chat(f"{left} + 5 ="), str(left + 5)) for left in range(10)]
    return model, warm_start.train(model, tokenizer, pairs, settings)


def test_same_seed_same_weights(tokenizer):
    threads = torch.get_num_threads()
    (one, first), (two, second), (other, _) = (train(tokenizer, seed=seed) for seed in (0, 0, 1))
    assert first == second
    assert first["steps"] == 6
    assert first["loss"] > 3.0  # near ln 259 still: an average that started at zero would not be
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, two.state_dict()[name]), name
    assert not torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert torch.get_num_threads() == threads


def test_stops_at_the_loss(tokenizer):
    _, result = train(tokenizer, warm_start_loss=2.0, warm_start_max_steps=200, warm_start_batch_size=10)
    assert result["loss"] < 2.0
    assert 6 < result["steps"] < 200


def test_label_smoothing_leaves_its_share_to_the_rest_of_the_vocabulary(tokenizer):
    model = tiny_model.build_model(tokenizer, hidden_size=64, layers=1, seed=0)
    settings = {
        "warm_start_loss": 1e-9,
        "warm_start_label_smoothing": 0.2,
        "warm_start_max_steps": 60,
        "warm_start_batch_size": 1,
        "learning_rate": 1e-2,
        "seed": 0,
    }
    warm_start.train(model, tokenizer, [(chat("1 + 6 ="), "7")], settings)
    inputs, labels = warm_start.encode(tokenizer, [(chat("1 + 6 ="), "7")])
    with torch.no_grad():
        p = model(input_ids=inputs).logits[:, :-1].softmax(-1)
    target = labels[:, 1:]
    answers = target != -100
    probability = p[answers].gather(-1, target[answers].unsqueeze(-1))
    assert probability.flatten().tolist() == pytest.approx([0.8 + 0.2 / 259] * 2, abs=0.02)


def test_measure_of_known_distributions(tokenizer):
    model = tiny_model.build_model(tokenizer, hidden_size=64, layers=1, seed=0)
    entries = [{"question": "Calculate 1 + 6.", "answer": "7", "metadata": {}}]
    rows = reasoning_gym_data.build_rows(entries, generator="basic_arithmetic", split="validation")
    torch.nn.init.zeros_(model.lm_head.weight)  # uniform over 259 tokens
    state = torch.random.get_rng_state()
    uniform = warm_start.measure(model, tokenizer, rows, samples=64, max_new_tokens=4, seed=0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert uniform["entropy"] == pytest.approx(5.5568, abs=1e-3)  # ln 259
    assert uniform["accuracy"] < 0.1
    assert uniform["prompt_tokens_max"] == len(warm_start.prompt_ids(tokenizer, rows[0]["prompt"]))
    # Overfitted to the one answer: sure, right, and two tokens long.
    settings = {
        "warm_start_loss": 1e-3,
        "warm_start_label_smoothing": 0.0,
        "warm_start_max_steps": 100,
        "warm_start_batch_size": 1,
        "learning_rate": 1e-2,
        "seed": 0,
    }
    warm_start.train(model, tokenizer, [(rows[0]["prompt"], "7")], settings)
    sure = warm_start.measure(model, tokenizer, rows, samples=8, max_new_tokens=4, seed=0)
    assert sure["accuracy"] == 1.0
    assert sure["response_tokens"] == 2.0
    assert sure["entropy"] < 0.05


def test_measure_counts_tokens_up_to_the_end_only_and_samples_the_plain_softmax(tokenizer):
    model = tiny_model.build_model(tokenizer, hidden_size=64, layers=1, seed=0)
    entries = [{"question": "Calculate 1 + 6.", "answer": "7", "metadata": {}}]
    rows = reasoning_gym_data.build_rows(entries, generator="basic_arithmetic", split="validation")
    seven, one = tokenizer("71")["input_ids"]
    end, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
    responses = torch.tensor([[seven, end, pad], [one, seven, end]])
    uniform, sure = torch.zeros(259), torch.zeros(259).index_fill(0, torch.tensor([seven]), 1e4)
    settings = {}

    def generate(ids, **given):
        settings.update(given)
        logits = (torch.stack([sure, uniform]), torch.stack([sure, sure]), torch.stack([uniform, sure]))
        return SimpleNamespace(sequences=torch.cat([ids, responses], dim=1), logits=logits)

    model.generate = generate
    result = warm_start.measure(model, tokenizer, rows, samples=2, max_new_tokens=3, seed=0)
    assert result["accuracy"] == 0.5  # "7" and "17"
    assert result["response_tokens"] == 2.5
    assert result["entropy"] == pytest.approx(math.log(259) / 5)  # the last position of the first answer is padding
    plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert {name: settings[name] for name in plain} == plain


def test_solved_is_the_share_of_rows_with_a_right_answer(tokenizer, monkeypatch):
    model = tiny_model.build_model(tokenizer, hidden_size=64, layers=1, seed=0)
    row = {
        "prompt": [{"role": "user", "content": "?"}],
        "data_source": "reasoning_gym/countdown",
        "reward_model": {"ground_truth": ""},
        "extra_info": {},
    }
    hits = iter([0.0, 1.0, 0.0, 0.0])
    monkeypatch.setattr(warm_start, "compute_score", lambda *_: {"acc": next(hits)})
    measured = warm_start.measure(model, tokenizer, [row, row], samples=2, max_new_tokens=2, seed=0)
    assert (measured["accuracy"], measured["solved"]) == (0.25, 0.5)
