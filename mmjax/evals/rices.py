"""RICES, retrieval of in-context examples by image similarity, with frozen features.

Source: Yang et al., arXiv:2109.05014; Flamingo (arXiv:2204.14198), section 3 and appendix A.2.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.evals.fewshot import Example
from mmjax.evals.prompts import Writer
from mmjax.models.interface import Model, Params


@functools.partial(jax.jit, static_argnames="count")
def nearest(queries: jax.Array, support: jax.Array, count: int) -> jax.Array:
    """The most similar support examples by the cosine of their features, exactly.

    Args:
        queries: float[N, C].
        support: float[M, C].
        count: how many, at most M.

    Returns:
        int32[N, count] indices in the order of the prompt: similarity increases, the closest is last.
    """
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    similarity = jnp.matmul(unit(queries), unit(support).T, precision="highest")
    return jax.lax.top_k(similarity, count)[1][:, ::-1]


@functools.partial(jax.jit, static_argnames="model")
def _features(model: Model, params: Params, images: jax.Array) -> jax.Array:
    return model.image_features(params, images)


def image_features(model: Model, params: Params, writer: Writer, examples: Sequence[Example], batch_size: int
                   ) -> np.ndarray:
    """float32[N, C] features of the examples' images (of a video the first frame), in batches of one size."""
    out = []
    for start in range(0, len(examples), batch_size):
        index = np.minimum(np.arange(start, start + batch_size), len(examples) - 1)
        out.append(np.asarray(_features(model, params, writer.pixels([examples[i] for i in index])[:, 0])))
    return np.concatenate(out)[:len(examples)]
