import pyarrow.parquet as pq
import pytest

from aent_verl.data.tasks import arithmetic, reasoning_gym_data
from aent_verl.data.tasks.reward import compute_score

SUMS = arithmetic.sums()
SOURCE = "reasoning_gym/basic_arithmetic"


def build(folder, **changes):
    settings = {"train_size": 64, "config": SUMS, "seed": 0, "validation_size": 16, **changes}
    sizes = {split: settings[f"{split}_size"] for split in ("validation", "train")}
    folder.mkdir(exist_ok=True)
    splits = reasoning_gym_data.draw_splits("basic_arithmetic", settings["config"], sizes, settings["seed"])
    return reasoning_gym_data.write_splits(splits, folder, generator="basic_arithmetic")


def questions(entries):
    return {entry["question"] for entry in entries}


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
    splits = build(tmp_path, config=config, train_size=900, validation_size=100, seed=seed)
    asked = [reasoning_gym_data.question_of(row) for rows in splits.values() for row in rows]
    assert len(asked) == len(set(asked)) == 1000


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
        questions(reasoning_gym_data.draw_entries("basic_arithmetic", SUMS, size=200, seed=seed, stream="train"))
        for seed in (0, 1)
    )
    assert len(one & two) < 20


def test_excluded_questions_are_not_drawn():
    def draw(**extra):
        return questions(
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
