"""The filters of single pages and images, each by a page that only it stops."""

import hashlib
from pathlib import Path

import pytest

pytest.importorskip("apache_beam", reason="needs the extra [pipelines]")
pytest.importorskip("fastwarc", reason="needs the extra [pipelines]")

from data_pipelines.units import Unit  # noqa: E402
from data_pipelines.web_pages import extract  # noqa: E402
from data_pipelines.web_pages.assemble import Blobs  # noqa: E402
from data_pipelines.web_pages.extract import ImageEntry, PageEntry  # noqa: E402
from data_pipelines.web_pages.rules import Rules  # noqa: E402
from data_pipelines.web_pages.sample import make_warc, site  # noqa: E402
from data_pipelines.web_pages.sample.languages import LANGUAGES  # noqa: E402

PICTURE = site.make_picture(site.np.random.default_rng(0))[1]


def text(sentences: int, seed: int = 0) -> str:
    rng = site.np.random.default_rng(seed)
    return " ".join(LANGUAGES["en"].sentence(rng) for _ in range(sentences))


def extract_pages(folder: Path, fetches: list[site.Fetch], rules: Rules, lists=()):
    """(entries, counts, blobs) of an archive of these fetches."""
    with open(folder / "a.warc.gz", "wb") as f:
        for fetch in fetches:
            make_warc.write_fetch(f, fetch, 0)
    (folder / "made").mkdir()
    made, counts = extract.extract(Unit("u", ((str(folder / "a.warc.gz"), "0"),)), folder / "made", rules, lists)
    (folder / "work/extract").mkdir(parents=True)
    for name, local in made.items():
        local.rename(folder / name)
    entries = list(extract.read_index((folder / "work/extract/u.index").read_bytes()))
    return entries, counts, Blobs(str(folder))


def page(body: str, url: str = "http://a.example/1") -> site.Fetch:
    return site.Fetch(url, "text/html; charset=utf-8", f"<p>{body}</p>".encode())


@pytest.mark.parametrize("body, rules, reason", [
    (text(30), dict(), ""),
    (text(30), dict(max_html_bytes=100), "page too large"),
    (text(30), dict(min_words=10_000), "too few words"),
    (text(30), dict(max_words=20), "too many words"),
    (text(30), dict(languages=("de", "fr")), "language"),
    (text(30), dict(languages=()), ""),
    ("Nothing here is new. " * 20, dict(), "repeats itself"),
    (text(30) + " Zounds!" * 3, dict(max_repetition=1.0), ""),
    (text(30) + " Zounds!" * 9, dict(max_repetition=1.0), "flagged words"),
])
def test_each_filter_of_a_page(tmp_path, body, rules, reason):
    words = tmp_path / "words.txt"
    words.write_text("# comment\n\nZOUNDS\n")
    entries, counts, _ = extract_pages(tmp_path, [page(body)], Rules(**rules), (("words", str(words)),))
    assert counts["pages"] == ({"read": 1, reason: 1} if reason else {"read": 1})
    assert len(entries) == (not reason)


def test_pages_and_images_lie_where_the_index_says(tmp_path):
    body = f'{text(30)}<img src="/b.jpg">{text(3, 1)}<img src="/my_logo.png"><img src="/b.jpg">'
    fetches = [page(body), site.Fetch("http://a.example/b.jpg", "image/jpeg", PICTURE),
               site.Fetch("http://a.example/c.jpg", "image/jpeg", PICTURE[:200])]
    blocked = tmp_path / "images.txt"
    blocked.write_text("0" * 64)
    entries, counts, blobs = extract_pages(tmp_path, fetches, Rules(), (("images", str(blocked)),))
    first, second, third = entries
    assert isinstance(first, PageEntry) and first.images == [extract.address_key("http://a.example/b.jpg")]
    url, segments = extract.msgpack.unpackb(blobs.read(first.place))
    assert url == "http://a.example/1" and [type(s) for s in segments] == [str, int, str, int]
    assert isinstance(second, ImageEntry) and second.key == first.images[0] and not second.fault
    assert blobs.read(second.place) == PICTURE and second.sha256 == hashlib.sha256(PICTURE).hexdigest()
    assert third.fault == "image truncated or damaged"
    assert counts["image marks"] == {"on the page, outside boilerplate": 3, "in boilerplate": 0,
                                     "blocked word in the address": 1}
    assert (tmp_path / "work/extract/u.image_addresses.txt").read_text() == "http://a.example/b.jpg\n"
    with pytest.raises(ValueError, match="is damaged at byte"):
        blobs.read(second.place._replace(offset=1))


def test_a_blocked_image_is_of_no_use(tmp_path):
    blocked = tmp_path / "images.txt"
    blocked.write_text(hashlib.sha256(PICTURE).hexdigest())
    fetch = site.Fetch("http://a.example/b.jpg", "image/jpeg", PICTURE)
    (entry,), counts, _ = extract_pages(tmp_path, [fetch], Rules(), (("images", str(blocked)),))
    assert entry.fault == "blocked image" and counts["images"] == {"read": 1, "blocked image": 1}
