import pickle
import re
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf, open_dict

from aent_verl import preflight
from aent_verl.preflight import keys, schema, verl_keys
from aent_verl.preflight.findings import PreflightError, PreflightWarning
from aent_verl.preflight.verl_keys import UNREAD
from tests.config.composing import composed
from tests.unit.preflight import verl_source
from tests.unit.preflight.finding import config, put

SCRIPTS = sorted(Path(__file__).parent.joinpath("scripts").glob("*.yaml"))


@pytest.fixture(scope="module")
def base():
    return config()


@pytest.fixture
def cfg(base):
    return pickle.loads(pickle.dumps(base))


def found(cfg):
    return {finding.key: finding for finding in keys.check(cfg)}


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("aent_trainer", []),
        *(
            ("aent_trainer", [f"experiment={path.stem}", f"entropy_control={method}"])
            for path in Path("config/experiment").glob("*.yaml")
            for method in ("aent", "kl_cov")
        ),
        ("aent_evaluate", ["experiment=cpu_arithmetic"]),
        ("aent_trainer", ["trainer.v1.trainer_mode=sync"]),
    ],
    ids=str,
)
def test_our_own_configs_hold_nothing_that_is_not_read(name, overrides):
    assert found(config(*overrides, name=name)) == {}


@pytest.mark.parametrize("value", ["aent", None, ["aent"], {"bonus": {"coeff": 1}}], ids=repr)
def test_a_misspelt_entropy_control_is_left_to_its_own_check(cfg, value):
    with open_dict(cfg):
        cfg.entropy_control = value
    assert found(cfg) == {}


@pytest.mark.parametrize(
    ("key", "value", "instead"),
    [
        ("custom_reward_function.path", "/no/such.py", "reward.custom_reward_function.path=/no/such.py"),
        ("reward_model.reward_manager", "dapo", "reward.reward_manager.name=dapo"),
        ("reward_model.reward_loop_class_name", "Mine", "reward.reward_manager.module.name=Mine"),
        ("reward_model.n_gpus_per_node", 4, "reward.reward_model.n_gpus_per_node=4"),
        ("reward_model.rollout.name", "sglang", "reward.reward_model.rollout.name=sglang"),
        ("reward_model.reward_kwargs.max_resp_len", 8192, "+reward.reward_kwargs.max_resp_len=8192"),
        ("sandbox_fusion.url", "http://localhost", "reward.sandbox_fusion.url=http://localhost"),
    ],
)
def test_reward_keys_of_the_time_before_stop_with_the_key_to_type(cfg, key, value, instead):
    (finding,) = keys.check(put(cfg, key, value))
    assert isinstance(finding, PreflightError)
    assert (finding.key, finding.value) == (key, value)
    assert f"Type {instead} instead" in str(finding)


def test_an_old_reward_function_would_have_trained_on_verls_own(cfg):
    assert "the run would train on verl's default reward" in str(
        found(put(cfg, "custom_reward_function.path", "mine.py"))["custom_reward_function.path"]
    )


def test_an_old_reward_key_that_says_what_the_new_one_says_only_warns(cfg):
    (finding,) = keys.check(put(cfg, "reward_model.enable", False))
    assert isinstance(finding, PreflightWarning)


def test_an_old_reward_manager_that_is_gone_is_not_recommended(cfg):
    assert "dapo, gdpo, naive" in str(found(put(cfg, "reward_model.reward_manager", "prime")).popitem()[1])


def test_every_key_of_the_legacy_file_that_verl_would_move_has_a_target(base):
    every = set(schema.leaves(schema.verl_file(keys.LEGACY)))
    # verl's own migration forgets these two.
    assert every - set(keys.moves(base)) == {"reward_model.model.external_lib", "reward_model.model.trust_remote_code"}
    assert all(schema.has(base, target) for target in keys.moves(base).values())


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        (
            "actor_rollout_ref.model.lora.alpha",
            64,
            r"only verl's Megatron engine does. Set actor_rollout_ref.model.lora_alp",
        ),
        ("actor_rollout_ref.actor.grad_clip", 0.5, r"actor\.optim\.clip_grad \(now 1\.0\)"),
        ("data.reward_fn_key", "source", "always read the column data_source"),
        ("actor_rollout_ref.rollout.log_prob_micro_batch_size", 8, "log_prob_micro_batch_size_per_gpu"),
        ("actor_rollout_ref.model.lora.rank", 8, r"model\.lora_rank \(now 0\)"),
        ("actor_rollout_ref.rollout.do_sample", False, "always samples"),
        ("trainer.use_v1", False, "a v1 trainer runs"),
    ],
)
def test_a_key_without_a_reader_that_changes_the_run_stops_it(cfg, key, value, problem):
    (finding,) = keys.check(put(cfg, key, value))
    assert isinstance(finding, PreflightError)
    assert finding.key == key
    assert re.search(problem, str(finding))


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("trainer.balance_batch", False, "always balanced"),
        ("actor_rollout_ref.rollout.over_sample_rate", 0.1, "every request is waited for"),
        ("algorithm.filter_groups.max_num_gen_batches", 10, "Set algorithm.filter_groups.max_inflight_gen_batches"),
        ("critic.ppo_max_token_len_per_gpu", 2048, r"Set \+critic.ppo_infer_max_token_len_per_gpu"),
        ("critic.forward_max_token_len_per_gpu", 2048, r"Set \+critic.ppo_infer_max_token_len_per_gpu"),
        ("critic.use_dynamic_bsz", False, "always packed"),
    ],
)
def test_a_key_without_a_reader_that_does_not_change_the_run_warns(cfg, key, value, problem):
    put(cfg, "algorithm.adv_estimator", "gae")
    (finding,) = keys.check(put(cfg, key, value))
    assert isinstance(finding, PreflightWarning)
    assert finding.key == key
    assert re.search(problem, str(finding))


def test_a_key_without_a_reader_is_fine_where_the_one_that_is_read_says_the_same(cfg):
    put(cfg, "actor_rollout_ref.actor.grad_clip", 0.5)
    put(cfg, "actor_rollout_ref.actor.optim.clip_grad", 0.5)
    assert found(cfg) == {}


def test_a_micro_batch_size_is_fine_where_batches_are_dynamic(cfg):
    put(cfg, "actor_rollout_ref.actor.use_dynamic_bsz", True)
    (finding,) = keys.check(put(cfg, "actor_rollout_ref.actor.ppo_micro_batch_size", 8))
    assert isinstance(finding, PreflightWarning)


def test_a_critic_that_does_not_exist_is_not_looked_at(cfg):
    put(cfg, "critic.grad_clip", 0.5)
    assert found(cfg) == {}
    put(cfg, "algorithm.adv_estimator", "gae")
    assert "critic.optim.clip_grad" in str(found(cfg)["critic.grad_clip"])


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        ("algorithm.typo", PreflightWarning, "nothing in verl or aent_verl reads it"),
        ("foo.bar", PreflightWarning, "nothing in verl or aent_verl reads it"),
        ("algorithm.gama", PreflightError, "Did you mean algorithm.gamma?"),
        ("trainr.nnodes", PreflightError, "Did you mean trainer?"),
        ("data.trian_files", PreflightError, "Did you mean data.train_files?"),
        ("run.progres", PreflightError, "Did you mean run.progress?"),
        ("actor_rollout_ref.rollout.typo", PreflightError, "its workers fail on it"),
        ("actor_rollout_ref.rollout.min_p", PreflightError, "passes on only temperature, top_p and top_k"),
        ("actor_rollout_ref.rollout.presence_penalty", PreflightError, "passes on only temperature, top_p and top_k"),
        ("actor_rollout_ref.rollout.stop", PreflightError, "passes on only temperature, top_p and top_k"),
        ("actor_rollout_ref.rollout.val_kwargs.min_p", PreflightError, "passes on only temperature, top_p and top_k"),
        ("actor_rollout_ref.actor.fsdp_config.parm_offload", PreflightError, r"fsdp_config.param_offload\?"),
        ("trainer.v1.sampler.typo", PreflightWarning, "nothing in verl or aent_verl reads it"),
    ],
)
def test_a_key_of_no_schema(cfg, key, error, text):
    (finding,) = keys.check(put(cfg, key, 1))
    assert isinstance(finding, error)
    assert key.startswith(finding.key)
    assert re.search(text, str(finding))


@pytest.mark.parametrize(
    "key",
    [
        "actor_rollout_ref.model.override_config.max_position_embeddings",
        "actor_rollout_ref.rollout.engine_kwargs.vllm.enable_expert_parallel",
        "actor_rollout_ref.rollout.custom.mine",
        "actor_rollout_ref.actor.optim.override_optimizer_config.fused",
        "actor_rollout_ref.actor.fsdp_config.mixed_precision.param_dtype",
        "data.apply_chat_template_kwargs.enable_thinking",
        "ray_kwargs.ray_init.runtime_env.env_vars.MINE",
        "reward.reward_kwargs.max_resp_len",
        "reward.custom_reward_function.reward_kwargs.mine",
        "trainer.v1.sampler.sampler_kwargs.mine",
        "trainer.wandb_proxy",
        "data.cache_dir",
        "recommended.mine",
    ],
)
def test_open_mappings_and_names_that_verl_asks_for_are_known(cfg, key):
    assert found(put(cfg, key, "text")) == {}


def test_every_finding_comes_in_one_look(cfg):
    every = {
        "custom_reward_function.path": "a.py",
        "sandbox_fusion.url": "b",
        "data.tokenizer": "c",
        "algorithm.typo": 1,
        "trainer.esi_redundant_time": 5,
    }
    for key, value in every.items():
        put(cfg, key, value)
    assert set(found(cfg)) == set(every)


def test_verls_defaults_are_what_it_composes():
    with initialize_config_module("verl.trainer.config", version_base="1.3"):
        assert compose("ppo_trainer") == OmegaConf.merge(
            {"model_engine": "dp"}, schema.verl_file("_generated_ppo_trainer.yaml")
        )


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_each_dead_or_moved_key_of_public_scripts_is_named_with_its_place(path, base):
    script = yaml.safe_load(path.read_text())
    findings, remaining = keys.unknown_overrides(script["overrides"], base)
    cfg = composed(*remaining)
    messages = {row.key: row.detail for row in preflight.check_settings(cfg) if row.key in script["dead"]}
    messages |= {finding.key: str(finding) for finding in [*findings, *keys.check(cfg)]}
    assert set(messages) == set(script["dead"])
    for key, instead in script["dead"].items():
        assert instead is None or instead in messages[key]


def test_there_are_ten_scripts_for_verl_0_4_to_0_9():
    versions = [yaml.safe_load(path.read_text())["verl"] for path in SCRIPTS]
    assert len(versions) == 10
    assert {version[:3] for version in versions} == {"0.4", "0.5", "0.6", "0.7", "0.8", "0.9"}
    assert all(yaml.safe_load(path.read_text())["dead"] for path in SCRIPTS)


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("trainer.totl_epochs=3", "closest key is trainer.total_epochs"),
        ("+trainer.val_before_train=true", "Type trainer.val_before_train=true"),
        ("actor_rollout_ref.model.override_config.resid_pdrop=0", "Type +actor_rollout_ref"),
        ("actor_rollout_ref.actor.megatron.tensor_model_parallel_size=2", "another training engine"),
        ("ray_init.num_cpus=8", "Type ray_kwargs.ray_init.num_cpus=8"),
        ("~trainer.no_such_key", "Remove it"),
        ("trainer.logger=[console", "Write key=value"),
    ],
)
def test_an_override_that_does_not_compose(override, hint, base):
    (finding,), remaining = keys.unknown_overrides([override], base)
    assert remaining == []
    assert hint in str(finding)


def test_overrides_that_compose_are_left_alone(base):
    given = [
        *("experiment=cpu_arithmetic", "entropy_control=kl_cov", "entropy_control/bonus=linear", "hydra.run.dir=x"),
        *("~ray_kwargs.timeline_json_file", "+foo.bar=1", "++trainer.nnodes=2", "trainer.logger=[console,file]"),
        "entropy_control.functional.clamp_p=0.3",
    ]
    assert keys.unknown_overrides(given, base) == ([], given)


def test_every_moved_key_leads_to_a_key_that_exists_and_none_is_alive(base):
    # A whole block may move to a mapping that is open.
    open_places = {
        "reward.reward_kwargs.overlong_buffer_cfg",
        "actor_rollout_ref.rollout.profiler.tool_config.nsys.discrete",
    }
    assert {target for target in verl_keys.MOVED.values() if not schema.has(base, target)} == open_places
    assert [key for key in (*verl_keys.MOVED, *verl_keys.GONE) if schema.has(base, key)] == []


# Verl hands these on as a whole, so that no name in them occurs in its source.
HANDED_ON = (
    *("ray_kwargs.ray_init.", "transfer_queue.", "global_profiler.global_tool_config."),
    *("actor_rollout_ref.actor.fsdp_config.turbo_config.", "actor_rollout_ref.ref.fsdp_config.turbo_config."),
    "critic.fsdp.turbo_config.",
)
# Read by `compute_advantage`, which stands in the old trainer's module; the check of the algorithm names them.
BY_ADVANTAGES = ("algorithm.use_pf_ppo", "algorithm.pf_ppo.")
ENGINES = frozenset({"automodel", "fsdp", "torchtitan", "veomni"})
CONFIG = frozenset({"workers.config.actor", "workers.config.critic"})
# Keys of the table whose name is read somewhere: where, and why that is not a reader of this key. Left out are names
# such as "enable" and "rank", which are everywhere; each was followed by hand.
READ_ELSEWHERE = {
    # Of the optimizer's block.
    "actor_rollout_ref.actor.grad_clip": {"workers.config.optimizer"},
    "critic.grad_clip": {"workers.config.optimizer"},
    # Checks of verl's that do not use the value.
    "actor_rollout_ref.actor.ppo_micro_batch_size": CONFIG,
    "critic.ppo_micro_batch_size": CONFIG,
    "actor_rollout_ref.rollout.log_prob_micro_batch_size": {"utils.config", "workers.engine_workers"},
    "actor_rollout_ref.ref.log_prob_micro_batch_size": {"utils.config", "workers.engine_workers"},
    "algorithm.filter_groups.max_num_gen_batches": {"trainer.ppo.v1.trainer_base"},
    "critic.forward_micro_batch_size": {"workers.config.critic"},
    "critic.forward_micro_batch_size_per_gpu": {"workers.config.critic"},
    # Of val_kwargs.
    "actor_rollout_ref.rollout.do_sample": {"utils.config"},
    # Of the engine's block.
    "actor_rollout_ref.actor.use_torch_compile": {f"workers.engine.{name}.transformer_impl" for name in ENGINES},
    "actor_rollout_ref.ref.use_torch_compile": {f"workers.engine.{name}.transformer_impl" for name in ENGINES},
    # Of the actor, the reference and the rollout.
    "critic.ppo_max_token_len_per_gpu": {"workers.engine_workers"},
    # Asked by verl's own main(), in whose place ours runs.
    "trainer.use_v1": {"trainer.main_ppo"},
    # Of Megatron.
    "actor_rollout_ref.model.lora.adapter_path": {"utils.megatron_utils"},
    "critic.model.lora.adapter_path": {"utils.megatron_utils"},
}
EVERYWHERE = frozenset(
    key
    for key in UNREAD
    if key not in READ_ELSEWHERE
    and key.rpartition(".")[2]
    in {
        *("enable", "mode", "strategy", "strict", "rank", "alpha", "type", "dtype", "dropout", "tokenizer"),
        *("trust_remote_code", "use_dynamic_bsz", "ppo_micro_batch_size_per_gpu", "total_training_steps"),
        *("target_modules", "exclude_modules", "use_remove_padding", "use_fused_kernels", "group_size"),
        *("ignore_patterns", "activation_observer", "quantization_config_path", "ulysses_sequence_parallel_size"),
        *("path", "name", "enabled", "num_shards"),
    }
)


def readers(key):
    return {name.removeprefix("verl.") for name in verl_source.readers().get(key.rpartition(".")[2], ())}


@pytest.mark.slow
def test_every_leaf_of_verls_config_has_a_reader_or_stands_in_the_table():
    leaves = list(schema.leaves(schema.verl_file("_generated_ppo_trainer.yaml")))
    assert len(leaves) > 800
    without = {key for key in leaves if not readers(key) and not key.startswith((*HANDED_ON, *BY_ADVANTAGES))}
    assert without - set(UNREAD) == set()
    assert set(UNREAD) - set(leaves) == set()


def test_every_block_of_verls_config_is_asked_for_or_all_its_leaves_stand_in_the_table():
    def blocks(cfg, prefix=""):
        for name in cfg:
            inner = schema.node(cfg, str(name))
            if schema.is_mapping(inner):
                yield f"{prefix}{name}"
                yield from blocks(inner, f"{prefix}{name}.")

    stock = schema.verl_file("_generated_ppo_trainer.yaml")
    for block in blocks(stock):
        if not readers(block) and not f"{block}.".startswith((*HANDED_ON, *BY_ADVANTAGES)):
            assert set(schema.leaves(schema.node(stock, block), f"{block}.")) <= set(UNREAD), block


def test_what_the_table_says_is_unread_is_not_read_by_this_version_of_verl():
    for key in UNREAD:
        if key not in EVERYWHERE:
            assert readers(key) == READ_ELSEWHERE.get(key, set()), key


def test_every_block_of_verls_config_is_known_to_the_check(base):
    assert set(schema.verl_file("_generated_ppo_trainer.yaml")) <= set(base)
    for block in schema.verl_file("_generated_ppo_trainer.yaml"):
        cfg = put(pickle.loads(pickle.dumps(base)), f"{block}.not_a_key_of_verl", 1)
        expected = set() if str(block) in keys.FREE else {f"{block}.not_a_key_of_verl"}
        assert set(found(cfg)) == expected


def test_a_new_key_that_nothing_reads_would_be_noticed():
    assert readers("data.a_key_that_is_new") == set()
    assert "utils.dataset.rl_dataset" in readers("data.filter_overlong_prompts")
    # Kept in an attribute that nobody reads.
    assert readers("data.truncation") == set()
