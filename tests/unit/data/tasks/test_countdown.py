import ast
import json
from random import Random

import pyarrow.parquet as pq
import pytest

from aent_verl.data.tasks import countdown, warm_start
from aent_verl.data.tasks.reward import compute_score

SOURCE = "reasoning_gym/countdown"
QUICK = {
    "train_size": 60,
    "validation_size": 20,
    "test_size": 30,
    "warm_start_pairs": 300,
    "warm_start_max_steps": 2,
    "hidden_size": 64,
    "layers": 1,
}
SETTINGS = {"numbers": 3, "max_value": 9, "targets": range(10, 100), "exclude": (), "seed": 0}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("countdown")
    return folder, countdown.prepare(str(folder), **QUICK)


def score(text, numbers=(7, 3, 4), target=25):
    entry = {"answer": "", "metadata": {"numbers": list(numbers), "target": target}}
    return compute_score(SOURCE, text, "", {"entry": json.dumps(entry), "extract": "last_line"})["acc"]


def posed(chat):
    """The problem of a prompt, read back from its text."""
    numbers, target = chat[-1]["content"].split(" -> ")
    return tuple(sorted(ast.literal_eval(numbers))), int(target)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("7*3+4", 1.0),
        ("7*3=21 21+4=25\n7*3+4", 1.0),
        ("nonsense before the last line\n4+(3*7)\n", 1.0),
        ("4+3*7<|im_end|>", 1.0),
        ("7*3+4\n7*3=21 21+4=25", 0.0),
        ("7*3=21 21+4=25", 0.0),
        ("7*3+3", 0.0),
        ("7*3+4+0", 0.0),
        ("25", 0.0),
        ("7*3-4", 0.0),
        ("7*3+", 0.0),
        ("", 0.0),
        ("7*3+4\n\nso: 25", 0.0),
    ],
)
def test_the_last_line_alone_is_scored_and_must_use_each_number_once(text, right):
    assert score(text) == right


def test_division_and_brackets_count_as_the_rules_say():
    assert score("(8+4)/3", numbers=(3, 4, 8), target=4) == 1.0
    assert score("8/(4-3)", numbers=(3, 4, 8), target=8) == 1.0
    assert score("8/3*4", numbers=(3, 4, 8), target=10) == 0.0


@pytest.mark.parametrize("text", ["9**9**9", "9**(9**9)", "9<<9999999999", "factorial(999999)", "99999999!", "9(9)(9)"])
def test_an_answer_that_would_keep_python_busy_is_not_evaluated(text, monkeypatch):
    seen = []
    monkeypatch.setattr("reasoning_gym.games.countdown.parse_expr", seen.append)
    assert score(text, numbers=(9, 9, 9)) == 0.0
    assert seen == []


def test_evaluation_is_reached_by_plain_arithmetic_only(monkeypatch):
    seen = []
    monkeypatch.setattr("reasoning_gym.games.countdown.parse_expr", lambda text: seen.append(text) or 25)
    for text in ("7*3+4", "-(4-7)*3", "__import__('os')", "7 if 3 else 4", "x", "7.0*3", "True", "7//3", "[7]", "'7'"):
        score(text)
    assert seen == ["7*3+4", "-(4-7)*3"]


@pytest.mark.parametrize("numbers", [2, 3, 4])
def test_the_scorer_accepts_every_demonstration(numbers):
    for chat, text in countdown.demonstrations(200, **{**SETTINGS, "numbers": numbers}):
        given, target = posed(chat)
        assert len(given) == numbers
        assert 10 <= target < 100
        assert score(text, given, target) == 1.0, text


def test_a_derivation_shows_true_steps_that_lead_to_its_expression():
    rng = Random(0)
    for _ in range(300):
        given = [rng.randint(1, 9) for _ in range(4)]
        result, text = countdown.derivation(given, rng)
        steps, expression = text.split("\n")
        pool = list(given)
        for step in steps.split(" "):
            left, right = step.split("=")
            for number in map(int, left.replace("*", " ").replace("+", " ").replace("-", " ").split()):
                pool.remove(number)
            pool.append(int(right))
            assert eval(left) == int(right) >= 0
        assert pool == [result]
        assert eval(expression) == result


def test_derivations_are_diverse():
    rng = Random(0)
    texts = {text for result, text in (countdown.derivation([2, 3, 4], rng) for _ in range(1000)) if result == 24}
    assert len(texts) == 12  # two of three numbers and an order of them, then an order of the product and the third


def test_demonstrations_are_seeded_and_leave_out_what_is_excluded():
    first = countdown.demonstrations(300, **SETTINGS)
    assert first == countdown.demonstrations(300, **SETTINGS)
    assert first != countdown.demonstrations(300, **{**SETTINGS, "seed": 1})
    excluded = {posed(chat) for chat, _ in first}
    again = countdown.demonstrations(300, **{**SETTINGS, "exclude": excluded})
    assert not excluded & {posed(chat) for chat, _ in again}


def test_prepare_leaves_three_files_without_a_common_problem_in_any_order_of_the_numbers(prepared):
    folder, result = prepared
    problems = []
    for split, size in (("train", 60), ("validation", 20), ("test", 30)):
        rows = pq.read_table(result[split]).to_pylist()
        assert len(rows) == size
        for row in rows:
            assert row["extra_info"]["split"] == split
            assert row["data_source"] == SOURCE
            entry = json.loads(row["extra_info"]["entry"])
            assert posed(row["prompt"]) == countdown.problem_of(entry)
            problems.append(countdown.problem_of(entry))
            truth = row["reward_model"]["ground_truth"]
            assert compute_score(SOURCE, f"first some steps\n{truth}", truth, row["extra_info"])["acc"] == 1.0
    assert len(set(problems)) == len(problems) == 110
    assert json.loads((folder / "warm_start.json").read_text()) == result["warm_start"]
    assert result["warm_start"]["steps"] == 2
    assert result["warm_start"]["prompt_tokens_max"] <= 64


def test_every_problem_with_a_solution_is_dealt_once_and_comes_with_one():
    # 1 and 1 make 0, 1, 2; 1 and 2 make 1, 2, 3; 2 and 2 make 0 and, in two ways, 4.
    splits = countdown.draw_splits({"a": 2, "b": 4}, numbers=2, max_value=2, targets=range(1, 5), seed=0)
    entries = [entry for part in splits.values() for entry in part]
    assert sorted(map(countdown.problem_of, entries)) == [
        ((1, 1), 1),
        ((1, 1), 2),
        ((1, 2), 1),
        ((1, 2), 2),
        ((1, 2), 3),
        ((2, 2), 4),
    ]
    for entry in entries:
        assert score(entry["answer"], **entry["metadata"]) == 1.0


def test_problems_and_the_order_of_their_numbers_are_drawn_at_random():
    def draw(seed):
        (entries,) = countdown.draw_splits(
            {"train": 50}, numbers=3, max_value=9, targets=range(1, 100), seed=seed
        ).values()
        return [countdown.problem_of(entry) for entry in entries], [entry["metadata"]["numbers"] for entry in entries]

    problems, numbers = draw(0)
    assert problems != sorted(problems)
    assert len(set(problems) & set(draw(1)[0])) < 10
    assert sum(given == sorted(given) for given in numbers) < 25


def test_solutions_of_four_numbers_need_brackets_right():
    for numbers in ((1, 2, 3, 4), (5, 5, 7, 9)):
        for target, (expression, _) in countdown._reachable(numbers).items():
            assert eval(expression) == target
            assert score(expression, numbers, target) == 1.0


def test_more_problems_than_there_are_is_refused():
    with pytest.raises(
        ValueError, match=r"a_size=4 \+ b_size=3: only 6 problems of 2 numbers up to 2 reach a target from 1"
    ):
        countdown.draw_splits({"a": 4, "b": 3}, numbers=2, max_value=2, targets=range(1, 5), seed=0)


@pytest.mark.slow
def test_the_held_out_problems_depend_on_neither_the_training_size_nor_chance(prepared, monkeypatch, tmp_path):
    folder, result = prepared
    again = countdown.prepare(str(tmp_path / "a"), **{**QUICK, "train_size": 61})
    other = countdown.prepare(str(tmp_path / "b"), **{**QUICK, "seed": 1})
    for split in ("validation", "test"):
        assert (tmp_path / "a" / f"{split}.parquet").read_bytes() == (folder / f"{split}.parquet").read_bytes()
        assert (tmp_path / "b" / f"{split}.parquet").read_bytes() != (folder / f"{split}.parquet").read_bytes()
    assert again["warm_start"] == result["warm_start"]
    assert other["warm_start"] != result["warm_start"]


def test_the_warm_start_sees_no_held_out_problem(monkeypatch, tmp_path):
    shown = []

    def build(folder, pairs, settings, **_):
        shown.extend(posed(chat) for chat, _ in pairs)
        (folder / "model").mkdir()
        (folder / "warm_start.json").write_text("{}")
        return {"accuracy": 0.0, "solved": 0.0, "entropy": 0.0}

    monkeypatch.setattr(warm_start, "build", build)
    result = countdown.prepare(str(tmp_path), **{**QUICK, "warm_start_pairs": 5000})
    held_out = {
        posed(row["prompt"]) for split in ("validation", "test") for row in pq.read_table(result[split]).to_pylist()
    }
    assert len(shown) == 5000
    assert not held_out & set(shown)


@pytest.mark.parametrize(
    "bad",
    [
        {"train_size": 0},
        {"validation_size": 0},
        {"test_size": 0},
        {"numbers": 1},
        {"numbers": 5},
        {"max_value": 0},
        {"min_target": 0},
        {"max_target": 9, "min_target": 10},
        {"warm_start_pairs": 0},
        {"warm_start_loss": 0.0},
        {"warm_start_label_smoothing": 1.0},
        {"warm_start_max_steps": 0},
        {"hidden_size": 100},
        {"train_size": 5000},
    ],
)
def test_settings_out_of_range_are_named_and_leave_the_cache_alone(prepared, bad):
    folder, result = prepared
    with pytest.raises(ValueError, match=next(iter(bad))):
        countdown.prepare(str(folder), **{**QUICK, **bad})
    assert countdown.prepare(str(folder), **QUICK) == result


@pytest.mark.slow
def test_the_warm_start_is_right_now_and_then_and_could_be_right_far_more_often(tmp_path):
    # In half the time of the defaults, which give 21 % and 80 %.
    quick = {"hidden_size": 64, "warm_start_pairs": 20000, "warm_start_max_steps": 800, "learning_rate": 6e-3}
    measured = countdown.prepare(str(tmp_path), **quick, validation_size=64, test_size=64)["warm_start"]
    assert 0.13 < measured["accuracy"] < 0.27
    assert 0.7 < measured["solved"] < 0.95
    assert measured["response_tokens"] < countdown.MAX_RESPONSE_TOKENS - 8
