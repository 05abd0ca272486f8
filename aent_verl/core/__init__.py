"""Entropy functionals, bonus terms and controllers in plain PyTorch: no verl, no ray, no Hydra."""
