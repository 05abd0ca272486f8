import json
import subprocess
import sys

import pytest

from aent_verl.data.tasks.reward import compute_score

SOURCE = "reasoning_gym/basic_arithmetic"


def sum_entry(answer="46"):
    return {"entry": json.dumps({"question": "Calculate 12 + 34.", "answer": answer, "metadata": {}})}


def score(text, truth="46", **extra):
    return compute_score(SOURCE, text, truth, {**sum_entry(truth), **extra})


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
