import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from aent_verl.data.tasks import arithmetic, cache, reasoning_gym_data, warm_start

QUICK = {"train_size": 48, "validation_size": 16, "hidden_size": 64, "layers": 1, "warm_start_max_steps": 3}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("arithmetic")
    return folder, arithmetic.prepare(str(folder), **QUICK)


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
    monkeypatch.setattr(cache, "_build", lambda folder, recipe, *_: recipes.append(recipe) or result["warm_start"])
    arithmetic.prepare(str(folder), **QUICK)
    arithmetic.prepare(str(folder), **{**QUICK, "seed": 1})
    kept = json.loads((folder / cache.MANIFEST).read_text())["recipe"]
    assert recipes == [kept | {"settings": kept["settings"] | {"seed": 1}}]
    assert {"aent-verl", "reasoning-gym"} < kept["versions"].keys()


def test_the_warm_start_sees_no_validation_question():
    entries = reasoning_gym_data.draw_entries(
        arithmetic.GENERATOR, arithmetic.sums(), size=2000, seed=0, stream="validation"
    )  # of about 10,000: without care some 1,200 would leak
    rows = reasoning_gym_data.build_rows(entries, generator=arithmetic.GENERATOR, split="validation")
    pairs = arithmetic._warm_start_pairs(arithmetic.sums(), held_out=rows, seed=0)
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
