import functools
import io
import json
import pickle
import tarfile
import threading

import numpy as np
import pytest
import webdataset

from mmjax.data.documents import Document, DocumentError, Image, Text
from mmjax.data.sources import index, open_source


def write(path, entries):
    """Entries are (name, data), or (name, dict of TarInfo fields)."""
    with tarfile.open(path, "w") as tar:
        for name, data in entries:
            info = tarfile.TarInfo(name)
            for field, value in (data if isinstance(data, dict) else dict(size=len(data))).items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(b"" if isinstance(data, dict) else data))


def pair(key, image=b"jpeg", text="a cat"):
    return [(f"{key}.jpg", image), (f"{key}.txt", text.encode())]


def document(key, image=b"jpeg", text="a cat"):
    return Document((Image(image), Text(text)), key)


@pytest.mark.quick
def test_samples_are_those_that_webdataset_writes_and_reads(tmp_path):
    rng = np.random.default_rng(0)
    made = [(f"{i:09}", rng.bytes(rng.integers(1, 3000)), f"text {i} \u2603 <image>") for i in range(30)]
    with webdataset.TarWriter(str(tmp_path / "00000.tar")) as writer:
        for key, image, text in made:
            writer.write({"__key__": key, "jpg": image, "txt": text, "json": dict(caption=text, key=key)})
    read = [(s["__key__"], s["jpg"], s["txt"].decode())
            for s in webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False)]
    source = open_source("webdataset", tmp_path)
    assert list(source) == [document(*m) for m in made] == [document(*r) for r in read]
    assert list(open_source("webdataset", tmp_path, caption=("json",))) == list(source)
    assert list(pickle.loads(pickle.dumps(source))) == list(source)


def test_unsafe_and_incomplete_samples_are_left_out_counted_and_named(tmp_path, caplog):
    write(tmp_path / "a.tar", [
        *pair("good"), *pair("../up"), *pair("/abs"),
        ("soft.jpg", dict(type=tarfile.SYMTYPE, linkname="good.jpg")), ("soft.txt", b"x"),
        ("hard.jpg", dict(type=tarfile.LNKTYPE, linkname="good.jpg")), ("hard.txt", b"x"),
        ("tty.jpg", dict(type=tarfile.CHRTYPE)), ("tty.txt", b"x"), *pair("twice"), ("twice.jpg", b"other"),
        ("alone.jpg", b"x"), ("words.txt", b"x"), ("README", b"x"), *pair("last", b"png")])
    before = sorted(p.name for p in tmp_path.parent.rglob("*"))
    source = open_source("webdataset", tmp_path)
    assert list(source) == [document("good"), document("last", b"png")]
    assert source.dropped == {"name with ..": 1, "absolute name": 1, "symbolic link": 1, "hard link": 1,
                              "character device": 1, "member that stands twice": 1, "sample without a caption": 1,
                              "sample without an image": 1}
    for key in ("../up", "/abs", "soft", "hard", "tty", "twice", "alone", "words"):
        assert f"a.tar {key}: " in caplog.text
    assert sorted(p.name for p in tmp_path.parent.rglob("*")) == sorted([*before, *(
        p.name for p in tmp_path.glob(".a.tar.samples-*.index.npz"))])          # nothing was extracted anywhere
    assert open_source("webdataset", tmp_path).dropped == source.dropped        # also from the kept index


def test_a_cut_shard_names_what_was_expected_and_found(tmp_path):
    for name in ("00000", "00001"):
        write(tmp_path / f"{name}.tar", [e for i in range(5) for e in pair(f"{name}{i}", b"x" * 2000)])
        (tmp_path / f"{name}_stats.json").write_text(json.dumps(dict(count=7, successes=5)))
    file = tmp_path / "00000.tar"
    whole, size = file.read_bytes(), file.stat().st_size
    for cut, found in ((size - 1, 5), (size // 2, 2), (0, 0)):
        file.write_bytes(whole[:cut])
        with pytest.raises(DocumentError, match=f"00000.tar was cut.* 5 documents expected, {found} documents found"):
            open_source("webdataset", tmp_path)
        source = open_source("webdataset", tmp_path, on_bad_shard="skip")
        assert len(source) == 5 and source.dropped == {"shard damaged": 5}
        assert source[0].key == "000010" and source.name(0).endswith("00001.tar record 0")


def test_a_shard_replaced_by_one_of_the_same_size_has_another_fingerprint(tmp_path):
    def fingerprint(text):
        write(tmp_path / "a.tar", pair("k", b"x" * 300_000, text))
        return open_source("webdataset", tmp_path).fingerprint()
    first = fingerprint("cat")
    assert first == fingerprint("cat") != fingerprint("dog")
    assert first[0][:2] == fingerprint("dog")[0][:2]


@pytest.mark.parametrize("caption, data, message", [
    ("txt", b"\xff\xfe", "not UTF-8"), ("json", b"{", "not JSON"), ("json", b'{"caption": 3}', "must be of type str"),
    ("json", b'{"caption": "\\ud800"}', "lone surrogate"),
])
def test_a_bad_caption_names_shard_and_record(tmp_path, caption, data, message):
    write(tmp_path / "a.tar", [*pair("a"), ("b.jpg", b"x"), (f"b.{caption}", data)])
    source = open_source("webdataset", tmp_path)
    assert source[0] == document("a")
    with pytest.raises(DocumentError, match=f"a.tar record 1: .*{message}"):
        source[1]


def test_more_shards_than_may_be_open_are_read_from_several_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "_open", functools.lru_cache(maxsize=2)(index._open.__wrapped__))
    for s in range(6):
        write(tmp_path / f"{s}.tar", [e for i in range(4) for e in pair(f"{s}{i}", text=f"{s}{i}" * 100)])
    source, errors = open_source("webdataset", tmp_path), []

    def read(seed):
        for i in np.random.default_rng(seed).integers(0, 24, 200).tolist():
            key = f"{i // 4}{i % 4}"
            if source[i] != document(key, text=key * 100):
                errors.append(i)
    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not errors
