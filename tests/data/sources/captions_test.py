import json
import pickle

import pytest

from mmjax.data.documents import Document, DocumentError, Image, Text
from mmjax.data.sources import open_source


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "val2014").mkdir()
    for name in ("7", "2"):
        (tmp_path / f"val2014/{name}.jpg").write_bytes(f"jpeg {name}".encode())
    return tmp_path


def coco(folder, annotations, **options):
    images = [dict(id=i, file_name=f"{i}.jpg", width=4, height=3) for i in (7, 2, 5)]
    content = dict(info=dict(year=2014, note="{[\"}"), licenses=[], images=images, annotations=annotations)
    (folder / "captions.json").write_text(json.dumps(content))
    return open_source("coco_captions", folder / "captions.json", images=str(folder / "val2014"), **options)


@pytest.mark.quick
def test_coco_has_a_document_for_each_annotation(folder):
    source = coco(folder, [dict(id=n, image_id=i, caption=c) for n, i, c in
                           ((90, 2, "a cat"), (91, 7, "two \u2603 <image>"), (92, 2, "the same cat"))])
    made = [Document((Image(b"jpeg 2"), Text("a cat")), "2/90"),
            Document((Image(b"jpeg 7"), Text("two \u2603 <image>")), "7/91"),
            Document((Image(b"jpeg 2"), Text("the same cat")), "2/92")]
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == made and source[1] == made[1]
    again = coco(folder, [dict(id=n, image_id=2, caption="b") for n in range(3)])
    assert again.fingerprint() != source.fingerprint() and again[0].segments[1].text == "b"   # no stale index


@pytest.mark.parametrize("annotation, words", [
    (dict(id=1, image_id=8, caption="x"), "8 is no id of images"),
    (dict(id=1, image_id=2**70, caption="x"), "is no id"),
    (dict(id=1, image_id=5, caption="x"), "5.jpg.*No such file"), (dict(id=1, image_id=2), "no field 'caption'"),
    (dict(id=1, image_id=2, caption="\ud800"), "lone surrogate"),
    (dict(id=1, image_id="2", caption="x"), "of type int")])
def test_damaged_annotations_are_named(folder, annotation, words):
    source = coco(folder, [dict(id=0, image_id=2, caption="good"), annotation])
    assert source[0].key == "2/0"
    with pytest.raises(DocumentError, match=f"captions.json record 1: .*{words}"):
        source[1]


def test_a_cut_or_foreign_coco_file(folder):
    coco(folder, [dict(id=0, image_id=2, caption="good")])
    file = folder / "captions.json"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DocumentError, match="captions.json ends inside its JSON"):
        open_source("coco_captions", file, images=str(folder))
    file.write_text('{"images": []}')
    with pytest.raises(DocumentError, match="captions.json has no list 'annotations'"):
        open_source("coco_captions", file, images=str(folder))


def entry(name, split, *sentences, **fields):
    return dict(filename=name, split=split, sentences=[dict(raw=s, tokens=s.split()) for s in sentences], **fields)


def karpathy(folder, entries, **options):
    (folder / "dataset_coco.json").write_text(json.dumps(dict(images=entries, dataset="coco")))
    return open_source("karpathy", folder / "dataset_coco.json", images=str(folder), **options)


@pytest.mark.quick
def test_karpathy_has_a_document_for_each_sentence_of_a_split(folder):
    (folder / "flat.jpg").write_bytes(b"flat")
    entries = [entry("7.jpg", "train", "one", "two", filepath="val2014", cocoid=7), entry("9.jpg", "test", "no"),
               entry("flat.jpg", "restval", "three", filepath="gone"),
               entry("2.jpg", "val", "four", filepath="val2014")]
    made = [Document((Image(b"jpeg 7"), Text("one")), "7/0"), Document((Image(b"jpeg 7"), Text("two")), "7/1"),
            Document((Image(b"flat"), Text("three")), "flat.jpg/0")]
    source = karpathy(folder, entries)
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == made and source[2] == made[2]
    assert list(karpathy(folder, entries, splits="val")) == [Document((Image(b"jpeg 2"), Text("four")), "2.jpg/0")]
    with pytest.raises(DocumentError, match="has no split 'dev'; it has train, test, restval, val"):
        karpathy(folder, entries, splits=["dev"])


def test_damaged_karpathy_entries_are_named(folder):
    good, other = entry("7.jpg", "train", "one", filepath="val2014"), entry("8.jpg", "restval", "two")
    source = karpathy(folder, [good, other, good | dict(sentences=["words"])])
    assert source[0].key == "7.jpg/0"
    with pytest.raises(DocumentError, match="record 1: image '8.jpg' .*No such file"):
        source[1]
    with pytest.raises(DocumentError, match="record 2: sentence 0 of '7.jpg' is a str"):
        source[2]
    with pytest.raises(DocumentError, match="dataset_coco.json image 1: no field 'split'"):
        karpathy(folder, [good, dict(filename="x.jpg", sentences=[])])
