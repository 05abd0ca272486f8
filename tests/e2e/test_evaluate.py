"""`aent-verl evaluate` on the CPU: real FSDP shards, real vLLM, against transformers' own sampling."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aent_verl.runs.problems import ProblemScores, read_evaluation, read_responses
from tests.e2e.conftest import PROBLEMS, RANKS, SAMPLES, STEPS, TEMPERATURE, TOP_P, Grid

pytestmark = pytest.mark.slow

LONGEST = 8


@dataclass(frozen=True)
class Evaluated:
    """What the command wrote and printed, and what transformers found."""

    scores: ProblemScores
    summary: dict[str, Any]
    terminal: str
    actor: Path
    run: Path
    expected: dict[str, float]


def sample(task: Path, merged: Path, samples: int) -> dict[str, float]:
    """Accuracy, entropy of the distribution sampled from, and length, by transformers and the exact entropies."""
    import pyarrow.parquet as pq
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    from aent_verl.data.tasks.reward import compute_score
    from aent_verl.data.tasks.warm_start import prompt_ids

    model, tokenizer = AutoModelForCausalLM.from_pretrained(merged), AutoTokenizer.from_pretrained(task / "model")
    model.generation_config = GenerationConfig.from_pretrained(task / "model")
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
def evaluated(task: Path, grid: Grid) -> Evaluated:
    scores = read_evaluation(grid.aent)
    assert scores is not None
    summary = json.loads((grid.aent / "evaluation" / "evaluation.json").read_text())
    terminal = (grid.aent / "evaluate.console.log").read_text()
    actor = grid.aent / "checkpoints" / f"global_step_{STEPS}" / "actor"
    return Evaluated(scores, summary, terminal, actor, grid.aent, sample(task, actor / "huggingface_merged", 64))


def test_the_checkpoint_is_its_ranks_shards_put_together(evaluated: Evaluated, task: Path) -> None:
    from safetensors.torch import load_file

    shards = [
        torch.load(evaluated.actor / f"model_world_size_{RANKS}_rank_{rank}.pt", weights_only=False)
        for rank in range(RANKS)
    ]
    merged = load_file(evaluated.actor / "huggingface_merged" / "model.safetensors")
    started = load_file(task / "model" / "model.safetensors")
    for name, whole in merged.items():
        parts = torch.cat([shard[name].to_local() for shard in shards])
        torch.testing.assert_close(whole, parts[: len(whole)].to(whole.dtype), rtol=0, atol=0)
    assert any(not torch.equal(merged[name], weight) for name, weight in started.items() if name in merged)


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


def test_scores_belong_to_the_texts_next_to_them(evaluated: Evaluated) -> None:
    for one in read_responses(evaluated.run).values():
        for text, score in zip(one.responses, one.scores, strict=True):
            assert score == float(text.strip() == one.ground_truth), (text, one.ground_truth)


def test_it_was_evaluated_as_its_run_says(evaluated: Evaluated) -> None:
    assert "as in " in evaluated.terminal
    assert "reward.custom_reward_function" in evaluated.terminal
    assert evaluated.summary["sampling"]["max_tokens"] == LONGEST
    assert evaluated.summary["reward"] == "pkg://aent_verl.data.tasks.reward:compute_score"
    for part in (f"mean@{SAMPLES}", "reasoning_gym", f"{PROBLEMS * SAMPLES} of {PROBLEMS * SAMPLES} responses"):
        assert part in evaluated.terminal
    assert "Traceback" not in evaluated.terminal
