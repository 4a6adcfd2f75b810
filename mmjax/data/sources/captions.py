"""Captions in the JSON of COCO and of Karpathy's splits, with the images in a folder."""

import os
from collections.abc import Sequence

import numpy as np

from mmjax.data.documents import Document, DocumentError, Image, Text
from mmjax.data.sources.identifiers import ById
from mmjax.data.sources.images import ImageFolder
from mmjax.data.sources.index import cached_index
from mmjax.data.sources.interface import Dropped, FileSource
from mmjax.data.sources.records import Records, open_json, take


class CocoCaptionsSource(FileSource):
    """{"images": [{"id", "file_name"}], "annotations": [{"id", "image_id", "caption"}]}: a document per annotation.

    It is [Image, Text(caption)] with the key "image id/annotation id". An annotation of an image that is not listed is
    a damaged record.

    Args:
        path: the `.json`, or a folder of them.
        images: folder of the images; "" is the folder of the file.
        on_bad_shard: see FileSource.
    """

    suffixes = (".json",)

    def __init__(self, path: str | os.PathLike, *, images: str = "", on_bad_shard: str = "raise"):
        self._images = images
        super().__init__(path, on_bad_shard=on_bad_shard)

    def open_shard(self, file: str) -> "_Coco":
        return _Coco(file, ImageFolder(self._images or os.path.dirname(file) or "."))


class _Coco:
    def __init__(self, file: str, folder: ImageFolder):
        self._images, self._annotations = open_json(file, "images"), open_json(file, "annotations")
        self._by_id = ById(file, "images", "id", self._images)
        self._folder, self.dropped = folder, Dropped()

    def __len__(self) -> int:
        return len(self._annotations)

    def read(self, k: int) -> Document:
        annotation = self._annotations.object(k)
        number = take(annotation, "image_id", int)
        image = self._by_id.object(number)
        data = self._folder.read(take(image, "file_name", str))
        caption = Text(take(annotation, "caption", str))
        return Document((Image(data), caption), f"{number}/{take(annotation, 'id', int)}")


class KarpathySource(FileSource):
    """{"images": [{"filepath", "filename", "split", "cocoid", "sentences": [{"raw"}]}]}: a document per sentence.

    It is [Image, Text(raw)] with the key "cocoid/sentence", or "filename/sentence" where there is no cocoid, as in
    Flickr30k.

    Args:
        path: `dataset_coco.json` or one like it.
        images: folder of the images, as `filepath/filename` or `filename` stand in it; "" is the folder of the file.
        splits: which to read; with the usual ("train", "restval") COCO has 113,287 images.
        on_bad_shard: see FileSource.

    Raises:
        DocumentError: if an image entry is damaged, for its split is then not known; names it.
    """

    suffixes = (".json",)

    def __init__(self, path: str | os.PathLike, *, images: str = "", splits: Sequence[str] = ("train", "restval"),
                 on_bad_shard: str = "raise"):
        self._images, self._splits = images, (splits,) if isinstance(splits, str) else tuple(splits)
        super().__init__(path, on_bad_shard=on_bad_shard)

    def open_shard(self, file: str) -> "_Karpathy":
        return _Karpathy(file, ImageFolder(self._images or os.path.dirname(file) or "."), self._splits)


class _Karpathy:
    def __init__(self, file: str, folder: ImageFolder, splits: tuple[str, ...]):
        self._images, self._folder, self.dropped = open_json(file, "images"), folder, Dropped()
        index = cached_index(file, "karpathy", lambda f: _index_sentences(f, self._images))
        names = index["names"].tolist()
        if unknown := [s for s in splits if s not in names]:
            raise DocumentError(f"{file} has no split {unknown[0]!r}; it has {', '.join(names)}")
        wanted = np.isin(index["splits"], [names.index(s) for s in splits])
        counts = np.where(wanted, index["counts"], 0)
        self._image = np.repeat(np.arange(len(counts)), counts)
        self._sentence = np.arange(len(self._image)) - np.repeat(np.cumsum(counts) - counts, counts)

    def __len__(self) -> int:
        return len(self._image)

    def read(self, k: int) -> Document:
        entry, n = self._images.object(int(self._image[k])), int(self._sentence[k])
        name = take(entry, "filename", str)
        nested = os.path.join(str(entry.get("filepath") or ""), name)
        try:
            image = self._folder.read(nested)
        except DocumentError:
            if nested == name:
                raise
            image = self._folder.read(name)
        sentence = take(entry, "sentences", list)[n]
        if not isinstance(sentence, dict):
            raise DocumentError(f"sentence {n} of {name!r} is a {type(sentence).__name__}; it must be an object")
        caption = take(sentence, "raw", str)
        return Document((Image(image), Text(caption)), f"{entry.get('cocoid', name)}/{n}")


def _index_sentences(file: str, images: Records) -> dict[str, np.ndarray]:
    """The names of the splits, and of each image its split and its number of sentences."""
    names, splits, counts = {}, [], []
    for k in range(len(images)):
        try:
            entry = images.object(k)
            splits.append(names.setdefault(take(entry, "split", str), len(names)))
            counts.append(len(take(entry, "sentences", list)))
        except DocumentError as e:
            raise DocumentError(f"{file} image {k}: {e}") from e
    return dict(names=np.array(list(names), np.str_), splits=np.array(splits, np.int64),
                counts=np.array(counts, np.int64))
