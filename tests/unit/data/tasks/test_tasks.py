import json
import math
import subprocess
import sys
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from aent_verl.data.tasks import reasoning_gym_data, tiny_model, warm_start
from aent_verl.data.tasks.reward import compute_score

SUMS = {
    "min_terms": 2,
    "max_terms": 2,
    "min_digits": 2,
    "max_digits": 2,
    "operators": ["+"],
    "allow_parentheses": False,
    "allow_negation": False,
}
SOURCE = "reasoning_gym/basic_arithmetic"


def sum_entry(answer="46"):
    return {"entry": json.dumps({"question": "Calculate 12 + 34.", "answer": answer, "metadata": {}})}


def score(text, truth="46", **extra):
    return compute_score(SOURCE, text, truth, {**sum_entry(truth), **extra})


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_model.build_tokenizer()


def build(folder, **changes):
    settings = {"train_size": 64, "validation_size": 16, "seed": 0, **changes}
    folder.mkdir()
    return reasoning_gym_data.build_splits("basic_arithmetic", SUMS, folder=folder, **settings)


def test_rows_have_the_columns_that_verl_reads(tmp_path):
    build(tmp_path / "a")
    table = pq.read_table(tmp_path / "a" / "validation.parquet")
    assert table.column_names == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert table.num_rows == 16
    for index, row in enumerate(table.to_pylist()):
        question = reasoning_gym_data.question_of(row)
        assert row["data_source"] == SOURCE
        assert row["prompt"] == [{"role": "user", "content": question}]
        left, right = question.removeprefix("Calculate ").removesuffix(".").split(" + ")
        assert row["reward_model"] == {"style": "rule", "ground_truth": str(int(left) + int(right))}
        assert (row["extra_info"]["split"], row["extra_info"]["index"]) == ("validation", index)


@pytest.mark.parametrize("seed", range(3))
def test_no_question_occurs_twice(tmp_path, seed):
    # 1331 questions exist: drawn without care, 1000 of them would repeat themselves and overlap.
    config = {**SUMS, "min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
    splits = reasoning_gym_data.build_splits(
        "basic_arithmetic", config, folder=tmp_path, train_size=900, validation_size=100, seed=seed
    )
    questions = [reasoning_gym_data.question_of(row) for rows in splits.values() for row in rows]
    assert len(questions) == len(set(questions)) == 1000


def test_same_seed_same_bytes_and_validation_independent_of_the_training_size(tmp_path):
    build(tmp_path / "a")
    build(tmp_path / "b")
    build(tmp_path / "other_seed", seed=1)
    build(tmp_path / "longer", train_size=65)
    contents = {
        (folder.name, split): (folder / f"{split}.parquet").read_bytes()
        for folder in tmp_path.iterdir()
        for split in ("train", "validation")
    }
    for split in ("train", "validation"):
        assert contents["a", split] == contents["b", split]
        assert contents["a", split] != contents["other_seed", split]
    assert contents["longer", "validation"] == contents["a", "validation"]


def test_neighbouring_seeds_give_other_questions():
    # The generators seed entry i with seed + i: taken as they are, seeds 0 and 1 share all questions but one.
    one, two = (
        reasoning_gym_data.questions(
            reasoning_gym_data.draw_entries("basic_arithmetic", SUMS, size=200, seed=seed, stream="train")
        )
        for seed in (0, 1)
    )
    assert len(one & two) < 20


def test_excluded_questions_are_not_drawn():
    def draw(**extra):
        return reasoning_gym_data.questions(
            reasoning_gym_data.draw_entries("basic_arithmetic", SUMS, size=100, seed=0, stream="train", **extra)
        )

    first = draw()
    assert not first & draw(exclude=first)


def test_too_many_questions_asked_for():
    config = {**SUMS, "min_digits": 1, "max_digits": 1}  # 0 to 10 twice: 121 questions
    with pytest.raises(ValueError, match=r"gave 121 new distinct questions for 'train', 122 were asked for"):
        reasoning_gym_data.draw_entries("basic_arithmetic", config, size=122, seed=0, stream="train")


@pytest.mark.parametrize(("generator", "config"), [("no_such_task", {}), ("chain_sum", {"min_terms": 0})])
def test_refused_generator_settings_are_named(generator, config):
    with pytest.raises(ValueError, match=generator):
        reasoning_gym_data.draw_entries(generator, config, size=1, seed=0, stream="train")


def test_other_generators_work():
    for generator in ("chain_sum", "gcd", "letter_counting", "spell_backward"):
        entries = reasoning_gym_data.draw_entries(generator, {}, size=4, seed=0, stream="train")
        rows = reasoning_gym_data.build_rows(entries, generator=generator, split="train")
        row = rows[0]
        truth = row["reward_model"]["ground_truth"]
        assert compute_score(row["data_source"], truth, truth, row["extra_info"])["acc"] == 1.0
        assert compute_score(row["data_source"], "?", truth, row["extra_info"])["acc"] == 0.0


def test_a_generator_whose_own_answer_does_not_score_is_refused():
    entries = [{"question": "Calculate 1 + 1.", "answer": "two, I think", "metadata": {}}]
    with pytest.raises(ValueError, match="does not accept its own answer 'two, I think'"):
        reasoning_gym_data.build_rows(entries, generator="basic_arithmetic", split="train", extract="last_number")


@pytest.mark.parametrize("text", ["46", " 46\n", "46<|im_end|>", "46<|im_end|>\n<|im_start|>user", "46</s>"])
def test_right_answers(text):
    assert score(text) == {"score": 1.0, "acc": 1.0, "pred": "46"}


@pytest.mark.parametrize(
    "text", ["", "  ", "<|im_end|>", "<|im_end|>46", "47", "-46", "4", "146", "46 47", "12 + 34", "\x00é"]
)
def test_wrong_answers_earn_nothing(text):
    # "146" contains "46": reasoning-gym's scorer gives it two thirds.
    found = score(text)
    assert (found["score"], found["acc"]) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("The answer is 46.", True),
        ("12 + 34 = 46", True),
        ("46", True),
        ("45, no: 46!", True),
        ("46, I think", True),
        ("46 or 47", False),
        ("12 + 34 = -46", False),
        ("80-46", True),
        ("forty-six", False),
        ("46.5", False),
        ("", False),
    ],
)
def test_last_number(text, right):
    assert score(text, extract="last_number")["acc"] == float(right)


def test_the_answer_that_votes_count_is_the_part_that_is_scored():
    assert score("12 + 34 = 46", extract="last_number")["pred"] == "46"
    expression = {"entry": json.dumps({"answer": "1+2", "metadata": {"numbers": [1, 2], "target": 3}})}
    assert "pred" not in compute_score("reasoning_gym/countdown", "2+1", "1+2", expression)


def test_last_number_keeps_the_sign_and_thousands():
    assert score("12 - 34 = -22", truth="-22", extract="last_number")["acc"] == 1.0
    chain = {"entry": json.dumps({"answer": "1234", "metadata": {}}), "extract": "last_number"}
    assert compute_score("reasoning_gym/chain_sum", "It is 1,234, sure", "1234", chain)["acc"] == 1.0


def test_ground_truth_alone_suffices_and_verls_extra_arguments_pass():
    assert compute_score(SOURCE, "46", "46")["acc"] == 1.0
    extra = {**sum_entry(), "num_turns": 2, "rollout_reward_scores": {}}
    assert compute_score(SOURCE, "46", "46", extra, reward_router_address="host:1")["acc"] == 1.0


@pytest.mark.parametrize("source", ["openai/gsm8k", "reasoning_gym/no_such_task", ""])
def test_unknown_source_is_named(source):
    with pytest.raises(ValueError, match=f"data_source='{source}'"):
        compute_score(source, "1", "1")


def test_an_answer_that_the_scorer_cannot_parse_is_wrong():
    # This scorer raises on anything but numbers.
    entry = {"entry": json.dumps({"answer": "2 \u00d7 3", "metadata": {"factors": [2, 3], "number": 6}})}
    source = "reasoning_gym/prime_factorization"
    assert compute_score(source, "no idea", "2 \u00d7 3", entry)["score"] == 0.0
    assert compute_score(source, "2 \u00d7 3", "2 \u00d7 3", entry)["acc"] == 1.0


def test_unknown_extraction_is_named():
    with pytest.raises(ValueError, match="'first_number'"):
        score("46", extract="first_number")


def test_reward_import_is_light():
    code = (
        "import sys, aent_verl.data.tasks.reward; "
        "print([m for m in ('torch', 'transformers', 'verl', 'reasoning_gym') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_byte_is_one_token_and_comes_back(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    tiny_model.build_model(tokenizer, hidden_size=64, layers=1, seed=0).config.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(each) == 259
        assert len(each("\n")["input_ids"]) == 1
        text = "Calculate 12 + 34.\n\n  \tÄ wörld 漢字 😀"
        ids = each(text)["input_ids"]
        assert len(ids) == len(text.encode())
        assert each.decode(ids) == text
        assert each.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]) == [each.eos_token_id, each.pad_token_id]
        special = each("<|im_start|><|im_end|><|endoftext|>")["input_ids"]
        assert len(special) == 3
        assert each.decode([*each("7")["input_ids"], *special], skip_special_tokens=True) == "7"


def test_chat_template_is_chatml(tokenizer):
    chat = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 2"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n1 + 2<|im_end|>\n<|im_start|>assistant\n"
    assert warm_start.prompt_ids(tokenizer, chat) == tokenizer(text)["input_ids"]


def test_model_is_what_vllms_cpu_attention_takes_and_is_seeded(tokenizer):
    before = torch.random.get_rng_state()
    model = tiny_model.build_model(tokenizer, hidden_size=128, layers=2, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    config = model.config
    assert config.hidden_size // config.num_attention_heads == 32
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert 3e5 < sum(weight.numel() for weight in model.parameters()) < 1e6
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    again, other = (tiny_model.build_model(tokenizer, hidden_size=128, layers=2, seed=seed) for seed in (0, 1))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    ("sizes", "message"), [((96, 1), "hidden_size=96"), ((0, 1), "hidden_size=0"), ((64, 0), "layers=0")]
)
def test_model_sizes_out_of_range(tokenizer, sizes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.build_model(tokenizer, hidden_size=sizes[0], layers=sizes[1], seed=0)


def test_saved_model_reloads_equal(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_model.build_model(tokenizer, hidden_size=64, layers=2, seed=0)
    tiny_model.save(model, tokenizer, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__name__ == "Qwen2ForCausalLM"
    ids = torch.tensor([tokenizer("12 + 34 =")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert again.generation_config.eos_token_id == ends
    assert again.generation_config.pad_token_id == ends[1]


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
        "stop_loss": 1e-9,
        "label_smoothing": 0.0,
        "max_steps": 6,
        "batch_size": 4,
        "learning_rate": 3e-3,
        "seed": 0,
        **changes,
    }
    model = tiny_model.build_model(tokenizer, hidden_size=64, layers=1, seed=0)
    pairs = [(chat(f"{left} + 5 ="), str(left + 5)) for left in range(10)]
    return model, warm_start.train(model, tokenizer, pairs, **settings)


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
    _, result = train(tokenizer, stop_loss=2.0, max_steps=200, batch_size=10)
    assert result["loss"] < 2.0
    assert 6 < result["steps"] < 200


def test_label_smoothing_leaves_its_share_to_the_rest_of_the_vocabulary(tokenizer):
    model = tiny_model.build_model(tokenizer, hidden_size=64, layers=1, seed=0)
    settings = {"stop_loss": 1e-9, "max_steps": 150, "batch_size": 1, "learning_rate": 1e-2, "seed": 0}
    warm_start.train(model, tokenizer, [(chat("1 + 6 ="), "7")], label_smoothing=0.2, **settings)
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
    warm_start.train(
        model,
        tokenizer,
        [(rows[0]["prompt"], "7")],
        stop_loss=1e-3,
        label_smoothing=0.0,
        max_steps=100,
        batch_size=1,
        learning_rate=1e-2,
        seed=0,
    )
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
