"""What the checks of data and model before a run cost on a large file: ``python -m benchmarks.data_check``.

Prompts have about 300 characters, and so have solutions in ``extra_info``; parquet in row groups of 100,000 rows,
and JSON lines.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig


def main(arguments: list[str] | None = None) -> dict[str, tuple[float, float]]:
    """Write the files, check each, and print the times.

    Returns:
        Seconds by what was checked: on the clock, and of all cores together, which other processes hardly change.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args(arguments).rows
    with tempfile.TemporaryDirectory() as folder:
        cfg = _config(Path(folder))
        found = {}
        for path in _write(Path(folder), rows):
            cfg.data.train_files = cfg.data.val_files = str(path)
            found |= _measure(cfg, path.suffix[1:])
    for name, (clock, cores) in found.items():
        print(f"{name}: {clock:.2f} s, {cores:.2f} s of CPU time, for {rows:,} rows")
    return found


def _measure(cfg: DictConfig, kind: str) -> dict[str, tuple[float, float]]:
    from aent_verl.preflight import data, model, rows  # noqa: F401  importing Arrow is not what is measured

    times = [_now()]
    sample = data.read_files(cfg, "data.train_files").sample
    times.append(_now())
    model.check(cfg, data.Sample(sample))
    times.append(_now())
    (a, b), (c, d), (e, f) = times
    return {f"data, {kind}": (c - a, d - b), f"model, {kind}": (e - c, f - d)}


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _config(folder: Path) -> DictConfig:
    from hydra import compose, initialize_config_module

    from aent_verl.data.tasks import tiny_model

    with initialize_config_module("aent_verl._config", version_base="1.3"):
        cfg = compose("aent_trainer", ["experiment=cpu_arithmetic", "run.task=null", "data.max_prompt_length=1000"])
    tokenizer = tiny_model.build_tokenizer()
    tiny_model.save(tiny_model.build_model(tokenizer, hidden_size=64, layers=2, seed=0), tokenizer, folder / "model")
    cfg.actor_rollout_ref.model.path = str(folder / "model")
    return cfg


def _write(folder: Path, rows: int) -> list[Path]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = random.Random(0)
    texts = ["".join(draw.choices("abcdefgh ", k=draw.randint(200, 400))) for _ in range(10_000)]
    parquet, lines = folder / "rows.parquet", folder / "rows.jsonl"
    writer = None
    with lines.open("w", encoding="utf-8") as file:
        for start in range(0, rows, 100_000):
            part = [
                _row(number, draw.choice(texts), draw.choice(texts))
                for number in range(start, min(start + 100_000, rows))
            ]
            file.writelines(json.dumps(row) + "\n" for row in part)
            table = pa.Table.from_pylist(part)
            writer = writer or pq.ParquetWriter(parquet, table.schema)
            writer.write_table(table)
    assert writer is not None
    writer.close()
    return [parquet, lines]


def _row(number: int, question: str, solution: str) -> dict[str, Any]:
    return {
        "data_source": "arithmetic",
        "prompt": [{"role": "user", "content": f"{number} {question}"}],
        "reward_model": {"style": "rule", "ground_truth": str(number % 1000)},
        "extra_info": {"index": number, "solution": solution},
    }


if __name__ == "__main__":
    main()
