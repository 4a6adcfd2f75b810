"""Data sets of TensorFlow Datasets that were written as ArrayRecord; read without TensorFlow."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mmjax.data.documents import Document, DocumentError, Image, Segment, Text
from mmjax.data.sources.array_record import ArrayRecords
from mmjax.data.sources.interface import Dropped, FileSource, require

_FORMAT = "array_record"


class TfdsSource(FileSource):
    """Examples whose chosen features become segments, in the order they are given in.

    An Image becomes an Image, encoded as it is stored, a Text a Text, and a ClassLabel the Text of its name. A Sequence
    of these becomes as many segments. Data sets with a Video feature cannot be opened: that needs TensorFlow.

    Args:
        path: the folder of a version of the data set, with `dataset_info.json` and `features.json`, or a shard of it.
        fields: names of features.
        split: one of the data set.
        key: feature that names a document; "" numbers them, "name/split/shard:record".
        on_bad_shard: see FileSource.

    Raises:
        FileNotFoundError: if that is no folder of a data set.
        DocumentError: if it is written in another format, or has no such split or feature.
        ImportError: without tensorflow-datasets.
    """

    def __init__(self, path: str | os.PathLike, *, fields: Sequence[str] = ("image", "text"), split: str = "train",
                 key: str = "", on_bad_shard: str = "raise"):
        self._fields = (fields,) if isinstance(fields, str) else tuple(fields)
        self._key, folder = key, str(path) if os.path.isdir(path) else os.path.dirname(path) or "."
        self._features = features_of(folder, self._fields, key)
        self._counts = shards_of(folder, split)
        files = list(self._counts) if os.path.isdir(path) else [str(path)]
        super().__init__(path, on_bad_shard=on_bad_shard, files=files)

    @classmethod
    def find(cls, path: str | os.PathLike, split: str = "train", **_: Any) -> list[str]:
        return list(shards_of(path, split)) if os.path.isdir(path) else [str(path)]

    def open_shard(self, file: str) -> "_Shard":
        return _Shard(file, self._features, self._fields, self._key)

    def expected_count(self, file: str) -> int | None:
        return self._counts.get(file)


def shards_of(folder: str | os.PathLike, split: str) -> dict[str, int]:
    """file -> examples of a split, in order; raises as TfdsSource does."""
    info = _info(folder)
    if info.file_format is None or info.file_format.value != _FORMAT:
        written = info.file_format and info.file_format.value
        raise DocumentError(f"{folder} is written as {written}; only {_FORMAT} can be read at random: write it "
                            f"anew with file_format={_FORMAT!r}")
    if split not in info.splits:
        raise DocumentError(f"{folder} has no split {split!r}; it has {', '.join(info.splits)}")
    chosen = info.splits[split]
    try:
        return dict(zip(map(str, chosen.filepaths), chosen.shard_lengths, strict=True))
    except ValueError as e:
        raise DocumentError(f"{folder} has a dataset_info.json that does not name the shards of {split!r}: {e}") from e


def features_of(folder: str | os.PathLike, fields: Sequence[str], key: str = "") -> Any:
    """The FeaturesDict of some features of a data set; raises as TfdsSource does."""
    features = _info(folder).features
    names = [*fields, key] if key else fields
    if missing := [name for name in names if name not in features]:
        raise DocumentError(f"{folder} has no feature {missing[0]!r}; it has {', '.join(features)}")
    tfds = require("tensorflow_datasets")
    for name in fields:
        _check_kind(name, _element(features[name], tfds), tfds)
    return tfds.features.FeaturesDict({name: features[name] for name in names})


def _info(folder: str | os.PathLike) -> Any:
    tfds = require("tensorflow_datasets")
    for name in ("dataset_info.json", "features.json"):
        if not os.path.isfile(os.path.join(folder, name)):
            raise FileNotFoundError(f"{folder} has no {name}; give the folder of a version of a data set, such as "
                                    "name/1.0.0")
    try:
        return tfds.builder_from_directory(folder).info
    except Exception as e:                          # whatever its JSON reader, protobuf and features raise
        raise DocumentError(f"{folder} is no readable TensorFlow data set: {type(e).__name__}: {e}") from e


def _element(feature: Any, tfds: Any) -> Any:
    """What a feature is, or what a sequence is made of."""
    return feature.feature if isinstance(feature, tfds.features.Sequence) else feature


def _check_kind(name: str, feature: Any, tfds: Any):
    kinds = (tfds.features.Image, tfds.features.Text, tfds.features.ClassLabel)
    if not isinstance(feature, kinds):
        raise DocumentError(f"feature {name!r} is a {type(feature).__name__}; it must be "
                            f"{', '.join(k.__name__ for k in kinds)} or a Sequence of one")


class _Shard:
    def __init__(self, file: str, features: Any, fields: tuple[str, ...], key: str):
        self._name, self._records, self.dropped = os.path.basename(file), ArrayRecords(file), Dropped()
        self._features, self._fields, self._key = features, fields, key
        parser = require("tensorflow_datasets.core.example_parser").ExampleParserNp     # what decodes no image
        self._parser = parser(features.get_serialized_info())

    def __len__(self) -> int:
        return len(self._records)

    def read(self, k: int) -> Document:
        tfds, data = require("tensorflow_datasets"), self._records.read(k)
        try:
            example = self._parser.parse_example(data)
        except Exception as e:                      # protobuf's errors have no common type
            raise DocumentError(f"not an example with these features: {type(e).__name__}: {e}") from e
        segments = [s for name in self._fields for s in _segments(self._features[name], example[name], tfds)]
        key = _text(example[self._key]) if self._key else f"{self._name}:{k}"
        return Document(tuple(segments), key)


def _segments(feature: Any, value: Any, tfds: Any) -> Iterator[Segment]:
    if (element := _element(feature, tfds)) is not feature:
        for item in value:
            yield from _segments(element, item, tfds)
    elif isinstance(feature, tfds.features.Image):
        yield Image(bytes(value))
    else:
        yield Text(feature.int2str(int(value)) if isinstance(feature, tfds.features.ClassLabel) else _text(value))


def _text(value: Any) -> str:
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else str(value)
    except UnicodeDecodeError as e:
        raise DocumentError(f"not UTF-8: byte {e.start} of {len(value)} is {value[e.start]:#04x}") from e
