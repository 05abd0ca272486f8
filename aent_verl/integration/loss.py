"""verl's PPO loss with an entropy term, and the sums from which the driver forms the step's means."""

from typing import Any

from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss
from verl.utils import tensordict_utils as tu
from verl.utils.metric import AggregationType, Metric
from verl.workers.utils.losses import ppo_loss
from verl.workers.utils.padding import no_padding_2_padding

from aent_verl.core import bonus
from aent_verl.core.numerics import masked_sum
from aent_verl.integration.config import EntropyControlActorConfig

COEFFICIENT = "aent_coefficient"
ENTROPY = "aent_entropy"
ENTROPY_FULL = "aent_entropy_full"
REMOVED_MASS = "aent_removed_mass"

# Sums over response tokens that leave each rank; the driver divides by TOKENS. The names avoid "max" and "min", which
# verl's metric reduction reads as instructions.
TOKENS = "aent/token_count"
SUMS = {ENTROPY: "aent/entropy_sum", ENTROPY_FULL: "aent/entropy_full_sum", REMOVED_MASS: "aent/removed_mass_sum"}
BONUS_LOSS = "aent/bonus_loss"
COEFFICIENT_LOWEST = "aent/coefficient_lowest"
COEFFICIENT_HIGHEST = "aent/coefficient_highest"


def step_coefficient(data: TensorDict) -> float:
    """The coefficient that the driver sent with this batch.

    Raises:
        RuntimeError: the batch carries none, so the driver does not run our trainer.
    """
    value = tu.get_non_tensor_data(data=data, key=COEFFICIENT, default=None)
    if value is None:
        raise RuntimeError(
            "this batch carries no entropy coefficient: the driver does not run an aent_verl trainer; "
            "set trainer.v1.trainer_mode=aent_sync"
        )
    return float(value)


def entropy_control_loss(
    config: EntropyControlActorConfig, model_output: dict[str, Tensor], data: TensorDict, dp_group: Any = None
) -> tuple[Tensor, dict[str, Any]]:
    """``L = L_verl - lambda * agg(H)`` with verl's ``agg_loss`` in the run's ``loss_agg_mode`` (arXiv 2509.03493).

    Args:
        config: the actor's config; its ``loss_agg_mode`` and ``loss_scale_factor`` hold for the bonus too.
        model_output: nested ``[B, j]`` tensors: ``log_probs``, and what our engine adds, ``aent_entropy`` (nats, with
            gradient where lambda != 0), ``aent_entropy_full``, ``aent_removed_mass``.
        data: a micro-batch with the coefficient of the step in its metadata.
        dp_group: data-parallel group; unused, part of verl's interface.

    Returns:
        The loss to differentiate, and verl's metrics with our sums beside them.

    Raises:
        RuntimeError: no coefficient in ``data``, or no entropy in ``model_output``: part of the plug-in is not active.
    """
    coefficient = step_coefficient(data)
    if ENTROPY not in model_output:
        raise RuntimeError("the engine returned no aent_entropy: the worker does not run aent_verl's engine")
    policy_output = {key: value for key, value in model_output.items() if key != "entropy"}
    loss, metrics = ppo_loss(config=config, model_output=policy_output, data=data, dp_group=dp_group)

    mask = data.select("response_mask").to_padded_tensor()["response_mask"].bool()
    per_token = {key: no_padding_2_padding(model_output[key], data) for key in SUMS}
    metrics |= {
        name: Metric(value=masked_sum(per_token[key].detach(), mask), aggregation=AggregationType.SUM)
        for key, name in SUMS.items()
    }
    metrics[TOKENS] = Metric(value=mask.sum(), aggregation=AggregationType.SUM)
    metrics[COEFFICIENT_LOWEST] = Metric(value=coefficient, aggregation=AggregationType.MIN)
    metrics[COEFFICIENT_HIGHEST] = Metric(value=coefficient, aggregation=AggregationType.MAX)

    # A coefficient of zero adds no term: the loss is then verl's own. The entropy is measured all the same.
    if coefficient != 0.0:
        term = agg_loss(
            loss_mat=bonus.linear(per_token[ENTROPY], coefficient),
            loss_mask=mask,
            loss_agg_mode=config.loss_agg_mode,
            **config.global_batch_info,
        )
        loss = loss + term
        metrics[BONUS_LOSS] = Metric(value=term, aggregation=AggregationType.SUM)
    else:
        metrics[BONUS_LOSS] = Metric(value=0.0, aggregation=AggregationType.SUM)
    return loss, metrics
