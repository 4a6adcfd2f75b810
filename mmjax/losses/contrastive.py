"""Contrastive losses of pairs of embeddings, over all rows of the mesh."""

import jax
import jax.numpy as jnp

from mmjax.kernels.contrastive import pair_loss
from mmjax.losses.language import Metrics


def contrastive_loss(images: jax.Array, texts: jax.Array, weights: jax.Array, log_scale: jax.Array,
                     bias: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
    """Mean loss of telling each image's own text from those of all other pairs.

    Without a bias that of CLIP (softmax over texts and over images, arXiv:2103.00020, figure 3), with one that of
    SigLIP (a sigmoid for each pair, arXiv:2303.15343, eq. 1).

    Args:
        images, texts: float[N, C] embeddings of length 1; row i of both is a pair.
        weights: float32[N], 0 where there is no pair.
        log_scale: scalar, the logarithm of what cosines are multiplied by.
        bias: scalar that is added to them.

    Returns:
        The loss, float32, and metrics: `loss`, `accuracy` (share of images and texts whose nearest is their own),
        `scale`, and `tokens`, the number of pairs, by which the losses of several data sets or processes are weighed.
    """
    scale, total = jnp.exp(log_scale), weights.sum()
    form = "softmax" if bias is None else "sigmoid"
    loss, hits = pair_loss(images, texts, weights, scale, 0.0 if bias is None else bias, form=form)
    divisor = jnp.where(total > 0, total, 1.0)
    return loss / divisor, {"loss": loss / divisor, "accuracy": hits / divisor, "scale": scale, "tokens": total}
