"""What our code assumes of verl's API; each entry says what of ours breaks without it."""

from functools import partial

from aent_verl.verl_api.checks import Assumption, Fragment, called, has_fields, in_source, leads_to, overridden, resolve


def sum_ratio() -> str | None:
    """Check that the ratio of two SUM metrics over micro-batches, mini-batches and ranks is that of all sums."""
    metric = resolve("verl.utils.metric:Metric")
    # [mini-batch][rank] -> values of the micro-batches
    values: dict[str, list[list[list[float]]]] = {
        "actor/aent/entropy_sum": [[[1.0, 2.0], [4.0, 8.0]], [[16.0, 32.0], [64.0, 128.0]]],
        "actor/aent/token_count": [[[1, 1], [2, 3]], [[5, 8], [13, 17]]],
    }
    steps: dict[str, list[float]] = {key: [] for key in values}
    for key, mini_batches in values.items():
        for ranks in mini_batches:
            metrics = [metric("sum") for _ in ranks]
            for one, micro_batches in zip(metrics, ranks, strict=True):
                one.extend(micro_batches)
            steps[key].append(metric.aggregate_dp(metrics))
    entropy, tokens = resolve("verl.utils.metric:reduce_metrics")(steps).values()
    ratio = float(entropy / tokens)
    return None if ratio == 255 / 50 else f"{ratio!r} instead of {255 / 50!r}"


def extremes() -> str | None:
    """Check that MIN and MAX are taken over all ranks."""
    metric = resolve("verl.utils.metric:Metric")
    found = tuple(metric.aggregate_dp([metric(kind, 1.0), metric(kind, 2.0)]) for kind in ("min", "max"))
    return None if found == (1.0, 2.0) else repr(found)


def non_tensor_data() -> str | None:
    """Check that what is assigned comes back unwrapped, and that a missing key gives the default."""
    tu = resolve("verl.utils.tensordict_utils")
    data = tu.get_tensordict(tensor_dict={}, non_tensor_dict={"coefficient": 0.25})
    found = tuple(tu.get_non_tensor_data(data=data, key=key, default=None) for key in ("coefficient", "other"))
    return None if found == (0.25, None) else repr(found)


def platform_complete() -> str | None:
    """Check that our CPU platform has every method that verl asks of one."""
    missing = resolve("aent_verl.platforms.cpu").platform_class().__abstractmethods__
    return f"also asks for {', '.join(sorted(missing))}" if missing else None


def registered(mode: str, trainer: str) -> str | None:
    """Check that verl's registry leads a trainer's name to it, or to the class of ours that chooses between two."""
    found = resolve("verl.trainer.ppo.v1.trainer_base:TRAINER_REGISTRY").get(mode)
    return None if isinstance(found, type) and issubclass(found, resolve(trainer)) else str(found)


BASE = "verl.trainer.ppo.v1.trainer_base:PPOTrainer"
TRAINERS = {
    "sync": "verl.trainer.ppo.v1.trainer_sync:PPOTrainerSync",
    "colocate_async": "verl.trainer.ppo.v1.trainer_colocate_async:PPOTrainerColocateAsync",
    "separate_async": "verl.trainer.ppo.v1.trainer_separate_async:PPOTrainerSeparateAsync",
}
WORKERS = "verl.workers.engine_workers"
FSDP = "verl.workers.engine.fsdp.transformer_impl:FSDPEngineWithLMHead"

# How verl's fused forward methods call what we replace: found by name at each call, with these arguments. The two forms
# of the constructor choose an implementation of the same numbers; an argument that changes the numbers would be new.
FUSED_HEADS: dict[str, tuple[Fragment, ...]] = {
    "torch": (
        "from verl.utils.experimental.torch_functional import FusedLinearForPPO",
        (
            "FusedLinearForPPO()",
            'FusedLinearForPPO(impl_backend=getattr(self, "_verl_fused_kernels_backend", "torch"))',
        ),
        ".forward(hidden_states=hidden_states, vocab_weights=",
        "input_ids=rolled_labels, temperature=temperature,",
    ),
    "triton": (
        "from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy",
        "linear_cross_entropy(hidden_states,",
        'rolled_labels, temperature, "none",',
    ),
}
# Modules of verl.models.transformers with fused forward methods. A run imports the first, and that of its model.
FUSED_MODELS = ("dense_common", "qwen2_vl", "qwen3_vl", "qwen3_5", "glm4v")


def fused_forward_calls(model: str) -> tuple[Assumption, ...]:
    """Check that the fused forward methods in ``verl.models.transformers.<model>`` call what we replace."""
    return tuple(
        in_source(f"verl.models.transformers.{model}:forward_with_{backend}_backend", *calls, why="our op runs there")
        for backend, calls in FUSED_HEADS.items()
    )


ASSUMPTIONS: tuple[Assumption, ...] = (
    # The trainer.
    overridden(
        f"{BASE}.__init__",
        "self config",
        "self.trainer_mode = self.config.trainer.v1.trainer_mode",
        why="our trainer sets the base mode before it: the name must be verl's own by the time it is read",
    ),
    overridden(
        f"{BASE}._init_resource_pool_mgr",
        "self",
        "self.role_worker_mapping[role] = ray.remote(ActorRolloutRefWorker)",
        why="our trainer replaces the values of role_worker_mapping by its workers after it",
    ),
    overridden(
        f"{BASE}._update_actor",
        "self batch metrics",
        "batch.extra_info.update(",
        "self.actor_rollout_wg.update_actor(batch)",
        'rename_dict(output["metrics"], "actor/")',
        "reduce_metrics(",
        "metrics.update(",
        why="our trainer sends the coefficient in extra_info, and our sums come back under actor/",
    ),
    overridden(
        f"{BASE}._init_dataloader",
        "self",
        "self.steps_per_epoch =",
        "self.total_training_steps =",
        why="schedules need the length of the run, known after it",
    ),
    overridden(
        f"{BASE}._setup",
        "self",
        "self._init_dataloader()",
        "self._init_resource_pool_mgr()",
        why="the workers, which report after it, ask the coefficient actor, started after the data are loaded",
    ),
    overridden(f"{BASE}._build_replay_buffer", "self", why="on the CPU our trainer has it look more often"),
    in_source(
        "verl.trainer.ppo.v1.replay_buffer:ReplayBuffer._wait_for_next_poll",
        "time.sleep(self.poll_interval)",
        why="verl looks for finished responses every two seconds, longer than small models take to write them",
    ),
    overridden(
        f"{BASE}.step",
        "self metrics timing_raw",
        "for trigger_idx in range(self.parameter_sync_step)",
        "self._step_once(",
        "metrics.update(metrics_aggregator.get_aggregated_metrics())",
        why="the controllers move once after all updates of a step, from sums that verl has not averaged",
    ),
    overridden(
        f"{BASE}._compute_advantage",
        "self batch metrics",
        '"rm_scores"',
        "compute_advantage_for_multi_trajectories(",
        why="rewards are shaped before it, and put back after it",
    ),
    overridden(
        f"{TRAINERS['separate_async']}._setup",
        "self",
        why="without rollouts on the trainer's GPUs a line of its log fails there",
    ),
    in_source(
        "verl.experimental.separation.engine_workers:DetachActorWorker.save_model_to_cpu",
        "self.copy_handler(self.actor.engine.module)",
        why="ours copies weights that lie on the CPU already",
    ),
    called(
        "verl.checkpoint_engine:CheckpointEngineRegistry.register", "backend", why="weights go over gloo on the CPU"
    ),
    in_source(
        "verl.checkpoint_engine:CheckpointEngineManager.build_process_group",
        '["prepare"]',
        "self.backend_cls.build_topology(",
        '["init_process_group"]',
        why="our checkpoint engine is called so",
    ),
    in_source(
        "transfer_queue.interface",
        'get_actor("TransferQueueController", namespace="transfer_queue")',
        why="one per job",
    ),
    called("transfer_queue:kv_list", "partition_id", why="a resume clears responses that are trained already"),
    called("transfer_queue:kv_clear", "keys partition_id", why="a resume clears responses that are trained already"),
    overridden(
        f"{BASE}._compute_old_log_prob",
        "self batch metrics",
        "batch.extra_info.update(",
        "self.actor_rollout_wg.compute_log_prob(batch)",
        "tq.kv_batch_put(",
        why="the initial entropy is measured there: our flag goes along, and the queue then has our engine's outputs",
    ),
    called("transfer_queue:kv_batch_get", "keys partition_id select_fields", why="we read scores and groups"),
    called("transfer_queue:kv_batch_put", "keys partition_id fields", why="we add what workers need of samples"),
    in_source(
        "verl.trainer.ppo.v1.agent_loop_tq:AgentLoopWorkerTQ._agent_loop_postprocess",
        'kwargs["uid"], kwargs["session_id"]',
        "field = output.as_dict()",
        "field.update(kwargs)",
        why="data set row, rollout number and the reward's extra information are fields of a sample",
    ),
    overridden(
        f"{BASE}._save_checkpoint",
        "self",
        'f"global_step_{self.global_steps}"',
        "latest_checkpointed_iteration.txt",
        why="the controller's state goes into verl's folder, before its tracker",
    ),
    overridden(
        f"{BASE}._load_checkpoint",
        "self",
        "self.global_steps = 0",
        'self.global_steps = int(global_step_folder.split("global_step_")[-1])',
        why="the controller's state is read after it, from the folder of global_steps, if the run was resumed",
    ),
    called("verl.trainer.ppo.v1.trainer_base:register_trainer", "name", why="our trainers are registered with it"),
    *(
        Assumption(
            f"verl's registry names {trainer} {mode}", partial(registered, mode, trainer), "ours derives from it"
        )
        for mode, trainer in TRAINERS.items()
    ),
    called("verl.trainer.main_ppo:run_ppo", "config task_runner_class", why="`aent-verl train` ends in it"),
    in_source(
        "verl.trainer.main_ppo:TaskRunnerV1.__ray_metadata__.modified_class.run",
        "get_trainer_cls(config.trainer.v1.trainer_mode)",
        "OmegaConf.resolve(config)",
        "trainer_cls(config=config)",
        why="the copies of settings in entropy_control.host must be fixed before our trainer changes its mode's name",
    ),
    called("verl.utils.config:validate_config", "config use_reference_policy use_critic", why="train calls it first"),
    called("verl.utils.config:omega_conf_to_dataclass", "config", why="it builds our actor config from its _target_"),
    in_source("verl.utils.tracking:FileLogger", '"VERL_FILE_LOGGER_PATH"', why="plot and progress read that file"),
    # The workers.
    *(
        leads_to(f"{WORKERS}:ActorRolloutRefWorker.{seam}", f"{WORKERS}:TrainingWorker", why="our workers go in there")
        for seam in ("actor_worker_cls", "ref_worker_cls")
    ),
    overridden(
        f"{WORKERS}:ActorRolloutRefWorker.init_model",
        "self",
        "self.ref = self.ref_worker_cls(config=",
        "self.loss_fn = partial(ppo_loss, config=actor_config)",
        "self.actor = self.actor_worker_cls(config=",
        "self.actor.set_loss_fn(self.loss_fn)",
        why="our loss is set after it, with the actor config from loss_fn.keywords",
    ),
    overridden(
        f"{WORKERS}:TrainingWorker.__init__",
        "self config",
        "initialize_global_process_group_ray(",
        "self.device_name =",
        "self.model_config.model_type = self.config.model_type",
        "self.engine: BaseEngine = EngineRegistry.new(model_type=self.config.model_type",
        "model_config=self.model_config",
        why="our workers start gloo before it, and our engine is found by model_type",
    ),
    called(f"{WORKERS}:TrainingWorker.set_loss_fn", "loss_fn", why="it puts our loss in place"),
    has_fields("verl.workers.config:TrainingWorkerConfig", "model_type", why="our engine is chosen by it"),
    called(
        "verl.utils.distributed:initialize_global_process_group_ray",
        "timeout_second backend",
        why="on CPU the backend must be gloo alone",
    ),
    called(
        "verl.single_controller.base.decorator:register", "dispatch_mode", why="the driver calls methods of our worker"
    ),
    has_fields(
        "verl.workers.config:FSDPActorConfig",
        "strategy loss_agg_mode loss_scale_factor global_batch_info entropy_coeff calculate_entropy use_fused_kernels "
        "ulysses_sequence_parallel_size fsdp_config",
        why="our actor config extends it and checks these settings",
    ),
    # The engine and the platform.
    overridden(
        f"{FSDP}.prepare_model_outputs",
        "self output output_args micro_batch logits_processor_func",
        why="our engine adds the entropies there",
    ),
    in_source(
        f"{FSDP}.prepare_model_inputs",
        'temperature = micro_batch["temperature"]',
        ("output_args = {}", 'output_args = {"temperature_is_one": temperature_is_one}'),
        'output_args["pad_size"]',
        'output_args["input_ids_rmpad_rolled"]',
        'output_args["temperature_rmpad"]',
        'output_args["input_ids_rmpad_rolled"]',
        'output_args["temperature"]',
        why="our engine reads these; the first pair of layouts has padding removed",
    ),
    overridden(f"{FSDP}._gather_and_unpad_packed", "self tensor pad_size", why="it undoes Ulysses and padding"),
    in_source(f"{FSDP}._build_module", 'self.model_config.model_type == "language_model"', why="we restore that name"),
    in_source(
        "verl.workers.engine.base:BaseEngineCtx.__enter__",
        "self.engine.mode = self.mode",
        why="we act in mode train only",
    ),
    overridden(
        f"{FSDP}.forward_backward_batch",
        "self data loss_function forward_only",
        "tu.assign_non_tensor(data, batch_num_tokens=",
        "tu.assign_non_tensor(data, dp_size=",
        "prepare_micro_batches(data=data",
        "torch.no_grad() if forward_only",
        "postprocess_batch_func(output_lst=output_lst, indices=indices, data=data)",
        why="our pass for statistics runs first, adds to data, and reads outputs in its order and the sizes",
    ),
    overridden(
        f"{FSDP}.forward_step",
        "self micro_batch loss_function forward_only",
        "raw_output = self.module(",
        "self.prepare_model_outputs(",
        why="a fused head is ours there, and runs between",
    ),
    overridden(
        "verl.utils.experimental.torch_functional:FusedLinearForPPO.forward",
        "self hidden_states vocab_weights input_ids temperature",
        why="our op takes its place",
    ),
    overridden(
        "verl.utils.kernel.linear_cross_entropy:LinearCrossEntropy.forward",
        "ctx hidden weight labels temperature reduction dist_process_group",
        why="our op takes the place of linear_cross_entropy",
    ),
    *fused_forward_calls(FUSED_MODELS[0]),
    called(
        "verl.utils.torch_functional:calculate_sum_pi_squared_from_logits", "logits", why="we pass this statistic on"
    ),
    called("verl.workers.engine:EngineRegistry.register", "model_type backend device", why="we register engines"),
    *(
        leads_to(f"verl.workers.engine:EngineRegistry._engines.language_model.{name}.cuda", FSDP, why="we look there")
        for name in ("fsdp", "fsdp2")
    ),
    Assumption("PlatformBase asks for no method that our platform lacks", platform_complete, "it could not be made"),
    called("verl.plugin.platform:PlatformRegistry.register", "platform", why="our CPU platform is registered with it"),
    called("verl.plugin.platform:PlatformRegistry.get", "name", why="we look for name clashes"),
    called("verl.plugin.platform:PlatformRegistry.registered_names", "", why="we ask each platform for its devices"),
    # The loss.
    called("verl.workers.utils.losses:ppo_loss", "config model_output data dp_group", why="our loss wraps it"),
    in_source(
        "verl.workers.utils.losses:ppo_loss", 'model_output.get("entropy", None)', why="verl's entropy term stays off"
    ),
    in_source(
        "verl.workers.utils.losses:ppo_loss",
        'fields = ["response_mask", "old_log_probs", "advantages"]',
        'config.policy_loss.get("loss_mode", "vanilla")',
        "policy_loss_fn(",
        "config=config,",
        why="shaped advantages go in through the data, and our policy losses find the chosen tokens in the config",
    ),
    called("verl.trainer.ppo.core_algos:register_policy_loss", "name", why="our policy losses are registered with it"),
    leads_to(
        "verl.trainer.ppo.core_algos:POLICY_LOSS_REGISTRY.vanilla",
        "verl.trainer.ppo.core_algos:compute_policy_loss_vanilla",
        why="we look for name clashes",
    ),
    has_fields(
        "verl.workers.config:PolicyLossConfig",
        "loss_mode clip_cov_ratio clip_cov_lb clip_cov_ub kl_cov_ratio ppo_kl_coef",
        why="they are the settings of our policy losses",
    ),
    called("verl.workers.utils.padding:response_to_nested", "tensor response_mask", why="advantages go back in"),
    called("verl.workers.utils.padding:response_from_nested", "tensor response_mask", why="it cuts responses out"),
    called(
        "verl.trainer.ppo.core_algos:agg_loss",
        "loss_mat loss_mask loss_agg_mode dp_size batch_num_tokens global_batch_size loss_scale_factor",
        why="the bonus is aggregated as the policy loss is",
    ),
    called("verl.workers.utils.padding:no_padding_2_padding", "tensor data", why="it cuts responses out"),
    Assumption("get_non_tensor_data unwraps a value", non_tensor_data, "the coefficient reaches the loss this way"),
    Assumption("the ratio of two SUM metrics is exact", sum_ratio, "the controller is driven by such a ratio"),
    Assumption("MIN and MAX metrics are taken over all ranks", extremes, "ranks must agree on the coefficient"),
    # The checks of data and reward.
    called("verl.trainer.ppo.reward:get_custom_reward_fn", "config", why="preflight tries the reward function"),
    called("verl.utils.reward_score:get_default_compute_score", "reward_name", why="preflight tries verl's rewards"),
    called("verl.utils.tokenizer:normalize_token_ids", "tokenized_output", why="preflight tries the chat template"),
    # The evaluation.
    in_source(
        f"{BASE}._write_generations",
        *("{global_steps}.jsonl", '"input": inputs', '"output": outputs', '"gts": gts', '"score": scores'),
        why="compare reads validation dumps",
    ),
    called("verl.workers.rollout.llm_server:LLMServerManager.__init__", "config", why="evaluate starts servers alone"),
    called(
        "verl.workers.rollout.llm_server:LLMServerClient.generate",
        "request_id prompt_ids sampling_params",
        why="evaluate asks for responses with it",
    ),
    has_fields(
        "verl.workers.config:RolloutConfig",
        "load_format logprobs_mode max_model_len nnodes n_gpus_per_node val_kwargs",
        why="evaluate sets these for servers without a trainer",
    ),
    called(
        "verl.utils.tokenizer.continuous_token_wiring:create_continuous_token_builder",
        "tokenizer hf_model_type chat_template_kwargs mm_processor_kwargs processor",
        why="evaluate renders prompts with it",
    ),
    called(
        "verl.trainer.ppo.utils:create_rl_dataset",
        "data_paths data_config tokenizer processor is_train max_samples",
        why="evaluate reads data as validation does",
    ),
)
