import argparse
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aent_verl.commands import prepare as command


@pytest.fixture
def no_hub(monkeypatch):
    """Any use of the hub fails at once, as on a machine without a network."""
    import datasets
    import huggingface_hub

    def fail(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", fail)


def prepare(*words):
    """What the command line does; returns the report."""
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers(required=True))
    return command.run(parser.parse_args(["prepare", *map(str, words)]))


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_parquet(path, rows):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def problems(path):
    return [row["extra_info"]["problem"] for row in pq.read_table(path).to_pylist()]


def entry(folder, name):
    return json.loads((folder / "prepare.json").read_text())[name]


def findings(folder, name, split="train"):
    """What was found -> (how many, left out)."""
    found = entry(folder, name)["splits"][split]["findings"]
    return {one["what"]: (one["count"], one["left_out"]) for one in found}


def sums(count, start=0):
    return [
        {"problem": f"What is $1 + {number}$?", "answer": str(1 + number)} for number in range(start, start + count)
    ]


def mine(folder, rows=None, name="mine.jsonl"):
    return write_jsonl(folder / name, sums(20) if rows is None else rows)
