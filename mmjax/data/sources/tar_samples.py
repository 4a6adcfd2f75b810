"""Samples of a tar shard: members with one key and several extensions, as WebDataset and img2dataset write them."""

import dataclasses
import hashlib
import json
import re

import numpy as np

from mmjax.data.documents import MAX_DOCUMENT_BYTES
from mmjax.data.sources.index import ByteFile, Index, cached_index
from mmjax.data.sources.interface import BadShard, Dropped
from mmjax.data.sources.tar import Member, read_members

_NAME = re.compile(r"((?:.*/)?[^/.]+)\.([^/]*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Part:
    """What a sample has: one of some extensions, in order of preference. Without a required one it is left out."""

    name: str
    extensions: tuple[str, ...]
    required: bool = True


class TarSamples:
    """The parts of each sample of a tar file by number, in order of first appearance.

    A sample is left out whole, counted and named if a member of it is a link, a device or another special file, has an
    unsafe name, stands twice, is larger than a document may be, or if a required part is not there.

    Raises:
        BadShard: if the file was cut; `found` is the number of whole samples before.
    """

    def __init__(self, file: str, parts: tuple[Part, ...]):
        self.dropped = Dropped()
        self._bytes, self._parts = ByteFile(file), parts
        digest = hashlib.blake2b(repr(parts).encode(), digest_size=6).hexdigest()
        index = cached_index(file, f"samples-{digest}", lambda f: _index(f, parts))
        self._ranges, self._chosen = index["ranges"], index["chosen"]
        self._key_ends, self._keys = index["key_ends"], index["keys"]
        for reason, names in json.loads(index["dropped"].tobytes()):
            for name in names:
                self.dropped.add(reason, f"{file} {name}")

    def __len__(self) -> int:
        return len(self._ranges)

    def key(self, k: int) -> str:
        start = self._key_ends[k - 1] if k else 0
        return self._keys[start:self._key_ends[k]].tobytes().decode()

    def read(self, k: int, part: int) -> tuple[str, bytes]:
        """(extension, bytes) of a part of sample k, ("", b"") if it has none; raises as ByteFile.read does."""
        chosen = self._chosen[k, part]
        if chosen < 0:
            return "", b""
        return self._parts[part].extensions[chosen], self._bytes.read(*self._ranges[k, part].tolist())


def _index(file: str, parts: tuple[Part, ...]) -> Index:
    """What TarSamples needs.

    Returns:
        dict of ranges int64[n, parts, 2] and chosen int8[n, parts], the extension that each part has, -1 for none; the
        n keys as bytes, one after the other, and their ends; and what was dropped, as JSON.
    """
    samples: dict[str, dict[str, Member]] = {}
    problems: dict[str, str] = {}
    try:
        for member in read_members(file):
            _sort_in(member, samples, problems)
    except BadShard as e:
        e.found = len(_complete(samples, problems, parts))
        raise
    complete = _complete(samples, problems, parts)
    ranges = np.zeros((len(complete), len(parts), 2), np.int64)
    chosen = np.full((len(complete), len(parts)), -1, np.int8)
    for k, key in enumerate(complete):
        for p, part in enumerate(parts):
            if extension := _choose(samples[key], part):
                member = samples[key][extension]
                ranges[k, p] = member.start, member.start + member.size
                chosen[k, p] = part.extensions.index(extension)
    keys = [key.encode() for key in complete]
    dropped: dict[str, list[str]] = {}
    for key, reason in problems.items():
        dropped.setdefault(reason, []).append(key)
    return dict(ranges=ranges, chosen=chosen, keys=np.frombuffer(b"".join(keys), np.uint8),
                key_ends=np.cumsum([len(key) for key in keys], dtype=np.int64),
                dropped=np.frombuffer(json.dumps(list(dropped.items())).encode(), np.uint8))


def _sort_in(member: Member, samples: dict[str, dict[str, Member]], problems: dict[str, str]):
    match = _NAME.fullmatch(member.name)
    key, extension = (match[1], match[2].lower()) if match else (member.name, "")
    if member.problem:
        problems.setdefault(key, member.problem)
    elif not match:
        return                                      # a file without a key or an extension belongs to no sample
    elif extension in samples.setdefault(key, {}):
        problems.setdefault(key, "member that stands twice")
    elif member.size > MAX_DOCUMENT_BYTES:
        problems.setdefault(key, "member larger than a document may be")
    else:
        samples[key][extension] = member


def _complete(samples: dict[str, dict[str, Member]], problems: dict[str, str], parts: tuple[Part, ...]) -> list[str]:
    """Keys of the samples to keep; for others that lack a part, says so in `problems`."""
    for key, members in samples.items():
        missing = [part.name for part in parts if part.required and not _choose(members, part)]
        if missing and key not in problems:
            problems[key] = f"sample without {missing[0]}"
    return [key for key in samples if key not in problems]


def _choose(members: dict[str, Member], part: Part) -> str:
    return next((e for e in part.extensions if e in members), "")
