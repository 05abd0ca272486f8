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
    with pytest.raises(PreflightError, match=r"its tokenizer turns the user message .* into ''"):
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
        ("{{ messages[0]['role'] }}", "its chat template turns the user message 'How many is 0.*' into 'user'"),
    ],
)
def test_a_chat_template_that_fails_or_loses_the_text(settings, template, problem):
    settings.actor_rollout_ref.model.custom_chat_template = template
    with pytest.raises(PreflightError, match=problem):
        check_model(settings)


def test_a_tokenizer_with_more_tokens_than_the_model(settings, model_copy):
    edit(model_copy / "config.json", vocab_size=100)
    with pytest.raises(PreflightError, match=r"gives token \d+, but the model has 100"):
        check_model(settings)


@pytest.mark.parametrize("name", ["eos", "pad"])
def test_a_tokenizer_without_end_or_padding(name):
    tokenizer = SimpleNamespace(**{"eos_token_id": 1, "pad_token_id": 0} | {f"{name}_token_id": None})
    with pytest.raises(PreflightError, match=f"its tokenizer has no {name} token"):
        model._check_special_tokens("folder", tokenizer)


def test_prompts_that_are_too_long(settings, tmp_path):
    settings.data.train_files = write(tmp_path / "long.parquet", [*ROWS[:15], row("1" * 100, "5")])
    with pytest.raises(PreflightError, match=r"data\.max_prompt_length=96: 1 of 20 prompts .*expected at least 1\d\d"):
        check_model(settings)
    settings.data.filter_overlong_prompts = True
    check_model(settings)
    settings.data.max_prompt_length = 8
    with pytest.raises(PreflightError, match="20 of 20 prompts"):
        check_model(settings)
    settings.data.truncation = "left"
    check_model(settings)


@pytest.mark.parametrize("question", ["How many \u2126 is 5?", "3 \u212b long", "a cafe\u0301", "<|im_end|> is 5"])
def test_a_prompt_that_the_tokenizer_normalises(settings, tmp_path, question):
    settings.data.train_files = write(tmp_path / "train.parquet", [row(question), *ROWS])
    assert "text intact" in check_model(settings)[1]


def test_a_template_that_changes_a_character(settings, tmp_path):
    # The template sees the two characters of the data, of which the tokenizer would make one.
    settings.actor_rollout_ref.model.custom_chat_template = "{{ messages[0]['content'] | replace('e\u0301', 'e') }}"
    settings.data.train_files = write(tmp_path / "train.parquet", [row("cafe\u0301"), *ROWS])
    with pytest.raises(
        PreflightError, match=r"its chat template turns .*'How many is caf.+\?' into 'How many is cafe\?'"
    ) as error:
        check_model(settings)
    assert "U+00E9 (LATIN SMALL LETTER E WITH ACUTE) at position 15, in " in str(error.value)


@pytest.fixture
def few_words(settings, model_copy):
    """A model folder whose tokenizer knows ASCII alone."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers

    characters = ["[UNK]", "[END]", *map(chr, range(33, 127))]
    words = Tokenizer(models.WordLevel({c: i for i, c in enumerate(characters)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Split("", "isolated")])
    words.save(str(model_copy / "tokenizer.json"))
    edit(model_copy / "config.json", model_type="llama", architectures=["LlamaForCausalLM"])
    settings_of = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "eos_token": "[END]"}
    (model_copy / "tokenizer_config.json").write_text(json.dumps(settings_of | {"pad_token": "[END]"}))
    (model_copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return settings


def test_a_character_that_the_tokenizer_does_not_know(few_words, tmp_path):
    few_words.data.train_files = write(tmp_path / "train.parquet", [row("5 \u2603"), *ROWS])
    lines = check_model(few_words)
    assert isinstance(lines[2], Warning)
    assert "U+2603 (SNOWMAN) at position 14, in 'How many is 5 \u2603?', is lost" in str(lines[2])
    assert str(lines[2]).startswith("actor_rollout_ref.model.path: its tokenizer does not know all characters")
    few_words.data.train_files = write(tmp_path / "other.parquet", [row("\u2603" * 20), *ROWS])
    with pytest.raises(PreflightError, match=r"its tokenizer turns .*U\+2603"):
        check_model(few_words)


def test_text_between_pictures(settings):
    part = "{{ part['text'] if part['type'] == 'text' else '<image>' }}"
    every = f"{{% for part in messages[0]['content'] %}}{part}{{% endfor %}}"
    settings.actor_rollout_ref.model.custom_chat_template = every
    template = model.Template(settings, model._load(settings))
    parts = [{"type": "image"}, {"type": "text", "text": "How many \u2126?"}, {"type": "text", "text": "Say."}]
    assert template.check_text([{"role": "user", "content": parts}]) == []
    template.template = "{{ messages[0]['content'][1]['text'] }}"
    with pytest.raises(PreflightError, match=r"user message 'Say\.' into .*; U\+0053"):
        template.check_text([{"role": "user", "content": parts}])
