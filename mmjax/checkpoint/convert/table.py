"""Tables between published parameter names and ours, the one place that knows a format, read in both directions.

A format is a function from a model's config to a `Table`. Every tensor must be named by the table and every parameter
of ours be filled by it, so a table with a gap fails. Where our parameters are stacked over layers, one entry stands for
all of them: "{layer}" in `theirs` runs over the entry's range.

    def gadget(num_layers):
        layer = (Entry("norm/scale", "ln.weight"), *dense("mlp", "mlp.fc"))
        blocks = under("blocks/", "h.{layer}.", layer, layer=range(num_layers))
        return Table((Entry("embed/table", "wte.weight"), *blocks))

    params = to_ours(gadget(2), tensors, jax.eval_shape(model.init, key))
    tensors = to_theirs(gadget(2), params)
"""

import dataclasses
import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from mmjax.checkpoint.convert.forms import Form, Shape, flat, linear, same
from mmjax.checkpoint.paths import flatten, nest

Stack = tuple[tuple[str, range], ...]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One published tensor, or one per layer.

    Attributes:
        ours: path of our parameter, "blocks/attention/q/kernel"; several where they are fused in one tensor.
        theirs: the tensor's name; "{layer}" (or any other name of `stack`) where there is one for each.
        form: how the numbers move.
        stack: the indices that names run over, outermost first: leading dimensions of our parameter.
    """

    ours: str | tuple[str, ...]
    theirs: str
    form: Form = same
    stack: Stack = ()

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def names(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Each tensor's name, and where it stands in the leading dimensions of our parameters."""
        for index in itertools.product(*(range(len(r)) for _, r in self.stack)):
            numbers = {key: r[i] for (key, r), i in zip(self.stack, index, strict=True)}
            yield self.theirs.format(**numbers), index


class Place(NamedTuple):
    """Where a tensor goes: its entry, and the index in the leading dimensions of our parameters."""

    entry: Entry
    index: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Table:
    """A format.

    Attributes:
        entries: all tensors that hold parameters.
        ignored: regular expressions, matched in full, of tensors to skip when they are there (buffers, a tied head).
    """

    entries: tuple[Entry, ...]
    ignored: tuple[str, ...] = ()

    def places(self) -> dict[str, Place]:
        """What becomes of each tensor, by name."""
        return {name: Place(entry, index) for entry in self.entries for name, index in entry.names()}

    def ignores(self, name: str) -> bool:
        return any(re.fullmatch(pattern, name) for pattern in self.ignored)


def under(ours: str, theirs: str, entries: Iterable[Entry], **stack: range) -> tuple[Entry, ...]:
    """Entries with a prefix before their paths and names, stacked over `stack` outside of what they are already."""
    def move(e: Entry) -> Entry:
        paths = tuple(ours + path for path in e.paths)
        return Entry(paths if len(paths) > 1 else paths[0], theirs + e.theirs, e.form, (*stack.items(), *e.stack))

    return tuple(move(e) for e in entries)


def dense(ours: str, theirs: str, inputs: int = 1, use_bias: bool = True) -> tuple[Entry, ...]:
    """A torch Linear, whose heads we may split."""
    kernel = Entry(f"{ours}/kernel", f"{theirs}.weight", linear(inputs))
    return (kernel, Entry(f"{ours}/bias", f"{theirs}.bias", flat)) if use_bias else (kernel,)


def norm(ours: str, theirs: str, use_bias: bool = True) -> tuple[Entry, ...]:
    """A torch LayerNorm or, without bias, RMSNorm."""
    scale = Entry(f"{ours}/scale", f"{theirs}.weight")
    return (scale, Entry(f"{ours}/bias", f"{theirs}.bias")) if use_bias else (scale,)


def to_ours(table: Table, tensors: Mapping[str, np.ndarray], shapes: Any) -> dict[str, Any]:
    """Our parameters from published tensors.

    Args:
        table: the format.
        tensors: by published name; each is read once.
        shapes: our parameter tree, of anything that has a shape (`jax.eval_shape(model.init, key)`).

    Returns:
        Nested dicts of arrays in the tensors' own dtype.

    Raises:
        ValueError: if a tensor is missing, left over or has another shape, or the table does not fill our tree.
    """
    shapes = {path: tuple(leaf.shape) for path, leaf in flatten(shapes).items()}
    places = table.places()
    check_names(table, tensors, shapes)
    params: dict[str, np.ndarray] = {}
    for name, place in places.items():
        tensor = np.asarray(tensors[name])
        for path, array in load(name, place, tensor, shapes):
            if not place.index:
                params[path] = array
                continue
            params.setdefault(path, np.empty(shapes[path], tensor.dtype))[place.index] = array
    return nest(params)


def to_theirs(table: Table, params: Any) -> dict[str, np.ndarray]:
    """Published tensors from our parameters: the inverse of `to_ours`, bit for bit.

    Args:
        table: the format.
        params: our parameters, nested dicts of arrays.

    Raises:
        ValueError: if a parameter has no entry or an entry no parameter.
    """
    arrays = flatten(params)
    check_paths(table, {path: np.shape(a) for path, a in arrays.items()})
    return {name: np.asarray(store(place, arrays), order="C") for name, place in table.places().items()}


def load(name: str, place: Place, tensor: np.ndarray, shapes: Mapping[str, Shape]) -> list[tuple[str, np.ndarray]]:
    """The part of each of our parameters that one tensor fills, `parameter[place.index]`, with its path.

    Raises:
        ValueError: if the tensor's shape is not the one expected.
    """
    paths, form = place.entry.paths, place.entry.form
    inner = [shapes[path][len(place.index):] for path in paths]
    want = form.store([np.broadcast_to(np.int8(0), shape) for shape in inner]).shape
    if tensor.shape != want:
        ours = ", ".join(f"{path} {list(shapes[path])}" for path in paths)
        raise ValueError(f"tensor {name!r} has shape {list(tensor.shape)}, but {ours} needs {list(want)}; "
                         "does config.json belong to these weights?")
    arrays = form.load(tensor, inner)
    assert [a.shape for a in arrays] == inner, (name, place)
    return list(zip(paths, arrays, strict=True))


def store(place: Place, arrays: Mapping[str, Any]) -> np.ndarray:
    """One tensor from our parameters by path."""
    return place.entry.form.store([np.asarray(arrays[path][place.index]) for path in place.entry.paths])


def check_names(table: Table, names: Iterable[str], shapes: Mapping[str, Shape]) -> None:
    """Raises ValueError unless the tensors, the table and our parameters cover each other."""
    check_paths(table, shapes)
    wanted, found = table.places().keys(), {name for name in names if not table.ignores(name)}
    missing, left = sorted(wanted - found), sorted(found - wanted)
    if missing or left:
        raise ValueError("the weights do not fit the format" + _listing("missing tensors", missing, left)
                         + _listing("tensors left over", left, missing))


def check_paths(table: Table, shapes: Mapping[str, Shape]) -> None:
    """Raises ValueError unless the table and our parameters cover each other."""
    paths = [path for e in table.entries for path in e.paths]
    missing, left = sorted(set(paths) - shapes.keys()), sorted(shapes.keys() - set(paths))
    if missing or left or len(set(paths)) < len(paths):
        raise ValueError("the table does not fit the model" + _listing("no parameter", missing, left)
                         + _listing("no entry for parameter", left, missing)
                         + _listing("filled twice", sorted({p for p in paths if paths.count(p) > 1}), []))
    for entry in table.entries:
        lead = tuple(len(r) for _, r in entry.stack)
        for path in entry.paths:
            if shapes[path][:len(lead)] != lead:
                raise ValueError(f"{path} has shape {list(shapes[path])}, but the table has {list(lead)} of "
                                 f"{entry.theirs!r}; does config.json belong to these weights?")


def _listing(what: str, names: list[str], others: list[str], limit: int = 5) -> str:
    """"; what: 'a' (near 'b'), ..." or nothing."""
    if not names:
        return ""
    near = (difflib.get_close_matches(name, others, n=1, cutoff=0.8) for name in names[:limit])
    shown = [f"{name!r}" + (f" (near {match[0]!r})" if match else "")
             for name, match in zip(names, near, strict=False)]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"; {what}: {', '.join(shown)}{more}"
