"""The one entry to losses over all pairs: checks its arguments and chooses an implementation."""

import jax
import jax.numpy as jnp

from mmjax.kernels.contrastive.reference import reference
from mmjax.kernels.contrastive.ring import ring

# The first is the default, on one device as on many.
IMPLEMENTATIONS = {"ring": ring, "reference": reference}
FORMS = ("softmax", "sigmoid")


def pair_loss(
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array,
    scale: jax.Array | float,
    bias: jax.Array | float = 0.0,
    *,
    form: str = "softmax",
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Sums over rows of the contrastive loss of z = scale · x yᵀ + bias, where x[i] belongs to y[i].

    "softmax": the mean of the cross-entropies of row i and of column i with target i (CLIP, arXiv:2103.00020, fig. 3).
    "sigmoid": the sum over j of softplus(z_ij), of softplus(-z_ii) for the partner (SigLIP, arXiv:2303.15343, eq. 1).

    Args:
        x, y: float[N, D] features of the two sides, N over all devices; their dtype is that of the products' factors.
        weights: float32[N]; a pair of weight 0 does not exist: it is nobody's negative either. No gradient.
        scale, bias: scalars.
        form: "softmax" or "sigmoid".
        implementation: a name of `IMPLEMENTATIONS`, or None for the first.

    Returns:
        The sum over rows of weight times loss, in nats, and of weight times the share (0, 1/2 or 1) of both directions
        in which the partner is the nearest: float32 scalars. The gradient of the second is 0.

    Raises:
        ValueError: if shapes do not fit, or for an unknown form or implementation.
    """
    if x.ndim != 2 or x.shape != y.shape or weights.shape != x.shape[:1]:
        raise ValueError(f"x {list(x.shape)} and y {list(y.shape)} must both be [N, D], and weights "
                         f"{list(weights.shape)} must be [N]")
    for name, value, known in (("form", form, FORMS), ("implementation", implementation, (None, *IMPLEMENTATIONS))):
        if value not in known:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(str, known))}")
    x, y = (jnp.where(weights[:, None] > 0, side, 0) for side in (x, y))     # of what does not exist, not even a NaN
    run = IMPLEMENTATIONS[implementation or next(iter(IMPLEMENTATIONS))]
    scale, bias = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
    return run(x, y, jnp.asarray(weights, jnp.float32), scale, bias, form=form)
