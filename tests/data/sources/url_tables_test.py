import io
import json
import pickle
import tarfile

import pytest

from mmjax.data.documents import Document, DocumentError, Image, Text
from mmjax.data.sources import fetched, open_source


def fetch(folder, urls, shard="00000", stats=True):
    """What img2dataset writes for the addresses it could fetch."""
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / f"{shard}.tar", "w") as tar:
        for i, url in enumerate(urls):
            for extension, data in (("jpg", image(url).data), ("txt", b"old caption"),
                                    ("json", json.dumps(dict(url=url, caption="old", key=f"{shard}{i:04}")).encode())):
                info = tarfile.TarInfo(f"{shard}{i:04}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    if stats:
        (folder / f"{shard}_stats.json").write_text(json.dumps(dict(count=len(urls) + 3, successes=len(urls))))
    return str(folder)


def image(url):
    return Image(b"jpeg of " + url.encode())


def url(i):
    return f"http://x/{i}.jpg?a=\u2603"


def document(i, caption):
    return Document((image(url(i)), Text(caption)), url(i))


@pytest.mark.quick
@pytest.mark.parametrize("form", ["cc3m", "cc12m"])
def test_lines_are_joined_with_the_images_that_were_fetched(tmp_path, form, caplog):
    images = fetch(tmp_path / "images", [url(i) for i in (4, 2)])
    fetch(tmp_path / "images", [url(i) for i in (0, 1, 2)], "00001")
    rows = [(f"caption {i} <image>", url(i)) for i in (2, 9, 1, 4, 2, 8)]
    text = "".join("\t".join(row if form == "cc3m" else row[::-1]) + "\n" for row in rows) + "no tab\n"
    (tmp_path / "train.tsv").write_text(text, "utf-8")
    source = open_source(form, tmp_path / "train.tsv", images=images)
    made = [document(i, f"caption {i} <image>") for i in (2, 1, 4, 2)]
    assert list(source) == list(pickle.loads(pickle.dumps(source))) == made and source[2] == made[2]
    assert source.dropped == {"image was not fetched": 2, "damaged row": 1} and "train.tsv row 6" in caplog.text
    assert source.blocks() is None
    assert [f[0] for f in source.fingerprint()] == ["train.tsv", "00000.tar", "00001.tar"]


@pytest.mark.quick
def test_parquet_in_blocks_of_what_is_left_of_its_row_groups(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    images = fetch(tmp_path / "images", [url(i) for i in (0, 1, 4, 5)])
    table = pa.table(dict(URL=[url(i) for i in range(6)], TEXT=[f"c{i}" for i in range(5)] + [None], NSFW=["no"] * 6))
    parquet.write_table(table, tmp_path / "part.parquet", row_group_size=2)
    source = open_source("laion", tmp_path / "part.parquet", images=images)
    assert [source[i] for i in (2, 0, 1)] == [document(i, f"c{i}") for i in (4, 0, 1)]
    assert source.blocks().tolist() == [2, 4] and source.dropped == {"image was not fetched": 2}
    with pytest.raises(DocumentError, match="part.parquet record 3: field 'TEXT' is None"):
        source[3]
    again = open_source("laion", tmp_path / "part.parquet", images=images, caption="NSFW", url="URL")
    assert again[3] == document(5, "no")
    with pytest.raises(DocumentError, match="has no column 'url'; it has URL, TEXT, NSFW"):
        open_source("laion", tmp_path, images=images, url="url")


def test_a_cut_shard_of_images_is_named_or_skipped(tmp_path):
    images = fetch(tmp_path / "images", [url(0)])
    fetch(tmp_path / "images", [url(1), url(2)], "00001")
    (tmp_path / "a.tsv").write_text("".join(f"c{i}\t{url(i)}\n" for i in range(3)), "utf-8")
    shard = tmp_path / "images/00001.tar"
    shard.write_bytes(shard.read_bytes()[:2048])
    with pytest.raises(DocumentError, match="00001.tar was cut.* 2 documents expected"):
        open_source("cc3m", tmp_path / "a.tsv", images=images)
    source = open_source("cc3m", tmp_path / "a.tsv", images=images, on_bad_shard="skip")
    assert list(source) == [document(0, "c0")] and source.dropped == {"image was not fetched": 2, "shard damaged": 2}


def test_other_images_or_none(tmp_path):
    images = fetch(tmp_path / "images", [url(0)])
    (tmp_path / "a.tsv").write_text(f"c\t{url(0)}\n", "utf-8")
    first = open_source("cc3m", tmp_path / "a.tsv", images=images).fingerprint()
    fetch(tmp_path / "images", [url(0), url(5)])
    assert open_source("cc3m", tmp_path / "a.tsv", images=images).fingerprint() != first
    with pytest.raises(DocumentError, match="holds no documents; left out: .*'image was not fetched': 1"):
        open_source("cc12m", tmp_path / "a.tsv", images=images)
    with pytest.raises(ValueError, match="'cc3m' needs the option 'images'"):
        open_source("cc3m", tmp_path / "a.tsv")


def test_addresses_with_one_digest_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(fetched, "digest", lambda url: 7)
    monkeypatch.setattr("mmjax.data.sources.url_tables.digest", lambda url: 7)
    images = fetch(tmp_path / "images", [url(0)])
    (tmp_path / "a.tsv").write_text(f"c\t{url(1)}\n", "utf-8")
    with pytest.raises(DocumentError, match="have one digest"):
        open_source("cc3m", tmp_path / "a.tsv", images=images)[0]
