import pytest

from aent_verl.data.prepare.rows import INSTRUCTION
from tests.unit.data.prepare.conftest import prepare, write_jsonl
from tests.unit.data.prepare.native import ROWS


@pytest.mark.slow
def test_verls_own_data_set_class_loads_what_was_prepared(tmp_path, tiny_model_folder):
    from omegaconf import OmegaConf
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset

    rows = [*ROWS["math"]["train"], {"problem": "long " * 200, "solution": "\\boxed{1}"}]
    source = write_jsonl(tmp_path / "a.jsonl", rows)
    words = ["--tokenizer", tiny_model_folder, "--max-prompt-length", 500]
    report = prepare("math", "--from", f"train={source}", *words, "--output", tmp_path)
    prepare("reasoning-gym:chain_sum", "--size", 3, "--output", tmp_path)
    config = OmegaConf.create(
        {
            "cache_dir": str(tmp_path / "cache"),
            "prompt_key": "prompt",
            "max_prompt_length": 500,
            "filter_overlong_prompts": True,
            "filter_overlong_prompts_workers": 1,
            "truncation": "error",
            "return_raw_chat": True,
        }
    )
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    loaded = RLHFDataset(str(tmp_path / "math-train.parquet"), tokenizer, config)
    # As many as the report says are short enough.
    assert "1 prompts are longer than 500" in report
    assert len(loaded) == 2
    first = loaded[0]
    assert first["raw_prompt"] == [{"role": "user", "content": "What is $\\frac12 + \\frac16$?" + INSTRUCTION}]
    assert first["data_source"] == "math"
    assert first["reward_model"] == {"style": "rule", "ground_truth": "\\frac{2}{3}"}
    assert first["extra_info"]["index"] == first["index"] == 0
    loaded = RLHFDataset(str(tmp_path / "chain_sum-train.parquet"), tokenizer, config)
    assert len(loaded) == 3
    assert loaded[0]["data_source"] == "reasoning_gym/chain_sum"
