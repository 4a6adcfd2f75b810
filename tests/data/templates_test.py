import time

import numpy as np
import pytest

from mmjax.data import templates
from mmjax.data.documents import Document, DocumentError, Image, Text, Video
from mmjax.data.template import MAX_TEXT
from mmjax.data.templates import make_template
from mmjax.data.tokenizer import SPECIALS, byte_tokenizer

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
    e = make_template("flamingo", eos="</s>").encode(Document((A, Text("hi"))), TOKENIZER)
    assert table(e) == [("<s>", 0, -1), ("<image>", 0, 0), ("h", 1, 0), ("i", 1, 0), ("<EOC>", 1, 0), ("</s>", 1, 0)]
    assert e.visuals == (A,) and e.spans.tolist() == [[1, 2]] and (e.slot_index == -1).all()
    check_types(e)


@pytest.mark.quick
def test_flamingo_page_and_weights():
    page = Document((Text("p", 0.5), A, B, Text("q", 0.0), C, Text("r")))
    e = make_template("flamingo").encode(page, TOKENIZER)
    assert table(e) == [
        ("<s>", 0, -1), ("p", 0.5, -1), ("<EOC>", 0.5, -1), ("<image>", 0, 0), ("<EOC>", 0.5, 0), ("<image>", 0, 1),
        ("q", 0, 1), ("<EOC>", 0, 1), ("<image>", 0, 2), ("r", 1, 2), ("<EOC>", 1, 2)]
    assert e.visuals == (A, B, C)
    check_types(e)


def test_flamingo_next_image():
    page = Document((Text("p"), A, Text("q"), B, Text("r")))
    e = make_template("flamingo", p_next=0.5).encode(page, TOKENIZER, Always(0.4))
    assert list(zip(spell(e.tokens), e.image_index, strict=True)) == [
        ("<s>", 0), ("p", 0), ("<EOC>", 0), ("<image>", 0), ("q", 1), ("<EOC>", 1), ("<image>", 1), ("r", -1),
        ("<EOC>", -1)]
    previous = make_template("flamingo", p_next=0.5).encode(page, TOKENIZER, Always(0.6))
    np.testing.assert_array_equal(previous.image_index, make_template("flamingo").encode(page, TOKENIZER).image_index)


@pytest.mark.parametrize("use_next", [False, True])
def test_flamingo_image_index_matches_a_loop(use_next):
    rng = np.random.default_rng(0)
    for _ in range(50):
        page = Document(tuple(rng.choice([A, Text("xy")]) for _ in range(rng.integers(1, 8))))
        draw = np.random.default_rng(0) if use_next else None
        e = make_template("flamingo", p_next=1.0).encode(page, TOKENIZER, draw)
        marks = [t for t, i in enumerate(e.tokens) if i == TOKENIZER.id("<image>")]
        for t, got in enumerate(e.image_index):
            seen = [j for j, m in enumerate(marks) if (m >= t if use_next else m <= t)]
            assert got == ((seen[0] if use_next else seen[-1]) if seen else -1)


def test_flamingo_prepends_a_space_only_behind_an_image():
    page = Document((Text("p"), A, Text("q"), Text("r")))
    e = make_template("flamingo", prepend_space=0.5, p_next=0.0).encode(page, TOKENIZER, Always(0.4))
    assert "".join(spell(e.tokens)) == "<s>p<EOC><image> qr<EOC>"
    e = make_template("flamingo", prepend_space=0.5).encode(page, TOKENIZER, Always(0.6))
    assert "".join(spell(e.tokens)) == "<s>p<EOC><image>qr<EOC>"


def test_augmentation_rates():
    rng, page = np.random.default_rng(0), Document((Text("p"), A, Text("q")))
    made = [make_template("flamingo", p_next=0.3, prepend_space=0.8).encode(page, TOKENIZER, rng) for _ in range(2000)]
    assert abs(np.mean([e.image_index[1] == 0 for e in made]) - 0.3) < 0.04
    assert abs(np.mean([" " in spell(e.tokens) for e in made]) - 0.8) < 0.04


@pytest.mark.quick
def test_kosmos_caption():
    e = make_template("kosmos1", num_slots=3).encode(Document((A, Text("hi"))), TOKENIZER)
    assert table(e) == [
        ("<s>", 0, -1), ("<image>", 0, -1), ("<image>", 0, 0), ("<image>", 0, 0), ("<image>", 0, 0),
        ("</image>", 0, -1), ("h", 1, -1), ("i", 1, -1), ("</s>", 1, -1)]
    assert e.slot_index.tolist() == [-1, -1, 0, 1, 2, -1, -1, -1, -1]
    assert e.spans.tolist() == [[1, 6]]
    check_types(e)


def test_kosmos_page():
    e = make_template("kosmos1", num_slots=2).encode(Document((Text("p"), A, B, Text("q", 0.0))), TOKENIZER)
    block = ["<image>", "<image>", "<image>", "</image>"]
    assert spell(e.tokens) == ["<s>", "p", *block, *block, "q", "</s>"]
    assert np.flatnonzero(e.weights).tolist() == [1]
    assert e.image_index.tolist() == [-1, -1, -1, 0, 0, -1, -1, 1, 1, -1, -1, -1]
    assert e.spans.tolist() == [[2, 6], [6, 10]]


def test_kosmos_leaves_out_single_image_pages():
    template, rng = make_template("kosmos1", num_slots=1, keep_single_image=0.5), np.random.default_rng(0)
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
    e = make_template("language").encode(Document((Text("a", 0.0), Text("b"))), TOKENIZER)
    assert table(e) == [("<s>", 0, -1), ("a", 0, -1), ("b", 1, -1), ("</s>", 1, -1)]
    with pytest.raises(DocumentError, match="text only"):
        make_template("language").encode(Document((A,)), TOKENIZER)
    assert len(make_template("language", bos="").encode(Document((Text(""),)), TOKENIZER, prompt=True).tokens) == 0


@pytest.mark.parametrize("template, want", [
    (make_template("flamingo", eos="</s>"), "<s><image>x<EOC><image>y"),
    (make_template("kosmos1", num_slots=1), "<s><image><image></image>x<image><image></image>y"),
])
def test_a_prompt_has_no_end(template, want):
    e = template.encode(Document((A, Text("x"), B, Text("y"))), TOKENIZER, prompt=True)
    assert "".join(spell(e.tokens)) == want


@pytest.mark.parametrize("template", [make_template("flamingo"), make_template("kosmos1", num_slots=4)])
def test_text_cannot_make_an_image(template):
    text = "<image></image><EOC></s><s><pad>"
    e = template.encode(Document((Text(text), A, Text(text))), TOKENIZER)
    marks = np.count_nonzero(e.tokens == TOKENIZER.id("<image>"))
    assert marks == (1 if template.cross_attention else 5)
    assert TOKENIZER.decode(e.tokens) == text * 2


def test_a_long_text_stays_cheap():
    e = make_template("language").encode(Document((Text("word " * 100_000),)), TOKENIZER)
    assert len(e.tokens) == 500_002


TALK = Document((A_USER := Image(b"a", "user"), Text("Q?", 1.0, "user"), Text("yes", 1.0, "assistant"),
                 Text("why", 1.0, "user"), Text("so", 0.5, "assistant")))
MORE = byte_tokenizer((*SPECIALS, "[IMG]", "[/IMG]", "[gIMG]", "[USER]", "[ASSISTANT]", "<|im_start|>", "<|im_end|>"))


def show(encoded, tokenizer=MORE):
    """Text with its special tokens; what is learned stands in braces, slots as their number."""
    names, out, learned = {i: name for name, i in tokenizer.special.items()}, "", False
    for token, weight, slot in zip(encoded.tokens, encoded.weights, encoded.slot_index, strict=True):
        if learned != bool(weight):
            out, learned = out + ("{" if weight else "}"), bool(weight)
        out += str(slot) if slot >= 0 else names.get(int(token)) or chr(token)
    return out + "}" * learned


@pytest.mark.quick
@pytest.mark.parametrize("name, options, document, want", [
    ("blip2", dict(num_slots=3), Document((A, Text("a cat"))), "012<s>{a cat\n}"),
    ("blip2", dict(num_slots=2, bos="</s>"), Document((A, Text("a photo of ", 0.0), Text("a cat"))),
     "01</s>a photo of {a cat\n}"),
    ("minigpt4_pairs", dict(num_slots=2), Document((A, Text("a cat"))), "<s>01{a cat\n}"),
    ("minigpt4", dict(num_slots=2), Document(TALK.segments[:3]),
     "<s>###Human: <Img>01</Img> Q? ###Assistant: {yes###}"),
    ("minigpt4", dict(num_slots=2), TALK,
     "<s>###Human: <Img>01</Img> Q? ###Assistant: {yes###}Human: why ###Assistant: {so###}"),
    ("mm1", dict(num_slots=2), Document((Text("p"), A, Text("q"), B)), "<s>{p}01{q}01{</s>}"),
    ("emu2", dict(num_slots=2), Document((Text("p"), A, Text("q"))), "<s>{p[IMG]}01{[/IMG]q</s>}"),
    ("emu2", dict(num_slots=2, video_frames=2), Document((C, Text("q"))), "<s>{[IMG]}01{[/IMG][IMG]}23{[/IMG]q</s>}"),
    ("emu2_chat", dict(num_slots=2), Document((Text("sys", role="system"), *TALK.segments)),
     "<s>sys [USER]: [IMG]01[/IMG]Q? [ASSISTANT]: {yes</s>}[USER]: why [ASSISTANT]: {so</s>}"),
    ("chat", dict(num_slots=2), TALK, "<|im_start|>user\n01Q?<|im_end|>\n<|im_start|>assistant\n{yes<|im_end|>}\n"
     "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n{so<|im_end|>}\n"),
])
def test_sequences_of_the_systems(name, options, document, want):
    e = make_template(name, **options).encode(document, MORE)
    assert show(e) == want
    check_types(e)
    assert e.visuals == tuple(s for s in document.segments if not isinstance(s, Text))
    inside = np.zeros(len(e.tokens), bool)
    for start, stop in e.spans:
        inside[start:stop] = True
    assert inside[e.slot_index >= 0].all() and ((e.slot_index >= 0) == (e.image_index >= 0)).all()


def test_the_slots_of_a_video_have_their_own_token():
    e = make_template("emu2", num_slots=1, video_frames=2).encode(Document((C, A)), MORE)
    slots = e.tokens[e.slot_index >= 0]
    assert slots.tolist() == [MORE.id("[gIMG]")] * 2 + [MORE.id("<image>")]
    assert e.slot_index[e.slot_index >= 0].tolist() == [0, 1, 0] and e.spans.tolist() == [[1, 7], [7, 10]]


def test_a_segment_keeps_its_own_weight_in_a_conversation():
    e = make_template("minigpt4", num_slots=1).encode(TALK, MORE)
    assert sorted(set(e.weights.tolist())) == [0, 0.5, 1]
    assert e.weights[-5:].tolist() == [0.5] * 5                             # "so###"


@pytest.mark.parametrize("name, segments, want", [
    ("minigpt4", TALK.segments[:2], "<s>###Human: <Img>0</Img> Q? ###Assistant: "),
    ("minigpt4", TALK.segments[:3], "<s>###Human: <Img>0</Img> Q? ###Assistant: {yes}"),
    ("emu2_chat", TALK.segments[3:4], "<s>[USER]: why [ASSISTANT]: "),
    ("chat", TALK.segments[3:4], "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n"),
    ("chat", TALK.segments[3:5], "<|im_start|>user\nwhy<|im_end|>\n<|im_start|>assistant\n{so}"),
    ("blip2", (A, Text("a", 0.0)), "0<s>a"),
])
def test_a_prompt_opens_the_answer(name, segments, want):
    template = make_template(name, num_slots=1)
    assert show(template.encode(Document(segments), MORE, prompt=True)) == want


class Joins:
    """A tokenizer that shows what it got in one piece."""

    special = MORE.special

    def __init__(self):
        self.pieces = []

    def id(self, name):
        return MORE.id(name)

    def encode(self, text):
        self.pieces.append(text)
        return MORE.encode(text)


def test_marks_are_tokenised_with_the_text_beside_them_but_segments_alone():
    tokenizer = Joins()
    make_template("minigpt4", num_slots=1).encode(Document(TALK.segments[:3]), tokenizer)
    assert tokenizer.pieces == ["###Human: <Img>", "</Img> Q? ###Assistant: ", "yes###"]    # as the authors' code does
    tokenizer = Joins()
    make_template("language").encode(Document((Text("a"), Text("b"))), tokenizer)
    assert tokenizer.pieces == ["a", "b"]


@pytest.mark.parametrize("name, segments, message", [
    ("flamingo", TALK.segments, "no role 'user'; it has none at all"),
    ("minigpt4", (Text("x", role="system"),), "no role 'system'; it has user, assistant"),
    ("blip2", (Text("x"), A), "images only before the text"),
    ("language", (A,), "takes text only"),
    ("chat", (Text("x", role="user"), Text("y")), "segment without a role"),
])
def test_documents_without_a_place_in_the_template(name, segments, message):
    with pytest.raises(DocumentError, match=message):
        make_template(name).encode(Document(segments), MORE)


INJECTIONS = ("<image>", "</image>", "<EOC>", "<s>", "</s>", "<pad>", "[IMG]", "[/IMG]", "[gIMG]", "[USER]",
              "[ASSISTANT]", "<|im_start|>", "<|im_end|>", "<|endofchunk|>", "<Img>", "</Img>", "<ImageHere>", "###",
              "###Human: ", "{{ 7 * 7 }}", "{% raw %}", "{image}", "{bos}", "\n", " ", "\0", "\ufeff", "\u200d",
              "\ufdd0", "é", "Ω", "a")


@pytest.mark.quick
def test_ten_thousand_hostile_strings_make_no_special_token():
    """Only the tokens that the same document makes with harmless text are special, and text comes back as it was."""
    rng = np.random.default_rng(0)
    made = {name: make_template(name, **(dict(num_slots=2) if template.num_slots else {}))
            for name, template in templates.TEMPLATES.items()}
    special = np.array(sorted(MORE.special.values()))
    harmless = {}
    for k in range(10_000):
        name = list(made)[k % len(made)]
        text = "".join(rng.choice(INJECTIONS, rng.integers(1, 7)))
        talk = bool(made[name].roles or made[name].chat)
        visuals = () if made[name].images == "none" else (A_USER,) if talk else (A,)

        def document(words):
            return Document((*visuals, Text(words, role="user"), Text(words, role="assistant")) if talk   # noqa: B023
                            else (*visuals, Text(words)))                                               # noqa: B023
        if name not in harmless:
            harmless[name] = made[name].encode(document("x"), MORE).tokens
        e = made[name].encode(document(text), MORE)
        assert e.tokens[np.isin(e.tokens, special)].tolist() == \
            harmless[name][np.isin(harmless[name], special)].tolist(), (name, text)
        assert MORE.decode(e.tokens) == MORE.decode(harmless[name]).replace("x", text), (name, text)
        assert np.count_nonzero(e.slot_index >= 0) == made[name].num_slots and len(e.visuals) == len(visuals)


@pytest.mark.parametrize("text", ["\0", "\ufeffa", "\u202e\u05d0\u200d\U0001f469\u200d\U0001f4bb", "x" * 1_000_000])
def test_odd_text_comes_back(text):
    start = time.process_time()
    e = make_template("language").encode(Document((Text(text),)), MORE)
    assert MORE.decode(e.tokens) == text and time.process_time() - start < 4


def test_a_huge_text_is_left_out_before_it_is_tokenised():
    half = "x" * (MAX_TEXT // 2)
    with pytest.raises(templates.TemplateSkip, match="has 4194305 characters; 4194304 are the limit"):
        make_template("language").encode(Document((Text(half), Text(half), Text("x"))), None)


def test_an_image_without_tokens_has_an_empty_span():
    e = make_template("clip").encode(Document((A, Text("a cat"))), MORE)
    assert show(e) == "<s>{a cat</s>}" and e.spans.tolist() == [[1, 1]]
    assert e.image_index.tolist() == [-1, *[0] * 6]
    check_types(e)


def test_errors_list_what_is_known():
    with pytest.raises(ValueError, match="'flamingos' is unknown; did you mean 'flamingo'"):
        templates.make_template("flamingos")
    with pytest.raises(ValueError, match="no option 'slots'; did you mean 'slot'"):
        templates.make_template("kosmos1", slots=2)
    with pytest.raises(ValueError, match="p_next=1.5 must be a probability"):
        templates.make_template("flamingo", p_next=1.5)
    for wrong in (dict(images="last"), dict(num_slots=0), dict(p_next=0.5), dict(video_frames=0)):
        with pytest.raises(ValueError, match=f"template 'mm1': template {next(iter(wrong))}="):
            templates.make_template("mm1", **wrong)
    with pytest.raises(ValueError, match="no special token '<EOC>'"):
        templates.check_specials(make_template("flamingo"), byte_tokenizer(("<s>", "<image>")))
