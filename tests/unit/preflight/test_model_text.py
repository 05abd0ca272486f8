"""Text through real tokenizers of every kind: what they normalise is not lost."""

import string

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from aent_verl.data.tasks import tiny_model
from aent_verl.preflight import model

TEXTS = [
    "How many Ω is 5 \u2126?",  # OHM SIGN becomes GREEK CAPITAL LETTER OMEGA
    "A wavelength of 3 \u212b.",  # ANGSTROM SIGN becomes A WITH RING
    "caf\u0065\u0301 and nai\u0308ve",  # decomposed accents
    "\ufb01ne, \u2460, x\u00b2",  # compatibility characters
    "  leading, trailing and\u00a0hard blanks \n\n\tin  a row ",
    "It 's . do n't ! '' ? , \u2581 a",  # what a clean-up joins, and SentencePiece's mark
    "MIXED Case <|im_end|> <s> [MASK] and &lt;",
]


def wrap(tokenizer, **more):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **more)


def bytes_without_normalizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return wrap(tokenizer, clean_up_tokenization_spaces=True)


def compatibility():
    tokenizer = bytes_without_normalizer().backend_tokenizer
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return wrap(tokenizer, eos_token="<|im_end|>")


def bert():
    from transformers import BertTokenizer

    characters = sorted(set(string.printable) - set(string.whitespace)) + list("ωΩ①²ﬁ▁")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *(f"##{c}" for c in characters)]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)}, do_lower_case=True)


def llama():
    from transformers import LlamaTokenizer

    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    return LlamaTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, merges=[])


def sentencepiece_prepends():
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁"]
    tokenizer = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer, unk_token="<unk>", eos_token="<s>")


def python_alone():
    from transformers import ByT5Tokenizer

    return ByT5Tokenizer()


KINDS = [
    tiny_model.build_tokenizer,
    bytes_without_normalizer,
    compatibility,
    bert,
    llama,
    sentencepiece_prepends,
    python_alone,
]


def loss(tokenizer, given):
    kept = model.decode(tokenizer, model.encode(tokenizer, given))
    return model.difference(model.normalise(tokenizer, given), kept)


@pytest.mark.parametrize("build", KINDS)
@pytest.mark.parametrize("given", TEXTS)
def test_what_a_tokenizer_normalises_is_not_lost(build, given):
    assert loss(build(), given) is None


def test_sentencepiece_itself(tmp_path):
    import sentencepiece
    from transformers import SentencePieceBackend

    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_prefix=str(tmp_path / "m"),
        vocab_size=330,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    tokenizer = SentencePieceBackend(vocab_file=str(tmp_path / "m.model"), unk_token="<unk>")
    for given in TEXTS:
        assert loss(tokenizer, given) is None


def test_an_unknown_character_is_named_with_what_is_around_it():
    assert loss(bert(), "costs 5 \u2603 and up") == (
        "U+2603 (SNOWMAN) at position 8, in 'costs 5 \u2603 and up', is lost, and U+005B (LEFT SQUARE BRACKET) follows"
    )


@pytest.mark.parametrize(
    ("expected", "made", "problem"),
    [
        (
            "5 \u2126",
            "user: 5 \u03a9 end",
            "U+2126 (OHM SIGN) at position 2, in '5 \u2126', is lost, and U+03A9 (GREEK",
        ),
        ("abc", "", "U+0061 (LATIN SMALL LETTER A) at position 0, in 'abc', is lost"),
        ("a b", "x a", "U+0062 (LATIN SMALL LETTER B) at position 2, in 'a b', is lost"),
        ("\x07", "", "U+0007 (no name) at position 0"),
    ],
)
def test_the_first_difference(expected, made, problem):
    assert problem in model.difference(expected, made)


@pytest.mark.parametrize(("expected", "made"), [("", ""), (" a\u3000b ", "xabx"), ("a", "▁a")])
def test_no_difference(expected, made):
    assert model.difference(expected, made) is None
