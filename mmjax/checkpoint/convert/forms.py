"""How one published tensor becomes one or several of our arrays, and back: bit for bit, by moving numbers only."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Form(NamedTuple):
    """A pair of inverse functions.

    Attributes:
        load: (tensor, shapes of our arrays) -> our arrays, one per shape.
        store: (our arrays) -> tensor. Its shape follows from theirs, so that `store` also says what `load` expects.
    """

    load: Callable[[np.ndarray, list[Shape]], list[np.ndarray]]
    store: Callable[[list[np.ndarray]], np.ndarray]


def single(load: Callable[[np.ndarray, Shape], np.ndarray], store: Callable[[np.ndarray], np.ndarray]) -> Form:
    """A form of one tensor and one array."""
    return Form(lambda w, shapes: [load(w, shapes[0])], lambda arrays: store(arrays[0]))


same = single(lambda w, _: w, lambda a: a)
flat = single(lambda w, shape: w.reshape(shape), lambda a: a.reshape(-1))          # a bias with split heads
batched = single(lambda w, _: w[0], lambda a: a[None])                             # a table with a leading 1
token = single(lambda w, _: w[0, 0], lambda a: a[None, None])                      # a token with two of them
image_kernel = single(lambda w, _: w.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))     # torch's OIHW


def linear(inputs: int = 1) -> Form:
    """torch's [out, in] and our [*in, *out], whose first `inputs` dimensions are contracted."""
    return single(lambda w, shape: w.T.reshape(shape), lambda a: a.reshape(math.prod(a.shape[:inputs]), -1).T)


def conv(patch: int, channels: int = 3) -> Form:
    """A convolution [D, C, p, p] over patches and our [p * p * C, D]: rows, columns, colours."""
    return single(lambda w, shape: w.transpose(2, 3, 1, 0).reshape(shape),
                  lambda a: a.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1))


def fused(form: Form) -> Form:
    """Several tensors of one form, one below the other: [q; k; v]. Their heights may differ (grouped queries)."""
    def load(w, shapes):
        # Only the height of each part is wanted, so stand-ins without memory of their own will do.
        heights = [form.store([np.broadcast_to(np.int8(0), shape)]).shape[0] for shape in shapes]
        parts = np.split(w, np.cumsum(heights)[:-1])
        return [form.load(part, [shape])[0] for part, shape in zip(parts, shapes, strict=True)]

    return Form(load, lambda arrays: np.concatenate([form.store([a]) for a in arrays]))


def interleaved(form: Form, num_heads: int, count: int = 3) -> Form:
    """Like `fused` for equal parts, but head by head: q, k, v of head 0, then of head 1, ... (GPT-NeoX, BLOOM)."""
    def load(w, shapes):
        w = w.reshape(num_heads, count, -1, *w.shape[1:])
        return [form.load(w[:, i].reshape(-1, *w.shape[3:]), [shape])[0] for i, shape in enumerate(shapes)]

    def store(arrays):
        parts = [form.store([a]) for a in arrays]
        heads = [p.reshape(num_heads, -1, *p.shape[1:]) for p in parts]
        return np.stack(heads, axis=1).reshape(-1, *parts[0].shape[1:])

    return Form(load, store)
