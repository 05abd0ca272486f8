import pytest
import torch

from aent_verl.data.tasks import tiny_model, warm_start


def test_every_byte_is_one_token_and_comes_back(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    tiny_model.build_model(tokenizer, hidden_size=64, layers=1, seed=0).config.save_pretrained(tmp_path)
    for each in (tokenizer, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(each) == 259
        assert len(each("\n")["input_ids"]) == 1
        text = "Calculate 12 + 34.\n\n  \tÄ wörld 漢字 😀"
        ids = each(text)["input_ids"]
        assert len(ids) == len(text.encode())
        assert each.decode(ids) == text
        assert each.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]) == [each.eos_token_id, each.pad_token_id]
        special = each("<|im_start|><|im_end|><|endoftext|>")["input_ids"]
        assert len(special) == 3
        assert each.decode([*each("7")["input_ids"], *special], skip_special_tokens=True) == "7"


def test_chat_template_is_chatml(tokenizer):
    chat = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1 + 2"}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>system\nAdd.<|im_end|>\n<|im_start|>user\n1 + 2<|im_end|>\n<|im_start|>assistant\n"
    assert warm_start.prompt_ids(tokenizer, chat) == tokenizer(text)["input_ids"]


def test_model_is_what_vllms_cpu_attention_takes_and_is_seeded(tokenizer):
    before = torch.random.get_rng_state()
    model = tiny_model.build_model(tokenizer, hidden_size=128, layers=2, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)
    config = model.config
    assert config.hidden_size // config.num_attention_heads == 32
    assert config.num_attention_heads % config.num_key_value_heads == 0
    assert 3e5 < sum(weight.numel() for weight in model.parameters()) < 1e6
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    again, other = (tiny_model.build_model(tokenizer, hidden_size=128, layers=2, seed=seed) for seed in (0, 1))
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    ("sizes", "message"), [((96, 1), "hidden_size=96"), ((0, 1), "hidden_size=0"), ((64, 0), "layers=0")]
)
def test_model_sizes_out_of_range(tokenizer, sizes, message):
    with pytest.raises(ValueError, match=message):
        tiny_model.build_model(tokenizer, hidden_size=sizes[0], layers=sizes[1], seed=0)


def test_saved_model_reloads_equal(tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    model = tiny_model.build_model(tokenizer, hidden_size=64, layers=2, seed=0)
    tiny_model.save(model, tokenizer, tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again).__name__ == "Qwen2ForCausalLM"
    ids = torch.tensor([tokenizer("12 + 34 =")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, again(ids).logits)
    ends = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert again.generation_config.eos_token_id == ends
    assert again.generation_config.pad_token_id == ends[1]
