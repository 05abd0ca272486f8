"""What is run: the lines of the picture, and the sweeps that say how far they depend on our choices."""

from dataclasses import dataclass
from typing import Any

import torch

from aent_verl.core.controllers import BandController
from examples.synthetic_mdp.mdp import Start
from examples.synthetic_mdp.train import STEP_SIZE, Method, train

COEFFICIENT, CLAMP_P = 0.12, 0.99
# AEnt starts where a constant coefficient fails, and has to find its way down.
AENT_INIT = 0.2
METHODS = {
    "none": Method(),
    "full": Method(COEFFICIENT),
    "clamped": Method(COEFFICIENT, CLAMP_P),
    "AEnt": Method(
        AENT_INIT,
        CLAMP_P,
        controller=BandController(init=AENT_INIT, low=0.1, high=0.3, lr=1e-4, warmup_steps=1, min=0.0, max=0.3),
    ),
}
COEFFICIENTS = (0.02, 0.05, 0.08, 0.1, 0.12, 0.15, 0.2)
CLAMPS = (0.0, 0.33, 0.9, 0.99)
STEP_SIZES = (2.5, 5.0, STEP_SIZE, 20.0, 40.0)
STARTS = {
    "flatter: Zipf, exponent 1": Start("flat-zipf"),
    "normal logits, deviation 3": Start("gaussian"),
    "uniform": Start("uniform"),
    "optimal actions at ranks 1,001 to 10,000": Start(first_rank=1001, last_rank=10_000),
    "as in the picture, classes of one action up to rank 300": Start(head=300),
}
# The sweeps have seeds of their own: nothing is chosen on the seeds of the picture.
SWEEP_SEEDS = [100, 101]
MEASUREMENTS = 100


@dataclass(frozen=True)
class Job:
    """One call of `train`: a part of the experiment for one number of optimal actions."""

    part: str
    optimal: int
    steps: int
    seeds: int

    def __str__(self) -> str:
        return f"{self.part}, {self.optimal} optimal"


def jobs(optimal: list[int], steps: int, seeds: int) -> list[Job]:
    """Everything, the longest first."""
    few = sorted({max(optimal), min(optimal)}, reverse=True)
    parts = [("grid", optimal), ("curves", optimal), ("step size", few), *((name, few) for name in STARTS)]
    return [Job(part, number, steps, seeds) for part, numbers in parts for number in numbers]


def run(job: Job) -> Any:
    """The result of a job as it stands in the results file."""
    # Two jobs at a time share the cores better than one with two threads: the tensors are small.
    torch.set_num_threads(1)
    if job.part == "curves":
        return _curves(job)
    if job.part == "grid":
        methods = [Method(coefficient, clamp_p) for clamp_p in CLAMPS for coefficient in COEFFICIENTS]
        final = _final(job, methods, Start())
        width = len(COEFFICIENTS)
        return {str(clamp_p): final[i * width : (i + 1) * width] for i, clamp_p in enumerate(CLAMPS)}
    if job.part == "step size":
        return _final(job, [Method(step_size=step_size) for step_size in STEP_SIZES], Start())
    return dict(zip(METHODS, _final(job, list(METHODS.values()), STARTS[job.part]), strict=True))


def _curves(job: Job) -> dict[str, Any]:
    seeds = list(range(job.seeds))
    every = max(1, job.steps // MEASUREMENTS)
    curves = train(job.optimal, list(METHODS.values()), seeds, steps=job.steps, every=every, start=Start())
    reward, entropy = curves.reward.tolist(), curves.entropy.tolist()
    return {
        name: {"reward": _rounded(reward[index]), "entropy": _rounded(entropy[index])}
        for index, name in enumerate(METHODS)
    }


def _final(job: Job, methods: list[Method], start: Start) -> list[float]:
    """Reward of each method after the last step, mean over the seeds of the sweeps."""
    curves = train(job.optimal, methods, SWEEP_SEEDS, steps=job.steps, every=job.steps, start=start)
    return [round(value, 3) for value in curves.reward[:, :, -1].mean(1).tolist()]


def _rounded(runs: list[list[float]]) -> list[list[float]]:
    return [[round(value, 3) for value in run] for run in runs]
