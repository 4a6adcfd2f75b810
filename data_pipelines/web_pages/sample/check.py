"""Compares what the pipeline made of a sample crawl with the truth about it, page by page and part by part.

Run:     python -m data_pipelines.web_pages.sample.check --crawl crawl --output pages
"""

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path

from data_pipelines import shards
from data_pipelines.web_pages.rules import KEPT, PAGE_STAGES, PRESETS
from data_pipelines.web_pages.sample import site
from mmjax.data.documents import Document, Text
from mmjax.data.sources import open_source

Parts = list[tuple[str, str]]


def compare(crawl: Path, output: str) -> list[str]:
    """Everything in which the output of the KOSMOS-1 rules differs from the truth; empty if nothing does."""
    truth = json.loads((crawl / "truth.json").read_text(encoding="utf-8"))
    images = {sha: url for url, sha in json.loads((crawl / "images.json").read_text(encoding="utf-8")).items()}
    wanted = {url: outcome(url, truth) for url in truth}
    found = {d.key: parts(d, images) for d in open_source("array_record", output)}
    wrong = [f"{url}: is there, and should be dropped as {wanted.get(url)!r}" for url in found if wanted[url] != KEPT]
    for url, o in wanted.items():
        if o == KEPT and url not in found:
            wrong.append(f"{url}: is missing")
        elif o == KEPT and found[url] != joined(truth[url]["parts"]):
            wrong.append(f"{url}: should be {joined(truth[url]['parts'])}, is {found[url]}")
    pages = shards.read_manifest(output).counts["pages"]
    expected = Counter(wanted.values()) + Counter({"same address, older": sum(p["kind"] == "refetched"
                                                                              for p in truth.values())})
    wrong += [f"{stage}: {expected[stage]} pages expected, {pages.get(stage, 0)} counted"
              for stage in (*PAGE_STAGES, KEPT) if expected[stage] != pages.get(stage, 0)]
    return wrong


def outcome(url: str, truth: dict) -> str:
    """What must become of a page: the truth of its kind, and the two decisions that hashes of addresses take."""
    kind = truth[url]["outcome"]
    rivals = [u for u in truth if truth[u]["copy_of"] == url] + [truth[url]["copy_of"]] * bool(truth[url]["copy_of"])
    if rivals:
        return KEPT if _hash(url) < min(map(_hash, rivals)) else "near duplicate"
    if kind == "one image":
        number = int(hashlib.sha256(f"single image {_hash(url)}".encode()).hexdigest()[:16], 16) / 2**64
        return KEPT if number < PRESETS["kosmos1"].single_image_keep else "one image, not drawn"
    return kind


def parts(document: Document, images: dict[str, str]) -> Parts:
    """The parts of a document: text with single spaces, images by address."""
    return joined([("text", s.text) if isinstance(s, Text) else
                   ("image", images.get(hashlib.sha256(s.data).hexdigest(), "unknown")) for s in document.segments])


def joined(pieces: Parts) -> Parts:
    """Neighbouring texts as one, with single spaces."""
    out: Parts = []
    for kind, value in pieces:
        if kind == "text" and out and out[-1][0] == "text":
            value = f"{out.pop()[1]} {value}"
        out.append((kind, " ".join(value.split()) if kind == "text" else value))
    return out


def _hash(url: str) -> str:
    return hashlib.sha256(url.encode()).hexdigest()[:32]


def main():
    p = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    p.add_argument("--crawl", type=Path, required=True)
    p.add_argument("--output", required=True)
    args = p.parse_args()
    wrong = compare(args.crawl, args.output)
    print("\n".join(wrong[:20]) if wrong else f"every page of {args.crawl} became what it should, {len(site.KINDS)} "
          "kinds of pages")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
