"""A small real file in every format that sources read: made, read back, and compared document by document.

Run:     python experiments/data/formats.py [--documents 64] [--folder FOLDER] [--only NAME ...]
Expect:  18 lines that end in "same", in 4 s on one core; exit status 1 if anything differs. The images are drawings
         and crops of scikit-learn's two photographs. Each file is read through its source, field by field against what
         was written, and then through the loader, where the tokens, weights and pixels of every packed document must be
         those of the same documents in our own ArrayRecord.
"""

import argparse
import dataclasses
import hashlib
import pickle
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

if __package__ in (None, ""):                   # run as a file
    sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.data.format_files import WRITERS, Pair, Written
from mmjax.data.config import DataSetConfig, ImageSpec, LoaderConfig, Source
from mmjax.data.documents import Document, DocumentError, Image, Text, write_documents
from mmjax.data.first_light import pictures, sources
from mmjax.data.loader import Loader
from mmjax.data.sources import DocumentSource, open_source

SIDE = 64                                       # of an image, in pixels


def make_pairs(count: int) -> Iterator[Pair]:
    """Drawings and crops of photographs by turns, as JPEG files, no two images or captions alike."""
    rng, photographs = np.random.default_rng(0), sources.load_photographs()
    colours = list(pictures.COLOURS)
    for i in range(count):
        if i % 2:
            which = int(rng.integers(2))
            pixels = photographs[which]
            top, left = (int(rng.integers(n - SIDE)) for n in pixels.shape[:2])
            image = PIL.Image.fromarray(pixels[top:top + SIDE, left:left + SIDE])
            caption = f"{('a temple', 'a flower')[which]} from {left}, {top}, no. {i}, \u2603 <image> </s>"
        else:
            shape, colour = pictures.SHAPES[i // 2 % len(pictures.SHAPES)], colours[i % len(colours)]
            drawing = pictures.canvas(SIDE, (20, 20, 20))
            pictures.draw_shape(drawing, shape, colour, *rng.uniform(0.35, 0.65, 2), 0.3)
            image, caption = pictures.finish(drawing), f"a {colour} {shape}, no. {i}"
        yield pictures.to_jpeg(image), caption


def differences(source: DocumentSource, documents: Sequence[Document]) -> Iterator[str]:
    """What is not as it was written, of every document and field; read in order, at random, and after pickling."""
    if len(source) != len(documents):
        yield f"{len(source)} documents, {len(documents)} were written"
        return
    copy = pickle.loads(pickle.dumps(source))
    for i in np.random.default_rng(1).permutation(len(documents)).tolist():
        for reader in (source, copy):
            yield from (f"{source.name(i)}: {what}" for what in compare(reader[i], documents[i]))


def compare(found: Document, wanted: Document) -> Iterator[str]:
    if found.key != wanted.key:
        yield f"key {found.key!r}, written as {wanted.key!r}"
    if len(found.segments) != len(wanted.segments):
        yield f"{len(found.segments)} segments, {len(wanted.segments)} were written"
        return
    for k, (a, b) in enumerate(zip(found.segments, wanted.segments, strict=True)):
        if type(a) is not type(b):
            yield f"segment {k} is a {type(a).__name__}, written as a {type(b).__name__}"
            continue
        for field in dataclasses.fields(b):
            if getattr(a, field.name) != getattr(b, field.name):
                yield f"segment {k} {field.name}: {getattr(a, field.name)!r:.60} != {getattr(b, field.name)!r:.60}"


def packed(source: Source, template: str, count: int) -> set[bytes]:
    """Digests of the tokens, targets, weights and pixels of `count` documents, as the loader packs them."""
    data = DataSetConfig((source,), batch_size=1, seq_len=1024, images_per_row=8, image=ImageSpec(size=32),
                         template=template)
    found, loader = set(), Loader(LoaderConfig(dict(data=data), threads=0))
    try:
        for _ in range(2 * count):              # a row holds a document or more; an epoch ends before the second begins
            batch = next(loader)["data"]
            for segment in range(1, int(batch.segment_ids.max()) + 1):
                digest = hashlib.blake2b()
                here = batch.segment_ids[0] == segment
                for array in (batch.tokens, batch.targets, batch.loss_weights):
                    digest.update(np.ascontiguousarray(array[0][here]).tobytes())
                digest.update(np.ascontiguousarray(batch.images[0][batch.image_segment_ids[0] == segment]).tobytes())
                found.add(digest.digest())
            if len(found) >= count:
                break
    finally:
        loader.close()
    return found


def check(written: Written, folder: Path) -> list[str]:
    """All that differs between a file and what was written to it."""
    try:
        found = list(differences(open_source(written.format, written.path, **written.options), written.documents))
    except DocumentError as e:
        return [str(e)]
    if not found:
        own = folder / "own.array_record"
        write_documents(own, written.documents)
        template, count = "minigpt4" if written.documents[0].segments[0].role else "flamingo", len(written.documents)
        read = packed(Source(str(written.path), format=written.format, options=written.options), template, count)
        wanted = packed(Source(str(own)), template, count)
        if read != wanted or len(wanted) != count:
            found.append(f"the loader gives {len(read & wanted)} of {count} documents as from ArrayRecord")
    return found


def size_of(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file() and not f.name.startswith("."))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=64, help="images of each format")
    parser.add_argument("--folder", help="where the files stay; by default nowhere")
    parser.add_argument("--only", nargs="*", choices=list(WRITERS), default=list(WRITERS))
    args = parser.parse_args(argv)
    pairs, bad = list(make_pairs(args.documents)), 0
    print(f"{'files':<15}{'format':<15}{'KiB':>7}{'documents':>11}{'images':>8}{'texts':>7}{'s':>7}")
    with tempfile.TemporaryDirectory() as temporary:
        for name in args.only:
            folder, begin = Path(args.folder or temporary) / name / "files", time.perf_counter()
            folder.mkdir(parents=True, exist_ok=True)
            written = WRITERS[name](folder, pairs)
            size = size_of(folder) // 1024
            found = check(written, folder.parent)
            kinds = [type(s) for d in written.documents for s in d.segments]
            print(f"{name:<15}{written.format:<15}{size:>7}{len(written.documents):>11}{kinds.count(Image):>8}"
                  f"{kinds.count(Text):>7}{time.perf_counter() - begin:>7.2f}  "
                  f"{'same' if not found else 'DIFFERENT'}")
            bad += bool(found)
            print("".join(f"    {what}\n" for what in found[:5]), end="")
    print(f"{len(args.only) - bad} of {len(args.only)} read back as they were written")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
