import datasets
import pytest

from aent_verl.data.prepare import sources
from aent_verl.data.prepare.table import data_sets
from tests.unit.data.prepare.conftest import prepare, write_jsonl, write_parquet
from tests.unit.data.prepare.native import ROWS

pytestmark = pytest.mark.usefixtures("no_hub")
GOOD = [{"problem": "One and one?", "answer": "2"}]


def read(path):
    rows = sources.open_file(path)
    return list(rows.read(rows.columns))


def test_json_lines_arrays_and_parquet_give_the_same_rows(tmp_path):
    array = tmp_path / "a.json"
    array.write_text('[{"problem": "One and one?", "answer": "2"}]')
    lines = write_jsonl(tmp_path / "lines.json", GOOD)
    blank = tmp_path / "b.jsonl"
    blank.write_text('\n{"problem": "One and one?", "answer": "2"}\n\n')
    marked = tmp_path / "marked.jsonl"
    marked.write_text(lines.read_text(), encoding="utf-8-sig")
    marked_array = tmp_path / "marked.json"
    marked_array.write_text(array.read_text(), encoding="utf-8-sig")
    for path in (array, lines, blank, marked, marked_array, write_parquet(tmp_path / "a.parquet", GOOD)):
        assert read(path) == GOOD


def test_json_values_are_taken_as_written_from_a_file_of_any_name(tmp_path):
    # `datasets` would make a date and a float of the first two, mind the third, and take the brackets for a pattern.
    rows = [{"problem": "p", "answer": answer} for answer in ("2024-01-01", 10**30, 27.0, None, "x")]
    assert read(write_jsonl(tmp_path / "mine[1].jsonl", rows)) == rows
    assert read(write_jsonl(tmp_path / "mine.jsonl", [*rows, {"problem": "q"}]))[-1] == {"problem": "q", "answer": None}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({"value": "2", "unit": "m"}, "a record with the fields 'value', 'unit'"),
        ([{"value": "2"}], "a record with the fields 'value'"),
        (b"2", "bytes"),
    ],
)
@pytest.mark.parametrize("extract", ["auto", "whole", "boxed", "hashes"])
def test_an_answer_that_is_a_record_is_named_with_its_row(tmp_path, answer, problem, extract):
    path = write_parquet(tmp_path / "mine.parquet", [{"problem": f"{i} and one?", "answer": answer} for i in range(3)])
    with pytest.raises(
        ValueError, match=rf"row 0: the answer in column 'answer' is or holds {problem}.*--answer answer\."
    ):
        prepare(path, "--extract", extract, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_corrupt_line_is_named_by_file_and_number(tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"problem": "a", "answer": "1"}\n\n{"problem": "b", "ans\n')
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 3: not JSON \(.*'\{\"problem\": \"b\", \"ans'"):
        prepare(path, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n[1, 2]\n', r"a\.jsonl, line 2: '\[1, 2\]' is not an object"),
        ("a.json", "[1]", r"a\.json, item 0: '1' is not an object"),
        ("a.json", "[1", r"a\.json: not JSON"),
        ("a.jsonl", "", r"a\.jsonl: no rows"),
        ("a.json", "[]", r"a\.json: no rows"),
        ("a.parquet", "PAR1 not really", r"a\.parquet: not a readable parquet file"),
        ("a.csv", "a,b", r"files end in \.parquet, \.jsonl, \.json"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.jsonl: no such file"):
        prepare(tmp_path / "no.jsonl", "--output", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no\.jsonl: no such file"):
        prepare("aime24", "--from", tmp_path / "no.jsonl", "--output", tmp_path)


def test_wrong_columns_are_listed_with_the_option_to_give(tmp_path):
    path = write_jsonl(tmp_path / "mine.jsonl", [{"question": "One and one?", "meta": {"gold": "2"}}])
    with pytest.raises(
        ValueError, match=r"no column 'problem', 'answer'; its columns are 'question', 'meta'.*--answer"
    ):
        prepare(path, "--output", tmp_path)
    with pytest.raises(ValueError, match="no column 'answer'"):
        prepare(path, "--problem", "question", "--output", tmp_path)
    prepare(path, "--problem", "question", "--answer", "meta.gold", "--output", tmp_path)


def test_a_failing_hub_says_what_was_tried_and_how_to_do_without(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    with pytest.raises(OSError, match="olympiadbench: cannot load") as caught:
        prepare("olympiadbench", "--output", tmp_path / "out")
    message = str(caught.value)
    table = data_sets()["olympiadbench"]
    for part in (
        *table.hub.split("@"),
        "config OE_TO_maths_en_COMP, split train",
        "https://mirror.example",
        "ConnectionError: Couldn't reach the Hub",
        "HF_ENDPOINT=",
        "HF_HUB_OFFLINE=1",
        f"hf download {table.hub.partition('@')[0]} --repo-type dataset",
        "aent-verl prepare olympiadbench --from",
    ):
        assert part in message
    assert not (tmp_path / "out").exists()


def test_the_users_revision_and_config_reach_the_hub(tmp_path, monkeypatch):
    asked = []

    def load_dataset(repository, config, *, split, revision):
        asked.append((config, revision))
        return datasets.Dataset.from_list(ROWS["dapo-math-17k"]["train"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    prepare("dapo-math-17k", "--config", "en", "--revision", "abc", "--output", tmp_path)
    assert asked == [("en", "abc")]
    path = write_jsonl(tmp_path / "a.jsonl", ROWS["dapo-math-17k"]["train"])
    with pytest.raises(ValueError, match="no effect on the files"):
        prepare("dapo-math-17k", "--config", "en", "--from", path, "--output", tmp_path)


def test_only_the_columns_in_use_are_read_from_a_large_row(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", [{**GOOD[0], "generations": "x" * 1000}])
    rows = sources.open_file(path)
    assert list(rows.read(["answer"])) == [{"answer": "2"}]


def test_a_hash_of_a_folder_follows_names_and_contents_but_not_hidden_files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", GOOD)
    first = sources.sha256(tmp_path)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x").write_text("x")
    assert sources.sha256(tmp_path) == first
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    second = sources.sha256(tmp_path)
    write_jsonl(tmp_path / "b.jsonl", GOOD * 2)
    assert len({first, second, sources.sha256(tmp_path)}) == 3
