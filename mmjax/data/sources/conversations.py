"""Conversations about images: LLaVA's JSON and the "messages" form; only what the assistant says is learned."""

import os
from collections.abc import Iterator
from typing import Any

from mmjax.data.documents import Document, DocumentError, Image, Segment, Text
from mmjax.data.sources.images import ImageFolder, read_reference
from mmjax.data.sources.interface import Dropped, FileSource
from mmjax.data.sources.records import JSON_LINES, open_json, take

_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
_MARK = "<image>"
Turn = tuple[str, list[str | Image]]            # role, and what is said in order


class ConversationSource(FileSource):
    """What both forms share: a file of objects, each a list of turns that becomes segments with roles.

    Texts of the assistant have weight 1, all others 0. A turn after one of the same role begins with "\n", for
    neighbouring segments of one role are one turn.

    Args:
        path: a `.json` list, a `.jsonl`, or a folder of them.
        images: folder that image names are relative to; "" is the folder of the file.
        on_bad_shard: see FileSource.
    """

    suffixes = (".json", *JSON_LINES)

    def __init__(self, path: str | os.PathLike, *, images: str = "", on_bad_shard: str = "raise"):
        self._images = images
        super().__init__(path, on_bad_shard=on_bad_shard)

    def open_shard(self, file: str) -> "_Shard":
        return _Shard(file, ImageFolder(self._images or os.path.dirname(file) or "."), self.turns)

    @staticmethod
    def turns(record: dict[str, Any], images: ImageFolder) -> Iterator[Turn]:
        """The turns of one record."""
        raise TypeError("a form of conversation says how its records become turns")


class LlavaSource(ConversationSource):
    """{"id", "image": name or names, "conversations": [{"from": "human" or "gpt", "value": text with <image> marks}]}.

    There must be as many marks as images; a record without images is text, whatever it holds. One line end on either
    side of a mark belongs to the mark. See ConversationSource.
    """

    @staticmethod
    def turns(record: dict[str, Any], images: ImageFolder) -> Iterator[Turn]:
        names = take(record, "image", str, list) if record.get("image") else []
        names = [names] if isinstance(names, str) else names
        turns = [(_role(take(t, "from", str)), take(t, "value", str)) for t in _objects(record, "conversations")]
        marks = sum(value.count(_MARK) for _, value in turns)
        if names and marks != len(names):
            raise DocumentError(f"{len(names)} images but {marks} {_MARK} marks in its text")
        queue = iter(names)
        for role, value in turns:
            first, *others = value.split(_MARK) if names else [value]
            said: list[str | Image] = [first.removesuffix("\n") if others else first]
            for i, text in enumerate(others):
                said.append(Image(read_reference(next(queue), images), role))
                text = text.removeprefix("\n")
                said.append(text if i == len(others) - 1 else text.removesuffix("\n"))
            yield role, said


class MessagesSource(ConversationSource):
    """{"messages": [{"role", "content": text, or a list of parts}], "images": [names]}, as Hugging Face's trainers use.

    A part is {"type": "text", "text"}, {"type": "image"} with its name as "image", "path" or "url", or without one,
    when it takes the next of the record's "images", or {"type": "image_url", "image_url": {"url"}}. Images may be
    `data:` URLs. See ConversationSource.
    """

    @staticmethod
    def turns(record: dict[str, Any], images: ImageFolder) -> Iterator[Turn]:
        queue = list(take(record, "images", list)) if record.get("images") else []
        for turn in _objects(record, "messages"):
            role, content = _role(take(turn, "role", str)), take(turn, "content", str, list)
            parts = [dict(type="text", text=content)] if isinstance(content, str) else _objects(turn, "content")
            yield role, [_part(part, queue, role, images) for part in parts]
        if queue:
            raise DocumentError(f"{len(queue)} of its images are in no message")


def _part(part: dict[str, Any], queue: list, role: str, images: ImageFolder) -> str | Image:
    kind = take(part, "type", str)
    if kind == "text":
        return take(part, "text", str)
    if kind == "image_url":
        return Image(read_reference(take(take(part, "image_url", dict), "url", str), images), role)
    if kind != "image":
        raise DocumentError(f"a part of a message has type {kind!r}; known: text, image, image_url")
    name = next((field for field in ("image", "path", "url") if part.get(field)), None)
    if name is None and not queue:
        raise DocumentError("a message has more image parts than the record has images")
    return Image(read_reference(take(part, name, str) if name else queue.pop(0), images), role)


def _role(speaker: str) -> str:
    if speaker not in _SPEAKERS:
        raise DocumentError(f"a turn is of {speaker!r}; known: {', '.join(_SPEAKERS)}")
    return _SPEAKERS[speaker]


def _objects(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    items = take(record, name, list)
    if not items or not all(isinstance(item, dict) for item in items):
        raise DocumentError(f"field {name!r} must be a list of one or more objects")
    return items


class _Shard:
    def __init__(self, file: str, images: ImageFolder, turns):
        self._records, self._images, self._turns = open_json(file), images, turns
        self._name, self.dropped = os.path.basename(file), Dropped()

    def __len__(self) -> int:
        return len(self._records)

    def read(self, k: int) -> Document:
        record, segments, previous = self._records.object(k), [], ""
        for role, said in self._turns(record, self._images):
            segments += _segments(role, ["\n", *said] if role == previous else said)
            previous = role
        key = record.get("id", record.get("key"))
        return Document(tuple(segments), str(key) if isinstance(key, str | int) else f"{self._name}:{k}")


def _segments(role: str, said: list[str | Image]) -> list[Segment]:
    """Neighbouring texts become one; a turn that says nothing is an empty text."""
    segments: list[Segment] = []
    for item in [x for x in said if x != ""] or [""]:
        if isinstance(item, str):
            before = segments.pop().text if segments and isinstance(segments[-1], Text) else ""
            item = Text(before + item, 1.0 if role == "assistant" else 0.0, role)
        segments.append(item)
    return segments
