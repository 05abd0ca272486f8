"""Token budgets and batch sizes against the lengths and the number of the responses.

A prompt has at most ``rollout.prompt_length`` tokens and a response ``rollout.response_length``: verl's agent loops cut
both. Every micro-batch of training must hold one such sequence, and so must vLLM's context.
"""

import math
import os
from collections.abc import Iterator

from omegaconf import DictConfig

from aent_verl.preflight.findings import Finding, Setting, at, without_effect
from aent_verl.preflight.schema import has_critic, value

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
REF, CRITIC = "actor_rollout_ref.ref", "critic"
ENGINE_LENGTH = f"{ROLLOUT}.engine_kwargs.vllm.max_model_len"
# Length of the rows that verl adds where a batch does not divide.
PADDING_ROW = 128


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Find lengths that do not fit into a budget, and batches that do not divide."""
    yield from _rollout(cfg)
    yield from _batches(cfg)
    dynamic, key = cfg.actor_rollout_ref.actor.use_dynamic_bsz, f"{ROLLOUT}.log_prob_use_dynamic_bsz"
    if value(cfg, key) != dynamic:
        yield at(cfg, key).error(
            f"verl requires {ACTOR}.use_dynamic_bsz={dynamic} too",
            f"Set it to {str(dynamic).lower()}, or remove it",
        )
        return
    yield from _passes(cfg)


def longest(cfg: DictConfig) -> int:
    """Count the tokens of the longest sequence, prompt and response."""
    rollout = cfg.actor_rollout_ref.rollout
    return int(rollout.prompt_length + rollout.response_length)


def _lengths(cfg: DictConfig) -> str:
    rollout = cfg.actor_rollout_ref.rollout
    return f"{longest(cfg)} tokens (prompt {rollout.prompt_length}, response {rollout.response_length})"


def ulysses(cfg: DictConfig, key: str) -> int:
    """Count the devices that share a sequence in the engine of the actor, reference or critic at ``key``."""
    # verl copies the deprecated key into the engine's settings for the actor and the reference, not for the critic.
    blocks = (f"{key}.fsdp",) if key == CRITIC else (f"{key}.fsdp_config", key)
    return max(int(value(cfg, f"{block}.ulysses_sequence_parallel_size") or 1) for block in blocks)


def ranks(cfg: DictConfig, key: str) -> int:
    """Count the data-parallel ranks of that engine, at least 1."""
    return max(1, int(cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes) // ulysses(cfg, key))


def rows(cfg: DictConfig) -> tuple[int, int]:
    """Count the responses of a step, without and with the rows that verl adds to fill the last mini-batch."""
    n = cfg.actor_rollout_ref.rollout.n
    multiple = math.lcm(ranks(cfg, ACTOR), cfg.actor_rollout_ref.actor.ppo_mini_batch_size * n)
    if has_critic(cfg):
        multiple = math.lcm(multiple, cfg.critic.ppo_mini_batch_size * n)
    real = cfg.data.train_batch_size * n
    return real, -(-real // multiple) * multiple


def _passes(cfg: DictConfig) -> Iterator[Finding]:
    from verl.trainer.ppo.utils import need_reference_policy

    whole = rows(cfg)[1]
    mini_batch = cfg.actor_rollout_ref.actor.ppo_mini_batch_size * cfg.actor_rollout_ref.rollout.n
    yield from _pass(cfg, "the actor's update", ACTOR, "ppo", ACTOR, mini_batch)
    model = cfg.actor_rollout_ref.model
    rank = value(model, "lora.rank") or model.get("lora_rank") or 0
    adapter = rank > 0 or model.get("lora_adapter_path") is not None
    reference = need_reference_policy(cfg)
    if not value(cfg, "algorithm.rollout_correction.bypass_mode") or (reference and adapter):
        yield from _pass(cfg, "the pass over old log-probs", ROLLOUT, "log_prob", ACTOR, whole)
    if reference and not adapter:
        yield from _pass(cfg, "the reference's pass", REF, "log_prob", REF, whole)
    if has_critic(cfg):
        key = f"{CRITIC}.ppo_infer_max_token_len_per_gpu"
        key = f"+{key}" if value(cfg, key) is None else key
        yield from _tokens(cfg, "the critic", key, ulysses(cfg, CRITIC))


def _pass(cfg: DictConfig, name: str, block: str, kind: str, engine: str, sequences: int) -> Iterator[Finding]:
    """Check how one kind of pass over the batch is cut into micro-batches.

    Args:
        cfg: the composed config.
        name: what it is, for messages.
        block: where its settings are.
        kind: what their names begin with.
        engine: block of the engine that computes it.
        sequences: of all its devices together.
    """
    used, unused = f"{block}.{kind}_max_token_len_per_gpu", f"{block}.{kind}_micro_batch_size_per_gpu"
    switch = f"{block}.use_dynamic_bsz" if kind == "ppo" else f"{block}.{kind}_use_dynamic_bsz"
    if value(cfg, switch):
        yield from _tokens(cfg, name, used, ulysses(cfg, engine))
    else:
        used, unused = unused, used
        yield from _sequences(cfg, name, used, sequences // ranks(cfg, engine))
    yield from without_effect(cfg, [unused], f"{name} goes by {used}", "Remove it")


def _tokens(cfg: DictConfig, name: str, key: str, devices: int) -> Iterator[Finding]:
    """Compare the tokens that a device takes with the longest sequence, which so many devices share."""
    from verl.workers.config import CriticConfig

    real, padded = rows(cfg)
    length, what = longest(cfg), _lengths(cfg)
    if padded > real and length < PADDING_ROW:
        length, what = PADDING_ROW, f"{PADDING_ROW} tokens, the length of the rows that verl pads a batch with"
    given = value(cfg, key.lstrip("+"))
    budget = CriticConfig.ppo_infer_max_token_len_per_gpu if given is None else given
    if budget * devices < length:
        sharing = f" times {devices} devices that share a sequence" if devices > 1 else ""
        needed = -(-length // devices)
        yield Setting(key, budget).error(
            f"{name} must hold a sequence of {what} in {budget}{sharing}: verl fails at the first longer one",
            f"Set {key}={needed} or higher",
            f"at least {needed}",
        )


def _sequences(cfg: DictConfig, name: str, key: str, whole: int) -> Iterator[Finding]:
    """Compare the sequences that a device takes at a time with the whole number of them that it gets."""
    size = value(cfg, key)
    if size is None:
        old = at(cfg, key.removesuffix("_per_gpu"))
        missing = Setting(key, None) if old.value is None else old
        yield missing.error(
            f"verl needs {key} for {name}" + (", and no longer reads this one" if old.value else ""),
            f"Set {ACTOR}.use_dynamic_bsz=true, or {key}={math.gcd(whole, 8)}",
        )
    elif size <= 0 or whole % size:
        fits = max(d for d in range(1, max(1, min(size, whole)) + 1) if whole % d == 0)
        yield at(cfg, key).error(
            f"{name} has {whole} sequences per device, which this does not divide: verl fails at the first step",
            f"Set {key}={fits}, or {ACTOR}.use_dynamic_bsz=true",
            f"a divisor of {whole}",
        )


def _batches(cfg: DictConfig) -> Iterator[Finding]:
    actor, n, train = cfg.actor_rollout_ref.actor, cfg.actor_rollout_ref.rollout.n, cfg.data.train_batch_size
    mini_batch = at(cfg, f"{ACTOR}.ppo_mini_batch_size")
    key, size, dp = mini_batch.key, mini_batch.value, ranks(cfg, ACTOR)
    if size * n % dp:
        step = dp // math.gcd(dp, n)
        yield mini_batch.error(
            f"times {ROLLOUT}.n={n} it does not divide among {dp} ranks: verl fails at the first update",
            f"Set {key}={max(1, size // step) * step}",
            f"a multiple of {step}",
        )
        return
    if not actor.use_dynamic_bsz and size > train:
        yield mini_batch.error(
            f"verl refuses a mini-batch larger than data.train_batch_size={train} unless {ACTOR}.use_dynamic_bsz=true",
            f"Set {key}={train}",
            f"at most {train}",
        )
        return
    real, padded = rows(cfg)
    if padded > real:
        problem = f"mini-batches of {size * n} responses do not divide the {real} of a step: verl adds {padded - real} "
        problem += "empty rows"
        if not actor.loss_agg_mode.startswith("token"):
            problem += f", which {ACTOR}.loss_agg_mode={actor.loss_agg_mode} counts, so that these updates are weaker, "
            problem += f"{real / padded:.0%} on average"
        fits = max(d for d in range(1, min(size, train) + 1) if (train % d == 0 and d * n % dp == 0) or d == 1)
        yield mini_batch.warning(problem, f"Set {key}={fits}")


def _rollout(cfg: DictConfig) -> Iterator[Finding]:
    rollout, data, needed = cfg.actor_rollout_ref.rollout, cfg.data, longest(cfg)
    if rollout.prompt_length < data.max_prompt_length:
        yield at(cfg, f"{ROLLOUT}.prompt_length").error(
            f"prompts may have data.max_prompt_length={data.max_prompt_length} tokens, and verl would silently cut the "
            "beginning off longer ones",
            f"Remove it, or set data.max_prompt_length={rollout.prompt_length}",
            f"at least {data.max_prompt_length}",
        )
    response = at(cfg, "data.max_response_length")
    if rollout.response_length != response.value:
        yield response.warning(
            f"has no effect: responses end at {ROLLOUT}.response_length={rollout.response_length}",
            f"Set {response.key} alone, and remove {ROLLOUT}.response_length",
        )
    context, positions, own = at(cfg, f"{ROLLOUT}.max_model_len"), max_positions(cfg), at(cfg, ENGINE_LENGTH)
    key, length = context.key, context.value
    if own.value not in (None, length):
        yield own.error(f"verl bounds responses by {key}={length} regardless", f"Set {key}={own.value} instead")
    if length is not None and positions is not None and length > positions:
        yield context.error(
            f"the model has {positions} positions, and verl refuses more",
            f"Set {key}={min(needed, positions)}",
            f"at most {positions}",
        )
    elif length is not None and length < needed:
        yield context.error(
            f"a sequence may have {_lengths(cfg)}: "
            + (
                "responses would be silently cut short, and scored as they are"
                if length > rollout.prompt_length
                else "the longest prompts leave no room for a response, and verl fails at the first of them"
            ),
            f"Set {key}={needed}",
            f"at least {needed}",
        )
    if positions is not None and positions < needed:
        room = positions - rollout.prompt_length
        yield response.error(
            f"a sequence may have {_lengths(cfg)}, but the model has {positions} positions",
            f"Set {response.key}={room}" if room > 0 else "Lower data.max_prompt_length, too",
            f"at most {room}" if room > 0 else None,
        )
    yield from _scheduler(cfg, length or positions)


def _scheduler(cfg: DictConfig, context: int | None) -> Iterator[Finding]:
    rollout, tokens = cfg.actor_rollout_ref.rollout, at(cfg, f"{ROLLOUT}.max_num_batched_tokens")
    responses = rollout.max_num_seqs
    if tokens.value < responses:
        yield tokens.error(
            f"vLLM refuses fewer tokens per step than {ROLLOUT}.max_num_seqs={responses}",
            f"Set {tokens.key}={max(responses, 8192)}, or {ROLLOUT}.max_num_seqs={tokens.value}",
            f"at least {responses}",
        )
    if not rollout.enable_chunked_prefill and context is not None and tokens.value < context:
        yield tokens.warning(
            f"verl raises it to the context length {context}: {ROLLOUT}.enable_chunked_prefill=false",
            f"Set {tokens.key}={context}, or {ROLLOUT}.enable_chunked_prefill=true",
        )


def max_positions(cfg: DictConfig) -> int | None:
    """Count the model's positions, if its folder is on this machine and says so; loading its config runs no code."""
    model = cfg.actor_rollout_ref.model
    folder = model.get("hf_config_path") or model.path
    if not isinstance(folder, str) or not os.path.isfile(os.path.join(folder, "config.json")):
        return None
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None  # the model's own check says so
    given = value(model, "override_config.max_position_embeddings")
    found = given or getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)
