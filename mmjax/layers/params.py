"""Parameters that know the logical name of each of their dimensions.

Flax's own boxes (`nn.with_logical_partitioning`) put a sharding constraint on a value whenever it is read, which fails
under Explicit mesh axes. Ours only carries the names; `mmjax.parallel` lays arrays over the mesh.
"""

from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.core import meta

from mmjax.parallel import gather

Initializer = Callable[[jax.Array, tuple[int, ...], Any], jax.Array]


@flax.struct.dataclass
class Named(meta.AxisMetadata):
    """An array with a logical axis name (or None) per dimension."""

    value: Any
    names: tuple[str | None, ...] = flax.struct.field(pytree_node=False)

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Named":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict) -> "Named":
        return self.replace(names=self.names[:index] + ("layers",) + self.names[index:])

    def remove_axis(self, index: int, params: dict) -> "Named":
        return self.replace(names=self.names[:index] + self.names[index + 1:])


def param(module: nn.Module, name: str, init: Initializer, shape: tuple[int, ...],
          names: tuple[str | None, ...]) -> jax.Array:
    """Declares float32 parameter `name` of `module` with one logical axis name per dimension."""
    assert len(shape) == len(names), (name, shape, names)
    return gather(module.param(name, lambda key: Named(init(key, shape, jnp.float32), names)))


def init_params(module: nn.Module, key: jax.Array, *args, **kwargs) -> dict[str, Any]:
    """Initialises a module and returns its parameters as boxes; see `unbox` and `axes_of`."""
    return module.init(key, *args, **kwargs)["params"]


def unbox(tree: Any) -> Any:
    """The arrays of a tree of boxes."""
    return meta.unbox(tree)


def axes_of(tree: Any) -> Any:
    """The logical axis names of a tree of boxes, in its shape."""
    return jax.tree.map(lambda box: box.names, tree, is_leaf=lambda leaf: isinstance(leaf, Named))


def scaled(scale: float, in_axis: int | tuple[int, ...], out_axis: int | tuple[int, ...]) -> Initializer:
    """LeCun normal, N(0, scale² / fan_in), for a kernel whose input and output dimensions are given."""
    return nn.initializers.variance_scaling(scale**2, "fan_in", "normal", in_axis=in_axis, out_axis=out_axis)


def xavier(gain: float, in_axis: int | tuple[int, ...], out_axis: int | tuple[int, ...]) -> Initializer:
    """Xavier normal times `gain`: N(0, 2 gain² / (fan_in + fan_out)); Magneto (arXiv:2210.06423) section 3."""
    return nn.initializers.variance_scaling(gain**2, "fan_avg", "normal", in_axis=in_axis, out_axis=out_axis)
