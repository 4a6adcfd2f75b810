import numpy as np
import pytest

from mmjax.data import templates
from mmjax.data.documents import Document, DocumentError, Image, Text, Video
from mmjax.data.templates import Flamingo, Kosmos1, Language
from mmjax.data.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
NAMES = {i: name for name, i in TOKENIZER.special.items()}
A, B, C = Image(b"a"), Image(b"b"), Video((b"c", b"d"))


def spell(tokens):
    """Ids as a list of characters and names of special tokens."""
    return [NAMES.get(int(i)) or chr(i) for i in tokens]


def table(encoded):
    """(token, weight, image_index) per position, weights as they are."""
    return list(zip(spell(encoded.tokens), encoded.weights.tolist(), encoded.image_index.tolist(), strict=True))


class Always:
    """A generator whose every draw is the same."""

    def __init__(self, value):
        self.value = value

    def random(self, size=None):
        return self.value if size is None else np.full(size, self.value)


def check_types(e):
    assert [x.dtype for x in e[:5]] == [np.int32, np.float32, np.int32, np.int32, np.int32]
    assert e.spans.shape == (len(e.visuals), 2)


@pytest.mark.quick
def test_flamingo_pair():
    e = Flamingo(eos="</s>").encode(Document((A, Text("hi"))), TOKENIZER)
    assert table(e) == [("<s>", 0, -1), ("<image>", 0, 0), ("h", 1, 0), ("i", 1, 0), ("<EOC>", 1, 0), ("</s>", 1, 0)]
    assert e.visuals == (A,) and e.spans.tolist() == [[1, 2]] and (e.slot_index == -1).all()
    check_types(e)


@pytest.mark.quick
def test_flamingo_page_and_weights():
    page = Document((Text("p", 0.5), A, B, Text("q", 0.0), C, Text("r")))
    e = Flamingo().encode(page, TOKENIZER)
    assert table(e) == [
        ("<s>", 0, -1), ("p", 0.5, -1), ("<EOC>", 0.5, -1), ("<image>", 0, 0), ("<EOC>", 0.5, 0), ("<image>", 0, 1),
        ("q", 0, 1), ("<EOC>", 0, 1), ("<image>", 0, 2), ("r", 1, 2), ("<EOC>", 1, 2)]
    assert e.visuals == (A, B, C)
    check_types(e)


def test_flamingo_next_image():
    page = Document((Text("p"), A, Text("q"), B, Text("r")))
    e = Flamingo(p_next=0.5).encode(page, TOKENIZER, Always(0.4))
    assert list(zip(spell(e.tokens), e.image_index, strict=True)) == [
        ("<s>", 0), ("p", 0), ("<EOC>", 0), ("<image>", 0), ("q", 1), ("<EOC>", 1), ("<image>", 1), ("r", -1),
        ("<EOC>", -1)]
    previous = Flamingo(p_next=0.5).encode(page, TOKENIZER, Always(0.6))
    np.testing.assert_array_equal(previous.image_index, Flamingo().encode(page, TOKENIZER).image_index)


@pytest.mark.parametrize("use_next", [False, True])
def test_flamingo_image_index_matches_a_loop(use_next):
    rng = np.random.default_rng(0)
    for _ in range(50):
        page = Document(tuple(rng.choice([A, Text("xy")]) for _ in range(rng.integers(1, 8))))
        e = Flamingo(p_next=1.0).encode(page, TOKENIZER, np.random.default_rng(0) if use_next else None)
        marks = [t for t, i in enumerate(e.tokens) if i == TOKENIZER.id("<image>")]
        for t, got in enumerate(e.image_index):
            seen = [j for j, m in enumerate(marks) if (m >= t if use_next else m <= t)]
            assert got == ((seen[0] if use_next else seen[-1]) if seen else -1)


def test_flamingo_prepends_a_space_only_behind_an_image():
    page = Document((Text("p"), A, Text("q"), Text("r")))
    e = Flamingo(prepend_space=0.5, p_next=0.0).encode(page, TOKENIZER, Always(0.4))
    assert "".join(spell(e.tokens)) == "<s>p<EOC><image> qr<EOC>"
    e = Flamingo(prepend_space=0.5).encode(page, TOKENIZER, Always(0.6))
    assert "".join(spell(e.tokens)) == "<s>p<EOC><image>qr<EOC>"


def test_augmentation_rates():
    rng, page = np.random.default_rng(0), Document((Text("p"), A, Text("q")))
    made = [Flamingo(p_next=0.3, prepend_space=0.8).encode(page, TOKENIZER, rng) for _ in range(2000)]
    assert abs(np.mean([e.image_index[1] == 0 for e in made]) - 0.3) < 0.04
    assert abs(np.mean([" " in spell(e.tokens) for e in made]) - 0.8) < 0.04


@pytest.mark.quick
def test_kosmos_caption():
    e = Kosmos1(num_slots=3).encode(Document((A, Text("hi"))), TOKENIZER)
    assert table(e) == [
        ("<s>", 0, -1), ("<image>", 0, -1), ("<image>", 0, 0), ("<image>", 0, 0), ("<image>", 0, 0),
        ("</image>", 0, -1), ("h", 1, -1), ("i", 1, -1), ("</s>", 1, -1)]
    assert e.slot_index.tolist() == [-1, -1, 0, 1, 2, -1, -1, -1, -1]
    assert e.spans.tolist() == [[1, 6]]
    check_types(e)


def test_kosmos_page():
    e = Kosmos1(num_slots=2).encode(Document((Text("p"), A, B, Text("q", 0.0))), TOKENIZER)
    block = ["<image>", "<image>", "<image>", "</image>"]
    assert spell(e.tokens) == ["<s>", "p", *block, *block, "q", "</s>"]
    assert np.flatnonzero(e.weights).tolist() == [1]
    assert e.image_index.tolist() == [-1, -1, -1, 0, 0, -1, -1, 1, 1, -1, -1, -1]
    assert e.spans.tolist() == [[2, 6], [6, 10]]


def test_kosmos_leaves_out_single_image_pages():
    template, rng = Kosmos1(num_slots=1, keep_single_image=0.5), np.random.default_rng(0)
    kept = 0
    for _ in range(1000):
        try:
            template.encode(Document((A, Text("x"))), TOKENIZER, rng)
            kept += 1
        except templates.TemplateSkip:
            pass
        template.encode(Document((A, B, Text("x"))), TOKENIZER, rng)
    assert 440 < kept < 560
    template.encode(Document((A, Text("x"))), TOKENIZER)                     # never without a generator


def test_language():
    e = Language().encode(Document((Text("a", 0.0), Text("b"))), TOKENIZER)
    assert table(e) == [("<s>", 0, -1), ("a", 0, -1), ("b", 1, -1), ("</s>", 1, -1)]
    with pytest.raises(DocumentError, match="text only"):
        Language().encode(Document((A,)), TOKENIZER)
    assert len(Language(bos="").encode(Document((Text(""),)), TOKENIZER, prompt=True).tokens) == 0


@pytest.mark.parametrize("template, want", [
    (Flamingo(eos="</s>"), "<s><image>x<EOC><image>y"),
    (Kosmos1(num_slots=1), "<s><image><image></image>x<image><image></image>y"),
])
def test_a_prompt_has_no_end(template, want):
    e = template.encode(Document((A, Text("x"), B, Text("y"))), TOKENIZER, prompt=True)
    assert "".join(spell(e.tokens)) == want


@pytest.mark.parametrize("template", [Flamingo(), Kosmos1(num_slots=4)])
def test_text_cannot_make_an_image(template):
    text = "<image></image><EOC></s><s><pad>"
    e = template.encode(Document((Text(text), A, Text(text))), TOKENIZER)
    marks = np.count_nonzero(e.tokens == TOKENIZER.id("<image>"))
    assert marks == (1 if isinstance(template, Flamingo) else 5)
    assert TOKENIZER.decode(e.tokens) == text * 2


def test_a_long_text_stays_cheap():
    e = Language().encode(Document((Text("word " * 100_000),)), TOKENIZER)
    assert len(e.tokens) == 500_002


def test_errors_list_what_is_known():
    with pytest.raises(ValueError, match="'flamingos' is unknown; known: flamingo, kosmos1, language"):
        templates.make_template("flamingos")
    with pytest.raises(ValueError, match="no option slots; it has .*num_slots"):
        templates.make_template("kosmos1", slots=2)
    with pytest.raises(ValueError, match="p_next=1.5 must be a probability"):
        templates.make_template("flamingo", p_next=1.5)
    with pytest.raises(ValueError, match="no special token '<EOC>'"):
        templates.check_specials(Flamingo(), byte_tokenizer(("<s>", "<image>")))
