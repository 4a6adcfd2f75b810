"""Writes real web archives of made-up pages, and the truth about them.

Run:     python -m data_pipelines.web_pages.sample.make_warc --output crawl --pages 2400 --archives 8
Leaves:  crawl/part-00000.warc.gz ..., crawl/truth.json, crawl/images.json, crawl/blocked_hosts.txt
"""

import argparse
import gzip
import hashlib
import json
import uuid
import zlib
from pathlib import Path

from data_pipelines.web_pages.sample import site

PHRASES = {200: "OK", 404: "Not Found"}


def write_archives(folder: Path, pages: int, archives: int) -> dict[str, dict]:
    """Writes `archives` WARC files of `pages` pages; an image may lie in another file than its page.

    Returns:
        The truth: address of a page -> kind, outcome and parts; as truth.json. images.json has the SHA-256 of images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    truth, images = {}, {}
    streams = [open(folder / f"part-{k:05d}.warc.gz", "wb") for k in range(archives)]  # noqa: SIM115
    try:
        for k, stream in enumerate(streams):
            stream.write(record("warcinfo", f"part-{k:05d}.warc.gz", site.NEW, b"software: mmjax sample\r\n",
                                "application/warc-fields"))
        write_fetch(streams[0], site.make_seal(), 0)
        for i in range(pages):
            page = site.make_page(i)
            truth[page.fetches[0].url] = dict(kind=page.kind, outcome=site.KINDS[page.kind], copy_of=page.copy_of,
                                              parts=page.parts)
            for k, fetch in enumerate(page.fetches):
                home = i if k == 0 else zlib.crc32(fetch.url.encode())
                images[fetch.url] = hashlib.sha256(fetch.body).hexdigest()
                write_fetch(streams[home % archives], fetch, i + k)
    finally:
        for stream in streams:
            stream.close()
    (folder / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    (folder / "images.json").write_text(json.dumps(images), encoding="utf-8")
    (folder / "blocked_hosts.txt").write_text(f"# hosts, with all below them\n{site.BLOCKED_HOST}\n", encoding="utf-8")
    return truth


def write_fetch(stream, fetch: site.Fetch, number: int):
    """Writes the request and the response of a fetch; some bodies are gzip-encoded, some come in chunks."""
    stream.write(record("request", fetch.url, fetch.date, f"GET {fetch.url} HTTP/1.1\r\n\r\n".encode(),
                        "application/http; msgtype=request"))
    stream.write(record("response", fetch.url, fetch.date, http_response(fetch, number),
                        "application/http; msgtype=response"))


def http_response(fetch: site.Fetch, number: int) -> bytes:
    headers, body = [f"Content-Type: {fetch.content_type}", "Server: sample"], fetch.body
    if number % 4 == 1:
        headers.append("Content-Encoding: gzip")
        body = gzip.compress(body, mtime=0)
    if number % 5 == 2:
        headers.append("Transfer-Encoding: chunked")
        half = len(body) // 2
        chunks = [c for c in (body[:half], body[half:]) if c]
        body = b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    else:
        headers.append(f"Content-Length: {len(body)}")
    head = f"HTTP/1.1 {fetch.status} {PHRASES[fetch.status]}\r\n" + "".join(f"{h}\r\n" for h in headers) + "\r\n"
    return head.encode() + body


def record(kind: str, url: str, date: str, block: bytes, content_type: str) -> bytes:
    """One WARC record as a gzip member; the same arguments give the same bytes."""
    name = "WARC-Filename" if kind == "warcinfo" else "WARC-Target-URI"
    head = (f"WARC/1.1\r\nWARC-Type: {kind}\r\n{name}: {url}\r\nWARC-Date: {date}\r\n"
            f"WARC-Record-ID: <urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{kind} {url} {date}')}>\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(block)}\r\n\r\n")
    return gzip.compress(head.encode() + block + b"\r\n\r\n", 6, mtime=0)


def main():
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--output", type=Path, required=True)
    p.add_argument("--pages", type=int, default=2400)
    p.add_argument("--archives", type=int, default=8)
    args = p.parse_args()
    truth = write_archives(args.output, args.pages, args.archives)
    print(f"{len(truth)} pages in {args.archives} archives in {args.output}")


if __name__ == "__main__":
    main()
