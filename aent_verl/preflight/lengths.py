"""Token budgets and batch sizes against the lengths and the number of the responses.

A prompt has at most ``rollout.prompt_length`` tokens and a response ``rollout.response_length``: verl's agent loops cut
both. Every micro-batch of training must hold one such sequence, and vLLM's context as well.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf

from aent_verl.preflight.defaults import changed
from aent_verl.preflight.errors import Finding, PreflightError, PreflightWarning
from aent_verl.preflight.schema import has_critic

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
REF, CRITIC = "actor_rollout_ref.ref", "critic"
ENGINE_LENGTH = f"{ROLLOUT}.engine_kwargs.vllm.max_model_len"
# Length of the rows that verl adds where a batch does not divide.
PADDING_ROW = 128


@dataclass(frozen=True)
class Pass:
    """One kind of pass over the batch: who makes it, how it is cut into micro-batches, and over how many sequences.

    Attributes:
        budget: key of the tokens a device takes.
        micro_batch: key of the sequences a device takes; None where verl always goes by tokens.
        dynamic: whether verl goes by tokens.
        ulysses: devices that share a sequence.
        sequences: of a device.
    """

    name: str
    budget: str
    micro_batch: str | None
    dynamic: bool
    ulysses: int
    sequences: int


def check(cfg: DictConfig) -> Iterator[Finding]:
    """Find lengths that do not fit into a budget, and batches that do not divide."""
    yield from _rollout(cfg)
    yield from _batches(cfg)
    if cfg.actor_rollout_ref.actor.use_dynamic_bsz != cfg.actor_rollout_ref.rollout.log_prob_use_dynamic_bsz:
        yield PreflightError(
            f"{ROLLOUT}.log_prob_use_dynamic_bsz",
            cfg.actor_rollout_ref.rollout.log_prob_use_dynamic_bsz,
            f"verl wants it to be {ACTOR}.use_dynamic_bsz={cfg.actor_rollout_ref.actor.use_dynamic_bsz}",
            hint=f"Leave it out, or set it to {cfg.actor_rollout_ref.actor.use_dynamic_bsz}".lower(),
        )
        return
    for done in _passes(cfg):
        yield from (_tokens(cfg, done) if done.dynamic else _sequences(cfg, done))
        unused = done.micro_batch if done.dynamic else done.budget
        if unused and unused in changed(cfg, unused):
            yield PreflightWarning(
                unused,
                OmegaConf.select(cfg, unused),
                f"it has no effect: {done.name} goes by {done.budget if done.dynamic else done.micro_batch}",
                hint="Leave it out",
            )


def longest(cfg: DictConfig) -> int:
    """Tokens of the longest sequence, prompt and response."""
    rollout = cfg.actor_rollout_ref.rollout
    return int(rollout.prompt_length + rollout.response_length)


def _lengths(cfg: DictConfig) -> str:
    rollout = cfg.actor_rollout_ref.rollout
    return f"{longest(cfg)} tokens, a prompt of {rollout.prompt_length} and a response of {rollout.response_length}"


def ulysses(cfg: DictConfig, key: str) -> int:
    """Devices that share a sequence in the engine of the actor, reference or critic at ``key``."""
    # verl copies the deprecated key into the engine's settings for the actor and the reference, not for the critic.
    names = ("fsdp",) if key == CRITIC else ("fsdp_config", "")
    given = (f"{key}.{name}.ulysses_sequence_parallel_size".replace("..", ".") for name in names)
    return max(int(OmegaConf.select(cfg, name) or 1) for name in given)


def ranks(cfg: DictConfig, key: str) -> int:
    """Data-parallel ranks of that engine, at least 1."""
    return max(1, int(cfg.trainer.n_gpus_per_node * cfg.trainer.nnodes) // ulysses(cfg, key))


def rows(cfg: DictConfig) -> tuple[int, int]:
    """Responses of a step, and those with the rows that verl adds until whole mini-batches come out."""
    n = cfg.actor_rollout_ref.rollout.n
    multiple = math.lcm(ranks(cfg, ACTOR), cfg.actor_rollout_ref.actor.ppo_mini_batch_size * n)
    if has_critic(cfg):
        multiple = math.lcm(multiple, cfg.critic.ppo_mini_batch_size * n)
    real = cfg.data.train_batch_size * n
    return real, -(-real // multiple) * multiple


def _passes(cfg: DictConfig) -> Iterator[Pass]:
    from verl.trainer.ppo.utils import need_reference_policy
    from verl.workers.config import CriticConfig

    actor, rollout, ref = (cfg.actor_rollout_ref[name] for name in ("actor", "rollout", "ref"))
    share, dp = ulysses(cfg, ACTOR), ranks(cfg, ACTOR)
    mini_batch = actor.ppo_mini_batch_size * rollout.n // dp
    whole = rows(cfg)[1] // dp
    yield Pass(
        "the actor's update",
        f"{ACTOR}.ppo_max_token_len_per_gpu",
        f"{ACTOR}.ppo_micro_batch_size_per_gpu",
        actor.use_dynamic_bsz,
        share,
        mini_batch,
    )
    model = cfg.actor_rollout_ref.model
    rank = OmegaConf.select(model, "lora.rank") or model.get("lora_rank") or 0
    adapter = rank > 0 or model.get("lora_adapter_path") is not None
    reference = need_reference_policy(cfg)
    if not OmegaConf.select(cfg, "algorithm.rollout_correction.bypass_mode") or (reference and adapter):
        yield Pass(
            "the pass over old log-probs",
            f"{ROLLOUT}.log_prob_max_token_len_per_gpu",
            f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu",
            rollout.log_prob_use_dynamic_bsz,
            share,
            whole,
        )
    if reference and not adapter:
        yield Pass(
            "the reference's pass",
            f"{REF}.log_prob_max_token_len_per_gpu",
            f"{REF}.log_prob_micro_batch_size_per_gpu",
            ref.log_prob_use_dynamic_bsz,
            ulysses(cfg, REF),
            rows(cfg)[1] // ranks(cfg, REF),
        )
    if has_critic(cfg):
        key = f"{CRITIC}.ppo_infer_max_token_len_per_gpu"
        if OmegaConf.select(cfg, key) is None:
            key = f"+{key}" if longest(cfg) > CriticConfig.ppo_infer_max_token_len_per_gpu else key
        yield Pass("the critic", key, None, True, ulysses(cfg, CRITIC), whole)


def _tokens(cfg: DictConfig, done: Pass) -> Iterator[Finding]:
    from verl.workers.config import CriticConfig

    real, padded = rows(cfg)
    length, what = longest(cfg), _lengths(cfg)
    if padded > real and length < PADDING_ROW:
        length, what = PADDING_ROW, f"{PADDING_ROW} tokens, those of a row that verl adds to a batch"
    given = OmegaConf.select(cfg, done.budget.lstrip("+"))
    budget = CriticConfig.ppo_infer_max_token_len_per_gpu if given is None else given
    if budget * done.ulysses < length:
        sharing = f" times {done.ulysses} devices that share a sequence" if done.ulysses > 1 else ""
        needed = -(-length // done.ulysses)
        yield PreflightError(
            done.budget,
            budget,
            f"{done.name} has to take a sequence of {what}, and gets {budget}{sharing}: verl fails at the first one "
            "that is longer",
            expected=f"at least {needed}",
            hint=f"Set {done.budget}={needed} or higher",
        )


def _sequences(cfg: DictConfig, done: Pass) -> Iterator[Finding]:
    assert done.micro_batch is not None
    size = OmegaConf.select(cfg, done.micro_batch)
    if size is None:
        old = done.micro_batch.removesuffix("_per_gpu")
        given = OmegaConf.select(cfg, old)
        yield PreflightError(
            old if given is not None else done.micro_batch,
            given,
            f"verl needs {done.micro_batch} for {done.name}" + (", and reads this one no more" if given else ""),
            hint=f"Set {ACTOR}.use_dynamic_bsz=true, or {done.micro_batch}={math.gcd(done.sequences, 8)}",
        )
    elif size <= 0 or done.sequences % size:
        fits = max(d for d in range(1, max(1, min(size, done.sequences)) + 1) if done.sequences % d == 0)
        yield PreflightError(
            done.micro_batch,
            size,
            f"{done.name} has {done.sequences} sequences a device, which this does not divide: verl fails at the first "
            "step",
            expected=f"a divisor of {done.sequences}",
            hint=f"Set {done.micro_batch}={fits}, or {ACTOR}.use_dynamic_bsz=true",
        )


def _batches(cfg: DictConfig) -> Iterator[Finding]:
    actor, n = cfg.actor_rollout_ref.actor, cfg.actor_rollout_ref.rollout.n
    key, size, train = f"{ACTOR}.ppo_mini_batch_size", actor.ppo_mini_batch_size, cfg.data.train_batch_size
    dp = ranks(cfg, ACTOR)
    if size * n % dp:
        step = dp // math.gcd(dp, n)
        yield PreflightError(
            key,
            size,
            f"times {ROLLOUT}.n={n} it does not divide among {dp} ranks: verl fails at the first update",
            expected=f"a multiple of {step}",
            hint=f"Set {key}={max(1, size // step) * step}",
        )
    elif not actor.use_dynamic_bsz and size > train:
        yield PreflightError(
            key,
            size,
            f"verl refuses a mini-batch larger than data.train_batch_size={train} unless {ACTOR}.use_dynamic_bsz=true",
            expected=f"at most {train}",
            hint=f"Set {key}={train}",
        )
    else:
        real, padded = rows(cfg)
        if padded > real:
            by_tokens = actor.loss_agg_mode.startswith("token")
            fits = max(d for d in range(1, min(size, train) + 1) if (train % d == 0 and d * n % dp == 0) or d == 1)
            yield PreflightWarning(
                key,
                size,
                f"mini-batches of {size * n} responses do not divide the {real} of a step: verl adds {padded - real} "
                "empty rows"
                + (
                    ""
                    if by_tokens
                    else f", and {ACTOR}.loss_agg_mode={actor.loss_agg_mode} counts them, so that these updates are "
                    f"weaker, {real / padded:.0%} on average"
                ),
                hint=f"Set {key}={fits}",
            )


def _rollout(cfg: DictConfig) -> Iterator[Finding]:
    rollout, data, needed = cfg.actor_rollout_ref.rollout, cfg.data, longest(cfg)
    if rollout.prompt_length < data.max_prompt_length:
        yield PreflightError(
            f"{ROLLOUT}.prompt_length",
            rollout.prompt_length,
            f"prompts may have data.max_prompt_length={data.max_prompt_length} tokens, and verl would cut off the "
            "beginning of the longer ones in silence",
            expected=f"at least {data.max_prompt_length}",
            hint=f"Leave it out, or set data.max_prompt_length={rollout.prompt_length}",
        )
    if rollout.response_length != data.max_response_length:
        yield PreflightWarning(
            "data.max_response_length",
            data.max_response_length,
            f"it has no effect: responses end at {ROLLOUT}.response_length={rollout.response_length}",
            hint=f"Set data.max_response_length alone, and leave {ROLLOUT}.response_length out",
        )
    key, length = f"{ROLLOUT}.max_model_len", rollout.max_model_len
    positions, own = max_positions(cfg), OmegaConf.select(cfg, ENGINE_LENGTH)
    if own is not None and own != length:
        yield PreflightError(
            ENGINE_LENGTH,
            own,
            f"verl bounds responses by {key}={length} all the same",
            hint=f"Set {key}={own} instead",
        )
    if length is not None and positions is not None and length > positions:
        yield PreflightError(
            key,
            length,
            f"the model has {positions} positions, and verl refuses more",
            expected=f"at most {positions}",
            hint=f"Set {key}={min(needed, positions)}",
        )
    elif length is not None and length < needed:
        yield PreflightError(
            key,
            length,
            f"a sequence may have {_lengths(cfg)}: "
            + (
                "responses would be cut short in silence, and scored as they are"
                if length > rollout.prompt_length
                else "the longest prompts leave no room for a response, and verl fails at the first"
            ),
            expected=f"at least {needed}",
            hint=f"Set {key}={needed}",
        )
    if positions is not None and positions < needed:
        room = positions - rollout.prompt_length
        yield PreflightError(
            "data.max_response_length",
            data.max_response_length,
            f"a sequence may have {_lengths(cfg)}, and the model has {positions} positions",
            expected=f"at most {room}" if room > 0 else None,
            hint=f"Set data.max_response_length={room}" if room > 0 else "Set data.max_prompt_length lower, too",
        )
    yield from _scheduler(cfg, length or positions)


def _scheduler(cfg: DictConfig, context: int | None) -> Iterator[Finding]:
    rollout, key = cfg.actor_rollout_ref.rollout, f"{ROLLOUT}.max_num_batched_tokens"
    tokens, responses = rollout.max_num_batched_tokens, rollout.max_num_seqs
    if tokens < responses:
        yield PreflightError(
            key,
            tokens,
            f"vLLM refuses fewer tokens a step than {ROLLOUT}.max_num_seqs={responses}",
            expected=f"at least {responses}",
            hint=f"Set {key}={max(responses, 8192)}, or {ROLLOUT}.max_num_seqs={tokens}",
        )
    if not rollout.enable_chunked_prefill and context is not None and tokens < context:
        yield PreflightWarning(
            key,
            tokens,
            f"verl raises it to the context length {context}: {ROLLOUT}.enable_chunked_prefill=false",
            hint=f"Set {key}={context}, or {ROLLOUT}.enable_chunked_prefill=true",
        )


def max_positions(cfg: DictConfig) -> int | None:
    """Positions of the model, where its folder is on this machine and says so; loading its config runs no code."""
    model = cfg.actor_rollout_ref.model
    folder = model.get("hf_config_path") or model.path
    if not isinstance(folder, str) or not os.path.isfile(os.path.join(folder, "config.json")):
        return None
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError):
        return None  # the model's own check says so
    given = OmegaConf.select(model, "override_config.max_position_embeddings")
    found = given or getattr(config.get_text_config(), "max_position_embeddings", None)
    return None if found is None else int(found)
