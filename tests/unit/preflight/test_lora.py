import copy
import json
from typing import Any

import pytest
from omegaconf import OmegaConf, open_dict

from aent_verl import preflight
from aent_verl.preflight import PreflightError, keys, lora
from aent_verl.preflight.findings import PreflightWarning

MODEL = "actor_rollout_ref.model."


@pytest.fixture
def cfg(composed):
    return composed


def found(cfg, **settings: Any) -> dict[str, Exception]:
    """Findings by key, after changes to the model's settings."""
    for name, value in settings.items():
        with open_dict(cfg):
            OmegaConf.update(cfg, MODEL + name.replace("__", "."), value)
    return {item.key: item for item in lora.check(cfg) if not isinstance(item, str)}


def test_defaults_say_nothing(cfg):
    assert list(lora.check(cfg)) == []
    assert list(lora.check_evaluation(cfg)) == []


def test_an_adapter_is_announced(cfg):
    assert not found(cfg, lora_rank=8, lora_alpha=32)
    assert list(lora.check(cfg)) == [
        "a new adapter of rank 8 trains; vLLM gets the adapter, a reference policy is the model without it"
    ]


@pytest.mark.parametrize("rank", [-1, 8.5, "8", True, None])
def test_invalid_ranks(cfg, rank):
    assert "a whole number from 0" in str(found(cfg, lora_rank=rank)[MODEL + "lora_rank"])


@pytest.mark.parametrize(("flat", "nested"), [(0, 8), (8, 16)])
def test_the_rank_of_megatrons_block(cfg, flat, nested):
    error = found(cfg, lora_rank=flat, lora__rank=nested)[MODEL + "lora.rank"]
    assert isinstance(error, PreflightError)
    assert f"Set actor_rollout_ref.model.lora_rank={nested}, and remove" in str(error)
    assert not found(cfg, lora_rank=nested)


# Keys of Megatron's block that FSDP engines, vLLM, or trainer and rollouts read.
READ = {"merge", "rank", "fully_sharded_loras"}


def test_every_key_of_megatrons_block_is_refused_unless_fsdp_reads_it(cfg):
    """A key that a later verl adds to its block is then asked about, too."""
    names = set(cfg.actor_rollout_ref.model.lora) - READ
    assert {"alpha", "dropout", "target_modules", "adapter_path", "dtype"} <= names
    for name in names:
        changed = copy.deepcopy(cfg)
        assert not found(changed, lora_rank=8, **{f"lora__{name}": ["x"] if name.endswith("modules") else "x"})
        (finding,) = keys.check(changed)
        assert isinstance(finding, PreflightError)
        assert finding.key == f"{MODEL}lora.{name}"
        assert ("only verl's Megatron engine does" in str(finding)) == (name != "adapter_path")


def test_the_block_names_what_megatron_alone_reads():
    """Of `model.lora` verl's FSDP engine and its workers read no key that is not in `READ`."""
    import re

    from verl.workers import engine_workers
    from verl.workers.engine.fsdp import transformer_impl

    for module in (engine_workers, transformer_impl):
        with open(module.__file__, encoding="utf-8") as file:
            read = set(re.findall(r"""model_config\.lora(?:\.get\(|\[)["'](\w+)""", file.read()))
        assert read == {"merge"}


def test_an_adapter_without_a_rank_is_not_loaded(cfg, tmp_path):
    error = found(cfg, lora_adapter_path=str(tmp_path))[MODEL + "lora_adapter_path"]
    assert isinstance(error, PreflightError)
    assert "with actor_rollout_ref.model.lora_rank=0 verl does not load it" in str(error)


def test_the_folder_of_an_adapter(cfg, tmp_path):
    assert "cannot be read (FileNotFoundError" in str(
        found(cfg, lora_rank=8, lora_adapter_path=str(tmp_path))[MODEL + "lora_adapter_path"]
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16}))
    assert "expected 16. Set actor_rollout_ref.model.lora_rank=16" in str(found(cfg)[MODEL + "lora_rank"])
    assert not found(cfg, lora_rank=16)
    assert next(lora.check(cfg)).startswith(f"{tmp_path} trains")
    assert not found(cfg, lora_adapter_path="someone/adapter")


@pytest.mark.parametrize(
    ("name", "value"),
    [("lora_alpha", 32), ("target_modules", ["q_proj"]), ("exclude_modules", "lm_head"), ("lora__merge", True)],
)
def test_what_has_no_effect_without_an_adapter_warns(cfg, name, value):
    (warning,) = found(cfg, **{name: value}).values()
    assert isinstance(warning, PreflightWarning)
    assert "has no effect: actor_rollout_ref.model.lora_rank=0" in str(warning)


def test_layers_one_by_one_need_the_base_weights_in_vllm(cfg):
    cfg.actor_rollout_ref.rollout.layered_summon = True
    assert not found(cfg)
    error = found(cfg, lora_rank=8)["actor_rollout_ref.rollout.load_format"]
    assert isinstance(error, PreflightError)
    assert "'dummy': with rollout.layered_summon=True" in str(error)
    cfg.actor_rollout_ref.rollout.load_format = "safetensors"
    assert not found(cfg)


def test_merged_weights_are_rounded(cfg):
    warning = found(cfg, lora_rank=8, lora__merge=True)[MODEL + "lora.merge"]
    assert isinstance(warning, PreflightWarning)
    assert "rounds merged weights to bfloat16" in str(warning)
    cfg.actor_rollout_ref.rollout.dtype = "bfloat16"
    assert not found(cfg)
    assert "vLLM gets merged weights" in next(lora.check(cfg))


@pytest.mark.parametrize(("name", "value"), [("lora_rank", 8), ("lora_adapter_path", "a"), ("lora.rank", 8)])
def test_evaluations_load_no_adapter(cfg, name, value):
    OmegaConf.update(cfg, MODEL + name, value)
    (error,) = lora.check_evaluation(cfg)
    assert error.key == MODEL + name
    assert "the base model would answer" in str(error)


@pytest.mark.slow
def test_training_and_evaluation_ask(cfg):
    OmegaConf.update(cfg, MODEL + "lora.rank", 8)
    for check in (preflight.check_settings, preflight.check_evaluation):
        rows = [row for row in check(cfg) if row.check == "LoRA"]
        assert [row.state for row in rows] == [preflight.findings.FAILED]
        assert "lora.rank=8" in rows[0].detail
