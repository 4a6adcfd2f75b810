"""Tar shards of img2dataset to caption pairs: the image and its alt text, checked.

Run:     python -m data_pipelines.caption_pairs --input 'laion/*.tar' --output pairs
"""

import functools

from absl import logging

from data_pipelines import convert, launch
from data_pipelines.image_faults import image_fault
from mmjax.data.documents import Document, Image, Text


def check(document: Document, min_side: int, max_aspect: float, min_words: int, max_words: int) -> str:
    """Why a pair is dropped, "" if it is kept."""
    (image,) = (s for s in document.segments if isinstance(s, Image))
    words = len(" ".join(s.text for s in document.segments if isinstance(s, Text)).split())
    if words < min_words:
        return "too few words"
    if words > max_words:
        return "too many words"
    return image_fault(image.data, min_side=min_side, max_aspect=max_aspect)


def main(argv: list[str] | None = None):
    p = convert.parser("Tar shards of img2dataset to caption pairs.")
    p.add_argument("--min_side", type=int, default=64, help="of an image, in pixels")
    p.add_argument("--max_aspect", type=float, default=3.0, help="of an image's longer side to its shorter")
    p.add_argument("--min_words", type=int, default=1, help="of a caption")
    p.add_argument("--max_words", type=int, default=256, help="of a caption")
    args, options = launch.parse(p, argv)
    logging.set_verbosity(logging.INFO)
    limits = {k: getattr(args, k) for k in ("min_side", "max_aspect", "min_words", "max_words")}
    manifest = convert.run("webdataset", args.input, args.output, functools.partial(check, **limits), options,
                           settings=limits, parts=args.parts, max_damaged=args.max_damaged)
    convert.finish(manifest, args.output)
