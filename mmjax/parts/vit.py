"""Vision transformer with the options of CLIP, SigLIP, EVA, EVA-02 and AIM; `parts.vision_presets` has their sizes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mmjax.kernels.attention import IntervalMask, Rotary
from mmjax.kernels.attention import mask as masks
from mmjax.layers import Block, BlockConfig, Linear, param, run_stack, stack_params
from mmjax.parallel import shard
from mmjax.parts.patches import drop_patches, grid_positions, normalize_pixels, patchify, sincos_positions

POSITIONS = ("learned", "sincos")


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
        patch_norm: norm on the patches before positions are added (AIM).
        positions: "learned", a table that has a row for the class token too; "sincos", fixed (AIM).
        rotary_grid: queries and keys also turn by row and column, as if the grid had this side (EVA-02: 16); 0 for no
            rotation.
        patch_dropout: share of the patches left out when the tower is given a key (FLIP, arXiv:2212.00794).
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
    patch_norm: bool = False
    positions: str = "learned"
    rotary_grid: int = 0
    patch_dropout: float = 0.0

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}")
        if self.budget < 0:
            raise ValueError(f"budget={self.budget} must not be negative; 0 is for all slots at once")
        if not 0 <= self.num_last_layers <= self.num_layers:
            raise ValueError(f"num_last_layers={self.num_last_layers} must lie in 0..num_layers={self.num_layers}")
        if self.positions not in POSITIONS:
            raise ValueError(f"unknown positions {self.positions!r}; choose from {', '.join(POSITIONS)}")
        if not 0 <= self.patch_dropout < 1:
            raise ValueError(f"patch_dropout={self.patch_dropout} must be at least 0 and below 1")

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.image_size // self.patch_size

    @property
    def output_dim(self) -> int:
        """D, width of the output tokens."""
        return self.block.embed_dim

    @property
    def num_tokens(self) -> int:
        """Output tokens per image: patches and the class token."""
        return self.grid**2 + self.class_token


class ViT(nn.Module):
    """uint8 images to a sequence of features; arXiv:2010.11929, with the options of CLIP (arXiv:2103.00020)."""

    config: ViTConfig

    def setup(self):
        c = self.config
        width, dtype = c.block.embed_dim, jnp.dtype(c.block.dtype)
        self.patch_embed = Linear((3 * c.patch_size**2,), (width,), ("patch", "embed"), c.patch_bias, dtype=dtype)
        init = nn.initializers.normal(width**-0.5)
        if c.patch_norm:
            self.patch_norm = c.block.make_norm()
        if c.class_token:
            self.class_embed = param(self, "class_embed", init, (width,), ("norm",))
        if c.positions == "learned":
            self.position_embed = param(self, "position_embed", init, (c.num_tokens, width), ("patch", "embed"))
        if c.pre_norm:
            self.pre_norm = c.block.make_norm()
        if c.final_norm:
            self.final_norm = c.block.make_norm()
        example = (jax.ShapeDtypeStruct((1, 1, width), dtype), masks.all_keys(1, 1, 1))
        self.block = Block(c.block, parent=None)
        first = c.num_layers - c.num_last_layers
        self.blocks = stack_params(self, "blocks", self.block, first, *example) if first else None
        self.last_blocks = (stack_params(self, "last_blocks", self.block, c.num_last_layers, *example)
                            if c.num_last_layers else None)

    def __call__(self, images: jax.Array, key: jax.Array | None = None, prefix: jax.Array | None = None) -> jax.Array:
        """Encodes images.

        Args:
            images: uint8[B, H, W, 3] RGB with H = W = image_size.
            key: for dropout, of patches too; None for none.
            prefix: int32[B], how many first tokens see each other; the later ones see those before them. None where
                all see all.

        Returns:
            float[B, P, D]: the class token, if any, then the patches in row-major order.

        Raises:
            ValueError: if the images have another size.
        """
        c = self.config
        if images.shape[1:] != (c.image_size, c.image_size, 3):
            raise ValueError(f"images {list(images.shape)} must be [B, {c.image_size}, {c.image_size}, 3]; "
                             "image_size of the vision tower and of the data must agree")
        key_patches, key_blocks = (None, None) if key is None else jax.random.split(key)
        x, places = self._embed(images, key_patches)
        if c.pre_norm:
            x = self.pre_norm(x)
        mask = _mask(x.shape[0], x.shape[1], prefix)
        for params in (self.blocks, self.last_blocks):
            if params is not None:
                x, _ = run_stack(self.block, params, x, mask, rotary=self._rotary(places), key=key_blocks,
                                 remat=c.remat)
        return self.final_norm(x) if c.final_norm else x

    def _embed(self, images: jax.Array, key: jax.Array | None) -> tuple[jax.Array, jax.Array]:
        """Tokens float[B, P, D] with their positions added, and int32[B, P, 2] where on the grid they are."""
        c = self.config
        x = self.patch_embed(patchify(normalize_pixels(images, c.pixel_mean, c.pixel_std), c.patch_size))
        if c.patch_norm:
            x = self.patch_norm(x)
        places, num_class = grid_positions(c.grid)[None], int(c.class_token)
        if c.class_token:
            first = jnp.broadcast_to(self.class_embed.astype(x.dtype), (x.shape[0], 1, x.shape[2]))
            x = jnp.concatenate([shard(first, "batch", None, None), x], axis=1)
            places = np.pad(places, ((0, 0), (1, 0), (0, 0)))
        if c.positions == "learned":
            x = x + self.position_embed.astype(x.dtype)
        else:
            x = x + np.pad(sincos_positions(c.grid, x.shape[2]), ((num_class, 0), (0, 0))).astype(x.dtype)
        places = jnp.broadcast_to(places, (*x.shape[:2], 2))
        if key is not None and c.patch_dropout:
            kept_patches, kept = drop_patches(x[:, num_class:], c.patch_dropout, key)
            x = jnp.concatenate([x[:, :num_class], kept_patches], axis=1)
            patch_places = jnp.take_along_axis(places[:, num_class:], kept[..., None], axis=1)
            places = jnp.concatenate([places[:, :num_class], patch_places], axis=1)
        return x, places

    def _rotary(self, places: jax.Array) -> Rotary | None:
        """Rotation by row and column; none at the class token, which stands at the origin."""
        c = self.config
        if not c.rotary_grid:
            return None
        return Rotary(places, places, layout="interleaved", position_scale=c.rotary_grid / c.grid)


def _mask(batch_size: int, num_tokens: int, prefix: jax.Array | None) -> IntervalMask:
    if prefix is None:
        return masks.all_keys(batch_size, num_tokens, num_tokens)
    return masks.prefix(shard(jnp.ones((batch_size, num_tokens), jnp.int32), "batch", None), prefix[:, None])


def pooled_features(tower: nn.Module, params: Any, images: jax.Array) -> jax.Array:
    """Mean of the tower's output tokens, uint8[N, H, W, 3] -> float32[N, D]: what retrieval compares."""
    return tower.apply({"params": params}, images).astype(jnp.float32).mean(axis=1)
