"""Tables between the fields of a published `config.json` and those of our configs, read in both directions."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.checkpoint.convert.weights import WeightsError

ABSENT = object()


@dataclasses.dataclass(frozen=True)
class Field:
    """One number that both configs have.

    Attributes:
        theirs: its key, "a.b" where it is nested; several are tried in order, and the first is written.
        ours: path in our config, "block.embed_dim".
        default: what an absent or null key stands for; without one it must be there.
        load: (their value, all of theirs) -> ours.
        store: (our value, all of ours) -> theirs.
    """

    theirs: str | tuple[str, ...]
    ours: str
    default: Any = ABSENT
    load: Callable[[Any, Mapping[str, Any]], Any] = lambda value, _: value
    store: Callable[[Any, Any], Any] = lambda value, _: value


@dataclasses.dataclass(frozen=True)
class ConfigTable:
    """How a config is published.

    Attributes:
        config: our dataclass.
        fields: what varies.
        ours: {path in ours: value} that the architecture fixes.
        theirs: {their key: (values that mean what we compute, the first is written; None also stands for an absent
            key)}.
        parts: {path in ours: (their key, table)} of nested configs; several may stand under one key.
        repeats: fields of the parts that the config says once more itself.
    """

    config: type
    fields: tuple[Field, ...] = ()
    ours: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    theirs: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    parts: Mapping[str, tuple[str, "ConfigTable"]] = dataclasses.field(default_factory=dict)
    repeats: tuple[Field, ...] = ()

    def read(self, published: Mapping[str, Any], where: str = "config.json") -> Any:
        """Our config.

        Raises:
            WeightsError: if a field is missing, or has a value that we do not compute.
        """
        for key, allowed in self.theirs.items():
            value = _get(published, key)
            value = None if value is ABSENT else value
            if value not in allowed:
                raise WeightsError(f"{where}: {key}={value!r}, but only {' or '.join(map(repr, allowed))} can be read")
        values = dict(self.ours)
        for field in self.fields:
            values[field.ours] = field.load(_find(published, field, where), published)
        for path, (key, table) in self.parts.items():
            nested = _get(published, key)
            if not isinstance(nested, Mapping):
                raise WeightsError(f"{where} has no mapping {key!r}")
            values[path] = table.read(nested, f"{where}: {key}")
        config = build(self.config, values)
        for field in self.repeats:
            if (said := field.load(_find(published, field, where), published)) != (own := _ours(config, field.ours)):
                raise WeightsError(f"{where}: {field.theirs}={said!r}, but its parts say {own!r}")
        return config

    def write(self, config: Any) -> dict[str, Any]:
        """The published form of our config.

        Raises:
            WeightsError: if our config is not one that this format can say.
        """
        for path, value in self.ours.items():
            if (own := _ours(config, path)) != value:
                raise WeightsError(f"this format has {path}={value!r}, but the model has {own!r}")
        out: dict[str, Any] = {}
        for key, allowed in self.theirs.items():
            if allowed[0] is not None:
                _set(out, key, allowed[0])
        for field in (*self.fields, *self.repeats):
            key = field.theirs if isinstance(field.theirs, str) else field.theirs[0]
            _set(out, key, field.store(_ours(config, field.ours), config))
        for path, (key, table) in self.parts.items():
            out[key] = out.get(key, {}) | table.write(_ours(config, path))
        return out


def build(config: type, values: Mapping[str, Any]) -> Any:
    """A nested dataclass from {path: value}."""
    nested: dict[str, Any] = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        node = nested
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return _build(config, nested)


def _build(config: type, nested: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(config)
    return config(**{name: _build(_dataclass(hints[name]), value) if isinstance(value, dict) else value
                     for name, value in nested.items()})


def _dataclass(hint: Any) -> type:
    """The dataclass of an annotation, which may be optional."""
    members = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return next(member for member in members if dataclasses.is_dataclass(member))


def _find(published: Mapping[str, Any], field: Field, where: str) -> Any:
    keys = (field.theirs,) if isinstance(field.theirs, str) else field.theirs
    for key in keys:
        value = _get(published, key)
        if value is not ABSENT and value is not None:
            return value
    if field.default is ABSENT:
        near = difflib.get_close_matches(keys[0], published, n=1)
        raise WeightsError(f"{where} has no {keys[0]!r}" + (f"; it has {near[0]!r}" if near else ""))
    return field.default


def _get(published: Mapping[str, Any], key: str) -> Any:
    node: Any = published
    for name in key.split("."):
        if not isinstance(node, Mapping) or name not in node:
            return ABSENT
        node = node[name]
    return node


def _set(out: dict[str, Any], key: str, value: Any) -> None:
    *parents, name = key.split(".")
    for parent in parents:
        out = out.setdefault(parent, {})
    out[name] = value


def _ours(config: Any, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config
