"""Train a tiny random model on the CPU to answer with digits, with and without AEnt, in about a minute."""

import argparse

import torch
from aent_grpo_trainer import AEntGRPOTrainer
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig

from aent_verl import BandController
from aent_verl.data.tasks.tiny_model import build_model, build_tokenizer

CONTROLLERS = {
    "aent": BandController(init=0.1, low=0.9, high=1.3, lr=0.02, warmup_steps=40, min=0.0, max=0.2),
    # A coefficient of 0 that never moves: plain GRPO, measured in the same way.
    "grpo": BandController(init=0.0, low=0.0, high=0.0, lr=0.0, warmup_steps=0, min=0.0, max=0.0),
}


def share_of_digits(completions: list[str], **_) -> list[float]:
    """Reward the share of an answer's characters that are digits."""
    return [sum(character.isdigit() for character in text) / max(1, len(text)) for text in completions]


class Table(TrainerCallback):
    """Print one line per optimizer step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" in logs:
            columns = (logs["reward"], logs["aent/entropy"], logs["aent/coefficient"])
            print(f"{state.global_step:4d}" + "".join(f"{value:12.3f}" for value in columns), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", choices=CONTROLLERS, default="aent")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--output", default="outputs/trl")
    parser.add_argument("--resume", metavar="CHECKPOINT", help="continue from OUTPUT/checkpoint-N")
    options = parser.parse_args()

    torch.set_num_threads(1)  # a model this small only loses by more
    tokenizer = build_tokenizer()
    config = GRPOConfig(
        output_dir=options.output,
        max_steps=options.steps,
        per_device_train_batch_size=32,
        gradient_accumulation_steps=2,
        num_generations=8,
        max_completion_length=16,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_steps=40,
        logging_steps=1,
        use_cpu=True,
        bf16=False,
        activation_checkpointing=False,
        disable_tqdm=True,
        report_to="none",
    )
    trainer = AEntGRPOTrainer(
        model=build_model(tokenizer, hidden_size=64, layers=2, seed=0),
        reward_funcs=share_of_digits,
        args=config,
        train_dataset=Dataset.from_dict({"prompt": [f"Digits, please ({i}):" for i in range(1000)]}),
        processing_class=tokenizer,
        callbacks=[Table()],
        controller=CONTROLLERS[options.method],
        clamp_p=0.95,
    )
    trainer.remove_callback(PrinterCallback)
    print("step      reward     entropy  coefficient")
    trainer.train(resume_from_checkpoint=options.resume)


if __name__ == "__main__":
    main()
