"""``aent-verl evaluate key=value ...``: sampled answers of a model to problems, scored, summarised and kept."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from aent_verl import _util

if TYPE_CHECKING:
    from omegaconf import DictConfig

HELP = """\
usage: aent-verl evaluate model=MODEL data=FILE [key=value ...]

Sample n responses to each problem through verl's vLLM servers and score them: mean@n, pass@k, maj@n, length, entropy.

  aent-verl evaluate model=outputs/aent_verl/cpu_arithmetic_aent/checkpoints/global_step_40 platform=cpu
  aent-verl evaluate experiment=qwen2.5_math_1.5b_math model=Qwen/Qwen2.5-Math-1.5B \\
      data=[math500.parquet,aime24.parquet] n=32          lengths, sampling and reward of that experiment
  aent-verl evaluate model=... data=gsm8k.parquet n=32 temperature=0.6 top_p=0.95 max_response_length=3072

  model                a model folder, a name on the hub, or a checkpoint of verl's (global_step_N)
  data                 a file, or [several,files], in verl's format: prompt, data_source, reward_model.ground_truth
  n                    responses per problem (16)
  temperature, top_p, top_k                  how they are sampled (1.0, 1.0, -1); temperature=0: the likeliest token
  max_prompt_length, max_response_length     in tokens (512, 512)
  seed                 of the servers' random state (42); results are equal up to timing, not bit for bit
  gpus                 on each of trainer.nnodes nodes (8); one server takes rollout.tensor_model_parallel_size (1)
  output               folder of the results (evaluation/ in the checkpoint's run, else outputs/evaluation/<model>)
  overwrite=true       replace the results of another evaluation there
  scorers, score_timeout                     processes that score (one per core, up to 16), seconds per response (30)
  reward.custom_reward_function.path, .name  the reward function (verl's own for its data sources)

For a checkpoint the defaults are those of its run; every other key of verl's can be set as in `aent-verl train`.
Results: evaluation.json (summary), scores.jsonl (a line per problem), responses.jsonl, evaluation.log
Show the composed config without running: --cfg job [--resolve]
"""


def main(overrides: Sequence[str]) -> int:
    """Evaluate, and return the process's exit status."""
    if list(overrides) in (["--help"], ["-h"]):
        print(HELP, end="")
        return 0
    _util.require("verl", "aent-verl evaluate")
    from aent_verl.evaluation.settings import long_form
    from aent_verl.launch import compose

    return compose.run("aent-verl evaluate", long_form(overrides), compose.EVALUATION, run)


def run(cfg: DictConfig) -> None:
    """Evaluate on the config that Hydra composed from the command line; end the process where that fails."""
    from hydra.core.hydra_config import HydraConfig

    from aent_verl.evaluation import checkpoint, settings
    from aent_verl.evaluation.evaluate import LOG, evaluate
    from aent_verl.launch.terminal import exit_on_error

    typed = settings.typed_keys(HydraConfig.get().overrides.task)
    with exit_on_error(words=settings.short_form):
        model = checkpoint.locate(cfg.actor_rollout_ref.model.path)
    output = Path(os.path.abspath(cfg.evaluation.output or model.output))
    cfg.evaluation.output = str(output)
    with exit_on_error(output / LOG if cfg.run.progress else None, words=settings.short_form) as terminal:
        evaluate(cfg, model, typed, terminal)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
