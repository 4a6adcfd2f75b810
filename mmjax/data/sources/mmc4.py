"""Interleaved web pages of MMC4: JSON lines, zipped or not, or tar shards; with images in a folder or inside."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from mmjax.data.documents import Document, DocumentError, Image, Segment, Text
from mmjax.data.sources.images import ImageFolder, from_base64
from mmjax.data.sources.interface import Dropped, FileSource, require
from mmjax.data.sources.records import open_json, parse_object, take
from mmjax.data.sources.tar_samples import Part, TarSamples
from mmjax.data.sources.unpack import unpack_zip

ASSIGNMENTS = ("one_to_one", "published")


class Mmc4Source(FileSource):
    """{"text_list", "image_info": [{"image_name" or "image_base64", "matched_text_index", "matched_sim"}],
    "similarity_matrix", "url"}: sentences, and each image before the sentence it belongs to.

    Sentences between two images are joined by a space. Images below the threshold are left out; a page may have none
    left. The key is the url.

    Args:
        path: a `.jsonl`, the `.jsonl.zip` of one, a `.tar` with a `.json` for each page, or a folder of them. A zip is
            unpacked once, beside it or into the cache folder.
        images: folder of the images named by "image_name"; "" is the folder of the file.
        threshold: least similarity of an image to its sentence; OpenFlamingo trains with 0.24.
        assignment: `one_to_one` gives each image a sentence of its own so that the sum of similarities is largest,
            `published` takes "matched_text_index".
        on_bad_shard: see FileSource.

    Source: MMC4 (arXiv:2304.06939), section 3; OpenFlamingo (arXiv:2308.01390), section 3.2.
    """

    suffixes = (".jsonl", ".jsonl.zip", ".tar")

    def __init__(self, path: str | os.PathLike, *, images: str = "", threshold: float = 0.24,
                 assignment: str = "one_to_one", on_bad_shard: str = "raise"):
        if assignment not in ASSIGNMENTS:
            raise ValueError(f"mmc4 assignment={assignment!r} is unknown; known: {', '.join(ASSIGNMENTS)}")
        if not -1 <= threshold <= 1:
            raise ValueError(f"mmc4 threshold={threshold} must be a cosine, from -1 to 1")
        self._images, self._threshold, self._one_to_one = images, threshold, assignment == "one_to_one"
        super().__init__(path, on_bad_shard=on_bad_shard)

    def open_shard(self, file: str) -> "_Shard":
        folder = ImageFolder(self._images or os.path.dirname(file) or ".")
        return _Shard(file, folder, self._threshold, self._one_to_one)


class _Shard:
    def __init__(self, file: str, folder: ImageFolder, threshold: float, one_to_one: bool):
        self._name, self._folder, self._threshold = os.path.basename(file), folder, threshold
        self._match = match_one_to_one if one_to_one else match_published
        self.dropped = Dropped()
        self._samples = TarSamples(file, (Part("a .json", ("json",)),)) if file.endswith(".tar") else None
        if self._samples is not None:
            self.dropped = self._samples.dropped
        else:
            self._records = open_json(unpack_zip(file, ".jsonl") if file.endswith(".zip") else file)

    def __len__(self) -> int:
        return len(self._records if self._samples is None else self._samples)

    def read(self, k: int) -> Document:
        page = self._records.object(k) if self._samples is None else parse_object(self._samples.read(k, 0)[1])
        url = page.get("url")
        return Document(tuple(self._segments(page)), url if isinstance(url, str) else f"{self._name}:{k}")

    def _segments(self, page: dict[str, Any]) -> Iterator[Segment]:
        sentences, infos = take(page, "text_list", list), take(page, "image_info", list)
        if not all(isinstance(s, str) for s in sentences) or not all(isinstance(i, dict) for i in infos):
            raise DocumentError("text_list must hold strings, and image_info objects")
        before: dict[int, list[int]] = {}
        for image, sentence, similarity in self._match(page, infos, len(sentences)):
            if similarity >= self._threshold:
                before.setdefault(sentence, []).append(image)
        run: list[str] = []
        for i, sentence in enumerate(sentences):
            if i in before and run:
                yield Text(" ".join(run))
                run = []
            yield from (Image(self._read(infos[image])) for image in before.get(i, ()))
            run.append(sentence)
        if run:
            yield Text(" ".join(run))

    def _read(self, info: dict[str, Any]) -> bytes:
        if "image_base64" in info:
            return from_base64(take(info, "image_base64", str))
        return self._folder.read(take(info, "image_name", str))


Match = tuple[int, int, float]                  # image, sentence, similarity


def match_one_to_one(page: dict[str, Any], infos: list[dict[str, Any]], sentences: int) -> list[Match]:
    """The assignment of images to different sentences with the largest sum of similarities, in order of images.

    Raises:
        DocumentError: if similarity_matrix is not finite numbers [images][sentences].
        ImportError: without SciPy.
    """
    rows = take(page, "similarity_matrix", list)
    try:
        matrix = np.array(rows, np.float64).reshape(len(infos), -1) if infos else np.zeros((0, sentences))
    except (ValueError, TypeError) as e:
        raise DocumentError(f"similarity_matrix is no matrix of numbers: {e}") from e
    if matrix.shape != (len(infos), sentences) or not np.isfinite(matrix).all():
        raise DocumentError(f"similarity_matrix has shape {matrix.shape}; it must be finite, for {len(infos)} images "
                            f"and {sentences} sentences")
    images, chosen = require("scipy.optimize").linear_sum_assignment(matrix, maximize=True)
    return [(i, s, float(matrix[i, s])) for i, s in zip(images.tolist(), chosen.tolist(), strict=True)]


def match_published(page: dict[str, Any], infos: list[dict[str, Any]], sentences: int) -> list[Match]:
    """The sentence that each image has been published with; DocumentError if there is no such sentence."""
    matches = [(i, take(info, "matched_text_index", int), float(take(info, "matched_sim", float, int)))
               for i, info in enumerate(infos)]
    for image, sentence, _ in matches:
        if not 0 <= sentence < sentences:
            raise DocumentError(f"image {image} belongs to sentence {sentence} of {sentences}")
    return matches
