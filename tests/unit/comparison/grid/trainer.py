"""Stands in for the processes of `commands.train` and `commands.evaluate`: writes what they write, in a moment.

Each training step logs a reward that follows from method, seed and step, and saves a checkpoint; a start resumes from
the last one. Each start is noted in starts.txt.
"""

import json
import sys
import time
from pathlib import Path

STEPS = 6
# While this file is in a run's folder, its training waits after the third step.
HOLD = "hold"


def value(arguments: list[str], key: str) -> str:
    return next(text.partition("=")[2].strip("'") for text in arguments if text.startswith(f"{key}="))


def steps(arguments: list[str]) -> int:
    given = [text.partition("=")[2] for text in arguments if text.startswith("trainer.total_training_steps=")]
    return int(given[0]) if given else STEPS


def train(arguments: list[str]) -> None:
    folder, method, seed = (
        Path(value(arguments, "run.dir")),
        value(arguments, "entropy_control"),
        value(arguments, "data.seed"),
    )
    note(folder, "train")
    tracker = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    done = int(tracker.read_text()) if tracker.is_file() else 0
    older = len(list(folder.glob("metrics.*.jsonl")))
    if (folder / "metrics.jsonl").exists():
        (folder / "metrics.jsonl").rename(folder / f"metrics.{older + 1}.jsonl")
    with open(folder / "metrics.jsonl", "w", buffering=1) as log:
        for step in range(done + 1, steps(arguments) + 1):
            if method == "fails" and step == 3:
                sys.exit("boom: out of memory")
            if method == "stalls" and step == 3:
                time.sleep(600)
            if method == "ends_early" and step == 3:
                return
            reward = (0.5 if method == "grpo" else 0.6) + 0.01 * int(seed) + 0.02 * step
            data = {"critic/score/mean": reward, "timing_s/step": 0.1, "val-core/t/acc/mean@4": reward}
            log.write(json.dumps({"step": step, "data": data}) + "\n")
            (tracker.parent / f"global_step_{step}").mkdir(parents=True, exist_ok=True)
            tracker.write_text(str(step))
            time.sleep(float(value(arguments, "data.train_batch_size")) / 100)
            while step == 3 and (folder / HOLD).exists():
                time.sleep(0.01)


def evaluate(arguments: list[str]) -> None:
    folder = Path(value(arguments, "output"))
    note(folder.parent, "evaluate")
    folder.mkdir(exist_ok=True)
    scores = [
        {"problem": f"p{i}", "data_source": "t", "scores": [float(i % 2), 1.0], "answers": [None, "7"]}
        for i in range(8)
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
    (folder / "evaluation.json").write_text(
        json.dumps({"format": 1, "model": value(arguments, "model"), "sampling": {"n": 2}})
    )


def note(folder: Path, what: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "starts.txt", "a") as file:
        file.write(what + "\n")


if __name__ == "__main__":
    {"aent_verl.commands.train": train, "aent_verl.commands.evaluate": evaluate}[sys.argv[1]](sys.argv[2:])
