"""Images that img2dataset fetched, found by the address they came from."""

import hashlib
import os

import numpy as np
from absl import logging

from mmjax.data.documents import Document, DocumentError, Image
from mmjax.data.sources.index import Index, cached_index
from mmjax.data.sources.interface import FileSource
from mmjax.data.sources.records import parse_object, take
from mmjax.data.sources.tar_samples import Part, TarSamples
from mmjax.data.sources.webdataset import IMAGE_EXTENSIONS, written_by_img2dataset

_PARTS = (Part("an image", IMAGE_EXTENSIONS), Part("a .json", ("json",)))


def digest(url: str) -> int:
    """64 bits of an address: among 400 million, two are alike with a probability of 0.4 %; readers compare the rest."""
    return int.from_bytes(hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little",
                          signed=True)


class FetchedImages(FileSource):
    """The images of tar shards with `key.json` that has a "url". A document is [Image] with the address as its key.

    Args:
        path, on_bad_shard: see FileSource.
    """

    suffixes = (".tar",)

    def __init__(self, path: str | os.PathLike, *, on_bad_shard: str = "raise"):
        super().__init__(path, on_bad_shard=on_bad_shard)
        digests = np.concatenate([shard.digests for shard in self._shards])
        self._order = np.argsort(digests, kind="stable")
        self._digests = digests[self._order]

    def open_shard(self, file: str) -> "_Shard":
        return _Shard(file)

    def expected_count(self, file: str) -> int | None:
        counted = written_by_img2dataset(file)
        return super().expected_count(file) if counted is None else counted

    def look_up(self, digests: np.ndarray) -> np.ndarray:
        """int64[n] number of the first image from each of n addresses by their digests; -1 where there is none."""
        at = np.minimum(np.searchsorted(self._digests, digests), len(self._digests) - 1)
        return np.where(self._digests[at] == digests, self._order[at], -1)


class _Shard:
    def __init__(self, file: str):
        self._samples = TarSamples(file, _PARTS)
        self.dropped = self._samples.dropped
        self.digests = cached_index(file, "urls", self._index)["digests"]

    def _index(self, file: str) -> Index:
        digests = np.zeros(len(self._samples), np.int64)
        for k in range(len(digests)):
            try:
                digests[k] = digest(self._url(k))
            except DocumentError as e:
                logging.warning("%s %s is from no known address: %s", file, self._samples.key(k), e)
        return dict(digests=digests)

    def _url(self, k: int) -> str:
        return take(parse_object(self._samples.read(k, 1)[1]), "url", str)

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, k: int) -> Document:
        return Document((Image(self._samples.read(k, 0)[1]),), self._url(k))
