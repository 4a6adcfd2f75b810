"""Stacks of equal blocks: parameters stacked over layers, run by one scan with rematerialisation.

A scan compiles one block however many there are. A stack can run a second kind of layer (a hook) before every n-th
block: gated cross-attention into a frozen language model. The blocks' parameters keep their plain [L, ...] layout, so a
language model's weights are the same tree with and without hooks.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.kernels.attention import IntervalMask, Rotary
from mmjax.layers.attention import KVCache
from mmjax.layers.block import Block
from mmjax.layers.moe import Statistics
from mmjax.layers.params import Named, init_params
from mmjax.layers.relative import Distances
from mmjax.parallel import shard

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # The products of "dots" wait in the host's memory for the backward pass, where the platform can do that.
    "offload": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}


@dataclasses.dataclass(frozen=True)
class Hook:
    """Layers that run before blocks `offset`, `offset + every`, ...

    Attributes:
        apply: (params of one hook, x float[B, T, D]) -> float[B, T, D].
        params: tree of arrays stacked over the hooks, `num_hooks(...)` of them.
        every: n, blocks from one hook to the next.
        offset: index of the first block that has a hook before it.
    """

    apply: Callable[[Any, jax.Array], jax.Array]
    params: Any
    every: int
    offset: int = 0


@dataclasses.dataclass(frozen=True)
class Every:
    """Blocks of another kind in place of blocks n - 1, 2n - 1, ...: experts in every n-th layer (MM1).

    Attributes:
        block: the unbound block these layers share.
        params: its parameters with a leading dimension L // n.
        n: layers from one to the next, at least 2.
    """

    block: Block
    params: Any
    n: int


def num_hooks(num_layers: int, every: int, offset: int = 0) -> int:
    """How many of the blocks 0 .. num_layers - 1 have a hook before them."""
    return len(range(offset, num_layers, every))


def init_stack(module: nn.Module, num_layers: int, *example) -> Callable[[jax.Array], Any]:
    """A function from a key to the boxed parameters of `num_layers` equal modules, with a leading "layers" dimension.

    Args:
        module: an unbound module whose `__call__` takes `example`.
        *example: arrays or `jax.ShapeDtypeStruct`s; only their shapes and dtypes matter.
    """
    def init(key: jax.Array) -> Any:
        inputs = jax.tree.map(lambda e: jnp.zeros(e.shape, e.dtype), example)
        stacked = jax.vmap(lambda k: init_params(module, k, *inputs))(jax.random.split(key, num_layers))
        return jax.tree.map(lambda box: box.add_axis(0, {}), stacked, is_leaf=lambda leaf: isinstance(leaf, Named))

    return init


def stack_params(owner: nn.Module, name: str, module: nn.Module, num_layers: int, *example) -> Any:
    """Declares parameter `name` of a module in its `setup`: those of `num_layers` equal modules, see `init_stack`.

    What is given may hold more than was declared: low-rank adapters.
    """
    if owner.has_variable("params", name):
        return owner.get_variable("params", name)
    return owner.param(name, init_stack(module, num_layers, *example))


def run_stack(block: Block, params: Any, x: jax.Array, mask: IntervalMask, **options
              ) -> tuple[jax.Array, KVCache | None]:
    """`run_layers` without the statistics of experts."""
    return run_layers(block, params, x, mask, **options)[:2]


def run_layers(block: Block, params: Any, x: jax.Array, mask: IntervalMask, *, rotary: Rotary | None = None,
               bias: jax.Array | Distances | None = None, key: jax.Array | None = None, cache: KVCache | None = None,
               hook: Hook | None = None, every: Every | None = None, remat: str = "full",
               more: Mapping[str, Any] = MappingProxyType({})) -> tuple[jax.Array, KVCache | None, Statistics]:
    """Runs stacked blocks over x.

    Args:
        block: the unbound block all layers share.
        params: its parameters with a leading dimension L, or a tuple of those of each layer, see `unstack`.
        x: float[B, T, D].
        mask, rotary, bias: as for `Attention`, equal in all layers.
        key: dropout key, or None.
        cache: keys and values of all L layers, to read and extend.
        hook: layers that run in between.
        every: blocks of another kind among them; the stack then has that many more layers.
        remat: a key of `REMAT_POLICIES`: what the backward pass recomputes.
        more: further arguments by name, for blocks that take some.

    Returns:
        float[B, T, D], the cache with each layer's new keys and values (its lengths as they were), and the statistics
        of experts, stacked over the layers that have some.

    Raises:
        ValueError: for hooks among blocks of two kinds, or an unknown `remat`.
    """
    x = shard(x, "batch", "seq", "act_embed")
    if isinstance(params, tuple) and every is not None:
        params = jax.tree.map(lambda *layers: jnp.stack(layers), *params)

    def run(block, carry, inputs):
        x, cache = carry
        p, i = inputs
        k = None if key is None else jax.random.fold_in(key, i)
        x, cache, statistics = block.apply({"params": p}, x, mask, rotary, k, cache, i, bias, **more, method="run")
        return (x, cache), statistics

    if isinstance(params, tuple):
        return _run_each(functools.partial(run, block), (x, cache), params, hook)
    num_layers = jax.tree.leaves(params)[0].shape[0]
    layer = _remat(functools.partial(run, block), remat)
    if every is not None:
        if hook is not None:
            raise ValueError("a stack with blocks of two kinds takes no hooks; give every layer the same kind")
        other = _remat(functools.partial(run, every.block), remat)
        carry, statistics = _run_mixed(layer, other, (x, cache), params, every)
        return *carry, statistics
    layers = (params, jnp.arange(num_layers))
    if hook is None:
        carry, statistics = jax.lax.scan(layer, (x, cache), layers)
        return *carry, statistics

    run_hook = _remat(hook.apply, remat)

    def group(carry, inputs):
        hook_params, group_layers = inputs
        x, cache = carry
        return jax.lax.scan(layer, (run_hook(hook_params, x), cache), group_layers)

    carry, statistics = _run_groups(group, layer, (x, cache), layers, hook, num_layers)
    return *carry, statistics


def unstack(params: Any) -> tuple[Any, ...]:
    """Stacked parameters as a tuple of each layer's, for a program that runs the layers many times.

    In a loop over layers XLA for CPU copies each layer's parameters out of the stack, in every run: most of the time of
    decoding one row. Taken apart before, they are copied once. The program grows with the layers.
    """
    count = jax.tree.leaves(params)[0].shape[0]
    layers = (jax.tree.map(operator.itemgetter(i), params) for i in range(count))
    return tuple(map(jax.lax.optimization_barrier, layers))


def _run_each(layer, carry, params: tuple[Any, ...], hook: Hook | None):
    """Layers that were taken apart, one after another and without recomputation."""
    statistics = []
    for i, own in enumerate(params):
        if hook is not None and i >= hook.offset and (i - hook.offset) % hook.every == 0:
            which = (i - hook.offset) // hook.every
            between = jax.tree.map(operator.itemgetter(which), hook.params)
            carry = hook.apply(between, carry[0]), carry[1]
        carry, more = layer(carry, (own, jnp.int32(i)))
        statistics.append(more)
    return *carry, jax.tree.map(lambda *layers: jnp.stack(layers), *statistics)


def _run_groups(group, layer, carry, layers, hook: Hook, num_layers: int):
    """Blocks before the first hook, then whole groups of a hook and n blocks, then a last group cut short.

    A last group of a single block is no loop to XLA, which may fuse it otherwise than the others: with closed gates the
    logits can then differ from the plain stack's in their last bit. Elsewhere they are equal bit for bit.
    """
    n, start = hook.every, min(hook.offset, num_layers)
    whole = (num_layers - start) // n
    end, parts = start + whole * n, []
    if start:
        carry, statistics = jax.lax.scan(layer, carry, _part(layers, 0, start))
        parts.append(statistics)
    if whole:
        # Where n divides L this reshape is free; otherwise the slice copies the parameters once a step.
        grouped = jax.tree.map(lambda a: a.reshape(whole, n, *a.shape[1:]), _part(layers, start, end))
        carry, statistics = jax.lax.scan(group, carry, (_part(hook.params, 0, whole), grouped))
        parts.append(jax.tree.map(lambda a: a.reshape(whole * n, *a.shape[2:]), statistics))
    if end < num_layers:
        last = jax.tree.map(lambda a: a[whole], hook.params)
        carry, statistics = group(carry, (last, _part(layers, end, num_layers)))
        parts.append(statistics)
    return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts)


def _run_mixed(layer, other, carry, params, every: Every):
    """Whole groups of n - 1 blocks and one of the other kind, then the blocks left over."""
    n, whole = every.n, jax.tree.leaves(every.params)[0].shape[0]
    used, count = whole * (n - 1), jax.tree.leaves(params)[0].shape[0]
    index = jnp.arange(whole * n).reshape(whole, n)

    def group(carry, inputs):
        own, others, i = inputs
        carry, _ = jax.lax.scan(layer, carry, (own, i[:-1]))
        return other(carry, (others, i[-1]))

    grouped = jax.tree.map(lambda a: a.reshape(whole, n - 1, *a.shape[1:]), _part(params, 0, used))
    carry, statistics = jax.lax.scan(group, carry, (grouped, every.params, index))
    if used < count:
        carry, _ = jax.lax.scan(layer, carry, (_part(params, used, count), jnp.arange(whole * n, count + whole)))
    return carry, statistics


def _part(tree: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda a: a if (start, stop) == (0, a.shape[0]) else a[start:stop], tree)


def _remat(function: Callable, policy: str) -> Callable:
    if policy not in REMAT_POLICIES:
        raise ValueError(f"unknown remat policy {policy!r}; choose from {', '.join(REMAT_POLICIES)}")
    if policy == "none":
        return function
    return jax.checkpoint(function, policy=REMAT_POLICIES[policy], prevent_cse=False)
