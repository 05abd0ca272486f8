"""Checks made in the driver before Ray starts: each error names the setting, what it points to and what to do.

Nothing here imports verl before `run` is called: by then the platform is decided.
"""

from omegaconf import DictConfig

from aent_verl.preflight import data, model, resources, reward
from aent_verl.preflight.errors import PreflightError
from aent_verl.preflight.resources import check_cluster

__all__ = ["PreflightError", "check_cluster", "run"]


def run(cfg: DictConfig) -> list[str]:
    """Check verl's API, data, model, reward function and resources; call it once verl's platform is decided.

    Args:
        cfg: the composed config.

    Returns:
        One line for each passed check.

    Raises:
        PreflightError: a setting does not fit.
        ContractError: the installed verl is not what our code relies on.
    """
    from aent_verl.integration import compat, contract

    compat.check_contract()
    sample, lines = data.check(cfg)
    return [
        f"verl API: {len(contract.CONTRACT)} facts hold",
        *lines,
        *model.check(cfg, sample),
        *reward.check(cfg, sample),
        *resources.check(cfg),
    ]
