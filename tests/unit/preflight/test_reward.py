from pathlib import Path

import pytest
from omegaconf import OmegaConf, open_dict

from aent_verl.preflight import PreflightError, data, reward
from tests.unit.preflight.rows import ROWS, row, write


def score_with(cfg, tmp_path, body, head=""):
    """Let the config's reward function do this."""
    path = tmp_path / "other_score.py"
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    path.write_text(
        f"{head}\ndef compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):\n{lines}"
    )
    cfg.reward.custom_reward_function.path = str(path)


def check_reward(cfg):
    return reward.check(cfg, data.check(cfg)[0])


@pytest.mark.parametrize("score", ["0.0", "1.0", "{'score': -1, 'acc': False}"])
def test_a_reward_that_is_always_the_same(settings, tmp_path, score):
    score_with(settings, tmp_path, f"return {score}")
    value = {"0.0": "0", "1.0": "1"}.get(score, "-1")
    with pytest.raises(PreflightError, match=rf"every answer, right or wrong, gets {value} \(right '0' -> {value}; "):
        check_reward(settings)


def test_a_reward_that_pays_wrong_answers_as_well(settings, tmp_path):
    score_with(settings, tmp_path, "return float('boxed' in solution_str)")
    with pytest.raises(PreflightError, match="a wrong answer gets as much as the best right one"):
        check_reward(settings)


def test_an_empty_answer_is_a_wrong_one(settings, tmp_path):
    score_with(settings, tmp_path, "return float(ground_truth.startswith(solution_str))")
    with pytest.raises(PreflightError, match=r"as much as the best right one .*wrong '' -> 1"):
        check_reward(settings)


def test_a_reward_the_wrong_way_round(settings, tmp_path):
    score_with(settings, tmp_path, "return float(ground_truth not in solution_str)")
    with pytest.raises(PreflightError, match=r"a wrong answer gets more than any right one .*run\.check_reward=false"):
        check_reward(settings)


@pytest.mark.parametrize(
    "rule",
    [
        "solution_str == ground_truth",
        "solution_str == chr(92) + 'boxed{' + ground_truth + '}'",
        "solution_str.split('#### ')[-1] == ground_truth and '####' in solution_str",
        "'<answer>' + ground_truth + '</answer>' in solution_str",
        "('The answer is ' + ground_truth + '.') in solution_str",
        "('Answer: ' + ground_truth) == solution_str",
        "'</think>' in solution_str and 'boxed{' + ground_truth + '}' in solution_str",
        "(solution_str == ground_truth) + 0.1 * ('answer' in solution_str)",
    ],
)
def test_one_usual_form_that_is_paid_is_enough(settings, tmp_path, rule):
    score_with(settings, tmp_path, f"return {{'score': float({rule}), 'acc': 1}}")
    assert "3 of 3 rows tell them apart" in check_reward(settings)[0]


def test_one_row_that_cannot_be_told_apart_is_not_enough_to_stop(settings, tmp_path):
    score_with(settings, tmp_path, "return float(ground_truth != '1' and solution_str == ground_truth)")
    assert "2 of 3 rows tell them apart" in check_reward(settings)[0]


def test_one_row_of_which_a_wrong_answer_is_fully_paid_is_enough_to_stop(settings, tmp_path):
    score_with(settings, tmp_path, "return float(ground_truth == '1' or solution_str == ground_truth)")
    with pytest.raises(PreflightError, match="every answer, right or wrong, gets 1"):
        check_reward(settings)


def test_every_data_source_is_tried(settings, tmp_path):
    settings.data.val_files = write(tmp_path / "val.parquet", [row(source="other")])
    score_with(settings, tmp_path, "return float(data_source != 'other' and solution_str == ground_truth)")
    with pytest.raises(PreflightError, match="on data source 'other' every answer"):
        check_reward(settings)


def test_every_data_source_of_a_file_is_tried_and_many_need_one_row_each(settings, tmp_path):
    sources = ["zero", "one", "two", "three"]
    rows = [one | {"data_source": source} for source in sources for one in ROWS]
    settings.data.train_files = settings.data.val_files = write(tmp_path / "mixed.parquet", rows)
    score_with(settings, tmp_path, "return float(solution_str == ground_truth)")
    assert "4 of 4 rows tell them apart" in check_reward(settings)[0]
    score_with(settings, tmp_path, "return float(data_source != 'three' and solution_str == ground_truth)")
    with pytest.raises(PreflightError, match="on data source 'three' every answer"):
        check_reward(settings)


@pytest.mark.parametrize("key", ["train_files", "val_files"])
def test_a_later_file_is_tried_even_if_the_first_fills_a_sample(settings, tmp_path, key):
    first = write(tmp_path / "math500.parquet", ROWS * 5)
    settings.data[key] = [first, write(tmp_path / "aime24.parquet", [row(source="aime24")])]
    score_with(settings, tmp_path, "return float(data_source != 'aime24' and solution_str == ground_truth)")
    with pytest.raises(PreflightError, match="on data source 'aime24' every answer"):
        check_reward(settings)


def test_each_file_of_one_data_source_is_tried_and_named(settings, tmp_path):
    later = write(tmp_path / "later.parquet", [row(answer="about 5")])
    settings.data.val_files = [settings.data.val_files, later]
    score_with(settings, tmp_path, "return float(ground_truth.isdigit() and solution_str == ground_truth)")
    with pytest.raises(PreflightError, match=f"on data source 'arithmetic' of {later} every answer"):
        check_reward(settings)


def test_a_first_row_that_cannot_be_told_apart_is_not_enough_to_stop_where_there_are_many_files(settings, tmp_path):
    files = [write(tmp_path / f"{part}.parquet", ROWS) for part in range(4)]
    settings.data.train_files, settings.data.val_files = files[:2], files[2:]
    score_with(settings, tmp_path, "return float(ground_truth != '0' and solution_str == ground_truth)")
    assert "4 of 8 rows tell them apart" in check_reward(settings)[0]


def test_a_reward_that_needs_the_main_thread(settings, tmp_path):
    body = (
        "try:\n    signal.alarm(0), signal.signal(signal.SIGALRM, signal.SIG_DFL)\nexcept ValueError:\n    return 0.0\n"
    )
    score_with(settings, tmp_path, body + "return float(solution_str == ground_truth)", head="import signal")
    with pytest.raises(PreflightError, match=r"gets 0 .*outside the main thread"):
        check_reward(settings)


def test_a_reward_that_is_a_coroutine(settings):
    path = Path(settings.reward.custom_reward_function.path)
    text = path.read_text().replace("return", "await asyncio.sleep(0)\n    return")
    path.write_text("import asyncio\nasync " + text.strip())
    assert "3 of 3" in check_reward(settings)[0]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("return int(solution_str) == int(ground_truth)", "fails on the answer .*ValueError.*Fix it"),
        ("return {'acc': 1.0}", "KeyError: 'score'"),
        ("return float('nan')", "the score is nan"),
        ("return 1.0, 'right'", "TypeError"),
    ],
)
def test_a_reward_that_fails_or_gives_no_number(settings, tmp_path, body, problem):
    score_with(settings, tmp_path, body)
    with pytest.raises(PreflightError, match=problem):
        check_reward(settings)


def test_a_reward_that_never_ends(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(reward, "TIMEOUT_SECONDS", 0.1)
    score_with(settings, tmp_path, "time.sleep(5)", head="import time")
    with pytest.raises(PreflightError, match=r"no score after 0\.1 s"):
        check_reward(settings)


@pytest.mark.parametrize(
    ("path", "name", "problem"),
    [
        ("/no/such/file.py", "compute_score", "FileNotFoundError"),
        (None, "other", "AttributeError"),
        ("pkg://aent_verl.no_such_module", "compute_score", "ModuleNotFoundError"),
    ],
)
def test_a_reward_that_cannot_be_loaded(settings, path, name, problem):
    settings.reward.custom_reward_function.path = path or settings.reward.custom_reward_function.path
    settings.reward.custom_reward_function.name = name
    with pytest.raises(PreflightError, match=f"'{name}' cannot be loaded .*{problem}"):
        check_reward(settings)


def test_a_reward_module_that_fails_is_named_by_its_own_error(settings, tmp_path):
    score_with(settings, tmp_path, "return 0.0", head="import a_package_that_is_not_here")
    with pytest.raises(PreflightError, match=r"cannot be loaded .*No module named 'a_package_that_is_not_here'"):
        check_reward(settings)


def test_verl_has_no_reward_for_the_data_source(settings):
    settings.reward.custom_reward_function.path = None
    with pytest.raises(PreflightError, match=r"NotImplementedError.*Name your own"):
        check_reward(settings)


@pytest.mark.parametrize("source", ["openai/gsm8k", "math_dapo", "lighteval/MATH"])
def test_rewards_of_verl_itself(settings, tmp_path, source):
    settings.reward.custom_reward_function.path = None
    rows = [one | {"data_source": source} for one in ROWS]
    settings.data.train_files = settings.data.val_files = write(tmp_path / "known.parquet", rows)
    assert "3 of 3 rows" in check_reward(settings)[0]


@pytest.mark.parametrize(
    ("axis", "choice"),
    [("bonus.sample_weight", "difficulty_linear"), ("advantages", "progrpo")],
    ids=["weight", "shape"],
)
def test_a_method_that_needs_accuracies_needs_a_reward_that_has_them(settings, tmp_path, axis, choice):
    right = "10 * float(solution_str.strip() == ground_truth)"
    score_with(settings, tmp_path, f"return {right}")
    assert "3 of 3 rows" in check_reward(settings)[0]
    OmegaConf.update(settings, f"entropy_control.{axis}.name", choice)
    with pytest.raises(PreflightError, match=r"score=10\.0 of a sample is not an accuracy"):
        check_reward(settings)
    score_with(settings, tmp_path, f"return {{'score': {right}, 'acc': {right} > 0}}")
    assert "3 of 3 rows" in check_reward(settings)[0]


def test_our_own_reward(settings, tmp_path):
    settings.reward.custom_reward_function.path = "pkg://aent_verl.data.tasks.reward"
    rows = [one | {"data_source": "reasoning_gym/chain_sum"} for one in ROWS]
    settings.data.train_files = settings.data.val_files = write(tmp_path / "known.parquet", rows)
    assert "3 of 3 rows" in check_reward(settings)[0]


def test_what_is_not_checked_is_said(settings, tmp_path):
    score_with(settings, tmp_path, "return 0.0")
    sample = data.check(settings)[0]
    assert "ground truths" in reward.check(settings, data.Sample())[0]
    assert "ground truths" in reward.check(settings, data.Sample({"train.parquet": [row(answer=None)]}))[0]
    settings.reward.reward_manager.source = "importlib"
    assert "left to your reward manager" in reward.check(settings, sample)[0]
    settings.reward.reward_model.enable = True
    assert "a reward model gives it" in reward.check(settings, sample)[0]
    with open_dict(settings):
        settings.run.check_reward = False
    assert "run.check_reward=false" in reward.check(settings, sample)[0]


@pytest.mark.parametrize("truth", ["5", "-3.5", "-1", "1,000", "x^2", "True", "nan"])
def test_the_wrong_answer_is_wrong(truth):
    other = reward._wrong(truth)
    assert other != truth
    assert truth.lower() not in other.lower()
