import dataclasses

import pytest

from experiments.data import format_files, formats
from mmjax.data.documents import Text
from mmjax.data.sources import FORMATS

for package in ("pyarrow", "scipy", "sklearn", "tensorflow_datasets"):
    pytest.importorskip(package)


@pytest.mark.quick
def test_every_format_is_read_back_as_it_was_written(tmp_path, capsys):
    assert formats.main(["--documents=6", f"--folder={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:-1]
    assert {line.split()[1] for line in lines} == set(FORMATS)
    assert all(line.endswith(" same") for line in lines) and len(lines) == len(format_files.WRITERS)


@pytest.mark.parametrize("change, words", [
    (lambda d: dataclasses.replace(d, key="other"), "key '0/100', written as 'other'"),
    (lambda d: dataclasses.replace(d, segments=(d.segments[0], Text("x"))), "segment 1 text: 'a red circle"),
    (lambda d: dataclasses.replace(d, segments=(d.segments[0], Text(d.segments[1].text, 0.5))), "weight: 1.0 != 0.5"),
    (lambda d: dataclasses.replace(d, segments=d.segments[:1]), "2 segments, 1 were written"),
    (lambda d: None, "4 documents, 3 were written")])
def test_a_difference_in_any_field_is_shown_and_fails(monkeypatch, capsys, change, words):
    def write(folder, pairs):
        written = format_files.coco_captions(folder, pairs)
        first = change(written.documents[0])
        return dataclasses.replace(written, documents=([first] if first else []) + written.documents[1:])
    monkeypatch.setitem(formats.WRITERS, "coco_captions", write)
    assert formats.main(["--documents=4", "--only", "coco_captions"]) == 1
    out = capsys.readouterr().out
    assert words in out and "DIFFERENT" in out and "0 of 1 read back" in out


def test_no_two_documents_are_alike_and_half_of_the_images_are_photographs():
    images, captions = zip(*formats.make_pairs(20), strict=True)
    assert len(set(captions)) == len(set(images)) == 20
    assert sum("temple" in c or "flower" in c for c in captions) == 10


def test_the_loader_is_asked_too(monkeypatch, capsys):
    packed, calls = formats.packed, []

    def lose_one(source, template, count):
        calls.append(source.format)
        found = packed(source, template, count)
        return found if source.format == "array_record" else set(sorted(found)[1:])
    monkeypatch.setattr(formats, "packed", lose_one)
    assert formats.main(["--documents=4", "--only", "webdataset"]) == 1
    assert calls == ["webdataset", "array_record"] and "the loader gives 3 of 4" in capsys.readouterr().out
