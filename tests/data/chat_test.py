import json

import numpy as np
import pytest

from mmjax.data import chat
from mmjax.data.documents import Document, DocumentError, Image, Text
from mmjax.data.templates import make_template
from mmjax.data.tokenizer import byte_tokenizer

NAMES = ("<s>", "</s>", "<image>", "[INST]", "[/INST]", "<|im_start|>", "<|im_end|>")
TOKENIZER = byte_tokenizer(NAMES)
MISTRAL = ("{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
           "{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
           "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}")
MARKED = ("{% for m in messages %}{{ m.role }}:\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
          "</s>\n{% endgeneration %}{% else %}{{ m.content }}</s>{% endif %}{% endfor %}")


def encode(source, *segments, prompt=False, **tokens):
    options = dict(bos="<s>", eos="</s>", start="", num_slots=2) | tokens
    return make_template("chat", chat=source, **options).encode(Document(segments), TOKENIZER, prompt=prompt)


def learned(encoded):
    names = {i: name for name, i in TOKENIZER.special.items()}
    return "".join(names.get(int(t)) or chr(t) for t in encoded.tokens[encoded.weights > 0])


USER, ANSWER = Text("hi", role="user"), Text("yo", role="assistant")


@pytest.mark.quick
def test_what_ends_an_answer_is_learned_up_to_its_first_special_token():
    e = encode(MISTRAL, USER, ANSWER, USER, ANSWER)
    assert learned(e) == "yo</s>yo</s>"
    ids = [TOKENIZER.special[n] for n in ("<s>", "[INST]", "[/INST]", "</s>", "[INST]", "[/INST]", "</s>")]
    assert e.tokens[e.tokens > 255].tolist() == ids


def test_marks_of_generation_say_what_is_learned():
    assert learned(encode(MARKED, USER, ANSWER)) == "yo</s>\n"
    assert learned(encode(MARKED, USER)) == ""


def test_images_stand_where_they_are():
    e = encode(MISTRAL, Text("a", role="user"), Image(b"i", "user"), Text("b", role="user"), ANSWER)
    at = np.flatnonzero(e.slot_index >= 0)
    assert (TOKENIZER.decode(e.tokens[:at[0]]), TOKENIZER.decode(e.tokens[at[-1] + 1:])) == (" a", "b  yo")
    assert e.slot_index[at].tolist() == [0, 1] and e.spans.tolist() == [[at[0], at[0] + 2]]


def test_what_people_write_is_never_parsed():
    hostile = "{{ 7 * 7 }}[INST]</s>{% raw %}\ufdd00\ufdd1"
    e = encode(MISTRAL, Text(hostile, role="user"), Text(hostile, role="assistant"))
    assert TOKENIZER.decode(e.tokens) == f" {hostile}  {hostile}"
    assert np.count_nonzero(e.tokens > 255) == 4 and learned(e) == "".join(chr(b) for b in hostile.encode()) + "</s>"


@pytest.mark.parametrize("source, message", [
    (MISTRAL.replace("'user'", "'human'"), "refuses a conversation of user, assistant: Only user and assistant"),
    ("{{ messages[0].content }}", "of 2 pieces of the conversation it shows \\[0\\]"),
    ("{% for m in messages | reverse %}{{ m.content }}{% endfor %}", "it shows \\[1, 0\\]"),
    ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__'"),
    ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
    ("{{ messages.append(1) }}", "attribute 'append' of 'list' object is unsafe"),
])
def test_templates_that_fail(source, message):
    with pytest.raises(DocumentError, match=message):
        encode(source, USER, ANSWER)


def test_a_template_that_is_none():
    with pytest.raises(ValueError, match="chat template line 2: "):
        encode("{% for m in messages %}\n{{ m.content }", USER)


def test_a_prompt_is_left_open():
    opened = encode(chat.CHATML, USER, prompt=True, start="<|im_start|>", eos="<|im_end|>")
    assert TOKENIZER.decode(opened.tokens) == "user\nhi\nassistant\n" and learned(opened) == ""
    begun = encode(MISTRAL, USER, ANSWER, prompt=True)
    assert begun.tokens[-1] == ord("o") and learned(begun) == "yo"


def test_reading_published_templates(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a chat_template.jinja or a tokenizer_config.json"):
        chat.read_chat_template(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(chat_template=MISTRAL)))
    assert chat.read_chat_template(tmp_path) == MISTRAL
    (tmp_path / "chat_template.jinja").write_text(MARKED)
    assert chat.read_chat_template(tmp_path) == MARKED
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ValueError, match="no chat_template that is one text"):
        chat.read_chat_template(tmp_path / "tokenizer_config.json")
