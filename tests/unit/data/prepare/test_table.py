import json
from types import SimpleNamespace

import datasets
import huggingface_hub
import pyarrow.parquet as pq
import pytest

from aent_verl.data.prepare import checks
from aent_verl.data.prepare.rows import INSTRUCTION
from aent_verl.data.prepare.table import after_hashes, automatic, boxed, data_sets, whole
from aent_verl.data.tasks.math_reward import compute_score
from tests.unit.data.prepare.conftest import entry, findings, prepare, write_jsonl, write_parquet
from tests.unit.data.prepare.native import DAPO_AFTER, DAPO_BEFORE, ROWS, TRUTHS


def written(folder, name, split):
    return pq.read_table(folder / f"{name}-{split}.parquet").to_pylist()


def check_rows(folder, name):
    assert set(ROWS[name]) == set(data_sets()[name].rows)
    for split, truths in TRUTHS[name].items():
        rows = written(folder, name, split)
        assert [row["reward_model"] for row in rows] == [{"style": "rule", "ground_truth": one} for one in truths]
        for row in rows:
            assert list(row) == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
            assert (row["data_source"], row["ability"]) == (name, "math")
            (message,) = row["prompt"]
            assert message == {"role": "user", "content": row["extra_info"]["problem"] + INSTRUCTION}
            assert row["extra_info"]["split"] == split
            assert "Answer:" not in message["content"]
            truth = row["reward_model"]["ground_truth"]
            response = f"First 12345. Therefore the answer is $\\boxed{{{truth}}}$."
            assert compute_score(name, response, truth, row["extra_info"])["score"] == 1.0
            assert compute_score(name, "It is \\boxed{-98765}.", truth, row["extra_info"])["score"] == 0.0


def test_there_is_a_miniature_of_every_data_set():
    assert set(ROWS) == set(TRUTHS) == set(data_sets())


@pytest.mark.parametrize("name", data_sets())
def test_each_set_is_the_same_from_files_as_published_a_saved_folder_and_the_hub(tmp_path, no_hub, monkeypatch, name):
    def made(folder):
        return {split: (tmp_path / folder / f"{name}-{split}.parquet").read_bytes() for split in ROWS[name]}

    def load_dataset(repository, config, *, split, revision):
        asked.add((repository, config, split, revision))
        return published[split]

    table, asked = data_sets()[name], set()
    lines = [f"{split}={write_jsonl(tmp_path / f'{split}.jsonl', rows)}" for split, rows in ROWS[name].items()]
    prepare(name, "--from", *lines, "--output", tmp_path / "lines")
    check_rows(tmp_path / "lines", name)
    monkeypatch.setattr(checks, "unscorable", lambda truths: {})  # once is enough

    parquet = [f"{split}={write_parquet(tmp_path / f'{split}.parquet', rows)}" for split, rows in ROWS[name].items()]
    prepare(name, "--from", *parquet, "--output", tmp_path / "parquet")
    published = {table.hub_split or split: datasets.Dataset.from_list(rows) for split, rows in ROWS[name].items()}
    datasets.DatasetDict(published).save_to_disk(tmp_path / "saved")
    prepare(name, "--from", tmp_path / "saved", "--output", tmp_path / "folder")
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="newest"))
    prepare(name, "--output", tmp_path / "hub")
    assert made("lines") == made("parquet") == made("folder") == made("hub")

    repository, _, revision = table.hub.partition("@")
    source = {"hub": repository, "config": table.config, "revision": revision or "newest"}
    assert entry(tmp_path / "hub", name)["request"]["source"] == source
    assert asked == {(repository, table.config, split, source["revision"]) for split in published}


def test_a_folder_with_one_split_goes_by_the_name_of_the_split(tmp_path, no_hub):
    datasets.Dataset.from_list(ROWS["aime24"]["test"]).save_to_disk(tmp_path / "one")
    datasets.Dataset.from_list(ROWS["math"]["train"]).save_to_disk(tmp_path / "train")
    prepare("aime24", "--from", tmp_path / "one", "--output", tmp_path / "out")
    prepare("math", "--from", f"train={tmp_path / 'train'}", "--output", tmp_path / "out")
    assert len(written(tmp_path / "out", "aime24", "test")) == 2
    assert len(written(tmp_path / "out", "math", "train")) == 2
    with pytest.raises(ValueError, match="say which: --from train="):
        prepare("math", "--from", tmp_path / "train", "--output", tmp_path / "other")


def test_a_folder_as_downloaded_from_the_hub(tmp_path, monkeypatch):
    folder = tmp_path / "download"
    (folder / "data").mkdir(parents=True)
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", ROWS["aime24"]["test"][:1])
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", ROWS["aime24"]["test"][1:])
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    prepare("aime24", "--from", folder, "--output", tmp_path / "out")
    check_rows(tmp_path / "out", "aime24")


def test_the_wrapping_of_dapo_is_taken_off_and_its_copies_are_counted(tmp_path, no_hub):
    source = write_jsonl(tmp_path / "dapo.jsonl", ROWS["dapo-math-17k-original"]["train"])
    assert json.dumps(DAPO_BEFORE)[1:-1] in source.read_text()
    assert json.dumps(DAPO_AFTER)[1:-1] in source.read_text()
    prepare("dapo-math-17k-original", "--from", source, "--output", tmp_path)
    rows = written(tmp_path, "dapo-math-17k-original", "train")
    assert [row["extra_info"]["problem"] for row in rows] == ["Find $a + b$.", "Find $n$."]
    assert findings(tmp_path, "dapo-math-17k-original") == {"the same problem again": (1, True)}


def test_proofs_multiple_choice_and_several_answers_are_left_out_and_counted(tmp_path, no_hub):
    for name, kept in (
        ("openr1-math", "question_type = math-word-problem"),
        ("olympiadbench", "is_multiple_answer = False"),
    ):
        (split,) = ROWS[name]
        source = write_jsonl(tmp_path / f"{name}.jsonl", ROWS[name][split])
        report = prepare(name, "--from", source, "--output", tmp_path / "out")
        count = len(ROWS[name][split]) - len(TRUTHS[name][split])
        assert findings(tmp_path / "out", name, split) == {f"not of the kind that is kept ({kept})": (count, True)}
        assert f"{count}  not of the kind" in report


def test_another_number_of_rows_than_published_is_noted(tmp_path, no_hub):
    source = write_jsonl(tmp_path / "a.jsonl", ROWS["amc23"]["test"])
    report = prepare("amc23", "--from", source, "--output", tmp_path)
    assert "note: test has 1 rows, 40 are published" in report


def test_the_list_names_every_set_with_rows_repository_and_licence():
    listing = prepare("--list")
    for name, table in data_sets().items():
        assert f"{name}: {table.about}" in listing
        assert table.hub.partition("@")[0] in listing
        assert table.license in listing
    assert "train 7,500, test 5,000" in listing


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"So $x = \boxed{5}$.", "5"),
        (r"$\boxed{\frac{1}{2}}$", r"\frac{1}{2}"),
        (
            r"\boxed{\left\{\frac{a}{\sqrt{b}}, 2^{3^{4}}\right\}} and so on",
            r"\left\{\frac{a}{\sqrt{b}}, 2^{3^{4}}\right\}",
        ),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\fbox{3}", "3"),
        (r"\boxed 7$", "7"),
        (r"\boxed   {8}", "8"),
        (r"\boxed{\text{a } \} b}", r"\text{a } \} b"),
        (r"\boxed{$9$}", "9"),
        (r"\boxedness{4}", ""),
        (r"\boxed{1", ""),
        ("no box", ""),
        ("", ""),
        (None, ""),
    ],
)
def test_the_last_box_is_taken_with_its_inner_braces(text, answer):
    assert boxed(text) == answer


@pytest.mark.parametrize(
    ("value", "answer"),
    [
        (" 5 ", "5"),
        (5, "5"),
        (27.0, "27"),
        (0.5, "0.5"),
        (float("nan"), ""),
        (None, ""),
        (["$\\frac{1}{2}$"], "\\frac{1}{2}"),
        (["1", "2"], "1, 2"),
        ("$x$", "x"),
        ("$$x$$", "x"),
        ("\\(x\\)", "x"),
        ("\\[x\\]", "x"),
        ("$x$ and $y$", "$x$ and $y$"),
        ("$", "$"),
    ],
)
def test_a_bare_answer_loses_only_its_wrapping(value, answer):
    assert whole(value) == answer


def test_gsm8k_answers_stand_after_the_last_hashes():
    assert after_hashes("#### 1\nmore\n#### 1,234 ") == "1234"
    assert after_hashes("no hashes, 5") == ""


def test_automatic_sees_how_an_answer_is_written():
    assert automatic("so \\boxed{5}") == "5"
    assert automatic("so\n#### 6") == "6"
    assert automatic("7") == "7"
