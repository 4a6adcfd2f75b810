"""Conversations about images, in LLaVA's JSON or as "messages", to documents with the images inside.

Run:     python -m data_pipelines.conversations --input llava.json --images images --output talks --parts 64
"""

import os

from absl import logging

from data_pipelines import convert, launch
from data_pipelines.image_faults import image_fault
from mmjax.data.documents import Document, Image, Text


def check(document: Document) -> str:
    """Why a conversation is dropped, "" if it is kept: nothing to learn from, or an image that cannot be used."""
    if not any(isinstance(s, Text) and s.weight > 0 and s.text.strip() for s in document.segments):
        return "no answer"
    faults = (image_fault(s.data, min_side=4, max_aspect=20.0, single_colour=-1)
              for s in document.segments if isinstance(s, Image))
    return next((f for f in faults if f), "")


def main(argv: list[str] | None = None):
    p = convert.parser("Conversations about images to documents.")
    p.add_argument("--format", default="llava", choices=("llava", "messages"))
    p.add_argument("--images", default="", help="folder of the images, that every worker can read; default: beside the "
                                                "input")
    args, options = launch.parse(p, argv)
    logging.set_verbosity(logging.INFO)
    images = dict(images=os.path.abspath(args.images)) if args.images else {}
    manifest = convert.run(args.format, args.input, args.output, check, options, source_options=images,
                           parts=args.parts, max_damaged=args.max_damaged)
    convert.finish(manifest, args.output)
