#!/usr/bin/env bash
# One run as a job of a Ray cluster that is up: it outlives the terminal that it was typed in.
# Arguments are Hydra overrides; without an experiment it is the paper's first, on MATH.
#   export RAY_ADDRESS=http://<head>:8265
#   examples/cluster/ray_job.sh trainer.nnodes=2 trainer.n_gpus_per_node=4 entropy_control=aent
#   examples/cluster/ray_job.sh trainer.nnodes=2 trainer.n_gpus_per_node=4 entropy_control=grpo
#   ray job list; ray job logs --follow <id>; ray job stop <id>
# Submit from a folder that all nodes share, with an environment that all nodes have at the same path. The same line
# resumes a run.
set -euo pipefail
: "${RAY_ADDRESS:?name the cluster: http://<head>:8265, as ray start --head prints it}"

if [[ " $* " != *" experiment="* ]]; then
  set -- experiment=qwen2.5_math_1.5b_math data.train_files=data/math/math-train.parquet \
    data.val_files=data/math/math500-test.parquet 'trainer.logger=[console,tensorboard,file,wandb]' "$@"
fi
# shellcheck disable=SC2016  # For the shell of the job.
exec ray job submit --no-wait --runtime-env="$(dirname "$0")/ray_job_env.yaml" -- \
  bash -c 'cd "$0" && exec "$@"' "$PWD" "$(command -v aent-verl)" train "$@"
