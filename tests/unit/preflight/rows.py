"""Rows in verl's format and files of them."""

import json


def row(question="2 + 3", answer="5", source="arithmetic", **more):
    return {
        "data_source": source,
        "prompt": [{"role": "user", "content": f"How many is {question}?"}],
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"index": 0},
    } | more


def write(path, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


ROWS = [row(f"{a} + {b}", str(a + b)) for a in range(4) for b in range(4)]


def edit(path, **changes):
    """Change keys of a JSON file; None removes one."""
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
