"""CLIP's modified ResNets: convolutional towers that end in attention pooling (`parts.vision_head`, "mean_query").

Source: arXiv:2103.00020 section 2.4 and the authors' code: a stem of three convolutions, strides as average pooling
before a convolution, batch norms.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.layers import init_params, init_stack, param
from mmjax.layers.conv import average_pool, conv2d
from mmjax.layers.stack import REMAT_POLICIES
from mmjax.parallel import reshape
from mmjax.parts.patches import normalize_pixels

EXPANSION = 4
STRIDE = 32


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """A modified ResNet.

    Attributes:
        image_size: side of the image in pixels, a multiple of 32.
        depths: blocks of the four stages.
        width: channels after the stem; D = 32 width channels come out.
        pixel_mean, pixel_std: normalisation of RGB in [0, 1]; CLIP's by default.
        remat: what the backward pass recomputes, see `layers.stack.REMAT_POLICIES`.
        dtype: compute dtype.
        budget: images of a batch that go through the tower at a time; see `ViTConfig`.
    """

    image_size: int = 224
    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    remat: str = "full"
    dtype: str = "float32"
    budget: int = 0
    class_token: ClassVar[bool] = False

    def __post_init__(self):
        if self.image_size % STRIDE:
            raise ValueError(f"image_size={self.image_size} must be a multiple of the stride, {STRIDE}")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"unknown remat policy {self.remat!r}; choose from {', '.join(REMAT_POLICIES)}")

    @property
    def num_features(self) -> int:
        """D, width of the output."""
        return self.width * EXPANSION * 2 ** (len(self.depths) - 1)

    @property
    def output_dim(self) -> int:
        """D, width of the output tokens."""
        return self.num_features

    @property
    def num_tokens(self) -> int:
        """Output tokens per image: positions of the last feature map."""
        return (self.image_size // STRIDE) ** 2


class ResNet(nn.Module):
    """uint8 images to the positions of the last feature map.

    Batch norms use their stored statistics, which are parameters that no gradient reaches: the towers are for published
    weights, not for training from nothing.
    """

    config: ResNetConfig

    def setup(self):
        c = self.config
        half, dtype = c.width // 2, jnp.dtype(c.dtype)
        self.stem = [ConvNorm(half, 3, 2, dtype), ConvNorm(half, 3, 1, dtype), ConvNorm(c.width, 3, 1, dtype)]
        self.stages = [self._stage(i) for i in range(len(c.depths))]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images.

        Args:
            images: uint8[B, H, W, 3] RGB with H = W = image_size.

        Returns:
            float[B, P, 32 width] in row-major order, P = (H / 32)².

        Raises:
            ValueError: if the images have another size.
        """
        c = self.config
        if images.shape[1:] != (c.image_size, c.image_size, 3):
            raise ValueError(f"images {list(images.shape)} must be [B, {c.image_size}, {c.image_size}, 3]; "
                             "image_size of the vision tower and of the data must agree")
        x = normalize_pixels(images, c.pixel_mean, c.pixel_std).astype(c.dtype)
        for conv in self.stem:
            x = jax.nn.relu(conv(x))
        x = average_pool(x, 2)
        for i, (first, rest) in enumerate(self.stages):
            x = self._block(_block(c, i, is_first=True), first, x)
            if rest is not None:
                block = _block(c, i, is_first=False)
                x, _ = jax.lax.scan(lambda x, p, block=block: (self._block(block, p, x), None), x, rest)
        return reshape(x, (len(x), x.shape[1] * x.shape[2], x.shape[3]), "batch", None, None)

    def _stage(self, i: int) -> tuple[Any, Any]:
        """Boxed parameters of a stage: its first block, and the others stacked (None if there are none)."""
        c = self.config
        width = c.width * 2**i * EXPANSION
        before = width // 2 if i else c.width
        first = self.param(f"stage{i}_first", lambda key: init_params(
            _block(c, i, is_first=True), key, jnp.zeros((1, 4, 4, before))))
        if c.depths[i] == 1:
            return first, None
        example = jax.ShapeDtypeStruct((1, 4, 4, width), jnp.float32)
        return first, self.param(f"stage{i}_rest", init_stack(_block(c, i, is_first=False), c.depths[i] - 1, example))

    def _block(self, block: nn.Module, params: Any, x: jax.Array) -> jax.Array:
        def run(params, x):
            return block.apply({"params": params}, x)

        if self.config.remat != "none":
            run = jax.checkpoint(run, policy=REMAT_POLICIES[self.config.remat], prevent_cse=False)
        return run(params, x)


def _block(c: ResNetConfig, stage: int, is_first: bool) -> nn.Module:
    return Bottleneck(c.width * 2**stage, 2 if is_first and stage else 1, is_first, jnp.dtype(c.dtype), parent=None)


class Bottleneck(nn.Module):
    """x <- relu(shortcut + convs(x))."""

    width: int
    stride: int
    project: bool
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[B, H, W, C] -> dtype[B, H / stride, W / stride, 4 width]."""
        h = jax.nn.relu(ConvNorm(self.width, 1, 1, self.dtype, name="conv1")(x))
        h = jax.nn.relu(ConvNorm(self.width, 3, 1, self.dtype, name="conv2")(h))
        h = ConvNorm(self.width * EXPANSION, 1, 1, self.dtype, name="conv3")(average_pool(h, self.stride))
        if self.project:
            x = ConvNorm(self.width * EXPANSION, 1, 1, self.dtype, name="shortcut")(average_pool(x, self.stride))
        return jax.nn.relu(h + x)


class ConvNorm(nn.Module):
    """A convolution without bias and a batch norm with stored statistics, eps 1e-5."""

    width: int
    size: int
    stride: int
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[B, H, W, C] -> dtype[B, H / stride, W / stride, width]."""
        shape, pad = (self.size, self.size, x.shape[-1], self.width), (self.size // 2, self.size // 2)
        split = "embed" if self.width >= 128 else None
        kernel = param(self, "kernel", nn.initializers.he_normal(), shape, (None, None, None, split))
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale, bias, mean, var = (param(self, name, init, (self.width,), ("norm",)) for name, init in (
            ("scale", ones), ("bias", zeros), ("mean", zeros), ("var", ones)))
        factor = scale * jax.lax.rsqrt(jax.lax.stop_gradient(var) + 1e-5)
        x = conv2d(x.astype(self.dtype), kernel, self.stride, padding=(pad, pad)).astype(jnp.float32)
        return ((x - jax.lax.stop_gradient(mean)) * factor + bias).astype(self.dtype)
