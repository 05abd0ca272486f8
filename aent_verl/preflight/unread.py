"""Keys of verl's config that nothing reads under FSDP in verl 0.9.1's v1 trainers, each found in verl's source.

The workers read one key where an older verl read another, or the feature has gone and its key stayed. A test walks
over every leaf of verl's config and scans verl's source, so that a key which joins them or leaves them is noticed.
"""

from __future__ import annotations

from dataclasses import dataclass

ACTOR, REF = "actor_rollout_ref.actor", "actor_rollout_ref.ref"
ROLLOUT, MODEL = "actor_rollout_ref.rollout", "actor_rollout_ref.model"


@dataclass(frozen=True)
class Unread:
    """What becomes of a key that nothing reads.

    Attributes:
        effect: what happens, whatever the key says.
        instead: the key that is read in its place.
        stops: whether the run would compute something else than asked.
        unless: a key that, where true, leaves the run what was asked.
        harmless: values beside the default that ask for what happens anyway.
    """

    effect: str
    instead: str | None = None
    stops: bool = False
    unless: str | None = None
    harmless: tuple[object, ...] = ()


def _stop(
    effect: str, instead: str | None = None, *, unless: str | None = None, harmless: tuple[object, ...] = ()
) -> Unread:
    return Unread(effect, instead, stops=True, unless=unless, harmless=harmless)


_NO_SIZE = "the workers stop without the number of sequences per GPU"
_HORIZON = "verl overwrites it with the number of updates of the run"
_ENGINE = "the engine reads its own setting"
_MEGATRON = "Megatron reads it, FSDP does not"
_UNTILED = "FSDP does not tile the MLPs"
_GONE = "what it switched is gone from the v1 trainers"
_BALANCED = "batches are always balanced over the ranks"
_DATA = "the data set returns the chat messages, and the agent loop makes tokens of them"
_CRITIC_BUDGET = "the critic's micro-batches are always packed, up to a number of tokens"
_POOL = "FSDP's process groups take verl's default timeout"


def _model(model: str, without_rank: str) -> dict[str, Unread]:
    """Entries for a model's block: LoRA settings of Megatron, where FSDP's stand beside them, and others."""
    only_megatron = (
        *("type", "dropout", "dropout_position", "lora_A_init_method", "lora_B_init_method", "a2a_experimental"),
        *("dtype", "freeze_vision_model", "freeze_vision_projection", "freeze_language_model"),
    )
    return {
        f"{model}.lora.rank": _stop(without_rank, f"{model}.lora_rank"),
        f"{model}.lora.alpha": Unread(_MEGATRON, f"{model}.lora_alpha"),
        f"{model}.lora.target_modules": Unread(_MEGATRON, f"{model}.target_modules"),
        f"{model}.lora.exclude_modules": Unread(_MEGATRON, f"{model}.exclude_modules"),
        f"{model}.tiled_mlp.enabled": Unread(_UNTILED),
        f"{model}.tiled_mlp.num_shards": Unread(_UNTILED),
        f"{model}.lora.adapter_path": _stop("a new adapter is trained, if any", f"{model}.lora_adapter_path"),
        **{f"{model}.lora.{name}": Unread(_MEGATRON) for name in only_megatron},
    }


UNREAD: dict[str, Unread] = {
    f"{ACTOR}.grad_clip": _stop("gradients are clipped at another setting", f"{ACTOR}.optim.clip_grad"),
    f"{ACTOR}.ppo_micro_batch_size": _stop(
        _NO_SIZE, f"{ACTOR}.ppo_micro_batch_size_per_gpu", unless=f"{ACTOR}.use_dynamic_bsz"
    ),
    f"{REF}.log_prob_micro_batch_size": _stop(
        _NO_SIZE, f"{REF}.log_prob_micro_batch_size_per_gpu", unless=f"{REF}.log_prob_use_dynamic_bsz"
    ),
    f"{ROLLOUT}.log_prob_micro_batch_size": _stop(
        _NO_SIZE, f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu", unless=f"{ROLLOUT}.log_prob_use_dynamic_bsz"
    ),
    f"{ACTOR}.freeze_vision_tower": _stop("the vision tower is trained with the rest"),
    f"{ACTOR}.optim.total_training_steps": _stop(_HORIZON, "trainer.total_training_steps"),
    f"{ACTOR}.qat.enable": _stop("the actor is trained without quantisation", f"{ACTOR}.fsdp_config.qat.enable"),
    f"{ACTOR}.qat.mode": Unread(_ENGINE, f"{ACTOR}.fsdp_config.qat.mode"),
    f"{ACTOR}.qat.group_size": Unread(_ENGINE, f"{ACTOR}.fsdp_config.qat.group_size"),
    f"{ACTOR}.qat.ignore_patterns": Unread(_ENGINE, f"{ACTOR}.fsdp_config.qat.ignore_patterns"),
    f"{ACTOR}.qat.activation_observer": Unread(_ENGINE, f"{ACTOR}.fsdp_config.qat.activation_observer"),
    f"{ACTOR}.qat.quantization_config_path": Unread(_ENGINE, f"{ACTOR}.fsdp_config.qat.quantization_config_path"),
    f"{ACTOR}.use_torch_compile": Unread(_ENGINE, f"{ACTOR}.fsdp_config.use_torch_compile"),
    f"{REF}.use_torch_compile": Unread(_ENGINE, f"{REF}.fsdp_config.use_torch_compile"),
    f"{ACTOR}.use_remove_padding": Unread("the model's setting decides", f"{MODEL}.use_remove_padding"),
    f"{ACTOR}.use_fused_kernels": Unread("the model's setting decides", f"{MODEL}.use_fused_kernels"),
    f"{ACTOR}.fsdp_config.strategy": Unread("verl overwrites it", f"{ACTOR}.strategy"),
    f"{REF}.fsdp_config.strategy": Unread("verl overwrites it", f"{REF}.strategy"),
    f"{ACTOR}.use_prefix_grouper": Unread(_GONE),
    f"{ACTOR}.checkpoint.strict": Unread(_MEGATRON),
    **_model(MODEL, "all weights are trained, and the reference policy is taken for the actor without its adapter"),
    **_model("critic.model", "all weights of the critic are trained"),
    f"{ROLLOUT}.do_sample": _stop("training always samples; only validation can be greedy", harmless=(True,)),
    f"{ROLLOUT}.agent.custom_async_server.path": _stop("verl's own server runs; register a replica, see rollout.name"),
    f"{ROLLOUT}.agent.custom_async_server.name": _stop("verl's own server runs; register a replica, see rollout.name"),
    f"{ROLLOUT}.over_sample_rate": Unread("every request is waited for"),
    f"{ROLLOUT}.multi_stage_wake_up": Unread(_GONE),
    "reward.reward_model.rollout.multi_stage_wake_up": Unread(_GONE),
    f"{ROLLOUT}.multi_turn.num_repeat_rollouts": Unread(_GONE, f"{ROLLOUT}.n"),
    f"{ROLLOUT}.multi_turn.use_inference_chat_template": Unread(_GONE, f"{MODEL}.custom_chat_template"),
    f"{ROLLOUT}.multi_turn.tokenization_sanity_check_mode": Unread(_GONE),
    "actor_rollout_ref.nccl_timeout": Unread(_POOL),
    "data.tokenizer": _stop("the tokenizer is that of the model", f"{MODEL}.tokenizer_path"),
    "data.reward_fn_key": _stop(
        "rewards and validation always read the column data_source; rename the column", harmless=("data_source",)
    ),
    "data.truncation": _stop(
        "a prompt that is too long loses its beginning, always; set data.filter_overlong_prompts=true",
        unless="data.filter_overlong_prompts",
        harmless=("left",),
    ),
    "data.trust_remote_code": Unread("the model's setting decides", f"{MODEL}.trust_remote_code"),
    "data.return_raw_input_ids": Unread(_DATA),
    "data.return_raw_chat": Unread(_DATA),
    "data.return_full_prompt": Unread(_DATA),
    "data.return_multi_modal_inputs": Unread(_DATA),
    "algorithm.filter_groups.max_num_gen_batches": Unread(
        "prompts are drawn until the batch is full; what bounds those in flight is another setting",
        "algorithm.filter_groups.max_inflight_gen_batches",
    ),
    "trainer.balance_batch": Unread(_BALANCED),
    "trainer.esi_redundant_time": Unread(_GONE),
    "trainer.ray_wait_register_center_timeout": Unread(_GONE),
    "trainer.use_v1": _stop("a v1 trainer runs; aent_verl has no other"),
    "skip.rollout.enable": Unread("responses are generated", "skip.rollout_tq.enable"),
    "skip.async_rollout.enable": Unread("responses are generated", "skip.rollout_tq.enable"),
    "critic.grad_clip": _stop("gradients are clipped at another setting", "critic.optim.clip_grad"),
    "critic.optim.total_training_steps": _stop(_HORIZON, "trainer.total_training_steps"),
    "critic.ulysses_sequence_parallel_size": Unread(_ENGINE, "critic.fsdp.ulysses_sequence_parallel_size"),
    "critic.fsdp.strategy": Unread("verl overwrites it", "critic.strategy"),
    **{
        f"critic.{name}": Unread(_CRITIC_BUDGET, "critic.ppo_infer_max_token_len_per_gpu")
        for name in (
            *("ppo_max_token_len_per_gpu", "forward_max_token_len_per_gpu"),
            *("ppo_micro_batch_size", "ppo_micro_batch_size_per_gpu"),
            *("forward_micro_batch_size", "forward_micro_batch_size_per_gpu"),
        )
    },
    "critic.use_dynamic_bsz": Unread(_CRITIC_BUDGET, harmless=(True,)),
}
