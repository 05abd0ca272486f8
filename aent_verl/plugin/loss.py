"""verl's PPO loss around the four axes: shaped advantages go in, the entropy bonus is added, measurements come out."""

from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.workers.utils.losses import ppo_loss

from aent_verl.methods.settings import EntropyControlActorConfig
from aent_verl.plugin import measurements, policy_losses
from aent_verl.plugin.micro_batch import MicroBatch
from aent_verl.plugin.step import CHOSEN, step_values, whole_batch
from aent_verl.plugin.token_dump import TokenDump


def entropy_control_loss(
    config: EntropyControlActorConfig,
    model_output: dict[str, Tensor],
    data: TensorDict,
    dp_group: Any = None,
    *,
    dump: TokenDump | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """``L = L_verl(shaped A) + agg(bonus)`` with verl's ``agg_loss``; for AEnt ``L_verl - lambda * agg(H)``.

    Tokens outside the response mask have no part in it, whatever their numbers are: not even NaN.

    Args:
        config: the actor's config with the parsed axes; its ``loss_agg_mode`` holds for the bonus unless that has one.
        model_output: nested ``[B, j]`` tensors: ``log_probs``, and what our engine adds, ``aent_entropy`` (nats, with
            gradient), ``aent_entropy_full``, ``aent_removed_mass``.
        data: a micro-batch with the step's values in its metadata, and the pre-pass's results where it ran.
        dp_group: data-parallel group; part of verl's interface.
        dump: writes some responses out token by token.

    Returns:
        The loss to differentiate, and verl's metrics with ours beside them.

    Raises:
        RuntimeError: no step values in ``data``, or no entropy in ``model_output``: part of the plug-in is not active.
    """
    control = config.entropy_control
    assert control is not None
    step, whole = step_values(data), whole_batch(data)
    batch = MicroBatch.of(model_output, data)

    shaped = control.advantages.shaping.shape(batch, step, whole)
    log_probs, data = batch.for_policy_loss(shaped)
    config.chosen_tokens.clear()
    if CHOSEN in data:
        config.chosen_tokens[policy_losses.CHOSEN] = batch.chosen
    # verl's own entropy term and metric would be of our functional.
    policy_output = {key: value for key, value in model_output.items() if key != "entropy"} | {"log_probs": log_probs}
    loss, metrics = ppo_loss(config=config, model_output=policy_output, data=data, dp_group=dp_group)

    weigh = control.bonus.weigh(batch)
    term = batch.log_prob.new_zeros(())
    # A coefficient of zero adds no term: the loss is then verl's own. The entropy is measured all the same.
    if step.bonus != 0.0:
        per_token = control.bonus.form.term(batch.entropy, weigh, step, whole)
        over = control.bonus.averaged_tokens(batch.entropy, batch.mask)
        term = batch.aggregate(per_token, config, control.bonus.loss_agg_mode, over=over)
        loss = loss + term
    with torch.no_grad():
        bonus_weight = weigh(torch.ones_like(batch.entropy))
    metrics |= measurements.of_micro_batch(
        batch, shaped=shaped, bonus_weight=bonus_weight, bonus_loss=term, step=step, whole=whole
    )
    if dump is not None:
        dump.write(batch, shaped=shaped, bonus_weight=bonus_weight, step=step.step)
    return loss, metrics
