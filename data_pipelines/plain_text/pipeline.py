"""Plain text, JSON lines or parquet, to documents of one text each, filtered by length and repetition.

Run:     python -m data_pipelines.plain_text --input 'c4/*.jsonl' --output text
"""

import functools

from absl import logging

from data_pipelines import convert, launch, words
from mmjax.data.documents import Document


def check(document: Document, min_words: int, max_words: int, max_repetition: float) -> str:
    """Why a text is dropped, "" if it is kept."""
    (text,) = document.segments
    found = words.words(text.text)
    if len(found) < min_words:
        return "too few words"
    if len(found) > max_words:
        return "too many words"
    return "repeats itself" if words.repetition(found) > max_repetition else ""


def main(argv: list[str] | None = None):
    p = convert.parser("Plain text to documents.")
    p.add_argument("--field", default="text", help="field or column that holds the text")
    p.add_argument("--min_words", type=int, default=20)
    p.add_argument("--max_words", type=int, default=1_000_000)
    p.add_argument("--max_repetition", type=float, default=0.3,
                   help="largest share of the runs of five words that are not the first of their kind")
    args, options = launch.parse(p, argv)
    logging.set_verbosity(logging.INFO)
    limits = {k: getattr(args, k) for k in ("min_words", "max_words", "max_repetition")}
    manifest = convert.run("text", args.input, args.output, functools.partial(check, **limits), options,
                           source_options=dict(field=args.field), settings=limits, parts=args.parts,
                           max_damaged=args.max_damaged)
    convert.finish(manifest, args.output)
