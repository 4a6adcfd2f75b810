"""AIM's pre-training (arXiv:2401.08541): a ViT with a prefix mask predicts the pixels of the next patch.

The head on top is thrown away afterwards, and with it the mask: downstream all patches see each other.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.layers import Linear, Mlp, Norm, init_stack
from mmjax.parts.patches import normalize_pixels, patchify, sincos_positions
from mmjax.parts.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class PixelHeadConfig:
    """The head that predicts pixels from each token alone.

    Attributes:
        input_dim: width of the tokens.
        grid: patches along a side.
        patch_size: side of a patch in pixels.
        num_layers: residual feed-forward blocks.
        embed_dim: their width, equal for towers of all sizes.
        norm_eps: epsilon of the norms.
        dtype: compute dtype.
    """

    input_dim: int
    grid: int
    patch_size: int
    num_layers: int = 12
    embed_dim: int = 2048
    norm_eps: float = 1e-6
    dtype: str = "float32"


class PixelHead(nn.Module):
    """x + Mlp(LN(x)) some times, after a projection and fixed positions. No biases but the norms'.

    The paper gives blocks, expansion ratio and positions; where norm and residual sum stand is ours.
    """

    config: PixelHeadConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """float[B, P, input_dim] -> float32[B, P, 3 patch_size²]."""
        c = self.config
        d, dtype = c.embed_dim, jnp.dtype(c.dtype)
        x = Linear((c.input_dim,), (d,), ("patch", "embed"), use_bias=False, dtype=dtype, name="input_proj")(tokens)
        x = x + sincos_positions(c.grid, d).astype(x.dtype)
        block = PixelBlock(d, c.norm_eps, dtype, parent=None)
        layers = self.param("blocks", init_stack(block, c.num_layers, jax.ShapeDtypeStruct((1, 1, d), dtype)))
        x, _ = jax.lax.scan(lambda x, p: (block.apply({"params": p}, x), None), x, layers)
        x = Norm(d, eps=c.norm_eps, dtype=dtype, name="final_norm")(x)
        return Linear((d,), (3 * c.patch_size**2,), ("embed", "patch"), use_bias=False, dtype=dtype,
                      out_dtype=jnp.float32, name="output_proj")(x)


class PixelBlock(nn.Module):
    """One block of the head."""

    embed_dim: int
    norm_eps: float
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[B, P, D] -> dtype[B, P, D]."""
        h = Norm(self.embed_dim, eps=self.norm_eps, dtype=self.dtype, name="norm")(x)
        return x + Mlp(self.embed_dim, 4 * self.embed_dim, use_bias=False, dtype=self.dtype, name="mlp")(h)


def next_patch_loss(predicted: jax.Array, pixels: jax.Array, prefix: jax.Array) -> jax.Array:
    """Mean squared error of the patches after the prefix.

    Args:
        predicted: float32[B, P, C]; entry p is for patch p + 1, and the last one for nothing.
        pixels: float32[B, P, C] patches, each of which is normalised to mean 0 and variance 1 here.
        prefix: int32[B], first patches that are given, at least 1 and at most P - 1.

    Returns:
        float32[], over all pixels of patches p >= prefix of all images.

    Source: AIM (arXiv:2401.08541) sections 3.1 and 3.2; normalised targets as in MAE (arXiv:2111.06377), whose variance
        is the unbiased one plus 1e-6.
    """
    mean, var = pixels.mean(-1, keepdims=True), pixels.var(-1, keepdims=True, ddof=1)
    target = (pixels - mean) * jax.lax.rsqrt(var + 1e-6)
    error = jnp.square(predicted[:, :-1] - target[:, 1:]).mean(-1)
    counts = jnp.arange(1, pixels.shape[1]) >= prefix[:, None]
    return (error * counts).sum() / counts.sum()


def aim_loss(tower: ViTConfig, head: PixelHeadConfig, params: Any, images: jax.Array, prefix: jax.Array) -> jax.Array:
    """The objective: float32[].

    Args:
        tower: of parameters "vision", without a class token.
        head: of parameters "head".
        params: both.
        images: uint8[B, H, W, 3].
        prefix: int32[B], see `next_patch_loss`; in training `draw_prefix`.

    Raises:
        ValueError: if the tower has a class token.
    """
    if tower.class_token:
        raise ValueError("AIM predicts patch after patch: class_token must be False")
    tokens = ViT(tower, parent=None).apply({"params": params["vision"]}, images, prefix=prefix)
    predicted = PixelHead(head, parent=None).apply({"params": params["head"]}, tokens)
    pixels = patchify(normalize_pixels(images, tower.pixel_mean, tower.pixel_std), tower.patch_size)
    return next_patch_loss(predicted, pixels, prefix)


def draw_prefix(key: jax.Array, batch_size: int, num_patches: int) -> jax.Array:
    """int32[B] prefix lengths, uniform in 1 .. P - 1."""
    return jax.random.randint(key, (batch_size,), 1, num_patches)
