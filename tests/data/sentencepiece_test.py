"""SentencePiece models trained here, read by us and by the library itself."""

import io
import random

import pytest

from mmjax.data.sentencepiece import to_tokenizer_json
from mmjax.data.tokenizer import Tokenizer, load_tokenizer

sentencepiece = pytest.importorskip("sentencepiece")
WORDS = ("the", "a", "picture", "of", "one", "three", "stars", "moon", "green", "left", "above", "seven", "Zürich",
         "été")


def train(kind: str, **options) -> bytes:
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=9)) + rng.choice(".!?,;") for _ in range(400)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, model_type=kind, vocab_size=330, minloglevel=2,
        hard_vocab_limit=False, user_defined_symbols=["<special>"], byte_fallback=True, **options)
    return model.getvalue()


def texts(count: int):
    """Words, spaces of all kinds, and characters that the model has never seen; no run of one character."""
    rng = random.Random(1)
    strange = "äé漢😀▁\t\n\u00a0\ufb01XyZ09<>/"
    for _ in range(count):
        words = [rng.choice((*WORDS, rng.choice(strange), rng.choice(strange), "</s>", "<unk>", "")) for _ in range(8)]
        yield rng.choice((" ", "", "  ")).join(words)


@pytest.mark.quick
@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("options", [
    {}, dict(add_dummy_prefix=False), dict(normalization_rule_name="identity", remove_extra_whitespaces=False)])
def test_ids_and_text_are_the_librarys(kind, options):
    model = train(kind, **options)
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    ours = Tokenizer(to_tokenizer_json(model))
    assert ours.vocab_size == theirs.vocab_size()
    assert {ours.id("<s>"), ours.id("</s>")} == {theirs.bos_id(), theirs.eos_id()}
    for text in texts(400):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


@pytest.mark.quick
def test_a_folder_with_a_model_is_a_tokenizer(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(train("bpe"))
    tokenizer = load_tokenizer(tmp_path, ["<image>"])
    assert tokenizer.id("<image>") == tokenizer.vocab_size - 1
    assert tokenizer.id("</s>") not in tokenizer.encode("</s> <image>")
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").encode("three green stars") == tokenizer.encode("three green stars")


@pytest.mark.quick
@pytest.mark.parametrize("damage", [lambda b: b[:len(b) // 2], lambda b: b"", lambda b: b"\xff" * 100,
                                    lambda b: b"\x0a\xff\xff\xff\xff\x0f" + b[:50]])
def test_damaged_models_are_named(tmp_path, damage):
    (tmp_path / "t.model").write_bytes(damage(train("bpe")))
    with pytest.raises(ValueError, match="t.model: .*SentencePiece model"):
        load_tokenizer(tmp_path / "t.model")
