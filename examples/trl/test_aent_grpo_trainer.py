"""The TRL example against plain computations and stock TRL; run by `make test-trl`, in an environment of its own."""

import json
import math
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from aent_grpo_trainer import STATE_FILE, AEntGRPOTrainer
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer

from aent_verl import BandController
from aent_verl.data.tasks.tiny_model import build_model, build_tokenizer

torch.set_num_threads(1)
CLAMP_P = 0.33
TEMPERATURE = 0.7
COEFFICIENT = 0.05
RULE = {"init": COEFFICIENT, "low": 1.0, "high": 4.0, "lr": 0.03, "warmup_steps": 2, "min": 0.0, "max": 0.2}
LOSS_TYPES = ("grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "luspo", "vespo")
PROMPT, COMPLETION = 3, 5


def share_of_digits(completions: list[str], **_: object) -> list[float]:
    return [sum(character.isdigit() for character in text) / max(1, len(text)) for text in completions]


def make(output: Path, stock: bool = False, bias: bool = False, clamp_p: float = CLAMP_P, **settings) -> GRPOTrainer:
    tokenizer = build_tokenizer()
    model = build_model(tokenizer, hidden_size=64, layers=1, seed=0)
    if bias:
        model.lm_head.bias = torch.nn.Parameter(torch.zeros(model.lm_head.out_features))
    prompts = Dataset.from_dict({"prompt": [f"Digits ({i}):" for i in range(64)]})
    config = {
        "max_steps": 4,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": COMPLETION,
        "temperature": TEMPERATURE,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "save_strategy": "no",
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "disable_tqdm": True,
        "report_to": "none",
    }
    own = {} if stock else {"controller": BandController(**RULE), "clamp_p": clamp_p}
    return (GRPOTrainer if stock else AEntGRPOTrainer)(
        model=model,
        reward_funcs=share_of_digits,
        args=GRPOConfig(output_dir=str(output), **{**config, **settings}),
        train_dataset=prompts,
        eval_dataset=prompts.select(range(2)),
        processing_class=tokenizer,
        **own,
    )


def in_training(trainer: GRPOTrainer, *, steps: int = 1) -> GRPOTrainer:
    """Bring a trainer to where a step of ``steps`` micro-batches begins, without starting its loop."""
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = steps
    trainer.args.steps_per_generation = steps
    return trainer


def batch(*, rows: int = 4, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    """Prompts padded on the left and completions padded on the right, as TRL makes them."""
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, 256, (rows, PROMPT), generator=generator)
    completion = torch.randint(0, 256, (rows, COMPLETION), generator=generator)
    lengths = torch.tensor([5, 2, 4, 1])[:rows]
    mask = (torch.arange(COMPLETION) < lengths[:, None]).long()
    prompt_mask = torch.ones_like(prompt)
    prompt_mask[1, 0] = 0
    return {
        "prompt_ids": prompt,
        "prompt_mask": prompt_mask,
        "completion_ids": completion,
        "completion_mask": mask,
        "advantages": torch.tensor([1.0, -0.5, 0.3, -0.8], dtype=dtype)[:rows],
        # Some ratios are clipped.
        "old_per_token_logps": -6 + torch.randn(rows, COMPLETION, generator=generator, dtype=dtype),
        "num_items_in_batch": mask.sum(),
    }


def plain_terms(model: torch.nn.Module, inputs: dict) -> tuple[list, list, list]:
    """Policy losses, clamped entropies (nats) and full entropies of each completion's tokens, in loops."""
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
    logits = model(input_ids=ids, attention_mask=attention).logits / TEMPERATURE
    losses, entropies, full = [], [], []
    for b in range(len(ids)):
        losses.append([])
        entropies.append([])
        full.append([])
        for t in range(int(inputs["completion_mask"][b].sum())):
            row = logits[b, PROMPT + t - 1]
            log_prob = row[ids[b, PROMPT + t]] - row.logsumexp(0)
            ratio = (log_prob - inputs["old_per_token_logps"][b, t]).exp()
            advantage = inputs["advantages"][b]
            losses[-1].append(-torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage))
            kept = row.sort().values[int(len(row) * CLAMP_P) :]
            p = (kept - kept.logsumexp(0)).exp()
            entropies[-1].append(-(p * p.log()).sum())
            p = row.softmax(0)
            full[-1].append(-(p * p.log()).sum())
    return losses, entropies, full


def plain_average(values: list[list[torch.Tensor]], loss_type: str) -> torch.Tensor:
    if loss_type == "grpo":
        return sum(sum(row) / len(row) for row in values) / len(values)
    tokens = len(values) * COMPLETION if loss_type == "dr_grpo" else sum(map(len, values))
    return sum(sum(row) for row in values) / tokens


def gradients(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_loss_and_gradient_are_those_of_the_definition(tmp_path: Path, loss_type: str) -> None:
    trainer = in_training(make(tmp_path, loss_type=loss_type))
    model, inputs = trainer.model.double(), batch()
    loss = trainer.compute_loss(model, inputs)
    loss.backward()
    found = gradients(model)
    model.zero_grad()
    losses, entropies, full = plain_terms(model, inputs)
    expected = plain_average(losses, loss_type) - COEFFICIENT * plain_average(entropies, loss_type)
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found, gradients(model), rtol=1e-8, atol=1e-10)
    measured = plain_average(entropies, "bnpo").item()
    assert abs(measured - plain_average(full, "bnpo").item()) > 0.1
    assert trainer._metrics["train"]["aent/entropy"] == [pytest.approx(measured, rel=1e-12)]
    assert trainer.controller_state.entropy == pytest.approx(measured, rel=1e-12)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_without_a_coefficient_it_is_stock_trl(tmp_path: Path, loss_type: str) -> None:
    results = []
    for stock in (True, False):
        trainer = in_training(make(tmp_path, stock=stock, loss_type=loss_type))
        if not stock:
            trainer.controller_state = BandController(**{**RULE, "init": 0.0}).initial_state()
        loss = trainer.compute_loss(trainer.model, batch(dtype=torch.float32))
        loss.backward()
        results.append((loss.detach(), gradients(trainer.model)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_the_bonus_is_averaged_as_the_policy_loss(
    tmp_path: Path, loss_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL adds beta times its KL per token before it averages: the difference that beta makes is TRL's average."""
    trainer = in_training(make(tmp_path, loss_type=loss_type, use_bias_correction_kl=False), steps=3)
    trainer.args.steps_per_generation = 6
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    trainer.model.double()
    inputs = {**batch(), "num_items_in_batch": torch.tensor(31)}
    inputs["ref_per_token_logps"] = inputs["old_per_token_logps"] - 0.5
    trainer.controller = BandController(**{**RULE, "lr": 0.0})
    kl = []
    original = trainer._get_per_token_logps_and_entropies

    def remember(*args, **kwargs):
        log_probs, entropy, aux = original(*args, **kwargs)
        gap = inputs["ref_per_token_logps"] - log_probs.detach()
        kl.append(gap.exp() - gap - 1)
        return log_probs, entropy, aux

    trainer._get_per_token_logps_and_entropies = remember
    losses = []
    for trainer.beta in (0.0, 2.0):
        losses.append(trainer.compute_loss(trainer.model, inputs).item())
    average = trainer._average(kl[0], inputs["completion_mask"], inputs).item()
    assert losses[1] - losses[0] == pytest.approx(2.0 * average, rel=1e-9)


def test_a_loss_type_without_a_known_average_is_refused(tmp_path: Path) -> None:
    trainer = in_training(make(tmp_path))
    trainer.loss_type = "new"
    with pytest.raises(ValueError, match="loss_type='new'"):
        trainer._average(torch.ones(1, 1), torch.ones(1, 1), {})


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_micro_batches_add_up_to_the_whole(tmp_path: Path, loss_type: str) -> None:
    found = []
    for steps in (1, 4):
        trainer = in_training(make(tmp_path, loss_type=loss_type), steps=steps)
        model, inputs = trainer.model.double(), batch()
        for part in range(steps):
            trainer.accelerator.gradient_state._set_sync_gradients(part == steps - 1)
            rows = slice(part * 4 // steps, (part + 1) * 4 // steps)
            micro = {key: value if value.ndim == 0 else value[rows] for key, value in inputs.items()}
            trainer.compute_loss(model, micro).backward()
        assert trainer.controller_state.measurements == 1
        found.append((gradients(model), torch.tensor(trainer.controller_state.entropy)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-12)


def test_tokens_of_tools_are_left_out(tmp_path: Path) -> None:
    trainer = in_training(make(tmp_path))
    model, inputs = trainer.model.double(), batch()
    inputs["tool_mask"] = torch.ones_like(inputs["completion_mask"])
    inputs["tool_mask"][:, 1] = 0
    trainer.compute_loss(model, inputs)
    entropies = plain_terms(model, inputs)[1]
    own = [value.item() for row in entropies for t, value in enumerate(row) if t != 1]
    assert trainer.controller_state.entropy == pytest.approx(sum(own) / len(own), rel=1e-12)


def test_a_step_without_tokens_is_only_counted(tmp_path: Path) -> None:
    trainer = in_training(make(tmp_path))
    inputs = {**batch(), "completion_mask": torch.zeros(4, COMPLETION, dtype=torch.long)}
    assert trainer.compute_loss(trainer.model.double(), inputs).item() == 0
    state = trainer.controller_state
    assert (state.nonfinite, state.measurements, state.coefficient) == (1, 0, COEFFICIENT)


def history(trainer: GRPOTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


def rule(coefficient: float, entropy: float, step: int) -> float:
    if step < RULE["warmup_steps"]:
        return coefficient
    excess = min(0.0, entropy - RULE["low"]) + max(0.0, entropy - RULE["high"])
    return min(max(coefficient - RULE["lr"] * excess, RULE["min"]), RULE["max"])


@pytest.mark.parametrize(
    "settings",
    [{}, {"gradient_accumulation_steps": 2}, {"gradient_accumulation_steps": 2, "num_iterations": 2}],
    ids=["plain", "accumulated", "iterated"],
)
def test_the_coefficient_follows_the_rule_once_per_optimizer_step(tmp_path: Path, settings: dict) -> None:
    trainer = make(tmp_path, **settings)
    trainer.train()
    coefficients, entropies = history(trainer, "aent/coefficient"), history(trainer, "aent/entropy")
    expected = [COEFFICIENT]
    for step, entropy in enumerate(entropies, start=1):
        expected.append(rule(expected[-1], entropy, step))
    assert [*coefficients, trainer.controller_state.coefficient] == pytest.approx(expected, rel=1e-12)
    assert len(coefficients) == 4
    assert len(set(coefficients)) == 3  # the first step belongs to the warm-up
    assert (trainer.controller_state.step, trainer.controller_state.measurements) == (4, 4)


def test_a_resumed_run_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", save_strategy="steps", save_steps=2, gradient_accumulation_steps=2)
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-2"
    resumed = make(tmp_path / "resumed", gradient_accumulation_steps=2)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.controller_state == whole.controller_state
    assert whole.controller_state.coefficient != json.loads((checkpoint / STATE_FILE).read_text())["coefficient"]
    for name in ("aent/coefficient", "aent/entropy"):
        assert history(resumed, name) == history(whole, name)
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("content", [None, "{", '{"coefficient": "high"}'], ids=["missing", "cut", "wrong"])
def test_a_checkpoint_without_a_state_is_refused(tmp_path: Path, content: str | None) -> None:
    make(tmp_path, save_strategy="steps", save_steps=1, max_steps=1).train()
    checkpoint = tmp_path / "checkpoint-1"
    (checkpoint / STATE_FILE).unlink()
    if content is not None:
        (checkpoint / STATE_FILE).write_text(content)
    with pytest.raises(ValueError, match=rf"resume_from_checkpoint=.*{STATE_FILE}.*as `model`"):
        make(tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_evaluation_leaves_the_controller(tmp_path: Path) -> None:
    trainer = in_training(make(tmp_path))
    trainer._window = torch.tensor([7.0, 2.0])
    state = trainer.controller_state
    trainer.evaluate()
    assert trainer.controller_state is state
    assert trainer._window.tolist() == [7.0, 2.0]
    trainer.model.eval()
    losses = [t.compute_loss(t.model.eval(), batch()).item() for t in (trainer, make(tmp_path, stock=True))]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"entropy_coef": 0.1}, r"entropy_coef=0\.1 .* must be 0\.0"),
        ({"use_adaptive_entropy": True}, "use_adaptive_entropy=True .* must be False"),
        ({"top_entropy_quantile": 0.2}, r"top_entropy_quantile=0\.2 .* must be 1\.0"),
        ({"clamp_p": 1.0}, r"clamp_p=1\.0"),
    ],
)
def test_settings_that_cannot_be_combined_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **settings)


def test_a_head_that_the_op_does_not_have_is_refused(tmp_path: Path) -> None:
    trainer = in_training(make(tmp_path, bias=True))
    with pytest.raises(ValueError, match=r"lm_head\.bias=\[\d+\]"):
        trainer.compute_loss(trainer.model, batch(dtype=torch.float32))


def test_a_trl_that_does_not_call_the_head_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = in_training(make(tmp_path))
    monkeypatch.setattr("aent_grpo_trainer.mock.patch.object", lambda *_: nullcontext())
    with pytest.raises(RuntimeError, match=r"use trl==1\.16\.0"):
        trainer.compute_loss(trainer.model, batch(dtype=torch.float32))


def test_ranks_share_one_coefficient(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, str(tmp_path)]
    done = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first["coefficients"] == second["coefficients"]
    assert len(set(first["coefficients"])) == 2
    pairs = list(zip(first["windows"], second["windows"], strict=True))
    assert all(not math.isclose(a[0] / a[1], b[0] / b[1], rel_tol=1e-5) for a, b in pairs)
    expected = [(a[0] + b[0]) / (a[1] + b[1]) for a, b in pairs]
    assert first["entropies"] == second["entropies"] == pytest.approx(expected, rel=1e-6)


def one_rank(output: Path) -> None:
    trainer = make(output, max_steps=3, ddp_backend="gloo")
    windows, update = [], trainer._update_controller

    def remember():
        windows.append(trainer._window.tolist())
        update()

    trainer._update_controller = remember
    coefficients, entropies = [], []
    move = BandController.update

    def moved(self, state, *, entropy, step):
        coefficients.append(state.coefficient)
        entropies.append(entropy)
        return move(self, state, entropy=entropy, step=step)

    BandController.update = moved
    trainer.train()
    found = {"coefficients": coefficients, "entropies": entropies, "windows": windows}
    (output / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]))
