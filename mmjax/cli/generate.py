"""`mmjax generate`: a trained model continues images and text."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from mmjax import decoding
from mmjax.batch import Batch
from mmjax.cli import arguments, trained
from mmjax.cli.trained import Trained
from mmjax.data import packing
from mmjax.data.documents import Document, Image, Text
from mmjax.data.images import ImageError, ImageSpec, decode_image
from mmjax.training.structure import ConfigError


class AppendSegment(argparse.Action):
    """Collects `--image` and `--text` in one list, in the order of the command line."""

    def __call__(self, parser, namespace, values, option_string=None):
        namespace.segments = [*(namespace.segments or ()), (option_string, values)]


def run(argv: Sequence[str]) -> int:
    """Prints what the model says next; with beams a line for each hypothesis, its score first, the best on top."""
    args = arguments.parse(make_parser(), argv)
    if not args.segments:
        raise ConfigError("there is nothing to continue; give --image=FILE and --text='...' in their order")
    it = trained.load(args)
    document = Document(tuple(read_segment(kind, value, it.writer.image) for kind, value in args.segments))
    for line in (search if args.beams > 1 else sample)(it, prompt(it, document), args):
        print(line)
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The flags of the command."""
    parser = trained.make_parser("generate", "Let a trained model continue images and text. --image and --text may "
                                 "be repeated; their order is that of the document.")
    for names in (["--image"], ["--text", "--prompt"]):
        parser.add_argument(*names, dest="segments", action=AppendSegment, metavar=names[0][2:].upper())
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, takes the most likely token")
    parser.add_argument("--top-k", type=int, help="draw from the k most likely tokens")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from the nucleus of this probability")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--beams", type=int, default=1, help="beam search with that many hypotheses instead")
    parser.add_argument("--length-penalty", type=float, default=1.0, help="exponent of the length in a beam's score")
    return parser


def read_segment(kind: str, value: str, spec: ImageSpec) -> Image | Text:
    """A segment of the document.

    Args:
        kind: the flag, "--image" or another for text.
        value: the image's file, or the text.
        spec: how pixels will be made.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no image that can be used; names the file.
    """
    if kind != "--image":
        return Text(value)
    data = Path(value).read_bytes()
    try:
        decode_image(data, spec)
    except ImageError as error:
        raise ValueError(f"{value}: {error}") from error
    return Image(data)


def prompt(it: Trained, document: Document) -> Batch:
    """A batch of one row with the unfinished document."""
    w = it.writer
    features = packing.encode_document(document, w.template, w.tokenizer, w.image, w.frames, prompt=True)
    return packing.single_document_rows([features], len(features["tokens"]), len(features["images"]))


def sample(it: Trained, batch: Batch, args: argparse.Namespace) -> list[str]:
    """The one continuation by the sampling flags."""
    config = decoding.SamplingConfig(args.temperature, args.top_k, args.top_p)
    tokens, lengths = decoding.generate(it.model, it.params, batch, jax.random.key(args.seed), sampling=config,
                                        max_new_tokens=args.max_new_tokens, stop_ids=it.writer.end_ids)
    return [it.writer.tokenizer.decode(np.asarray(tokens)[0, :int(lengths[0])])]


def search(it: Trained, batch: Batch, args: argparse.Namespace) -> list[str]:
    """The hypotheses of beam search that ended, best first, each after its score."""
    beams = decoding.beam_search(it.model, it.params, batch, max_new_tokens=args.max_new_tokens, num_beams=args.beams,
                                 stop_ids=it.writer.end_ids, length_penalty=args.length_penalty)
    tokens, lengths, scores = (np.asarray(x)[0] for x in beams)
    return [f"{score:.4f}\t{it.writer.tokenizer.decode(row[:length])}"
            for row, length, score in zip(tokens, lengths, scores, strict=True) if np.isfinite(score)]
