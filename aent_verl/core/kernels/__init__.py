"""Triton forms of `aent_verl.core.rows`: nothing of full size but the gradient, and few reads of the logits.

`token_entropy` is the part that the rest of the package calls; importing it does not need Triton, calling it does.
"""
