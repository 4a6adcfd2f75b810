"""Archives that are cut, damaged, or lie about their lengths."""

import gzip
import io
import random
import tracemalloc
import zlib
from collections import Counter

import pytest

pytest.importorskip("fastwarc", reason="needs the extra [web] or [pipelines]")

from data_pipelines.web_pages import archive  # noqa: E402
from data_pipelines.web_pages.sample import make_warc, site  # noqa: E402

pytestmark = pytest.mark.quick


def response(n: int, length: int | str | None = None, body: bytes = b"<html>text") -> bytes:
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + body
    head = (f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: http://a/{n}\r\nWARC-Date: 2020-01-01T00:00:00Z\r\n"
            "Content-Type: application/http; msgtype=response\r\n"
            f"Content-Length: {len(block) if length is None else length}\r\n\r\n")
    return head.encode() + block + b"\r\n\r\n"


def read(data: bytes, max_bytes: int = archive.MAX_RECORD_BYTES) -> tuple[list[archive.Record], str, Counter]:
    counts, records = Counter(), []
    try:
        records.extend(archive.read_records(io.BytesIO(data), counts, max_bytes))
    except archive.ArchiveError as e:
        return records, str(e), counts
    return records, "", counts


def read_urls(data: bytes) -> tuple[list[str], str, Counter]:
    records, error, counts = read(data)
    return [r.url for r in records], error, counts


@pytest.mark.parametrize("zipped", [False, True])
def test_a_cut_anywhere_keeps_the_whole_records_and_names_the_next(zipped):
    pieces = [gzip.compress(response(n), mtime=0) if zipped else response(n) for n in range(3)]
    ends = [0, *(sum(map(len, pieces[:k + 1])) for k in range(3))]
    for cut in range(ends[-1]):
        urls, error, _ = read_urls(b"".join(pieces)[:cut])
        # The four bytes behind a plain record, and the checksum behind a gzip member, hold nothing of it.
        spare = 4 if not zipped else 40
        least = sum(end <= cut for end in ends) - 1
        assert least <= len(urls) <= sum(end - spare <= cut for end in ends) - 1, cut
        if cut in ends or (not zipped and len(urls) > least):
            assert not error
        else:
            assert error.startswith(f"cut at record {len(urls) + 1}: "), (cut, error)


@pytest.mark.parametrize("length, words", [
    (-5, "Content-Length is '-5'"), (10**12, "should have 1000000000000 bytes"), (10**30, "Content-Length is '1000"),
    ("abc", "Content-Length is 'abc'"), ("", "header is incomplete"),
])
@pytest.mark.parametrize("zipped", [False, True])
def test_a_length_that_cannot_be_is_named_with_its_record(length, words, zipped):
    data = response(0) + response(1, length) + response(2)
    urls, error, _ = read_urls(gzip.compress(data) if zipped else data)
    assert urls == ["http://a/0"]
    assert error.startswith("cut at record 2: ") and words in error


def test_a_record_larger_than_the_cap_is_counted_and_the_next_is_read():
    data = b"".join(gzip.compress(r) for r in (response(0), response(1, body=b"0" * 5000), response(2)))
    records, error, counts = read(data, max_bytes=2000)
    assert [r.url for r in records] == ["http://a/0", "http://a/2"] and not error
    assert counts == {"read": 2, "record larger than the cap": 1}


def test_a_gzip_member_that_grows_a_thousandfold_ends_the_file_in_bounded_memory():
    press = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = b"\0" * (1 << 20)
    bomb = b"".join([press.compress(response(1, 10**10).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"),
                     *(press.compress(zeros) for _ in range(200)), press.flush()])
    tracemalloc.start()
    urls, error, _ = read_urls(gzip.compress(response(0)) + bomb + gzip.compress(response(2)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert urls == ["http://a/0"]
    assert error.startswith("cut at record 2: a gzip member grows from")
    assert peak < 200 << 20


def test_a_body_that_inflates_beyond_the_cap_is_counted():
    packed = gzip.compress(b"0" * 20_000_000, mtime=0)
    block = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\n\r\n" + packed
    data = make_warc.record("response", "http://a/", site.NEW, block, "application/http; msgtype=response")
    records, error, counts = read(data + gzip.compress(response(1)), max_bytes=1 << 20)
    assert [r.url for r in records] == ["http://a/1"] and not error
    assert counts == {"read": 1, "body larger than the cap": 1}


def test_what_is_no_http_is_counted():
    data = make_warc.record("response", "http://a/", site.NEW, b"no status line", "application/http; msgtype=response")
    assert read(data)[2] == {"without sound HTTP": 1}


@pytest.mark.parametrize("zipped", [False, True])
def test_no_flipped_bit_makes_the_reader_fail(zipped):
    data = b"".join(gzip.compress(response(n), mtime=0) if zipped else response(n) for n in range(3))
    rng = random.Random(0)
    for _ in range(300):
        bad = bytearray(data)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        urls, error, _ = read_urls(bytes(bad))
        assert zipped is False or error or len(urls) >= 2       # gzip has a checksum


def test_warcio_reads_the_same_from_the_sample_archives():
    iterator = pytest.importorskip("warcio.archiveiterator").ArchiveIterator
    fetches = [f for i in (0, 2, 6, 14, 22) for f in site.make_page(i).fetches]
    stream = io.BytesIO()
    for number, fetch in enumerate(fetches):
        make_warc.write_fetch(stream, fetch, number)
    ours, error, _ = read(stream.getvalue())
    stream.seek(0)
    theirs = [(r.rec_headers.get_header("WARC-Target-URI"), int(r.http_headers.get_statuscode()),
               r.content_stream().read()) for r in iterator(stream) if r.rec_type == "response"]
    assert not error
    assert [(r.url, r.status, r.body) for r in ours] == theirs
    assert [b for _, _, b in theirs] == [f.body for f in fetches]
