import json
import pickle
import random

import pytest
import tokenizers

from mmjax.data import tokenizer as tk

NASTY = ["<image>", "</image>", "<EOC>", "</s>", "<s>", "<pad>", "<Img>", "<|endofchunk|>", "\x00", "\ufeff", "é", " ",
         "\u200d", "שלום", "😀", "\n\n", "\ufdd0", "a", "\U0010ffff"]


def random_texts(count):
    rng = random.Random(0)
    for _ in range(count):
        pieces = [rng.choice(NASTY) if rng.random() < 0.6 else chr(rng.choice([rng.randrange(0xD800),
                  rng.randrange(0xE000, 0x110000)])) for _ in range(rng.randrange(12))]
        yield "".join(pieces)


def wordlevel(tmp_path):
    """A published-like tokenizer whose own vocabulary spells its specials."""
    model = tokenizers.models.WordLevel({"<unk>": 0, "<image>": 1, "</s>": 2, "hi": 3, "there": 4}, unk_token="<unk>")
    t = tokenizers.Tokenizer(model)
    t.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    t.add_special_tokens(["<unk>", "</s>"])
    t.add_tokens(["<image>", "extra"])
    t.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    t.enable_truncation(1)
    t.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def unigram(tmp_path):
    model = tokenizers.models.Unigram([("<unk>", 0.0), ("</s>", 0.0), *((c, -2.0) for c in "</s>imageEOC ")], 0)
    t = tokenizers.Tokenizer(model)
    t.add_special_tokens(["<unk>", "</s>"])
    t.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


@pytest.mark.quick
def test_byte_tokenizer_is_exact_and_never_emits_a_special():
    t = tk.byte_tokenizer()
    for text in random_texts(10_000):
        ids = t.encode(text)
        assert ids == list(text.encode()), text
        assert t.decode(ids) == text


def test_byte_tokenizer_layout():
    t = tk.byte_tokenizer(("<a>", "<b>"))
    assert (t.special, t.vocab_size, t.id("<b>")) == ({"<a>": 256, "<b>": 257}, 258, 257)
    assert t.decode([256, *b"ok", 257, 9999]) == "ok"
    assert t.decode([0xC3]) == "\ufffd"


@pytest.mark.parametrize("make", [wordlevel, unigram])
def test_a_model_that_lists_its_specials_does_not_find_them_in_text(tmp_path, make):
    t = tk.load_tokenizer(make(tmp_path), specials=("<image>", "<EOC>"))
    forbidden = set(t.special.values()) - {t.id("<unk>")}     # an unknown word is what <unk> is for
    for text in ["</s>", "hi </s> <image>", "<EOC> there", *random_texts(500)]:
        assert not forbidden & set(t.encode(text)), text


def test_load_keeps_published_ids_and_adds_new_ones_behind(tmp_path):
    t = tk.load_tokenizer(wordlevel(tmp_path), specials=("<image>", "<EOC>"))
    assert t.special == {"<unk>": 0, "<image>": 1, "</s>": 2, "<EOC>": 6}
    assert t.vocab_size == 7
    assert t.encode("hi extra there") == [3, 5, 4]            # no post-processor, no truncation
    assert t.encode("what") == [0]


def test_save_and_pickle_round_trip(tmp_path):
    t = tk.byte_tokenizer(("<image>", "</s>"))
    t.save(tmp_path / "out")
    other = tk.byte_tokenizer(("</s>", "<image>"))
    for u in (tk.load_tokenizer(tmp_path / "out"), pickle.loads(pickle.dumps(t))):
        assert (u.special, u.fingerprint()) == (t.special, t.fingerprint())
        assert u.encode("a<image>") == list(b"a<image>")
        assert u.fingerprint() != other.fingerprint()
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    assert plain.token_to_id("<image>") == t.id("<image>")


def test_errors_name_the_problem(tmp_path):
    t = tk.byte_tokenizer()
    with pytest.raises(ValueError, match="lone surrogate at character 1"):
        t.encode("a\ud800")
    with pytest.raises(ValueError, match="no special token '<nope>'; it has .*<EOC>"):
        t.id("<nope>")
    with pytest.raises(ValueError, match="repeat"):
        tk.byte_tokenizer(("<a>", "<a>"))
    with pytest.raises(FileNotFoundError, match="no tokenizer at"):
        tk.load_tokenizer(tmp_path)
    for bad in ("{", "[]", json.dumps({"added_tokens": []})):
        (tmp_path / "tokenizer.json").write_text(bad)
        with pytest.raises(ValueError, match="tokenizer.json: not a tokenizer.json"):
            tk.load_tokenizer(tmp_path)
