"""Tokenizers: text to ids by the `tokenizers` package, with special tokens that text can never spell.

A special token is an id and a name. Templates emit the id; text that contains the name's characters is
encoded as ordinary text, so no document can smuggle in an `<image>` or an `</s>`.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers

from mmjax.data.sentencepiece import to_tokenizer_json

SPECIALS = ("<pad>", "<s>", "</s>", "<image>", "</image>", "<EOC>")


class Tokenizer:
    """Encodes and decodes text.

    Attributes:
        special: the id of every special token by name.
        vocab_size: one more than the largest id, special tokens included.

    Raises:
        ValueError: if `spec` is not the JSON of a `tokenizers.Tokenizer`.
    """

    def __init__(self, spec: str):
        self._spec = spec
        try:
            self.special = {t["content"]: t["id"] for t in json.loads(spec)["added_tokens"] if t["special"]}
            self._tokenizer = tokenizers.Tokenizer.from_str(_hide_specials(spec, self.special))
        except Exception as e:  # the package raises bare Exception
            raise ValueError(f"not a tokenizer.json of the tokenizers package: {e}") from e
        self._tokenizer.encode_special_tokens = True
        self._special_ids = frozenset(self.special.values())
        self.vocab_size = max(self._tokenizer.get_vocab().values()) + 1

    def __reduce__(self):
        return Tokenizer, (self._spec,)

    def id(self, name: str) -> int:
        """The id of a special token; ValueError names those there are."""
        if name not in self.special:
            raise ValueError(f"the tokenizer has no special token {name!r}; it has {sorted(self.special)}")
        return self.special[name]

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, never a special one; ValueError if `text` is not valid Unicode."""
        try:
            # the fast one finds no offsets, and takes two thirds of the time
            return self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        except TypeError as e:
            bad = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), None)
            raise ValueError(f"text holds a lone surrogate at character {bad}" if bad is not None else str(e)) from e

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special ids and ids beyond the vocabulary give nothing, cut UTF-8 gives U+FFFD."""
        return self._tokenizer.decode([int(i) for i in ids if int(i) not in self._special_ids],
                                      skip_special_tokens=False)

    def fingerprint(self) -> str:
        """Hex digest that differs between tokenizers that differ."""
        return hashlib.sha256(self._spec.encode()).hexdigest()[:16]

    def save(self, folder: str | os.PathLike):
        """Writes `tokenizer.json` into `folder`, readable by `load_tokenizer` and by the tokenizers package."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        Path(folder, "tokenizer.json").write_text(self._spec, encoding="utf-8")


def byte_tokenizer(specials: Sequence[str] = SPECIALS) -> Tokenizer:
    """A tokenizer that needs no file: ids 0 to 255 are the bytes of UTF-8, then come `specials` in order."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]      # ByteLevel's own character for each byte
    others = [b for b in range(256) if b not in printable]
    alphabet = {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return Tokenizer(_add_specials(tokenizer.to_str(), specials))


def load_tokenizer(path: str | os.PathLike, specials: Sequence[str] = ()) -> Tokenizer:
    """Reads a `tokenizer.json`, or else a SentencePiece `tokenizer.model`, as published with a language model.

    Args:
        path: the file or the folder that holds it; a SentencePiece file ends in `.model`.
        specials: names that must be special tokens. One the file already knows keeps its id, another gets the
            next free id.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is neither.
    """
    path = Path(path)
    if path.is_dir():
        inside = [path / name for name in ("tokenizer.json", "tokenizer.model", "spiece.model")]
        path = next((file for file in inside if file.is_file()), inside[0])
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}; give a tokenizer.json, a SentencePiece .model, or the folder "
                                "that holds one")
    try:
        is_sentencepiece = path.suffix == ".model"
        spec = to_tokenizer_json(path.read_bytes()) if is_sentencepiece else path.read_text(encoding="utf-8")
        return Tokenizer(_add_specials(spec, specials))
    except (ValueError, KeyError) as e:
        raise ValueError(f"{path}: {e}") from e


def _add_specials(spec: str, names: Sequence[str]) -> str:
    """Marks every name as a special added token of `spec`, with the id the tokenizers package will give it."""
    if len(set(names)) < len(names):
        raise ValueError(f"special tokens {list(names)} repeat a name")
    try:
        tokenizer = tokenizers.Tokenizer.from_str(spec)
    except Exception as e:
        raise ValueError(f"not a tokenizer.json of the tokenizers package: {e}") from e
    value = json.loads(spec)
    known = {t["content"]: t for t in value["added_tokens"]}
    tokenizer.add_special_tokens([n for n in names if n not in known])
    for name in names:
        if name in known:
            known[name]["special"] = True
            continue
        value["added_tokens"].append(dict(id=tokenizer.token_to_id(name), content=name, single_word=False,
                                          lstrip=False, rstrip=False, normalized=False, special=True))
    value["added_tokens"].sort(key=lambda t: t["id"])
    return json.dumps(value, ensure_ascii=False)


def _hide_specials(spec: str, special: dict[str, int]) -> str:
    """Renames the special tokens to strings no text holds, wherever `spec` spells them, and keeps their ids.

    Turning off special-token matching is not enough: a Unigram or WordLevel model lists `</s>` in its own
    vocabulary and would find it in text.
    """
    value, digest = json.loads(spec), hashlib.sha256(spec.encode()).hexdigest()
    hidden = {name: f"\ufdd0{digest}:{i}" for name, i in special.items()}
    for token in value["added_tokens"]:
        token["content"] = hidden.get(token["content"], token["content"])
    model = value["model"]
    vocab = model["vocab"]
    if isinstance(vocab, list):
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in vocab]
    else:
        model["vocab"] = {hidden.get(piece, piece): i for piece, i in vocab.items()}
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    value.update(post_processor=None, truncation=None, padding=None)  # templates add the tokens, packing the length
    return json.dumps(value, ensure_ascii=False)
