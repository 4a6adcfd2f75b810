"""Tensors into sharded arrays and back, one tensor at a time: the host never holds a model."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mmjax.checkpoint.convert.table import Place, Table, check_names, check_paths, load, store
from mmjax.checkpoint.convert.weights import WeightFolder
from mmjax.checkpoint.paths import flatten, nest


def read(folder: WeightFolder, table: Table, template: Mapping[str, Any]) -> dict[str, Any]:
    """Our parameters from a folder, each tensor going straight to the devices that hold a part of it.

    Args:
        folder: the weights.
        table: their format.
        template: our parameters as `jax.ShapeDtypeStruct`, with shardings where they are to be split; they come in the
            template's dtypes.

    Raises:
        ValueError: if tensors are missing, left over or of other shapes; before anything is read.
    """
    leaves = flatten(template)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items()}
    places = table.places()
    check_names(table, folder.names, shapes)
    for name in places:
        _check_shape(name, places[name], folder.shape(name), shapes)
    _check_tied(folder, table)
    params: dict[str, jax.Array] = {}
    for name, tensor in folder.tensors():
        if name not in places:
            continue
        index = places[name].index
        for path, piece in load(name, places[name], tensor, shapes):
            leaf = leaves[path]
            if not index:
                params[path] = _put(piece, leaf, leaf.sharding)
                continue
            if path not in params:
                params[path] = _empty(leaf.shape, leaf.dtype, leaf.sharding)()
            inner = _inner(leaf.sharding, len(index))
            params[path] = _insert(leaf.sharding)(params[path], _put(piece, leaf, inner), index)
    return nest(params)


def _check_tied(folder: WeightFolder, table: Table) -> None:
    """A head that config.json says is the token table may stand in the file too, but must be equal to it."""
    heads = [name for name in folder.names if table.ignores(name) and name.endswith("lm_head.weight")]
    tables = [name for name, place in table.places().items() if place.entry.ours == "token_embed/table"]
    for head in heads if tables else ():
        if not np.array_equal(folder.read(head), folder.read(tables[0])):
            raise ValueError(f"{folder.path}: config.json ties the output head to the token table, but {head!r} "
                             f"differs from {tables[0]!r}; set tie_word_embeddings to false")


def pieces(table: Table, params: Mapping[str, Any]) -> tuple[dict[str, int], Callable[[str], np.ndarray]]:
    """Published tensors from our parameters: their sizes in bytes, and a function that gives one by name."""
    arrays, places = flatten(params), table.places()
    check_paths(table, {path: tuple(x.shape) for path, x in arrays.items()})

    def tensor(name: str) -> np.ndarray:
        place = places[name]
        parts = {path: _Whole(arrays[path]) for path in place.entry.paths}
        return np.asarray(store(place, parts), order="C")

    def size(place: Place) -> int:
        dtype = arrays[place.entry.paths[0]].dtype
        return sum(int(np.prod(arrays[path].shape[len(place.index):])) for path in place.entry.paths) * dtype.itemsize

    return {name: size(place) for name, place in places.items()}, tensor


class _Whole:
    """An array whose parts come to this host, from other processes too."""

    def __init__(self, array: Any):
        self.array = array

    def __getitem__(self, index: tuple[int, ...]) -> np.ndarray:
        part = self.array[index] if index else self.array
        if isinstance(part, jax.Array) and not part.is_fully_addressable:
            return multihost_utils.process_allgather(part, tiled=True)
        return np.asarray(part)


def _check_shape(name: str, place: Place, shape: tuple[int, ...], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """`load` of a stand-in without memory: it raises if the shape is another."""
    load(name, place, np.broadcast_to(np.int8(0), shape), shapes)


def _put(piece: np.ndarray, leaf: Any, sharding: Any) -> jax.Array:
    if sharding is None:
        return jnp.asarray(piece, leaf.dtype)
    piece = piece.astype(leaf.dtype, copy=False)
    return jax.make_array_from_callback(piece.shape, sharding, lambda where: piece[where])


def _inner(sharding: Any, lead: int) -> Any:
    """The sharding of one layer of a stack."""
    if isinstance(sharding, jax.sharding.NamedSharding):
        return sharding.update(spec=jax.sharding.PartitionSpec(*tuple(sharding.spec)[lead:]))
    return sharding


@functools.cache
def _empty(shape: tuple[int, ...], dtype: Any, sharding: Any) -> Callable[[], jax.Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.cache
def _insert(sharding: Any) -> Callable[..., jax.Array]:
    """A function that puts a layer into a stack, in place."""
    def insert(stack, piece, index):
        start = (*index, *[0] * piece.ndim)
        return jax.lax.dynamic_update_slice(stack, piece.reshape(*[1] * len(index), *piece.shape), start)

    return jax.jit(insert, donate_argnums=0, out_shardings=sharding)
