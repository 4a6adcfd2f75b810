"""Sources: every format people keep documents in, as random access to `Document`s.

`open_source(format, path, **options)` opens one; `FORMATS` has them all. A class says what its format looks like, what
its documents become, and which options it has. All options but those in brackets have defaults.

    format         files                             one document
    array_record   .array_record                     as it was written
    webdataset     .tar of img2dataset               image or video, caption
    obelics        .parquet                          page: images and texts in order
    mmc4           .jsonl, .jsonl.zip, .tar          page: each image before its sentence
    llava          .json, .jsonl                     conversation
    messages       .json, .jsonl                     conversation
    coco_captions  .json                             image, caption
    karpathy       .json                             image, sentence
    vqa            .json [annotations, images,       image, question, answer
                   image_name]
    cc3m, cc12m    .tsv [images]                     image, caption
    laion          .parquet [images]                 image, caption
    text           .jsonl, .parquet                  text
    tfds           folder of a version               the features in `fields`
"""

import difflib
import inspect
import os
from typing import Any

from mmjax.data.sources.array_record import ArrayRecordSource
from mmjax.data.sources.captions import CocoCaptionsSource, KarpathySource
from mmjax.data.sources.conversations import LlavaSource, MessagesSource
from mmjax.data.sources.interface import DocumentSource, FileSource
from mmjax.data.sources.mmc4 import Mmc4Source
from mmjax.data.sources.obelics import ObelicsSource
from mmjax.data.sources.text import TextSource
from mmjax.data.sources.tfds import TfdsSource
from mmjax.data.sources.url_tables import Cc3mSource, Cc12mSource, LaionSource
from mmjax.data.sources.vqa import VqaSource
from mmjax.data.sources.webdataset import WebDatasetSource

FORMATS: dict[str, type[FileSource]] = {
    "array_record": ArrayRecordSource,
    "webdataset": WebDatasetSource,
    "obelics": ObelicsSource,
    "mmc4": Mmc4Source,
    "llava": LlavaSource,
    "messages": MessagesSource,
    "coco_captions": CocoCaptionsSource,
    "karpathy": KarpathySource,
    "vqa": VqaSource,
    "cc3m": Cc3mSource,
    "cc12m": Cc12mSource,
    "laion": LaionSource,
    "text": TextSource,
    "tfds": TfdsSource,
}

__all__ = ["FORMATS", "DocumentSource", "check_source", "open_source"]


def open_source(format: str, path: str | os.PathLike, **options: Any) -> DocumentSource:
    """Opens a source.

    Args:
        format: a key of FORMATS.
        path: a file or a folder; the format says of what.
        **options: of that format.

    Raises:
        ValueError: if the format is unknown, or has no such option, or an option no such value.
        FileNotFoundError: if nothing is there.
        DocumentError: if a file cannot be used; names it.
        ImportError: if the format needs a package that is not installed; names the extra.
    """
    check_source(format, options)
    return FORMATS[format](path, **options)


def check_source(format: str, options: dict[str, Any]):
    """Raises ValueError if a format is unknown or has no option of that name; opens nothing."""
    if format not in FORMATS:
        raise ValueError(f"source format {format!r} is unknown{_nearest(format, FORMATS)}; known: {', '.join(FORMATS)}")
    parameters = inspect.signature(FORMATS[format].__init__).parameters.values()
    known = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    for option in options:
        if option not in known:
            raise ValueError(f"source format {format!r} has no option {option!r}{_nearest(option, known)}; "
                             f"known: {', '.join(known)}")
    required = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if missing := [name for name in required if name not in options]:
        raise ValueError(f"source format {format!r} needs the option {missing[0]!r}")


def _nearest(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
