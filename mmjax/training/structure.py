"""From plain mappings to nested frozen dataclasses and back, with errors that name the full path of a field.

The annotations of the dataclasses are the schema. Understood are `bool`, `int`, `float`, `str`, `None`, `Any`,
`Literal`, `Optional` and other unions, `tuple[X, ...]`, `tuple[X, Y]`, `dict[str, X]`, `Mapping[str, X]` and
dataclasses.
A field whose metadata holds `free=True` may change between a run and its continuation.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from typing import Any


class ConfigError(ValueError):
    """A configuration that its writer can correct; the message names the field."""


def free(**kwargs: Any) -> Any:
    """A dataclass field that may differ when a run is continued (how often to log, when to stop)."""
    return dataclasses.field(metadata={"free": True}, **kwargs)


def require(condition: Any, message: str) -> None:
    """Raises ConfigError with `message` unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def choices(name: Any, known: typing.Iterable[str]) -> str:
    """Lists the known names for a message, and the one most similar to `name` if there is such."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    return f"known: {', '.join(known) or 'none'}" + (f"; did you mean {close[0]!r}?" if close else "")


def from_dict(cls: type, values: Any, path: str = "", overrides: Mapping[str, Any] | None = None) -> Any:
    """Builds the dataclass `cls` from a mapping, recursively.

    Args:
        cls: a dataclass type.
        values: a mapping from field name to value, or an instance of `cls`, which is returned as it is.
        path: where `values` stands in the whole configuration, for messages.
        overrides: types that replace the annotation of some fields of `cls` itself.

    Returns:
        An instance of `cls`. Lists become tuples and integers become floats where the field says so.

    Raises:
        ConfigError: for an unknown, missing or ill-typed field, or a value that a `__post_init__` refuses.
    """
    if isinstance(values, cls):
        return values
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path or 'config'}={values!r} must be a mapping with the fields of {cls.__name__}")
    hints = typing.get_type_hints(cls) | dict(overrides or {})
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown field {_join(path, key)!r} of {cls.__name__}; {choices(key, fields)}")
    missing = [n for n, f in fields.items() if n not in values and _required(f)]
    if missing:
        raise ConfigError(f"missing field {_join(path, missing[0])!r}: {cls.__name__} has no default for it")
    built = {key: _convert(hints[key], value, _join(path, key)) for key, value in values.items()}
    try:
        return cls(**built)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def to_dict(value: Any) -> Any:
    """Turns nested dataclasses into dicts, lists and scalars that `json.dumps` takes, in field order."""
    if dataclasses.is_dataclass(value):
        return {f.name: to_dict(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
    if isinstance(value, Mapping):
        return {str(k): to_dict(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return [to_dict(v) for v in value]
    return value


def difference(config: Any, stored: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Compares a dataclass with the `to_dict` of an earlier one, leaving out fields that are free to change.

    Returns:
        (path, stored value, value now) of every leaf that differs; `"absent"` stands for a missing one.
    """
    free_paths = tuple(_free_paths(config))
    now, then = dict(leaves(to_dict(config))), dict(leaves(stored))
    rows = []
    for path in sorted(now.keys() | then.keys()):
        is_free = any(path == p or path.startswith(f"{p}.") for p in free_paths)
        if not is_free and now.get(path, "absent") != then.get(path, "absent"):
            rows.append((path, then.get(path, "absent"), now.get(path, "absent")))
    return rows


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _required(field: dataclasses.Field) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _convert(kind: Any, value: Any, path: str) -> Any:
    """Checks `value` against the annotation `kind` and converts it."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return from_dict(kind, value, path)
    if origin is typing.Literal:
        if value in args and type(value) in {type(a) for a in args}:
            return value
        raise ConfigError(f"{path}={value!r} is not a choice; {choices(value, map(str, args))}")
    if origin in (typing.Union, types.UnionType):
        return _convert_union(args, value, path)
    if origin is tuple or kind is tuple:
        return _convert_tuple(args, value, path)
    if origin in (dict, Mapping) or kind in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise _wrong_type(path, value, "a mapping")
        of = args[1] if args else Any
        return {str(k): _convert(of, v, _join(path, k)) for k, v in value.items()}
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is type(None):
        kind = types.NoneType
    if not isinstance(value, kind) or (kind in (int, float) and isinstance(value, bool)):
        raise _wrong_type(path, value, "null" if kind is types.NoneType else f"of type {kind.__name__}")
    return value


def _convert_union(args: tuple, value: Any, path: str) -> Any:
    """Tries the members in order; with a single member besides None, its own error is the clear one."""
    if value is None and types.NoneType in args:
        return None
    members = [a for a in args if a is not types.NoneType]
    if len(members) == 1:
        return _convert(members[0], value, path)
    if isinstance(value, Mapping) and (member := _meant(members, value)):
        return _convert(member, value, path)        # its error is the clear one
    for member in members:
        try:
            return _convert(member, value, path)
        except ConfigError:
            continue
    raise _wrong_type(path, value, " or ".join(getattr(m, "__name__", str(m)) for m in members))


def _meant(members: list, value: Mapping) -> Any | None:
    """The dataclass that a mapping is meant for: by its `kind`, if they have one, else by the names of its fields."""
    classes = [m for m in members if dataclasses.is_dataclass(m)]
    by_kind = [m for m in classes if value.get("kind") in typing.get_args(typing.get_type_hints(m).get("kind"))]
    names = {m: {field.name for field in dataclasses.fields(m)} for m in classes}
    return max(by_kind or classes, key=lambda m: len(names[m] & set(value)), default=None)


def _convert_tuple(args: tuple, value: Any, path: str) -> tuple:
    if not isinstance(value, tuple | list):
        raise _wrong_type(path, value, "a tuple or list")
    if not args:
        return tuple(value)
    if len(args) == 2 and args[1] is ...:
        args = (args[0],) * len(value)
    if len(args) != len(value):
        raise ConfigError(f"{path}={value!r} must have {len(args)} items, not {len(value)}")
    return tuple(_convert(a, v, _join(path, i)) for i, (a, v) in enumerate(zip(args, value, strict=True)))


def _wrong_type(path: str, value: Any, wanted: str) -> ConfigError:
    return ConfigError(f"{path}={value!r} is of type {type(value).__name__} but must be {wanted}")


def leaves(value: Any, path: str = "") -> typing.Iterator[tuple[str, Any]]:
    """Yields (path, value) of the scalars of a plain mapping, and of empty containers: `{}` differs from `{"a": 1}`."""
    children = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    if isinstance(value, Mapping | list) and value:
        for key, child in children:
            yield from leaves(child, _join(path, key))
    else:
        yield path, json.loads(json.dumps(value))


def _free_paths(value: Any, path: str = "") -> typing.Iterator[str]:
    """Yields the paths of all fields marked `free`, at any depth."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            if field.metadata.get("free"):
                yield _join(path, field.name)
            else:
                yield from _free_paths(getattr(value, field.name), _join(path, field.name))
    elif isinstance(value, Mapping | tuple):
        for key, child in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _free_paths(child, _join(path, key))
