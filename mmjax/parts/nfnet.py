"""NFNet-F0 to F6, convolutional towers without normalisation; F6 is the vision encoder of Flamingo.

Source: arXiv:2102.06171, in the form of the authors' code: scaled weight standardisation, variance-preserving
activations, squeeze-and-excite, and a learned gain that opens every residual branch.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.layers import ACTIVATIONS, Linear, init_params, init_stack, param
from mmjax.layers.conv import average_pool, conv2d
from mmjax.layers.stack import REMAT_POLICIES
from mmjax.parallel import reshape
from mmjax.parts.patches import normalize_pixels

GAIN = 1.7015043497085571       # one over the standard deviation of GELU of a standard normal; of the authors' code
SE_GAIN = 2.0
STEM_STRIDES = (2, 1, 1, 2)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class NFNetConfig:
    """An NFNet of the F family.

    Attributes:
        image_size: side of the image in pixels; any.
        depths: blocks of the four stages.
        widths: their channels.
        stem_width: channels after the stem.
        group_size: channels of a group in the 3 x 3 convolutions.
        bottleneck: inner channels of a block over its own.
        se_ratio: inner channels of squeeze-and-excite over the block's.
        alpha: weight of a residual branch.
        num_features: channels of the last 1 x 1 convolution, the width D of the tokens.
        activation: "gelu", or "gelu_tanh" as the authors' JAX code computes it.
        eps: of the weights' variance.
        pixel_mean, pixel_std: normalisation of RGB in [0, 1].
        remat: what the backward pass recomputes, see `layers.stack.REMAT_POLICIES`.
        dtype: compute dtype.
        budget: images of a batch that go through the tower at a time; see `ViTConfig`.
    """

    image_size: int = 320
    depths: tuple[int, ...] = (7, 14, 42, 21)
    widths: tuple[int, ...] = (256, 512, 1536, 1536)
    stem_width: int = 128
    group_size: int = 128
    bottleneck: float = 0.5
    se_ratio: float = 0.5
    alpha: float = 0.2
    num_features: int = 3072
    activation: str = "gelu"
    eps: float = 1e-5
    pixel_mean: tuple[float, float, float] = IMAGENET_MEAN
    pixel_std: tuple[float, float, float] = IMAGENET_STD
    remat: str = "full"
    dtype: str = "float32"
    budget: int = 0
    class_token: ClassVar[bool] = False

    def __post_init__(self):
        if self.activation not in ("gelu", "gelu_tanh"):
            raise ValueError(f"unknown activation {self.activation!r}; choose 'gelu' or 'gelu_tanh'")
        if len(self.depths) != len(self.widths):
            raise ValueError(f"depths={self.depths} and widths={self.widths} must have one number per stage")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"unknown remat policy {self.remat!r}; choose from {', '.join(REMAT_POLICIES)}")
        for width in self.widths:
            if int(width * self.bottleneck) % self.group_size:
                raise ValueError(f"widths={self.widths} times bottleneck={self.bottleneck} must be multiples of "
                                 f"group_size={self.group_size}")

    @property
    def output_dim(self) -> int:
        """D, width of the output tokens."""
        return self.num_features

    @property
    def num_tokens(self) -> int:
        """Output tokens per image: positions of the last feature map."""
        return math.ceil(self.image_size / (math.prod(STEM_STRIDES) * 2 ** (len(self.depths) - 1))) ** 2

    def activate(self, x: jax.Array) -> jax.Array:
        """The activation, of unit variance where x is a standard normal."""
        return ACTIVATIONS[self.activation](x) * GAIN


class NFNet(nn.Module):
    """uint8 images to the positions of the last feature map."""

    config: NFNetConfig

    def setup(self):
        c = self.config
        widths = [c.stem_width // 2**i for i in (3, 2, 1, 0)]
        self.stem = [StandardConv(width, 3, stride, eps=c.eps, dtype=jnp.dtype(c.dtype))
                     for width, stride in zip(widths, STEM_STRIDES, strict=True)]
        self.last_conv = StandardConv(c.num_features, 1, eps=c.eps, dtype=jnp.dtype(c.dtype))
        self.stages = [self._stage(i) for i in range(len(c.depths))]

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images.

        Args:
            images: uint8[B, H, W, 3] RGB.

        Returns:
            float[B, P, num_features] in row-major order, P = ceil(H / 32) ceil(W / 32).
        """
        c = self.config
        x = normalize_pixels(images, c.pixel_mean, c.pixel_std).astype(c.dtype)
        for i, conv in enumerate(self.stem):
            x = conv(c.activate(x) if i else x)
        for i, (first, rest) in enumerate(self.stages):
            x = self._run_stage(i, first, rest, x)
        x = c.activate(self.last_conv(x))
        return reshape(x, (len(x), x.shape[1] * x.shape[2], x.shape[3]), "batch", None, None)

    def _stage(self, i: int) -> tuple[Any, Any]:
        """Boxed parameters of a stage: its first block, and the others stacked (None if there are none)."""
        c = self.config
        before = c.widths[i - 1] if i else c.stem_width
        block, first = (Block(c, c.widths[i], stride, parent=None) for stride in (1, 2 if i else 1))

        params = self.param(f"stage{i}_first", lambda key: init_params(first, key, jnp.zeros((1, 4, 4, before)), 1.0))
        if c.depths[i] == 1:
            return params, None
        example = jax.ShapeDtypeStruct((1, 4, 4, c.widths[i]), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
        return params, self.param(f"stage{i}_rest", init_stack(block, c.depths[i] - 1, *example))

    def _run_stage(self, i: int, first: Any, rest: Any, x: jax.Array) -> jax.Array:
        """The variance of x grows by alpha² with each block, and starts anew at the first of a stage."""
        c = self.config
        variance = 1 + c.depths[i - 1] * c.alpha**2 if i else 1.0
        x = self._block(Block(c, c.widths[i], 2 if i else 1, parent=None), first, x, variance**-0.5)
        if rest is None:
            return x
        block = Block(c, c.widths[i], 1, parent=None)
        betas = (1 + c.alpha**2 * jnp.arange(1, c.depths[i], dtype=jnp.float32)) ** -0.5
        return jax.lax.scan(lambda x, layer: (self._block(block, layer[0], x, layer[1]), None), x, (rest, betas))[0]

    def _block(self, block: nn.Module, params: Any, x: jax.Array, beta: jax.Array | float) -> jax.Array:
        def run(params, x, beta):
            return block.apply({"params": params}, x, beta)

        if self.config.remat != "none":
            run = jax.checkpoint(run, policy=REMAT_POLICIES[self.config.remat], prevent_cse=False)
        return run(params, x, beta)


class Block(nn.Module):
    """x <- shortcut + alpha gain SE(convs(act(x) beta)), with beta one over the standard deviation of x."""

    config: NFNetConfig
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array, beta: jax.Array | float) -> jax.Array:
        """float[B, H, W, C] -> float[B, ceil(H / stride), ceil(W / stride), width]."""
        c = self.config

        def conv(name, width, size, stride=1, num_groups=1):
            return StandardConv(width, size, stride, num_groups, c.eps, jnp.dtype(c.dtype), name=name)

        h = c.activate(x) * jnp.asarray(beta, x.dtype)
        if x.shape[-1] != self.width or self.stride > 1:
            x = conv("shortcut", self.width, 1)(average_pool(h, self.stride))
        inner = int(self.width * c.bottleneck)
        groups = inner // c.group_size
        h = conv("conv1", inner, 1)(h)
        h = conv("conv2", inner, 3, self.stride, groups)(c.activate(h))
        h = conv("conv3", inner, 3, 1, groups)(c.activate(h))
        h = conv("conv4", self.width, 1)(c.activate(h))
        h = SE_GAIN * SqueezeExcite(int(self.width * c.se_ratio), jnp.dtype(c.dtype), name="se")(h)
        gain = param(self, "gain", nn.initializers.zeros, (), ())
        return x + c.alpha * gain.astype(h.dtype) * h


class StandardConv(nn.Module):
    """A convolution whose kernel is standardised over its inputs, per output channel.

    kernel = gain (w - mean) / sqrt((var + eps) fan_in). Source: arXiv:2102.06171 equation 1, with eps where timm has
    it; the authors' code takes at least 1e-4 for var fan_in instead.
    """

    width: int
    size: int
    stride: int = 1
    num_groups: int = 1
    eps: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[B, H, W, C] -> dtype[B, ceil(H / stride), ceil(W / stride), width]."""
        fan_in = self.size**2 * x.shape[-1] // self.num_groups
        shape = (self.size, self.size, x.shape[-1] // self.num_groups, self.width)
        split = "embed" if self.width >= 128 else None
        kernel = param(self, "kernel", nn.initializers.normal(fan_in**-0.5), shape, (None, None, None, split))
        gain = param(self, "gain", nn.initializers.ones, (self.width,), ("norm",))
        bias = param(self, "bias", nn.initializers.zeros, (self.width,), ("norm",))
        kernel = kernel - kernel.mean((0, 1, 2))
        scale = gain * jax.lax.rsqrt((jnp.square(kernel).mean((0, 1, 2)) + self.eps) * fan_in)
        x = conv2d(x.astype(self.dtype), kernel * scale, self.stride, self.num_groups)
        return x + bias.astype(x.dtype)


class SqueezeExcite(nn.Module):
    """x · sigmoid(W_2 relu(W_1 mean(x))). Source: arXiv:1709.01507."""

    width: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """float[B, H, W, C] -> dtype[B, H, W, C]."""
        dim = x.shape[-1]
        h = Linear((dim,), (self.width,), ("embed", None), dtype=self.dtype, name="down")(
            x.astype(jnp.float32).mean((1, 2)))
        h = Linear((self.width,), (dim,), (None, "embed"), dtype=self.dtype, name="up")(jax.nn.relu(h))
        return x * jax.nn.sigmoid(h)[:, None, None]

