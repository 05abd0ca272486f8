"""Keys of verl's config that nothing reads, and keys of an older verl that 0.9.1 no longer has.

`UNREAD` is about FSDP in verl 0.9.1's v1 trainers, each entry found in verl's source: the workers read one key where an
older verl read another, or the feature is gone and its key stayed. A test walks over every leaf of verl's config and
scans verl's source, so that a key which joins or leaves them is noticed. `MOVED` and `GONE` are from the history of
verl's config, 0.3 to 0.9.0, and of its example scripts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

ACTOR, REF = "actor_rollout_ref.actor", "actor_rollout_ref.ref"
ROLLOUT, MODEL = "actor_rollout_ref.rollout", "actor_rollout_ref.model"


@dataclass(frozen=True)
class Unread:
    """What becomes of a key that nothing reads.

    Attributes:
        effect: what happens, whatever the key says.
        instead: the key that is read in its place.
        stops: whether the run would compute something other than asked.
        unless: a key that, where true, leaves the run what was asked.
        harmless: values other than the default that ask for what happens anyway.
    """

    effect: str
    instead: str | None = None
    stops: bool = False
    unless: str | None = None
    harmless: tuple[object, ...] = ()


_stop = partial(Unread, stops=True)


_PER_GPU = "the workers stop without the number of sequences per GPU"
_HORIZON = "verl overwrites it with the number of updates of the run"
_ENGINE = "the engine reads its own setting"
_MEGATRON = "only verl's Megatron engine does"
_GONE = "what it switched is gone from the v1 trainers"
_DATA = "the data set returns the chat messages, which the agent loop tokenizes"
_CRITIC_BUDGET = "the critic's micro-batches are always packed, in training too, up to a number of tokens"


def _model(model: str, without_rank: str, entry: Callable[..., Unread]) -> dict[str, Unread]:
    """Make the entries for a model's block; some of Megatron's LoRA settings have another name with FSDP."""
    only_megatron = (
        *("type", "dropout", "dropout_position", "lora_A_init_method", "lora_B_init_method", "a2a_experimental"),
        *("dtype", "freeze_vision_model", "freeze_vision_projection", "freeze_language_model"),
    )
    return {
        f"{model}.lora.rank": _stop(without_rank, f"{model}.lora_rank"),
        f"{model}.lora.adapter_path": _stop("a new adapter is trained, if any", f"{model}.lora_adapter_path"),
        f"{model}.lora.alpha": entry(_MEGATRON, f"{model}.lora_alpha"),
        **{
            f"{model}.lora.{name}": entry(_MEGATRON, f"{model}.{name}")
            for name in ("target_modules", "exclude_modules")
        },
        **{f"{model}.lora.{name}": entry(_MEGATRON) for name in only_megatron},
        **{f"{model}.tiled_mlp.{name}": Unread("FSDP does not tile the MLPs") for name in ("enabled", "num_shards")},
    }


UNREAD: dict[str, Unread] = {
    f"{ACTOR}.grad_clip": _stop("gradients are clipped at another setting", f"{ACTOR}.optim.clip_grad"),
    f"{ACTOR}.ppo_micro_batch_size": _stop(
        _PER_GPU, f"{ACTOR}.ppo_micro_batch_size_per_gpu", unless=f"{ACTOR}.use_dynamic_bsz"
    ),
    f"{REF}.log_prob_micro_batch_size": _stop(
        _PER_GPU, f"{REF}.log_prob_micro_batch_size_per_gpu", unless=f"{REF}.log_prob_use_dynamic_bsz"
    ),
    f"{ROLLOUT}.log_prob_micro_batch_size": _stop(
        _PER_GPU, f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu", unless=f"{ROLLOUT}.log_prob_use_dynamic_bsz"
    ),
    f"{ACTOR}.freeze_vision_tower": _stop("the vision tower is trained with the rest"),
    f"{ACTOR}.optim.total_training_steps": _stop(_HORIZON, "trainer.total_training_steps"),
    f"{ACTOR}.qat.enable": _stop("the actor is trained without quantisation", f"{ACTOR}.fsdp_config.qat.enable"),
    **{
        f"{ACTOR}.qat.{name}": Unread(_ENGINE, f"{ACTOR}.fsdp_config.qat.{name}")
        for name in ("mode", "group_size", "ignore_patterns", "activation_observer", "quantization_config_path")
    },
    f"{ACTOR}.use_torch_compile": Unread(_ENGINE, f"{ACTOR}.fsdp_config.use_torch_compile"),
    f"{REF}.use_torch_compile": Unread(_ENGINE, f"{REF}.fsdp_config.use_torch_compile"),
    f"{ACTOR}.use_remove_padding": Unread("the model's setting decides", f"{MODEL}.use_remove_padding"),
    f"{ACTOR}.use_fused_kernels": Unread("the model's setting decides", f"{MODEL}.use_fused_kernels"),
    f"{ACTOR}.fsdp_config.strategy": Unread("verl overwrites it", f"{ACTOR}.strategy"),
    f"{REF}.fsdp_config.strategy": Unread("verl overwrites it", f"{REF}.strategy"),
    f"{ACTOR}.use_prefix_grouper": Unread(_GONE),
    f"{ACTOR}.checkpoint.strict": Unread(_MEGATRON),
    **_model(MODEL, "all weights are trained, and the actor without its adapter is taken for the reference", _stop),
    **_model("critic.model", "all weights of the critic are trained", Unread),
    f"{ROLLOUT}.do_sample": _stop("training always samples; only validation can be greedy", harmless=(True,)),
    **{
        f"{ROLLOUT}.agent.custom_async_server.{name}": _stop(
            "verl's own server runs; register a replica, see rollout.name"
        )
        for name in ("path", "name")
    },
    f"{ROLLOUT}.over_sample_rate": Unread("every request is waited for"),
    f"{ROLLOUT}.multi_stage_wake_up": Unread(_GONE),
    "reward.reward_model.rollout.multi_stage_wake_up": Unread(_GONE),
    f"{ROLLOUT}.multi_turn.num_repeat_rollouts": Unread(_GONE, f"{ROLLOUT}.n"),
    f"{ROLLOUT}.multi_turn.use_inference_chat_template": Unread(_GONE, f"{MODEL}.custom_chat_template"),
    f"{ROLLOUT}.multi_turn.tokenization_sanity_check_mode": Unread(_GONE),
    "actor_rollout_ref.nccl_timeout": Unread("FSDP's process groups take verl's default timeout"),
    "data.tokenizer": _stop("the tokenizer is that of the model", f"{MODEL}.tokenizer_path"),
    "data.reward_fn_key": _stop(
        "rewards and validation always read the column data_source; rename the column", harmless=("data_source",)
    ),
    "data.truncation": _stop(
        "a prompt that is too long always loses its beginning; set data.filter_overlong_prompts=true",
        unless="data.filter_overlong_prompts",
        harmless=("left",),
    ),
    "data.trust_remote_code": Unread("the model's setting decides", f"{MODEL}.trust_remote_code"),
    **{
        f"data.return_{name}": Unread(_DATA)
        for name in ("raw_input_ids", "raw_chat", "full_prompt", "multi_modal_inputs")
    },
    "algorithm.filter_groups.max_num_gen_batches": Unread(
        "prompts are drawn until the batch is full, however many that takes; another setting bounds those in flight",
        "algorithm.filter_groups.max_inflight_gen_batches",
    ),
    "trainer.balance_batch": Unread("batches are always balanced over the ranks"),
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


def _other(block: str, instead: str, *names: str) -> dict[str, str]:
    """Map names in a block to the same names in another."""
    return {f"{block}.{name}": f"{instead}.{name}" for name in names}


_LOSS = f"{ACTOR}.policy_loss"
_NSYS = "global_profiler.global_tool_config.nsys"
_CORRECTION = "algorithm.rollout_correction"
_MULTI_TURN = f"{ROLLOUT}.multi_turn"
# Where FSDP's settings are, for each block of workers.
_FSDP = {ACTOR: f"{ACTOR}.fsdp_config", REF: f"{REF}.fsdp_config", "critic": "critic.fsdp"}
# The key that does the same today, by the block where a whole block moved. The longest that fits counts.
MOVED = {
    **{f"{block}.checkpoint.contents": f"{block}.checkpoint.save_contents" for block in (ACTOR, "critic")},
    "critic.model.fsdp_config": "critic.fsdp",
    "critic.kl_ctrl": "algorithm.kl_ctrl",
    **_other(ACTOR, _LOSS, "loss_mode", "clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef"),
    "actor_rollout_ref.profiler": f"{ACTOR}.profiler",
    "actor_rollout_ref.profiler.discrete": f"{_NSYS}.discrete",
    **{
        f"{block}.profiler.discrete": f"{block}.profiler.tool_config.nsys.discrete"
        for block in (ACTOR, REF, ROLLOUT, "critic")
    },
    f"{MODEL}.enable_activation_offloading": f"{MODEL}.enable_activation_offload",
    **_other(ROLLOUT, f"{ROLLOUT}.checkpoint_engine", "update_weights_bucket_megabytes"),
    f"{_MULTI_TURN}.max_turns": f"{_MULTI_TURN}.max_assistant_turns",
    f"{ROLLOUT}.skip_rollout": "skip.rollout_tq.enable",
    f"{ROLLOUT}.skip_dump_dir": "skip.rollout_tq.dump_dir",
    f"{ROLLOUT}.skip": "skip.rollout_tq",
    **_other("algorithm", _CORRECTION, "rollout_is_threshold", "rollout_rs", "rollout_rs_threshold"),
    "algorithm.rollout_is_level": f"{_CORRECTION}.rollout_is",
    "ray_init": "ray_kwargs.ray_init",
    "ray_init.timeline_json_file": "ray_kwargs.timeline_json_file",
    "reward_manager": "reward.reward_manager",
    "reward_model.sandbox_fusion": "reward.sandbox_fusion",
    "reward_model.overlong_buffer": "reward.reward_kwargs.overlong_buffer_cfg",
    "trainer.profile_steps": "global_profiler.steps",
    **_other("trainer", _NSYS, "controller_nsight_options", "worker_nsight_options"),
    "trainer.npu_profile.options": f"{ACTOR}.profiler.tool_config.npu",
    "trainer.val_generations_to_log_to_wandb": "trainer.log_val_generations",
    "trainer.remove_previous_ckpt_in_save": "trainer.max_actor_ckpt_to_keep",
}
# Those without a successor: what to know instead, with the keys or blocks.
_REMOVED = {
    "gradients follow param_offload": [f"{block}.grad_offload" for block in _FSDP.values()],
    "it is part of calculate_sum_pi_squared": [f"{ACTOR}.sum_pi_squared_checkpointing"],
    "it is a setting of the Megatron and VeOmni engines": [f"{ACTOR}.router_replay", f"{REF}.router_replay"],
    **{f"see {block}.profiler and global_profiler": [f"{block}.profile"] for block in (ACTOR, REF)},
    **{
        f"it is a setting of another training engine; FSDP's are in {fsdp}": [
            f"{block}.{engine}" for engine in ("megatron", "veomni", "torchtitan", "mindspeed")
        ]
        for block, fsdp in _FSDP.items()
    },
    "weights are always loaded": [f"{block}.load_weight" for block in _FSDP],
    f"the reference policy is always {MODEL}": [f"{REF}.model"],
    "only Megatron took it": [f"{MODEL}.gradient_checkpointing_kwargs"],
    "no rollout engine still samples that way": [f"{ROLLOUT}.use_fire_sampling"],
    f"see {ROLLOUT}.agent.default_agent_loop": [f"{ROLLOUT}.chat_scheduler"],
    "weights reach the rollout engine under their names in Hugging Face": [f"{ROLLOUT}.layer_name_map"],
    "vLLM no longer keeps swap space": [f"{ROLLOUT}.swap_space"],
    f"write an agent loop, see {ROLLOUT}.agent": [
        f"{_MULTI_TURN}.{name}" for name in ("completion_callback", "interaction_config_path")
    ],
    f"{_CORRECTION}.rollout_is is on when it is token or sequence": ["algorithm.rollout_is"],
    f"see {_CORRECTION}.rollout_is and rollout_rs": ["algorithm.rollout_is_mode"],
    f"see {_CORRECTION}.rollout_rs_threshold": ["algorithm.rollout_is_threshold_lower"],
    f"see {_CORRECTION}.rollout_rs": [
        "algorithm.rollout_is_veto_threshold",
        f"{_CORRECTION}.rollout_token_veto_threshold",
    ],
    f"{_CORRECTION}.rollout_rs_threshold takes both, as lower_upper": [f"{_CORRECTION}.rollout_rs_threshold_lower"],
    f"see {_CORRECTION}.loss_type": [f"{_CORRECTION}.use_policy_gradient"],
    "prompts are drawn in file order or shuffled; trainer.v1.sampler chooses among finished responses": [
        "data.sampler"
    ],
    "write a data set class, see data.custom_cls": ["data.datagen"],
    "verl finds out from the model": ["data.continuous_token"],
    "there is one implementation of the workers": ["trainer.use_legacy_worker_impl"],
    f"see {ACTOR}.profiler.tool_config.npu": ["trainer.npu_profile"],
    "a reward model is served by a rollout engine: reward.reward_model.{enable,model_path,rollout.*}": [
        f"reward_model.{name}"
        for name in (
            *("strategy", "micro_batch_size", "micro_batch_size_per_gpu", "max_length", "use_dynamic_bsz", "megatron"),
            *("ulysses_sequence_parallel_size", "forward_max_token_len_per_gpu", "launch_reward_fn_async", "profiler"),
            *("load_weight", "param_offload", "nccl_timeout", "use_reward_loop", "model.input_tokenizer"),
            *("model.use_remove_padding", "model.fsdp_config", "model.use_shm", "model.use_fused_kernels"),
            *("model.override_config", "mini_batch_size"),
        )
    ],
}
GONE = {key: why for why, keys in _REMOVED.items() for key in keys}
