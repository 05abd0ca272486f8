"""`aent-verl evaluate` on the CPU: real FSDP shards, real vLLM, against transformers' own sampling."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aent_verl.runs.problems import ProblemScores, read_evaluation, read_responses

pytestmark = pytest.mark.slow

SECONDS = 420
SAMPLES = 16
PROBLEMS = 32
# Not 1: log-probabilities before temperature and top-p, which are the wrong ones, are here 30 standard errors away.
TEMPERATURE, TOP_P = 0.7, 0.9
LONGEST = 8

# What one rank of verl's FSDP2 trainer leaves: its shard of every weight.
SAVE_SHARD = """
import os, sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import AutoModelForCausalLM
dist.init_process_group("gloo")
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
fully_shard(model, mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("fsdp",)))
torch.save(model.state_dict(), f"{sys.argv[2]}/model_world_size_2_rank_{dist.get_rank()}.pt")
dist.destroy_process_group()
"""


@dataclass(frozen=True)
class Evaluated:
    """What the command wrote and printed, and what transformers found."""

    scores: ProblemScores
    summary: dict[str, Any]
    terminal: str
    run: Path
    expected: dict[str, float]


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from aent_verl.data.tasks import arithmetic

    folder = tmp_path_factory.mktemp("task") / "arithmetic"
    arithmetic.prepare(str(folder), train_size=8, validation_size=PROBLEMS, warm_start_max_steps=300)
    return folder


@pytest.fixture(scope="module")
def run(task: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with one checkpoint of two ranks and the settings that it was trained with."""
    from transformers import AutoConfig, AutoTokenizer

    run = tmp_path_factory.mktemp("runs") / "run"
    actor = run / "checkpoints" / "global_step_3" / "actor"
    for part in (AutoConfig, AutoTokenizer):
        part.from_pretrained(task / "model").save_pretrained(actor / "huggingface")
    generation_config = (task / "model" / "generation_config.json").read_text()
    (actor / "huggingface" / "generation_config.json").write_text(generation_config)
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 2}))
    (run / "save.py").write_text(SAVE_SHARD)
    command = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(run / "save.py")]
    subprocess.run([sys.executable, *command, str(task / "model"), str(actor)], check=True, timeout=200)
    settings = {
        "data": {
            "val_files": str(task / "validation.parquet"),
            "max_prompt_length": 64,
            "max_response_length": LONGEST,
        },
        "reward": {"custom_reward_function": {"path": "pkg://aent_verl.data.tasks.reward", "name": "compute_score"}},
    }
    (run / "config.yaml").write_text(json.dumps(settings))
    return run


def sample(task: Path, samples: int) -> dict[str, float]:
    """Accuracy, entropy of the distribution sampled from, and length, by transformers and the exact entropies."""
    import pyarrow.parquet as pq
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from aent_verl.data.tasks.reward import compute_score
    from aent_verl.data.tasks.warm_start import prompt_ids

    model, tokenizer = (kind.from_pretrained(task / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    rows = pq.read_table(task / "validation.parquet").to_pylist()
    torch.manual_seed(0)
    hits, entropy, tokens = 0.0, 0.0, 0
    for row in rows:
        ids = torch.tensor([prompt_ids(tokenizer, row["prompt"])])
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True,
            temperature=TEMPERATURE, top_p=TOP_P, top_k=0, max_new_tokens=LONGEST,
            num_return_sequences=samples, output_scores=True, return_dict_in_generate=True,
        )  # fmt: skip
        responses = output.sequences[:, ids.shape[1] :]
        ends = torch.isin(responses, torch.tensor(model.generation_config.eos_token_id)).int()
        valid = ends.cumsum(dim=1) - ends == 0
        probabilities = torch.stack(output.scores, dim=1).softmax(dim=-1)
        entropy += float(torch.special.entr(probabilities).sum(dim=-1)[valid].sum())
        tokens += int(valid.sum())
        texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
        truth, extra = row["reward_model"]["ground_truth"], row["extra_info"]
        hits += sum(compute_score(row["data_source"], text, truth, extra)["acc"] for text in texts)
    answers = samples * len(rows)
    return {"accuracy": hits / answers, "entropy": entropy / tokens, "tokens": tokens / answers}


@pytest.fixture(scope="module")
def evaluated(task: Path, run: Path) -> Evaluated:
    # A cluster of its own, whatever else runs here; the path is short because sockets lie in it.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as ray:
        command = [
            "-m",
            "aent_verl.commands.evaluate",
            f"model={run}/checkpoints/global_step_3",
            "platform=cpu",
            f"n={SAMPLES}",
        ]
        done = subprocess.run(
            [sys.executable, *command, f"temperature={TEMPERATURE}", f"top_p={TOP_P}", "scorers=1"],
            env=os.environ | {"CI": "true", "RAY_TMPDIR": ray},
            cwd=run,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
    log = run / "evaluation" / "evaluation.log"
    assert done.returncode == 0, done.stdout + (log.read_text()[-6000:] if log.is_file() else "")
    scores = read_evaluation(run)
    assert scores is not None
    summary = json.loads((run / "evaluation" / "evaluation.json").read_text())
    return Evaluated(scores, summary, done.stdout, run, sample(task, 64))


def test_accuracy_is_that_of_transformers_within_noise(evaluated: Evaluated) -> None:
    scores = evaluated.scores.scores
    assert scores.shape == (PROBLEMS, SAMPLES)
    error = np.sqrt((scores.var(axis=1, ddof=1) / SAMPLES).mean() / PROBLEMS)
    found = evaluated.summary["summary"]["all"]["mean@n"]
    assert found == scores.mean()
    assert 0.05 < found < 0.95
    assert found == pytest.approx(evaluated.expected["accuracy"], abs=4.5 * error)


def test_entropy_is_the_exact_one_of_the_distribution_sampled_from_within_noise(evaluated: Evaluated) -> None:
    scores = evaluated.scores
    assert scores.entropy is not None
    assert scores.response_tokens is not None
    found = evaluated.summary["summary"]["all"]["entropy"]
    assert found == pytest.approx((scores.entropy * scores.response_tokens).sum() / scores.response_tokens.sum())
    residuals = (scores.entropy - found) * scores.response_tokens
    error = residuals.std() / scores.response_tokens.mean() / np.sqrt(residuals.size)
    assert error < 0.2 * found
    assert found == pytest.approx(evaluated.expected["entropy"], abs=4.5 * error)


def test_lengths_are_those_of_transformers_within_noise(evaluated: Evaluated) -> None:
    tokens = evaluated.scores.response_tokens
    assert tokens is not None
    assert tokens.mean() == pytest.approx(evaluated.expected["tokens"], abs=4.5 * tokens.std() / np.sqrt(tokens.size))
    truncated = evaluated.scores.truncated
    assert truncated is not None
    assert tokens.max() <= LONGEST
    assert (tokens[truncated.astype(bool)] == LONGEST).all()
    # Of those with the longest length some may have ended just there.
    assert truncated.sum() <= (tokens == LONGEST).sum()


def test_scores_belong_to_the_texts_beside_them(evaluated: Evaluated) -> None:
    for one in read_responses(evaluated.run).values():
        for text, score in zip(one.responses, one.scores, strict=True):
            assert score == float(text.strip() == one.ground_truth), (text, one.ground_truth)


def test_the_checkpoint_was_put_together_and_evaluated_as_its_run_says(evaluated: Evaluated) -> None:
    actor = evaluated.run / "checkpoints" / "global_step_3" / "actor"
    assert (actor / "huggingface_merged" / "model.safetensors").is_file()
    assert "as in " in evaluated.terminal
    assert "reward.custom_reward_function" in evaluated.terminal
    assert evaluated.summary["sampling"]["max_tokens"] == LONGEST
    assert evaluated.summary["reward"] == "pkg://aent_verl.data.tasks.reward:compute_score"
    for part in (f"mean@{SAMPLES}", "reasoning_gym", f"{PROBLEMS * SAMPLES} of {PROBLEMS * SAMPLES} responses"):
        assert part in evaluated.terminal
    assert "Traceback" not in evaluated.terminal
