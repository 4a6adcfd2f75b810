"""Second stage, over all archives at once but without their bytes: which pages stay, with which of their images.

The decisions do not depend on the order in which anything arrives: where several things compete, the newest fetch
(then the smallest place), or the smallest hash of the address, wins.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import apache_beam as beam
import msgpack

from data_pipelines import files, minhash
from data_pipelines.web_pages.extract import NOWHERE, ImageEntry, PageEntry, Place, read_index
from data_pipelines.web_pages.rules import KEPT, Rules

PAGES, MARKS = "pages", "image marks"           # tables of counts


class Offer(NamedTuple):
    """An image in its position on a page: what there is of it, or the fault that rules it out."""

    position: int
    place: Place
    sha256: str
    fault: str


class Choice(NamedTuple):
    """A page that may stay, with (index on the page, place) of its images."""

    key: str
    place: Place
    signature: bytes
    bands: bytes
    images: list[tuple[int, Place]]


def plan_name(k: int, n: int) -> str:
    return f"work/plan/{k:05d}-of-{n:05d}.msgpack"


def shard_of(key: str, num_shards: int) -> int:
    return int(key[:8], 16) % num_shards


def build(pipeline: beam.Pipeline, indices: list[str], output: str, rules: Rules, num_shards: int):
    """Adds the stage to a pipeline: from index files to one plan file for each shard of the output."""
    entries = (pipeline | "indices" >> beam.Create(indices, reshuffle=False) | "spread" >> beam.Reshuffle()
               | "entries" >> beam.FlatMap(lambda path: read_index(files.read(path))))
    counted = []

    def step(name: str, values, function, *args):
        """A FlatMap whose function yields results, and counts as Counter-like (table, reason) strings aside."""
        out = values | name >> beam.ParDo(_Tagged(function), *args).with_outputs("counts", main="main")
        counted.append(out.counts)
        return out.main

    pages = step("newest page", entries | "pages" >> beam.Filter(lambda e: isinstance(e, PageEntry))
                 | beam.Map(lambda e: (e.key, e)) | "by address" >> beam.GroupByKey(), newest_page)
    images = (entries | "images" >> beam.Filter(lambda e: isinstance(e, ImageEntry))
              | "image key" >> beam.Map(lambda e: (e.key, e)))
    wanted = pages | "wanted" >> beam.FlatMap(
        lambda page: [(image, (page.key, i)) for i, image in enumerate(page.images)])
    offers = ({"wanted": wanted, "images": images} | "find images" >> beam.CoGroupByKey()
              | "offers" >> beam.FlatMap(lambda kv: offer(kv[1]["wanted"], kv[1]["images"])))
    limited = (offers | "usable" >> beam.Filter(lambda o: not o[1].fault)
               | "by image" >> beam.GroupBy(lambda o: o[1].sha256)
               | "limit uses" >> beam.FlatMap(lambda kv: limit_uses(kv[1], rules.max_image_uses)))
    faulty = offers | "of no use" >> beam.Filter(lambda o: bool(o[1].fault))
    offers = (limited, faulty) | "offers again" >> beam.Flatten()
    choices = step("choose images", {"page": pages | beam.Map(lambda p: (p.key, p)), "offers": offers}
                   | "by page" >> beam.CoGroupByKey(), choose_images, rules)
    losers = (choices | "bands" >> beam.FlatMap(
                  lambda c: [(band, (c.key, c.signature)) for band in minhash.split_bands(c.bands)])
              | "meet" >> beam.GroupByKey()
              | "losers" >> beam.FlatMap(lambda kv: minhash.losers(kv[1], rules.similarity))
              | beam.Distinct() | beam.Map(lambda key: (key, True)))
    kept = step("decide", {"choice": choices | "choice key" >> beam.Map(lambda c: (c.key, c)), "loser": losers}
                | "with losers" >> beam.CoGroupByKey(), decide, rules)
    counts = counted | beam.Flatten() | "one" >> beam.Map(lambda c: (c, 1)) | beam.CombinePerKey(sum)
    # Shard 0 also holds the counts; an empty value makes every shard's group exist.
    _ = ([kept | "shard" >> beam.Map(lambda c: (shard_of(c.key, num_shards), c)),
          counts | "counts" >> beam.Map(lambda kv: (0, (*kv[0], kv[1]))),
          pipeline | "every shard" >> beam.Create([(k, None) for k in range(num_shards)])]
         | "all" >> beam.Flatten() | "by shard" >> beam.GroupByKey()
         | "plans" >> beam.MapTuple(lambda k, values: write_plan(output, k, num_shards, values)))


class _Tagged(beam.DoFn):
    """Runs a generator of results and ("counts", table, reason) tuples, and sends these aside."""

    def __init__(self, function):
        self._function = function

    def process(self, element, *args):
        for result in self._function(element, *args):
            if result[0] == "counts":
                yield beam.pvalue.TaggedOutput("counts", result[1:])
            else:
                yield result


def newest_page(grouped: tuple[str, Iterable[PageEntry]]) -> Iterator[PageEntry | tuple]:
    """Of all fetches of one address the newest."""
    best, *older = sorted(grouped[1], key=lambda e: (e.date, e.place), reverse=True)
    yield best
    yield from (("counts", PAGES, "same address, older") for _ in older)


def offer(wanted: Iterable[tuple[str, int]], found: Iterable[ImageEntry]) -> Iterator[tuple[str, Offer]]:
    """(page, offer) for every page that wants the image of one address."""
    best = max(found, key=lambda e: (not e.fault, e.date, e.sha256, e.place), default=None)
    for page, position in wanted:
        if best is None:
            yield page, Offer(position, NOWHERE, "", "not in the archive")
        else:
            yield page, Offer(position, best.place, best.sha256, best.fault)


def limit_uses(offers: Iterable[tuple[str, Offer]], max_uses: int) -> Iterator[tuple[str, Offer]]:
    """The offers of one image, all with a fault if more than `max_uses` pages have it."""
    pages = set()
    for page, _ in offers:
        pages.add(page)
        if len(pages) > max_uses:
            break
    for page, o in offers:
        yield page, o._replace(fault="on too many pages") if len(pages) > max_uses else o


def choose_images(grouped: tuple[str, dict[str, Iterable]], rules: Rules) -> Iterator[Choice | tuple]:
    """The images of a page: without faults, none twice, no more than there may be."""
    (page,), offers = grouped[1]["page"], sorted(grouped[1]["offers"])
    seen, images = set(), []
    for o in offers:
        fault = o.fault or ("twice on the page" if o.sha256 in seen else "")
        if not fault and rules.too_many == "cut" and len(images) == rules.max_images:
            fault = "beyond max_images"
        seen.add(o.sha256)
        yield "counts", MARKS, fault or "usable"
        if not fault:
            images.append((o.position, o.place))
    if not images:
        yield "counts", PAGES, "no usable image"
    elif len(images) > rules.max_images:
        yield "counts", PAGES, "too many images"
    else:
        yield Choice(page.key, page.place, page.signature, page.bands, images)


def decide(grouped: tuple[str, dict[str, Iterable]], rules: Rules) -> Iterator[Choice | tuple]:
    """The last two filters: near duplicates, and the draw among pages with one image."""
    (choice,) = grouped[1]["choice"]
    if any(grouped[1]["loser"]):
        yield "counts", PAGES, "near duplicate"
    elif len(choice.images) == 1 and draw(choice.key) >= rules.single_image_keep:
        yield "counts", PAGES, "one image, not drawn"
    else:
        yield "counts", PAGES, KEPT
        yield choice


def draw(key: str) -> float:
    """A number in [0, 1) that a page keeps for ever."""
    return int.from_bytes(hashlib.sha256(f"single image {key}".encode()).digest()[:8], "big") / 2**64


def write_plan(output: str, k: int, num_shards: int, values: Iterable[Choice | tuple | None]):
    """Writes the plan of one shard: its pages by key, with places; in shard 0 the counts too."""
    pages, counts = [], []
    for v in values:
        if isinstance(v, Choice):
            pages.append((v.key, v.place, sorted(v.images)))
        elif v is not None:
            counts.append(v)
    files.write(os.path.join(output, plan_name(k, num_shards)), msgpack.packb((sorted(pages), sorted(counts))))


def read_plan(data: bytes) -> tuple[list[tuple[str, Place, list[tuple[int, Place]]]], dict[str, Counter]]:
    """The pages of a shard, and the counts that its plan holds."""
    pages, counted = msgpack.unpackb(data, use_list=True)
    counts: dict[str, Counter] = {}
    for table, reason, n in counted:
        counts.setdefault(table, Counter())[reason] += n
    return [(key, Place(*place), [(i, Place(*p)) for i, p in images]) for key, place, images in pages], counts
