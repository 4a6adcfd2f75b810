"""First stage, one archive at a time: pages to candidate documents, images to checked bytes, and a small index of both.

An archive gives two files: a blob (texts and image bytes, one after another) and an index with what the second stage
decides by, a few hundred bytes a page, and where in the blob each thing lies.
"""

import hashlib
import io
import os
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgpack
from absl import logging
from resiliparse.parse.lang import detect_fast

from data_pipelines import files, minhash, words
from data_pipelines.image_faults import image_fault
from data_pipelines.units import Unit, file_name
from data_pipelines.web_pages import archive, markup
from data_pipelines.web_pages.rules import ListPaths, Lists, Rules, load_lists

HTML_TYPES = ("text/html", "application/xhtml+xml")
FOLDER = "folder"               # option of a unit whose inputs are fetched images, each named by its address' SHA-256


class Place(NamedTuple):
    """Where some bytes lie: a blob, the range in it, and the CRC-32 of the bytes."""

    blob: str
    offset: int
    length: int
    crc: int


NOWHERE = Place("", 0, 0, 0)


class PageEntry(NamedTuple):
    """What the second stage knows of a page. `key` is the hash of its address; `images` those of its images'."""

    key: str
    date: str
    place: Place
    signature: bytes
    bands: bytes
    images: list[str]


class ImageEntry(NamedTuple):
    """What the second stage knows of an image. `fault` says why it is of no use, "" if it is."""

    key: str
    date: str
    place: Place
    sha256: str
    fault: str


class Blob:
    """A file that grows by pieces."""

    def __init__(self, file: BinaryIO, name: str):
        self._file, self._name, self._offset = file, name, 0

    def add(self, data: bytes) -> Place:
        place = Place(self._name, self._offset, len(data), zlib.crc32(data))
        self._file.write(data)
        self._offset += len(data)
        return place


def address_key(url: str) -> str:
    """The name of an address everywhere in the pipeline: the first 32 hex digits of the SHA-256 of its normal form."""
    return hashlib.sha256((markup.normal(url) or url).encode("utf-8", "replace")).hexdigest()[:32]


def blob_name(unit: Unit) -> str:
    return f"work/extract/{unit.name}.blob"


def extract(unit: Unit, folder: Path, rules: Rules, lists: ListPaths):
    """Does the unit of one archive, or of a part of a folder of fetched images; see `units.Work`."""
    counts: dict[str, Counter] = {t: Counter() for t in ("archives", "records", "pages", "images", "image marks")}
    entries, addresses = [], set()
    find = _folder_entries if FOLDER in unit.options else _archive_entries
    with open(folder / "blob", "wb") as file:
        for entry in find(unit, Blob(file, blob_name(unit)), rules, load_lists(lists), counts, addresses):
            entries.append(msgpack.packb((type(entry).__name__, *entry)))
    (folder / "index").write_bytes(b"".join(entries))
    (folder / "addresses").write_text("".join(f"{a}\n" for a in sorted(addresses)), encoding="utf-8")
    made = {blob_name(unit): folder / "blob", f"work/extract/{unit.name}.index": folder / "index",
            f"work/extract/{unit.name}.image_addresses.txt": folder / "addresses"}
    return made, counts


def read_index(data: bytes) -> Iterator[PageEntry | ImageEntry]:
    """The entries of an index file."""
    kinds = {"PageEntry": PageEntry, "ImageEntry": ImageEntry}
    for kind, *values in msgpack.Unpacker(io.BytesIO(data), max_buffer_size=0):
        values[2] = Place(*values[2])
        yield kinds[kind](*values)


def _archive_entries(unit, blob, rules, lists, counts, addresses) -> Iterator[PageEntry | ImageEntry]:
    (path, _), = unit.inputs
    with files.open_read(path) as stream:
        try:
            for record in archive.read_records(stream, counts["records"]):
                if record.content_type.startswith("image/"):
                    if record.status == 200:
                        yield _image_entry(address_key(record.url), record.date, record.body, blob, rules, lists,
                                           counts["images"])
                elif (page := _page_entry(record, blob, rules, lists, counts, addresses)) is not None:
                    yield page
            counts["archives"]["whole"] += 1
        except archive.ArchiveError as e:
            logging.error("%s: %s; the records before it are kept", path, e)
            counts["archives"][f"{os.path.basename(path)}: {e}"] += 1


def _page_entry(record: archive.Record, blob: Blob, rules: Rules, lists: Lists, counts, addresses
                ) -> PageEntry | None:
    counts["pages"]["read"] += 1
    reason = _refuse_record(record, rules, lists)
    if not reason:
        try:
            page = markup.read_page(markup.decode(record.body, record.charset), record.url, counts["image marks"])
            text_words = words.words(page.text)
            reason = _refuse_text(page.text, text_words, rules, lists)
        except markup.PageError as e:
            reason = str(e)
    if reason:
        counts["pages"][reason] += 1
        return None
    page = _usable_images(page, rules, counts["image marks"])
    addresses.update(page.images)
    place = blob.add(msgpack.packb((record.url, page.segments)))
    return PageEntry(address_key(record.url), record.date, place, *minhash.signature(text_words),
                     [address_key(a) for a in page.images])


def _refuse_record(record: archive.Record, rules: Rules, lists: Lists) -> str:
    """The first of PAGE_STAGES that stops a page before its markup is read, "" if none."""
    try:
        host = urllib.parse.urlsplit(record.url).hostname
    except ValueError:
        host = None
    if record.status != 200:
        return "status is not 200"
    if record.content_type not in HTML_TYPES:
        return "not HTML"
    if len(record.body) > rules.max_html_bytes:
        return "page too large"
    return "address blocked" if host is None or lists.blocks(record.url, host) else ""


def _refuse_text(text: str, text_words: list[str], rules: Rules, lists: Lists) -> str:
    """The first of PAGE_STAGES that stops a page for its text, "" if none."""
    if not text_words:
        return "no main text"
    if len(text_words) < rules.min_words:
        return "too few words"
    if len(text_words) > rules.max_words:
        return "too many words"
    if words.repetition(text_words) > rules.max_repetition:
        return "repeats itself"
    if rules.languages and detect_fast(text, cutoff=rules.max_rank)[0] not in rules.languages:
        return "language"
    flagged = sum(w in lists.words for w in text_words) if lists.words else 0
    return "flagged words" if flagged > rules.max_flagged * len(text_words) else ""


def _usable_images(page: markup.Page, rules: Rules, counts: Counter) -> markup.Page:
    """The page without images whose address holds a blocked word."""
    segments = []
    for s in page.segments:
        name = "" if isinstance(s, str) else urllib.parse.urlsplit(page.images[s]).path.lower()
        if any(word in name for word in rules.blocked_in_image_address):
            counts["blocked word in the address"] += 1
        else:
            segments.append(s)
    used = sorted({s for s in segments if isinstance(s, int)})
    renumber = {old: new for new, old in enumerate(used)}
    return markup.Page(tuple(s if isinstance(s, str) else renumber[s] for s in segments),
                     tuple(page.images[i] for i in used))


def _folder_entries(unit, blob, rules, lists, counts, addresses) -> Iterator[ImageEntry]:
    for path, _ in unit.inputs:
        key = os.path.basename(path).partition(".")[0].lower()[:32]
        yield _image_entry(key, "", files.read(path), blob, rules, lists, counts["images"])


def _image_entry(key: str, date: str, data: bytes, blob: Blob, rules: Rules, lists: Lists, counts: Counter
                 ) -> ImageEntry:
    sha256 = hashlib.sha256(data).hexdigest()
    fault = "blocked image" if sha256 in lists.images else image_fault(
        data, min_side=rules.min_side, max_aspect=rules.max_aspect, max_pixels=rules.max_pixels,
        max_bytes=rules.max_image_bytes, single_colour=rules.single_colour)
    counts["read"] += 1
    counts[fault or "usable"] += 1
    return ImageEntry(key, date, NOWHERE if fault else blob.add(data), sha256, fault)


def make_units(inputs: Iterable[tuple[str, int]], image_files: Iterable[tuple[str, int]]) -> list[Unit]:
    """A unit for every archive, and one for every two first hex digits of the names of fetched images."""
    units = [Unit(file_name(p), ((p, str(size)),)) for p, size in inputs]
    groups: dict[str, list] = {}
    for path, size in image_files:
        groups.setdefault(os.path.basename(path)[:2].lower(), []).append((path, str(size)))
    return units + [Unit(f"images-{prefix}", tuple(group), (FOLDER,)) for prefix, group in sorted(groups.items())]
