"""Token budgets, context lengths and batch sizes against the lengths and the number of the responses."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transformers import Qwen2Config
from verl.utils import tensordict_utils as tu
from verl.workers.engine.utils import prepare_micro_batches

import aent_verl._config
from aent_verl.preflight import lengths
from tests.unit.preflight.finding import config, findings, stops, stops_and_warns

ACTOR, ROLLOUT, REF = lengths.ACTOR, lengths.ROLLOUT, lengths.REF
UPDATE, OLD = f"{ACTOR}.ppo_max_token_len_per_gpu", f"{ROLLOUT}.log_prob_max_token_len_per_gpu"
REFERENCE = f"{REF}.log_prob_max_token_len_per_gpu"
MICRO, OLD_MICRO = f"{ACTOR}.ppo_micro_batch_size_per_gpu", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu"
MINI, CONTEXT = f"{ACTOR}.ppo_mini_batch_size", f"{ROLLOUT}.max_model_len"
ULYSSES = f"{ACTOR}.ulysses_sequence_parallel_size"
LONG = ("data.max_prompt_length=512", "data.max_response_length=1024")
# A step of 256 prompts with 4 responses each on 8 ranks, packed by tokens.
DYNAMIC = (f"{ACTOR}.use_dynamic_bsz=true", "data.train_batch_size=256", f"{MINI}=64", f"{ROLLOUT}.n=4")
FIXED = (*DYNAMIC[1:], f"{MICRO}=4", f"{OLD_MICRO}=16")


@pytest.mark.parametrize(
    ("overrides", "stop", "warn"),
    [
        ((*DYNAMIC, *LONG), set(), set()),
        ((*DYNAMIC, *LONG, f"{UPDATE}=1536"), set(), set()),
        # The log-prob budget follows by interpolation.
        ((*DYNAMIC, *LONG, f"{UPDATE}=1535"), {UPDATE, OLD}, set()),
        ((*DYNAMIC, *LONG, f"{UPDATE}=768", f"{ULYSSES}=2"), set(), set()),
        ((*DYNAMIC, *LONG, f"{UPDATE}=768", f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size=2"), set(), set()),
        ((*DYNAMIC, *LONG, f"{UPDATE}=767", f"{ULYSSES}=2"), {UPDATE, OLD}, set()),
        ((*DYNAMIC, *LONG, f"{OLD}=1000"), {OLD}, set()),
        ((*DYNAMIC, *LONG, f"{OLD}=1000", "algorithm.rollout_correction.bypass_mode=true"), set(), set()),
        ((*DYNAMIC, *LONG, f"{REFERENCE}=1000"), set(), set()),
        ((*DYNAMIC, *LONG, f"{REFERENCE}=1000", f"{ACTOR}.use_kl_loss=true"), {REFERENCE}, set()),
        # With an adapter the actor is the reference, without it.
        (
            (*DYNAMIC, *LONG, f"{REFERENCE}=1000", f"{ACTOR}.use_kl_loss=true", "actor_rollout_ref.model.lora_rank=8"),
            set(),
            set(),
        ),
        ((*DYNAMIC, *LONG, "critic.enable=true", "critic.ppo_max_token_len_per_gpu=100"), set(), set()),
        (
            (*DYNAMIC, *LONG, "critic.enable=true", "critic.ppo_infer_max_token_len_per_gpu=1000"),
            {"critic.ppo_infer_max_token_len_per_gpu"},
            set(),
        ),
        (
            (*DYNAMIC, "critic.enable=true", f"{UPDATE}=50000", "data.max_response_length=40000"),
            {"+critic.ppo_infer_max_token_len_per_gpu"},
            set(),
        ),
        ((*DYNAMIC, f"{ROLLOUT}.log_prob_use_dynamic_bsz=false"), {f"{ROLLOUT}.log_prob_use_dynamic_bsz"}, set()),
        ((*DYNAMIC, f"{MICRO}=3"), set(), {MICRO}),
        ((*FIXED,), set(), set()),
        ((*FIXED, f"{UPDATE}=100"), set(), {UPDATE}),
        ((*FIXED, f"{MICRO}=3"), {MICRO}, set()),
        ((*FIXED, f"{OLD_MICRO}=3"), {OLD_MICRO}, set()),
        ((*FIXED, f"{MICRO}=null"), {MICRO}, set()),
        (
            (*FIXED, f"{MICRO}=null", f"{ACTOR}.ppo_micro_batch_size=8"),
            {f"{ACTOR}.ppo_micro_batch_size"},
            set(),
        ),
        ((*FIXED, f"{ACTOR}.use_kl_loss=true"), {f"{REF}.log_prob_micro_batch_size_per_gpu"}, set()),
        ((*FIXED, f"{MINI}=512"), {MINI}, set()),
        ((*DYNAMIC, f"{MINI}=512"), set(), {MINI}),
        ((*DYNAMIC, f"{MINI}=96"), set(), {MINI}),
        ((*DYNAMIC, f"{MINI}=65"), {MINI}, set()),  # 65 * 4 responses on 8 ranks
        ((*DYNAMIC, f"{MINI}=66", "data.train_batch_size=66"), set(), set()),
        ((*DYNAMIC, *LONG, f"{CONTEXT}=512"), {CONTEXT}, set()),
        ((*DYNAMIC, *LONG, f"{CONTEXT}=1535"), {CONTEXT}, set()),
        ((*DYNAMIC, *LONG, f"{CONTEXT}=1536"), set(), set()),
        ((*DYNAMIC, f"{ROLLOUT}.prompt_length=100"), {f"{ROLLOUT}.prompt_length"}, set()),
        ((*DYNAMIC, f"{ROLLOUT}.response_length=100"), set(), {"data.max_response_length"}),
        ((*DYNAMIC, f"{ROLLOUT}.max_num_batched_tokens=200"), {f"{ROLLOUT}.max_num_batched_tokens"}, set()),
        (
            (*DYNAMIC, f"{ROLLOUT}.enable_chunked_prefill=false", f"{CONTEXT}=9000"),
            set(),
            {f"{ROLLOUT}.max_num_batched_tokens"},
        ),
        (
            (*DYNAMIC, f"{CONTEXT}=2048", f"{lengths.ENGINE_LENGTH}=4096"),
            {lengths.ENGINE_LENGTH},
            set(),
        ),
    ],
)
def test_what_stops_and_what_warns(overrides, stop, warn):
    assert stops_and_warns(lengths.check, config(*overrides)) == (stop, warn)


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        ((*DYNAMIC, *LONG, f"{UPDATE}=1000", f"{ULYSSES}=2", f"{OLD}=9000", f"{UPDATE}=700"), UPDATE, f"{UPDATE}=768"),
        ((*DYNAMIC, *LONG, f"{CONTEXT}=513"), CONTEXT, "silently cut short.*max_model_len=1536"),
        ((*DYNAMIC, *LONG, f"{CONTEXT}=512"), CONTEXT, "no room for a response.*max_model_len=1536"),
        ((*FIXED, f"{MICRO}=5"), MICRO, f"32 sequences per device.*Set {MICRO}=4"),
        ((*DYNAMIC, f"{MINI}=96"), MINI, "96 \\* 4|384 responses.*adds 128 empty rows"),
        (
            (*DYNAMIC, f"{MINI}=96", f"{ACTOR}.loss_agg_mode=seq-mean-token-sum"),
            MINI,
            "counts, so that these updates are weaker, 89% on average",
        ),
        ((*DYNAMIC, f"{MINI}=65"), MINI, f"expected a multiple of 2. Set {MINI}=64"),
    ],
)
def test_the_message_names_the_number_to_type(overrides, key, says):
    with pytest.raises((ValueError, UserWarning), match=says):
        raise findings(lengths.check, config(*overrides))[key]


def splits(tokens: int, budget: int, share: int) -> bool:
    """Whether verl's own splitter takes a sequence of so many tokens."""
    rows = torch.nested.as_nested_tensor([torch.zeros(tokens, dtype=torch.long)], layout=torch.jagged)
    data = TensorDict({"input_ids": rows}, batch_size=1)
    tu.assign_non_tensor(data, use_dynamic_bsz=True, max_token_len_per_gpu=budget, sp_size=share)
    try:
        prepare_micro_batches(data)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("share", [1, 2])
@pytest.mark.parametrize("budget", [767, 768, 769, 1535, 1536, 1537])
def test_the_check_agrees_with_verls_splitter(budget, share):
    cfg = config(*DYNAMIC, *LONG, f"{UPDATE}={budget}", f"{ULYSSES}={share}")
    assert (UPDATE not in stops(lengths.check, cfg)) == splits(1536, budget, share)


def test_rows_that_verl_adds_have_a_length_of_their_own():
    short = (*DYNAMIC, "data.max_prompt_length=64", "data.max_response_length=8", f"{UPDATE}=100")
    assert stops(lengths.check, config(*short)) == set()
    assert UPDATE in stops(lengths.check, config(*short, f"{MINI}=96"))


@pytest.fixture
def model(tmp_path: Path) -> str:
    Qwen2Config(max_position_embeddings=1024).save_pretrained(tmp_path)
    return str(tmp_path)


def test_positions_of_the_model(model):
    path = f"actor_rollout_ref.model.path={model}"
    assert lengths.max_positions(config(path)) == 1024
    assert stops(lengths.check, config(*DYNAMIC, path)) == set()
    assert stops(lengths.check, config(*DYNAMIC, path, f"{CONTEXT}=2048")) == {CONTEXT}
    found = findings(lengths.check, config(*DYNAMIC, path, *LONG))
    assert "Set data.max_response_length=512" in str(found["data.max_response_length"])
    more = config(*DYNAMIC, path, *LONG, "actor_rollout_ref.model.override_config.max_position_embeddings=4096")
    assert stops(lengths.check, more) == set()


def test_a_model_elsewhere_or_of_an_unknown_kind_is_left_to_others(tmp_path):
    assert lengths.max_positions(config("actor_rollout_ref.model.path=Qwen/Qwen2.5-0.5B")) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "nobody_knows"}))
    assert lengths.max_positions(config(f"actor_rollout_ref.model.path={tmp_path}")) is None


EXPERIMENTS = sorted(path.stem for path in Path(aent_verl._config.__path__[0], "experiment").glob("*.yaml"))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_shipped_experiment_gives_a_finding(experiment):
    assert findings(lengths.check, config(f"experiment={experiment}")) == {}


def test_on_the_cpu_the_context_follows_the_lengths():
    """It was 512 whatever they were."""
    cfg = config("platform=cpu", *LONG)
    assert cfg.actor_rollout_ref.rollout.max_model_len == 1536
    assert CONTEXT not in findings(lengths.check, cfg)
    cfg = config("experiment=cpu_arithmetic", "data.max_response_length=64")
    OmegaConf.resolve(cfg)
    assert cfg.actor_rollout_ref.rollout.max_model_len == 96 + 64
