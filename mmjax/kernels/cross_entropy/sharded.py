"""Cross-entropy on each device's own tokens and words."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mmjax.kernels.cross_entropy.chunked import Split, differentiable, sums, sums_and_grads
from mmjax.kernels.placement import ROWS, SEQUENCE, VOCAB, axes_for, free_axes, is_explicit, num_devices


def chunked(hidden, matrix, targets, weights, *, vocab_axis: int) -> tuple[jax.Array, jax.Array]:
    """The chunked implementation within the current mesh; arguments and results as `api.cross_entropy`.

    Tokens are split over the mesh axes of rows and sequence, words over that of the vocabulary, where they divide.
    Every device reads all D columns of its words.
    """
    rows, sequence = axes_for(ROWS, hidden.shape[0]), axes_for(SEQUENCE, hidden.shape[1])
    vocab = axes_for(VOCAB, matrix.shape[vocab_axis])
    tokens, words = P(rows, sequence), P(vocab, None) if vocab_axis == 0 else P(None, vocab)
    devices = num_devices(vocab)
    first_words = matrix.shape[vocab_axis] // devices * jnp.arange(devices, dtype=jnp.int32)
    split = Split(vocab_axis, vocab if devices > 1 else ())
    _, free = free_axes()
    alone = num_devices(free) == 1 and not is_explicit()
    everyone = () if alone else rows + sequence

    def local(run: Callable, with_grads: bool, first_word, hidden, matrix, targets, weights):
        (b, t, d), n = hidden.shape, targets.size
        flat = hidden.reshape(n, d), matrix, targets.reshape(n), weights.reshape(n)
        result = run(*flat, first_word[0], split)
        if not with_grads:
            return jax.lax.psum(result, everyone) if everyone else result
        totals, (d_hidden, d_matrix, d_weights) = result
        if everyone:
            totals, d_matrix = jax.lax.psum((totals, d_matrix), everyone)
        return totals, (d_hidden.reshape(b, t, d), d_matrix, d_weights.reshape(b, t))

    def on_devices(run: Callable, with_grads: bool, *args):
        call = functools.partial(local, run, with_grads)
        if alone:
            return call(first_words, *args)
        laid_out = first_words, *args
        specs = P(vocab), tokens, words, tokens, tokens
        if is_explicit():
            laid_out = jax.tree.map(jax.reshard, laid_out, specs)
        out_specs = ((P(), P()), (tokens, words, tokens)) if with_grads else (P(), P())
        call = jax.shard_map(call, in_specs=specs, out_specs=out_specs, axis_names=free, check_vma=False)
        if not (with_grads and is_explicit()):
            return call(*laid_out)
        totals, grads = call(*laid_out)
        like = args[0], args[1], args[3]        # what the gradients belong to, whose layout they must have
        return totals, tuple(jax.reshard(g, jax.typeof(x).sharding.spec) for g, x in zip(grads, like, strict=True))

    return differentiable(
        hidden, matrix, targets, weights,
        functools.partial(on_devices, sums, False), functools.partial(on_devices, sums_and_grads, True))
