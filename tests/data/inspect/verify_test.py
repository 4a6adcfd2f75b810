import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image as pil

from mmjax.data.config import Source
from mmjax.data.documents import Document, Image, Text, write_documents
from mmjax.data.image_spec import ImageSpec
from mmjax.data.inspect.verify import verify


def jpeg(size=32, seed=0):
    out = io.BytesIO()
    pil.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)).save(out, "JPEG")
    return out.getvalue()


def write(folder, shards):
    """Shards with a manifest as the pipelines write it."""
    files = {}
    for name, documents in shards.items():
        path = folder / f"{name}.array_record"
        write_documents(path, documents)
        files[path.name] = dict(bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    records = {f"{name}.array_record": len(documents) for name, documents in shards.items()}
    (folder / "manifest.json").write_text(json.dumps(dict(records=records, files=files)))


GOOD, PAIR = Document((Text("a"), Text("b"))), Document((Image(jpeg()), Text("a")))


@pytest.mark.quick
def test_whole_files_are_counted(tmp_path):
    write(tmp_path, dict(a=[GOOD, PAIR], b=[PAIR]))
    a, b = verify(Source(str(tmp_path)))
    assert a.good and (a.documents, a.texts, a.visuals, a.digest) == (2, 3, 1, "same")
    assert b.good and (b.documents, b.texts, b.visuals) == (1, 1, 1)
    assert b.size == (tmp_path / "b.array_record").stat().st_size
    assert a.line().startswith(f"ok   {tmp_path}/a.array_record: 2 documents, 3 texts, 1 images")
    assert a.line().endswith("digest as written")


def test_one_bad_file_does_not_hide_the_others(tmp_path):
    write(tmp_path, dict(a=[GOOD], b=[GOOD], c=[GOOD]))
    path = tmp_path / "b.array_record"
    path.write_bytes(path.read_bytes()[:-1])
    a, b, c = verify(Source(str(tmp_path), options=dict(on_bad_shard="skip")))
    assert a.good and c.good and not b.good
    assert b.fault and b.digest == "differs" and "BAD" in b.line() and "DIFFERS" in b.line()


def test_a_file_that_is_another_is_seen(tmp_path):
    write(tmp_path, dict(a=[GOOD], b=[GOOD]))
    write_documents(tmp_path / "a.array_record", [Document((Text("x"), Text("b")))])
    a, b = verify(Source(str(tmp_path)))
    assert (a.good, a.digest, b.good) == (False, "differs", True) and not a.fault
    write_documents(tmp_path / "b.array_record", [GOOD, GOOD])
    *_, b = verify(Source(str(tmp_path)))
    assert "1 documents expected, 2 documents found" in b.fault


def test_damaged_records_are_counted_and_the_first_named(tmp_path):
    cut = jpeg()[:-200]
    write_documents(tmp_path / "a.array_record", [PAIR, *[Document((Image(b"no"),))] * 4, Document((Image(cut),))])
    (report,) = verify(Source(str(tmp_path)))
    assert not report.good and report.documents == 2 and not report.digest
    assert report.damaged == {"not a JPEG, PNG, WebP or GIF image": 4}
    assert report.named[0].startswith(f"{tmp_path}/a.array_record record 1: not a JPEG") and len(report.named) == 3
    (decoded,) = verify(Source(str(tmp_path)), decode=True)
    assert decoded.damaged == {"not a JPEG, PNG, WebP or GIF image": 4, "image truncated or damaged": 1}
    (limited,) = verify(Source(str(tmp_path)), ImageSpec(min_side=33))
    assert limited.damaged["image too small"] == 2


def test_animations_are_counted(tmp_path):
    frames, out = [pil.new("L", (8, 8), v) for v in (10, 200)], io.BytesIO()
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    write_documents(tmp_path / "a.array_record", [Document((Image(out.getvalue()), Image(jpeg())))])
    (report,) = verify(Source(str(tmp_path)))
    assert report.good and (report.visuals, report.animated) == (2, 1) and "1 animated" in report.line()


def test_other_formats(tmp_path):
    for shard, images in (("0.tar", [jpeg(), jpeg(), jpeg()]), ("1.tar", [jpeg(), b"no"])):
        with tarfile.open(tmp_path / shard, "w") as tar:
            for k, data in enumerate(images):
                for suffix, body in (("jpg", data), ("txt", b"a caption")):
                    info = tarfile.TarInfo(f"{k:05d}.{suffix}")
                    info.size = len(body)
                    tar.addfile(info, io.BytesIO(body))
    a, b = verify(Source(str(tmp_path), format="webdataset"))
    assert a.good and (a.documents, a.texts, a.visuals) == (3, 3, 3)
    assert not b.good and b.documents == 1 and b.damaged.total() == 1
    path = tmp_path / "0.tar"
    path.write_bytes(path.read_bytes()[:6000])
    a, _ = verify(Source(str(tmp_path), format="webdataset"))
    assert not a.good and a.fault


def test_nothing_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no file that ends in .array_record"):
        list(verify(Source(str(tmp_path))))
