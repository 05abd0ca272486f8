"""Folders of finished runs as `aent-verl compare` leaves them, made up: no model, no training."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from aent_verl.runs.run import Run, load_run

PROTOCOL = {"actor_rollout_ref.model.path": "tiny 0123456789ab", "trainer.total_training_steps": "40"}


@dataclass(frozen=True)
class Method:
    """What a made-up method does: the accuracy that it ends with, and its entropy."""

    name: str
    accuracy: float = 0.5
    entropy: float = 0.1
    coefficient: float = 0.0
    band: tuple[float, float] | None = None


GRPO = Method("grpo", accuracy=0.5, entropy=0.05)
AENT = Method("aent", accuracy=0.7, entropy=0.3, coefficient=0.01, band=(0.25, 0.35))


def metrics(method: Method, seed: int, steps: int, every: int = 10) -> dict[int, dict]:
    """Metrics of a run by step; a validation at the start and every few steps."""
    random = np.random.default_rng([seed, *method.name.encode()])
    level = method.accuracy + random.normal(0, 0.02)
    run = {0: {"val-core/digits/acc/mean@4": 0.1}}
    for step in range(1, steps + 1):
        done = 1 - np.exp(-4 * step / steps)
        run[step] = {
            "critic/score/mean": 0.1 + (level - 0.1) * done + random.normal(0, 0.04),
            "aent/entropy": method.entropy + (1.2 - method.entropy) * (1 - done) + random.normal(0, 0.01),
            "aent/entropy_full": 1.2 * method.entropy + (1.4 - method.entropy) * (1 - done) + random.normal(0, 0.01),
            "aent/coefficient": method.coefficient * (0.5 + done),
            "response_length/mean": 20 + 30 * done + random.normal(0, 1),
            "perf/total_num_tokens": 1000 + 10 * seed,
            "timing_s/step": 2.0 + 0.1 * len(method.name),
        }
        if step % every == 0 or step == steps:
            run[step]["val-core/digits/acc/mean@4"] = 0.1 + (level - 0.1) * done + random.normal(0, 0.01)
    return run


def write_metrics(folder: Path, run: dict[int, dict]) -> None:
    """The metrics file of a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps({"step": step, "data": data}) + "\n" for step, data in run.items())
    (folder / "metrics.jsonl").write_text("".join(lines))


def problem_id(number: int) -> str:
    """Id of a made-up problem."""
    return hashlib.sha256(f"problem {number}".encode()).hexdigest()[:16]


def draw_scores(method: Method, seed: int, problems: int, samples: int) -> np.ndarray:
    """[problems, samples] of 0 and 1; problems have the same difficulty for all methods."""
    difficulty = np.random.default_rng(0).normal(0, 1.2, problems)
    random = np.random.default_rng([seed, 7, *method.name.encode()])
    centre = np.log(method.accuracy / (1 - method.accuracy)) + random.normal(0, 0.08)
    right = 1 / (1 + np.exp(-(centre + difficulty)))
    return (random.random((problems, samples)) < right[:, None]).astype(float)


def write_evaluation(
    folder: Path, scores: np.ndarray, responses: list[list[str]] | None = None, source: str = "digits", **summary: float
) -> None:
    """The three files of `aent-verl evaluate`; an answer is "right" or one of a few wrong ones."""
    problems, samples = scores.shape
    (folder / "evaluation").mkdir(parents=True, exist_ok=True)
    order = list(range(problems))
    answers = [["right" if s else f"wrong {(i + j) % 3}" for j, s in enumerate(scores[i])] for i in order]
    rows = [
        {
            "problem": problem_id(i),
            "data_source": source,
            "scores": scores[i].tolist(),
            "answers": answers[i],
            "response_tokens": [40 + (i + j) % 7 for j in range(samples)],
            "truncated": [(i + j) % 10 == 0 for j in range(samples)],
            "entropy": [0.2 + 0.01 * j for j in range(samples)],
        }
        for i in order
    ]
    texts = responses or [[f"Let me count to {i}.\nThe answer is {answer}." for answer in answers[i]] for i in order]
    sides = [
        {
            "problem": problem_id(i),
            "prompt": f"How much is {i} + {i}?",
            "ground_truth": f"{2 * i}",
            "responses": texts[i],
        }
        for i in order
    ]
    record = {
        "format": 1,
        "model": "final",
        "data": [{"path": "test.parquet", "sha256": "ab12", "problems": problems}],
        "sampling": {"n": samples, "temperature": 1.0, "top_p": 1.0, "top_k": -1, "max_tokens": 64},
        "reward": "digits",
        "versions": {},
        "seconds": 12.5,
        "summary": {"all": {"problems": problems, "mean@n": float(scores.mean()), **summary}},
    }
    (folder / "evaluation" / "evaluation.json").write_text(json.dumps(record))
    (folder / "evaluation" / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "evaluation" / "responses.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sides))


def write_run(
    folder: Path,
    method: Method = GRPO,
    seed: int = 1,
    *,
    steps: int = 40,
    problems: int = 40,
    samples: int = 8,
    protocol: dict[str, str] | None = None,
    evaluate: bool = True,
) -> Path:
    """A whole run's folder; returns it."""
    write_metrics(folder, metrics(method, seed, steps))
    controller = {"init": method.coefficient}
    if method.band:
        controller |= {"name": "band", "low": method.band[0], "high": method.band[1]}
    config = {
        "entropy_control": {
            "method": method.name,
            "functional": {"name": "clamped" if method.band else "full"},
            "bonus": {"controller": controller},
        },
        "data": {"seed": seed},
        "actor_rollout_ref": {"actor": {"optim": {"lr": 1e-6}}},
    }
    # JSON is YAML.
    (folder / "config.yaml").write_text(json.dumps(config))
    record = {
        "format": 1,
        "method": method.name,
        "seed": seed,
        "state": "complete",
        "protocol": PROTOCOL if protocol is None else protocol,
        "versions": {"aent-verl": "0.3.0", "verl": "0.9.1", "torch": "2.13.0"},
        "commit": "0123456789ab",
        "machine": "x86_64, 2 cores, 16 GiB, linux",
        "overrides": [
            *(f"entropy_control={method.name}", f"data.seed={seed}"),
            *(f"run.dir='{folder}'", f"trainer.validation_data_dir='{folder}/validation'"),
        ],
    }
    (folder / "run.json").write_text(json.dumps(record))
    if evaluate:
        write_evaluation(folder, draw_scores(method, seed, problems, samples))
    return folder


def make_runs(root: Path, methods: tuple[Method, ...] = (GRPO, AENT), seeds: int = 3, **options) -> list[Run]:
    """Runs of each method with seeds 1 to `seeds`, written and read back."""
    return [
        load_run(write_run(root / f"{method.name}_seed{seed}", method, seed, **options))
        for method in methods
        for seed in range(1, seeds + 1)
    ]
