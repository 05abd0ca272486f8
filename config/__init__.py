"""Hydra configuration; installed as ``aent_verl._config``, so that ``pkg://aent_verl._config`` finds it."""
