"""SentencePiece `.model` files as the JSON of the `tokenizers` package: no other library, and nothing to execute.

The file is a protocol buffer (sentencepiece_model.proto of google/sentencepiece). Merges of a BPE model are not stored:
two pieces merge if their union is a piece, in the order of its score. Ids are those of the sentencepiece library, but
where a unigram model has several best ways to cut a run of one character.
"""

import json
import struct
from collections.abc import Iterator
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
SPACE = "▁"
MAX_BYTES = 64 << 20


def to_tokenizer_json(data: bytes) -> str:
    """The `tokenizer.json` of a SentencePiece model; its control pieces are special tokens.

    Args:
        data: the content of the `.model` file.

    Raises:
        ValueError: if it is not one, or is neither a BPE nor a unigram model, or does not treat spaces as these do.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"a SentencePiece model of {len(data)} bytes; at most {MAX_BYTES} are read")
    try:
        pieces, trainer, normalizer = _read(data)
    except (IndexError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise ValueError(f"not a SentencePiece model: {error}") from error
    kind, names = trainer.get(3, UNIGRAM), [name for name, _, _ in pieces]
    if kind not in (UNIGRAM, BPE) or not pieces or len(set(names)) < len(names):
        raise ValueError(f"not a SentencePiece model of pieces that can be read: model_type={kind}, {len(pieces)} "
                         "pieces; unigram (1) and BPE (2) models with different pieces can")
    if not normalizer.get(5, 1) or trainer.get(24, 0):
        raise ValueError("a SentencePiece model with escape_whitespaces=false or treat_whitespace_as_suffix=true "
                         "cannot be read")
    unknown = next((i for i, (_, _, type_) in enumerate(pieces) if type_ == UNKNOWN), None)
    has_bytes = any(type_ == BYTE for _, _, type_ in pieces)
    if kind == UNIGRAM:
        model = models.Unigram([(name, score) for name, score, _ in pieces], unknown, has_bytes)
    else:
        vocab = {name: i for i, name in enumerate(names)}
        model = models.BPE(vocab, _merges(pieces, vocab), unk_token=None if unknown is None else names[unknown],
                           fuse_unk=True, byte_fallback=has_bytes)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = _normalizer(normalizer)
    if kind == UNIGRAM:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")
    first = [decoders.Strip(" ", 1, 0)] if normalizer.get(3, 1) else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *first])
    value = json.loads(tokenizer.to_str())
    value["added_tokens"] = [
        dict(id=i, content=name, single_word=False, lstrip=False, rstrip=False, normalized=False, special=True)
        for i, (name, _, type_) in enumerate(pieces) if type_ in (CONTROL, UNKNOWN)]
    value["added_tokens"] += [
        dict(id=i, content=name, single_word=False, lstrip=False, rstrip=False, normalized=False, special=False)
        for i, (name, _, type_) in enumerate(pieces) if type_ == USER_DEFINED]
    return json.dumps(value, ensure_ascii=False)


def _normalizer(spec: dict[int, Any]) -> normalizers.Normalizer:
    """The precompiled character map, then spaces: runs become one, ends are cut, the text starts with one."""
    steps = [normalizers.Precompiled(spec[2])] if spec.get(2) else []
    if spec.get(4, 1):
        steps += [normalizers.Replace(tokenizers.Regex(" {2,}"), " "), normalizers.Strip()]
    if spec.get(3, 1):
        steps.append(normalizers.Prepend(" "))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])


def _merges(pieces: list[tuple[str, float, int]], vocab: dict[str, int]) -> list[tuple[str, str]]:
    """Every way to make a piece of two, best piece first; of one piece, in the order of its left part's id."""
    found = []
    for name, score, type_ in pieces:
        if type_ in (NORMAL, USER_DEFINED):
            own = [(name[:i], name[i:]) for i in range(1, len(name)) if name[:i] in vocab and name[i:] in vocab]
            found += [(-score, vocab[a], vocab[b], a, b) for a, b in own]
    return [(a, b) for *_, a, b in sorted(found)]


def _read(data: bytes) -> tuple[list[tuple[str, float, int]], dict[int, Any], dict[int, Any]]:
    """Pieces (name, score, type), and the trainer's and the normaliser's fields by number."""
    pieces, trainer, normalizer = [], {}, {}
    for number, value in _fields(data):
        if number == 1:
            piece = dict(_fields(value))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            pieces.append((piece.get(1, b"").decode(), score, piece.get(3, NORMAL)))
        elif number == 2:
            trainer = dict(_fields(value))
        elif number == 3:
            normalizer = dict(_fields(value))
    return pieces, trainer, normalizer


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a message: ints, or bytes of numbers, strings and messages."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
        else:
            size, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire] if wire in (1, 5) else -1, at)
            value = data[at:at + size]
            if size < 0 or len(value) < size:
                raise IndexError(f"field {number} at byte {at} is cut off or of unknown type {wire}")
            at += size
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
        if shift > 63:
            raise IndexError(f"a number at byte {at} has more than 64 bits")
