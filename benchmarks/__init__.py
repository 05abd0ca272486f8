"""What the entropies cost, compared with stock verl: `logits_op`, `linear_memory` and `actor_update` are scripts.

So is `data_check`, for the checks of data before a run.
"""
