"""Vision transformer with the options of CLIP's."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mmjax.kernels.attention import mask as masks
from mmjax.layers import Block, BlockConfig, Linear, Norm, param, run_stack, stack_params
from mmjax.parallel import reshape, shard


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """A vision tower over square images.

    Attributes:
        image_size: side of the image in pixels, a multiple of `patch_size`.
        patch_size: side of a patch in pixels.
        num_layers: blocks, `num_last_layers` among them.
        block: the block; CLIP has pre-norm and QuickGELU.
        class_token: whether a learned token stands before the patches.
        patch_bias: bias on the patch embedding (CLIP has none).
        pre_norm: layer norm before the first block (CLIP).
        final_norm: layer norm on all tokens after the last block.
        num_last_layers: blocks at the end that are a parameter sub-tree of their own, `last_blocks`, so that they can
            train while the rest is frozen (KOSMOS-1: 1).
        pixel_mean, pixel_std: normalisation of RGB in [0, 1]; CLIP's by default.
        remat: what the backward pass recomputes, see `layers.stack.REMAT_POLICIES`.
        budget: images of a batch that go through the tower at a time, spread over all devices; 0 for all slots at
            once, used or not. See `parts.visual.visual_tokens`.
    """

    image_size: int = 224
    patch_size: int = 14
    num_layers: int = 24
    block: BlockConfig = BlockConfig(embed_dim=1024, num_heads=16, mlp_dim=4096, activation="quick_gelu")
    class_token: bool = True
    patch_bias: bool = False
    pre_norm: bool = True
    final_norm: bool = True
    num_last_layers: int = 0
    pixel_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    remat: str = "full"
    budget: int = 0

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}")
        if self.budget < 0:
            raise ValueError(f"budget={self.budget} must not be negative; 0 is for all slots at once")
        if not 0 <= self.num_last_layers <= self.num_layers:
            raise ValueError(f"num_last_layers={self.num_last_layers} must lie in 0..num_layers={self.num_layers}")

    @property
    def num_tokens(self) -> int:
        """Output tokens per image: patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + self.class_token


class ViT(nn.Module):
    """uint8 images to a sequence of features; arXiv:2010.11929, with the options of CLIP (arXiv:2103.00020)."""

    config: ViTConfig

    def setup(self):
        c = self.config
        width, dtype = c.block.embed_dim, jnp.dtype(c.block.dtype)
        norm = lambda: Norm(width, c.block.norm, c.block.norm_eps, c.block.use_bias, dtype)  # noqa: E731
        self.patch_embed = Linear((3 * c.patch_size**2,), (width,), ("patch", "embed"), c.patch_bias, dtype=dtype)
        init = nn.initializers.normal(width**-0.5)
        if c.class_token:
            self.class_embed = param(self, "class_embed", init, (width,), ("norm",))
        self.position_embed = param(self, "position_embed", init, (c.num_tokens, width), ("patch", "embed"))
        if c.pre_norm:
            self.pre_norm = norm()
        if c.final_norm:
            self.final_norm = norm()
        example = (jax.ShapeDtypeStruct((1, 1, width), dtype), masks.all_keys(1, 1, 1))
        self.block = Block(c.block, parent=None)
        first = c.num_layers - c.num_last_layers
        self.blocks = stack_params(self, "blocks", self.block, first, *example) if first else None
        self.last_blocks = (stack_params(self, "last_blocks", self.block, c.num_last_layers, *example)
                            if c.num_last_layers else None)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Encodes images.

        Args:
            images: uint8[B, H, W, 3] RGB with H = W = image_size.

        Returns:
            float[B, P, D]: the class token, if any, then the patches in row-major order.

        Raises:
            ValueError: if the images have another size.
        """
        c = self.config
        if images.shape[1:] != (c.image_size, c.image_size, 3):
            raise ValueError(f"images {list(images.shape)} must be [B, {c.image_size}, {c.image_size}, 3]; "
                             "image_size of the vision tower and of the data must agree")
        x = self.patch_embed(patchify(self._normalize(images), c.patch_size))
        if c.class_token:
            first = jnp.broadcast_to(self.class_embed.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
            first = shard(first, "batch", None, None)
            x = jnp.concatenate([first, x], axis=1)
        x = x + self.position_embed.astype(x.dtype)
        if c.pre_norm:
            x = self.pre_norm(x)
        mask = masks.all_keys(x.shape[0], x.shape[1], x.shape[1])
        for params in (self.blocks, self.last_blocks):
            if params is not None:
                x, _ = run_stack(self.block, params, x, mask, remat=c.remat)
        return self.final_norm(x) if c.final_norm else x

    def _normalize(self, images: jax.Array) -> jax.Array:
        mean, std = (jnp.asarray(v, jnp.float32) for v in (self.config.pixel_mean, self.config.pixel_std))
        return (images.astype(jnp.float32) / 255.0 - mean) / std


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """Cuts float[B, H, W, C] into float[B, P, patch_size² · C] patches, row-major in space and inside a patch."""
    b, h, w, c = images.shape
    rows, columns = h // patch_size, w // patch_size
    x = reshape(images, (b, rows, patch_size, columns, patch_size, c), "batch", *[None] * 5)
    return reshape(x.transpose(0, 1, 3, 2, 4, 5), (b, rows * columns, patch_size**2 * c), "batch", None, None)


def pooled_features(tower: ViT, params: Any, images: jax.Array) -> jax.Array:
    """Mean of the tower's output tokens, uint8[N, H, W, 3] -> float32[N, D]: what retrieval compares."""
    return tower.apply({"params": params}, images).astype(jnp.float32).mean(axis=1)
