"""The rows of a batch: which of them a process reads, and how they come to lie over the mesh.

Devices that differ along other mesh axes than those of the rows hold the same rows. So do processes, where a model is
split over more devices than one process has; those read the same data.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from mmjax.parallel.sharding import RULES, batch_sharding


def share_of_rows(mesh: Mesh) -> tuple[int, int]:
    """(index, count): this process reads part `index` of `count` equal parts of every global batch.

    Raises:
        ValueError: if processes hold overlapping or unequal parts.
    """
    held = _blocks(mesh)
    parts = sorted(set(held.values()))
    if len({len(part) for part in parts}) > 1 or sum(map(len, parts)) > num_row_parts(mesh):
        raise ValueError(f"mesh {dict(mesh.shape)} gives processes overlapping parts of the rows of a batch; make the "
                         "devices of a process a multiple or a divisor of those of the axes model, expert and seq")
    return parts.index(held[jax.process_index()]), len(parts)


def num_row_parts(mesh: Mesh) -> int:
    """Pieces into which the rows of a batch are cut."""
    return math.prod(mesh.shape[axis] for axis in RULES["batch"])


def put_rows(x: np.ndarray, mesh: Mesh) -> jax.Array:
    """Lays this process's rows [b, ...] over the mesh: a global array [b · count, ...]; see `share_of_rows`."""
    held, sharding = _blocks(mesh), batch_sharding(mesh)
    mine, size = held[jax.process_index()], len(x) // len(held[jax.process_index()])

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        at = mine.index((index[0].start or 0) // size) * size if size else 0
        return x[at:at + size]

    return jax.make_array_from_callback((size * num_row_parts(mesh), *x.shape[1:]), sharding, piece)


def _blocks(mesh: Mesh) -> Mapping[int, tuple[int, ...]]:
    """Process -> numbers of the row pieces that its devices hold."""
    held: dict[int, set[int]] = {}
    pieces = batch_sharding(mesh).devices_indices_map((num_row_parts(mesh),))
    for device, (rows,) in pieces.items():
        held.setdefault(device.process_index, set()).add(rows.start or 0)
    return {process: tuple(sorted(numbers)) for process, numbers in held.items()}
