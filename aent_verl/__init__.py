"""Entropy control for LLM reinforcement learning: AEnt and its relatives as a plug-in for verl."""

from aent_verl._version import __version__

__all__ = ["__version__"]
