"""AEnt for TRL's GRPO: a bonus on the clamped entropy, whose coefficient a controller moves after each optimizer step.

Written for TRL 1.16.0, whose `GRPOTrainer` computes log-probs and entropies inside its LM head, in chunks. Here that
one function is ours; the rest of TRL, its policy loss included, stays as it is.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import trl.trainer.utils
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from aent_verl import BandController, clamped_entropy, linear_logprobs_and_entropy

STATE_FILE = "aent_controller.json"


@dataclass
class ClampedHead:
    """Stands in for `trl.kernels.ChunkedLogProbFunction`: the same log-probs, and with them the clamped entropy."""

    clamp_p: float
    called: bool = False

    def apply(self, hidden, weight, bias, labels, temperature, _chunk_size, softcap, logit_scale, _outputs):
        """Return log-probs and entropies, both with gradient, and nothing for TRL's other statistics.

        ``[N, D], [V, D], [N] -> [N], [N]``, in nats.
        """
        self.called = True
        for key, value in (("lm_head.bias", bias), ("final_logit_softcapping", softcap)):
            if value is not None:
                shown = list(value.shape) if isinstance(value, Tensor) else value
                raise ValueError(f"{key}={shown}: AEnt's LM head has none; train a model without")
        log_probs, entropy = linear_logprobs_and_entropy(
            hidden,
            weight.to(hidden.dtype),
            labels,
            functional="clamped",
            clamp_p=self.clamp_p,
            temperature=temperature / logit_scale,
        )
        return log_probs, entropy, None, None, None


class AEntGRPOTrainer(GRPOTrainer):
    """`GRPOTrainer` with AEnt (arXiv 2509.03493).

    Args:
        controller: moves the coefficient of the bonus; entropies in nats, steps are optimizer steps.
        clamp_p: share of the vocabulary, that of the lowest logits, which the entropy leaves out, in ``[0, 1)``.

    All other arguments are `GRPOTrainer`'s.

    Raises:
        ValueError: a setting that this cannot be combined with; the message says what to set instead.
    """

    def __init__(self, *args, controller: BandController, clamp_p: float, **kwargs):
        clamped_entropy(torch.zeros(2), clamp_p)  # refuses a share out of range before a model is loaded
        super().__init__(*args, **kwargs)
        for key, allowed in (("entropy_coef", 0.0), ("use_adaptive_entropy", False), ("top_entropy_quantile", 1.0)):
            if (value := getattr(self.args, key)) != allowed:
                raise ValueError(f"{key}={value!r} is not allowed with AEnt: must be {allowed!r}; use `controller`")
        if (plugin := getattr(self.args, "deepspeed_plugin", None)) is not None and plugin.zero_stage == 3:
            raise ValueError("zero_stage=3 is not allowed with AEnt, whose LM head needs whole weights: use 0, 1 or 2")
        self.controller = controller
        self.controller_state = controller.initial_state()
        self._head = ClampedHead(clamp_p)
        self._entropy = None  # [B, T] of the last forward pass
        self._window = 0.0  # sum of entropies and number of tokens since the last optimizer step

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        with mock.patch.object(trl.trainer.utils, "_ChunkedLogProbFunction", self._head):
            log_probs, self._entropy, aux_loss = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if not self._head.called:
            raise RuntimeError(f"trl {trl.__version__} computes its entropies elsewhere, not clamped: use trl==1.16.0")
        return log_probs, self._entropy, aux_loss

    def _compute_loss(self, model, inputs):
        loss = super()._compute_loss(model, inputs)
        entropy, self._entropy = self._entropy, None
        if not self.model.training:  # evaluation: the policy loss alone, and nothing for the controller
            return loss
        mask = inputs["completion_mask"] * inputs.get("tool_mask", 1)
        self._window = self._window + torch.stack([(entropy.detach() * mask).sum(), mask.sum()])
        coefficient = self.controller_state.coefficient
        if coefficient != 0:
            loss = loss - coefficient * self._average(entropy, mask, inputs)
        if self.accelerator.sync_gradients:
            self._update_controller()
        return loss

    def _average(self, values: Tensor, mask: Tensor, inputs: dict) -> Tensor:
        """Average ``[B, T]`` as TRL averages the policy loss, with this micro-batch's share of the optimizer step."""
        steps = self.current_gradient_accumulation_steps
        values, tokens = values * mask, mask.sum(-1)
        if self.loss_type in ("cispo", "dapo", "vespo"):
            # TRL counts the tokens of all ranks and of the whole generation batch.
            generated = inputs["num_items_in_batch"].clamp(min=1.0) / self.accelerator.num_processes
            return values.sum() / (generated * steps / self.args.steps_per_generation)
        if self.loss_type in ("grpo", "sapo"):
            return (values.sum(-1) / tokens.clamp(min=1.0)).mean() / steps
        if self.loss_type == "bnpo":
            return values.sum() / tokens.sum().clamp(min=1.0) / steps
        if self.loss_type == "dr_grpo":
            return values.sum() / (len(values) * self.max_completion_length) / steps
        if self.loss_type == "luspo":
            return values.sum(-1).mean() / steps
        raise ValueError(f"loss_type={self.loss_type!r}: `_average` does not have TRL's normalisation of it")

    def _update_controller(self) -> None:
        """Move the coefficient once per optimizer step, by the mean over all tokens of the step on all ranks."""
        total, tokens = self.accelerator.reduce(self._window, reduction="sum").tolist()
        self._window = 0.0
        entropy = total / tokens if tokens else float("nan")  # the controller counts NaN, and stays
        self._metrics["train"]["aent/entropy"].append(entropy)
        self._metrics["train"]["aent/coefficient"].append(self.controller_state.coefficient)
        self.controller_state = self.controller.update(
            self.controller_state, entropy=entropy, step=self.state.global_step + 1
        )

    def _save_checkpoint(self, model, trial):
        # First: the trainer's own state, without which nothing resumes, is written last.
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / STATE_FILE).write_text(json.dumps(self.controller_state.to_dict()))
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        try:
            saved = self.controller.state_class.from_dict(json.loads(Path(checkpoint, STATE_FILE).read_text()))
        except (OSError, ValueError) as error:
            raise ValueError(
                f"resume_from_checkpoint={checkpoint!r} has no usable {STATE_FILE} ({error}): "
                "resume another checkpoint, or pass the folder as `model` to start a new run from its weights"
            ) from error
        self.controller_state = self.controller.restore(saved)
