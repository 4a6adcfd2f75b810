"""LoRA (arXiv:2106.09685): a product of two thin matrices beside the kernel of a linear map.

`Linear` adds (x · lora_a) · lora_b wherever its parameters hold them, so no module changes, and the kernel needs no
gradient. Stacked layers have stacked adapters.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class LowRank:
    """The adapter of one kernel: rank r and alpha; the product counts alpha / r times."""

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


ADAPTERS = ("lora_a", "lora_b")
Choose = Callable[[str], LowRank | None]        # the adapter of the kernel at a path "a/b/kernel"


def is_adapter(path: str) -> bool:
    """Whether the parameter at a path "a/b/name" belongs to an adapter."""
    return path.endswith(tuple(f"/{name}" for name in ADAPTERS))


def kernel_of(path: str) -> str:
    """The path of the kernel that an adapter's parameter stands beside."""
    return f"{path.rpartition('/')[0]}/kernel"


def add_adapters(params: Mapping[str, Any], axes: Mapping[str, Any], choose: Choose, key: jax.Array) -> dict[str, Any]:
    """Parameters with a `lora_a`, drawn, and a `lora_b`, 0, beside each chosen kernel, so that nothing changes yet.

    Args:
        params: nested dict of arrays.
        axes: the same tree of logical names.
        choose: which kernels have one.
        key: of all adapters.

    Raises:
        ValueError: if a chosen kernel is not that of a linear map.
    """
    new = dict(params)
    for path, adapter, module, names in _chosen(params, axes, choose):
        kernel, kernel_names = module["kernel"], names["kernel"]
        lead, size_in = _split(path, kernel_names)
        own_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
        shape_a = *kernel.shape[:lead + size_in], adapter.rank
        shape_b = *kernel.shape[:lead], adapter.rank, *kernel.shape[lead + size_in:]
        bound = math.prod(shape_a[lead:-1]) ** -0.5
        a = jax.random.uniform(own_key, shape_a, jnp.float32, -bound, bound)
        new = _put(new, path, dict(module, lora_a=a, lora_b=jnp.zeros(shape_b, jnp.float32)))
    return new


def add_axes(axes: Mapping[str, Any], choose: Choose) -> dict[str, Any]:
    """The logical names of what `add_adapters` gives."""
    new = dict(axes)
    for path, _, module, _ in _chosen(axes, axes, choose):
        names = module["kernel"]
        lead, size_in = _split(path, names)
        new = _put(new, path, dict(module, lora_a=(*names[:lead + size_in], "rank"),
                                   lora_b=(*names[:lead], "rank", *names[lead + size_in:])))
    return new


def scale_adapters(params: Mapping[str, Any], choose: Choose) -> dict[str, Any]:
    """Parameters as modules take them: every lora_b times the scale of its adapter."""
    new = dict(params)
    for path, adapter, module, _ in _chosen(params, params, choose):
        if "lora_b" in module:
            new = _put(new, path, dict(module, lora_b=adapter.scale * module["lora_b"]))
    return new


def merge_adapters(params: Mapping[str, Any], axes: Mapping[str, Any], choose: Choose) -> dict[str, Any]:
    """Parameters without adapters that compute the same: kernel + scale · lora_a · lora_b."""
    new = dict(params)
    for path, adapter, module, names in _chosen(params, axes, choose):
        lead, size_in = _split(path, names["kernel"])
        kernel, a, b = (module[name] for name in ("kernel", "lora_a", "lora_b"))
        stacked = kernel.shape[:lead]
        a = a.astype(jnp.float32).reshape(*stacked, -1, adapter.rank)
        b = b.astype(jnp.float32).reshape(*stacked, adapter.rank, -1)
        change = adapter.scale * jnp.matmul(a, b, precision="highest").reshape(kernel.shape)
        rest = {name: x for name, x in module.items() if name not in ADAPTERS}
        new = _put(new, path, dict(rest, kernel=(kernel + change).astype(kernel.dtype)))
    return new


def _chosen(tree: Mapping[str, Any], axes: Mapping[str, Any], choose: Choose, path: str = ""
            ) -> Iterator[tuple[str, LowRank, Mapping[str, Any], Mapping[str, Any]]]:
    """(path, adapter, what `tree` has there, what `axes` has there) of every module with a chosen kernel."""
    if "kernel" in tree and (adapter := choose(f"{path}kernel")):
        yield path.rstrip("/"), adapter, tree, axes
    for name, node in tree.items():
        if isinstance(node, Mapping):
            yield from _chosen(node, axes[name], choose, f"{path}{name}/")


def _split(path: str, names: tuple[str | None, ...]) -> tuple[int, int]:
    """How many of a kernel's dimensions are stacked layers, and how many of the others inputs: N and H together are."""
    lead = int(names[0] == "layers")
    inner = names[lead:]
    if "expert" in inner or "vocab" in inner or not 2 <= len(inner) <= 3:
        raise ValueError(f"{path}/kernel has the dimensions {', '.join(map(str, names))}: low-rank adapters are for "
                         "the kernels of linear maps inside the model; let the rule leave it out")
    return lead, 2 if inner[1] == "head_dim" else 1


def _put(tree: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The nested dict with another value at a path; what is not on the way is shared."""
    name, _, rest = path.partition("/")
    return dict(tree, **{name: _put(tree[name], rest, value) if rest else value})
