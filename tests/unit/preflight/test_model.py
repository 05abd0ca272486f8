from types import SimpleNamespace

import pytest

from aent_verl.preflight import PreflightError, data, model
from tests.unit.preflight.rows import ROWS, edit, row, write


def check_model(cfg):
    return model.check(cfg, data.check(cfg)[0])


@pytest.mark.parametrize("path", [None, "/no/such/model", "./model", "~/model", "a/b/c"])
def test_no_such_model(path):
    with pytest.raises(PreflightError, match=r"model\.path=.*(there is no such folder; |no model is named)"):
        model.check_path(path)


@pytest.mark.parametrize("path", ["gpt2", "Qwen/Qwen2.5-Math-1.5B", "hdfs://host/model"])
def test_a_name_on_the_hub_or_a_remote_folder_is_possible(path):
    model.check_path(path)


def test_a_name_that_the_hub_copy_does_not_have(settings):
    settings.actor_rollout_ref.model.path = "nobody/nothing"
    with pytest.raises(PreflightError, match="no such folder, and the hub's copy cannot be loaded"):
        check_model(settings)


@pytest.mark.parametrize(("name", "problem"), [("config.json", "no config.json"), ("model.safetensors", "no weights")])
def test_a_folder_without_a_part_of_the_model(settings, model_copy, name, problem):
    (model_copy / name).unlink()
    with pytest.raises(PreflightError, match=problem):
        check_model(settings)


def test_a_folder_without_a_tokenizer(settings, model_copy):
    for file in model_copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(PreflightError, match="makes '' of the user message"):
        check_model(settings)


def without_template(folder):
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    edit(folder / "tokenizer_config.json", chat_template=None)


def test_a_folder_without_a_chat_template(settings, model_copy):
    without_template(model_copy)
    with pytest.raises(PreflightError, match=r"no chat template.*instruct model.*custom_chat_template"):
        check_model(settings)


def test_a_chat_template_in_the_config_stands_in(settings, model_copy):
    without_template(model_copy)
    settings.actor_rollout_ref.model.custom_chat_template = "{{ messages[0]['content'] }}"
    assert "text intact" in check_model(settings)[1]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ raise_exception('System role not supported') }}", "its chat template fails on .*System role"),
        ("{{ messages[0]['role'] }}", "its chat template makes 'user' of the user message 'How many is 0"),
    ],
)
def test_a_chat_template_that_fails_or_loses_the_text(settings, template, problem):
    settings.actor_rollout_ref.model.custom_chat_template = template
    with pytest.raises(PreflightError, match=problem):
        check_model(settings)


def test_a_tokenizer_with_more_tokens_than_the_model(settings, model_copy):
    edit(model_copy / "config.json", vocab_size=100)
    with pytest.raises(PreflightError, match=r"gives token \d+, the model has 100"):
        check_model(settings)


@pytest.mark.parametrize("name", ["eos", "pad"])
def test_a_tokenizer_without_end_or_padding(name):
    tokenizer = SimpleNamespace(**{"eos_token_id": 1, "pad_token_id": 0} | {f"{name}_token_id": None})
    with pytest.raises(PreflightError, match=f"its tokenizer has no {name} token"):
        model._check_special_tokens("folder", tokenizer)


def test_prompts_that_are_too_long(settings, tmp_path):
    settings.data.train_files = write(tmp_path / "long.parquet", [*ROWS[:15], row("1" * 100, "5")])
    with pytest.raises(
        PreflightError, match=r"data\.max_prompt_length=96: 1 of the first 20 prompts .*expected at least 1\d\d"
    ):
        check_model(settings)
    settings.data.filter_overlong_prompts = True
    check_model(settings)
    settings.data.max_prompt_length = 8
    with pytest.raises(PreflightError, match="20 of the first 20 prompts"):
        check_model(settings)
    settings.data.truncation = "left"
    check_model(settings)
