import base64
import json
import pickle

import pytest

from mmjax.data.documents import Document, DocumentError, Image, Text
from mmjax.data.sources import open_source

URL = "data:image/png;base64," + base64.b64encode(b"inline").decode()


def ask(text):
    return Text(text, 0.0, "user")


def reply(text):
    return Text(text, 1.0, "assistant")


def llava(*turns, **fields):
    return dict(conversations=[{"from": who, "value": text} for who, text in turns], **fields)


def messages(*turns, **fields):
    return dict(messages=[dict(role=role, content=content) for role, content in turns], **fields)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "coco").mkdir()
    for name in ("a", "b"):
        (tmp_path / f"coco/{name}.jpg").write_bytes(name.encode())
    return tmp_path


def read(form, folder, records, **options):
    (folder / "chat.json").write_text(json.dumps(records))
    return open_source(form, folder / "chat.json", **options)


@pytest.mark.quick
def test_llava_marks_become_images(folder):
    source = read("llava", folder, [
        llava(("human", "<image>\nWhat is it?"), ("gpt", "A cat."), ("human", "Sure?"), ("gpt", "Yes."),
              id="one", image="coco/a.jpg"),
        llava(("system", "Be short."), ("human", "Compare <image>\nwith\n<image>"), ("gpt", "b is larger"), id=7,
              image=["coco/a.jpg", "coco/b.jpg"]),
        llava(("human", "No picture, but <image>?"), ("gpt", "Text.")),
        llava(("human", "<image>"), ("gpt", "inside"), id="url", image=URL)])
    made = [
        Document((Image(b"a", "user"), ask("What is it?"), reply("A cat."), ask("Sure?"), reply("Yes.")), "one"),
        Document((Text("Be short.", 0.0, "system"), ask("Compare "), Image(b"a", "user"), ask("with"),
                  Image(b"b", "user"), reply("b is larger")), "7"),
        Document((ask("No picture, but <image>?"), reply("Text.")), "chat.json:2"),
        Document((Image(b"inline", "user"), reply("inside")), "url")]
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == made and source[1] == made[1]
    assert source.blocks() is None


@pytest.mark.parametrize("record, words", [
    (llava(("human", "what?"), image="coco/a.jpg"), "1 images but 0 <image> marks"),
    (llava(("human", "<image><image>"), image="coco/a.jpg"), "1 images but 2 <image> marks"),
    (llava(("human", "<image>"), image="coco/c.jpg"), "coco/c.jpg.*No such file"),
    (llava(("human", "<image>"), image="../chat.json"), "without '..'"),
    (llava(("human", "<image>"), image="http://x/a.jpg"), "is an address"),
    (llava(("alien", "hello")), "a turn is of 'alien'; known: human"),
    (llava(("human", "\ud800")), "lone surrogate"), (llava(), "one or more objects"), ({}, "no field 'conversations'")])
def test_damaged_llava_records_are_named(folder, record, words):
    source = read("llava", folder, [record, llava(("gpt", "fine"))])
    assert source[1].segments == (reply("fine"),)
    with pytest.raises(DocumentError, match=f"chat.json record 0: .*{words}"):
        source[0]


@pytest.mark.quick
def test_messages_in_all_their_spellings(folder):
    text, said = dict(type="text", text="See"), dict(type="text", text=" it")
    source = read("messages", folder, [
        messages(("system", "Be kind."), ("user", [dict(type="image"), text, said]), ("assistant", "Seen."),
                 images=["coco/a.jpg"], id="queue"),
        messages(("user", [dict(type="image", path="coco/b.jpg"), dict(type="image_url", image_url=dict(url=URL))]),
                 ("assistant", [text])),
        messages(("user", "one"), ("user", "two"), ("assistant", ""))])
    assert list(source) == [
        Document((Text("Be kind.", 0.0, "system"), Image(b"a", "user"), ask("See it"), reply("Seen.")), "queue"),
        Document((Image(b"b", "user"), Image(b"inline", "user"), reply("See")), "chat.json:1"),
        Document((ask("one"), ask("\ntwo"), reply("")), "chat.json:2")]


@pytest.mark.parametrize("record, words", [
    (messages(("user", [dict(type="image")])), "more image parts than the record has images"),
    (messages(("user", "hello"), images=["coco/a.jpg"]), "1 of its images are in no message"),
    (messages(("user", [dict(type="audio")])), "type 'audio'; known: text, image"),
    (messages(("user", [dict(type="image_url", image_url=dict(url="data:image/png;base64,@"))])), "not base64"),
    (messages(("user", None)), "'content' is None"), (messages(("tool", "x")), "a turn is of 'tool'")])
def test_damaged_messages_are_named(folder, record, words):
    with pytest.raises(DocumentError, match=f"chat.json record 0: .*{words}"):
        read("messages", folder, [record])[0]


def test_images_of_another_folder_and_a_cut_list(folder):
    record = llava(("human", "<image>"), ("gpt", "b"), id="k", image="b.jpg")
    made = Document((Image(b"b", "user"), reply("b")), "k")
    assert list(read("llava", folder, [record] * 2, images=str(folder / "coco"))) == [made] * 2
    with pytest.raises(ValueError, match="^image folder .*nowhere' does not exist; set the option images"):
        read("llava", folder, [record], images=str(folder / "nowhere"), on_bad_shard="skip")
    (folder / "chat.json").write_text(json.dumps([record] * 2)[:-5])
    with pytest.raises(DocumentError, match="chat.json ends inside its JSON.*1 documents found"):
        open_source("llava", folder / "chat.json")
