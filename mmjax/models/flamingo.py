"""Flamingo (arXiv:2204.14198): a frozen language model that reads images by gated cross-attention."""

import dataclasses
from typing import Any

import flax
import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.kernels.attention import IntervalMask
from mmjax.kernels.attention import mask as masks
from mmjax.layers import Hook, KVCache, axes_of, init_params, init_stack, num_hooks, unbox
from mmjax.models.interface import Metrics, Params
from mmjax.parallel import reshape
from mmjax.parts import flops
from mmjax.parts.decoder import Decoder, DecoderConfig, empty_cache, row_lengths, text_example
from mmjax.parts.gated_xattn import GatedXAttn, GatedXAttnConfig
from mmjax.parts.perceiver import PerceiverConfig, PerceiverResampler
from mmjax.parts.vision_tower import VisionConfig, vision_tower
from mmjax.parts.visual import encode_frames, visual_tokens
from mmjax.parts.vit import pooled_features


@dataclasses.dataclass(frozen=True)
class FlamingoConfig:
    """The system `flamingo`.

    Attributes:
        vision: the vision tower; its class token, if any, is dropped.
        resampler: R visual tokens per image or video.
        lm: the language model.
        xattn: the gated cross-attention layers.
        xattn_every: n; one stands before every n-th block.
        xattn_offset: the first block that has one before it: 0 as published, n - 1 as in OpenFlamingo.
    """

    vision: VisionConfig
    resampler: PerceiverConfig
    lm: DecoderConfig
    xattn: GatedXAttnConfig
    xattn_every: int = 1
    xattn_offset: int = 0

    def __post_init__(self):
        widths = {
            "resampler.input_dim": (self.resampler.input_dim, "vision.output_dim", self.vision.output_dim),
            "xattn.visual_dim": (self.xattn.visual_dim, "resampler.embed_dim", self.resampler.embed_dim),
            "xattn.embed_dim": (self.xattn.embed_dim, "lm.block.embed_dim", self.lm.block.embed_dim),
        }
        for name, (value, other, wanted) in widths.items():
            if value != wanted:
                raise ValueError(f"{name}={value} must equal {other}={wanted}")
        if self.xattn_every < 1 or not 0 <= self.xattn_offset < self.lm.num_layers:
            raise ValueError(f"xattn_every={self.xattn_every} must be at least 1 and xattn_offset={self.xattn_offset} "
                             f"in 0..{self.lm.num_layers - 1}, the blocks of the language model")


@flax.struct.dataclass
class FlamingoCache:
    """The language model's cache, that of the cross-attention layers (all visual tokens), and the image last seen."""

    lm: KVCache
    visual: KVCache
    image_index: jax.Array

    @property
    def lengths(self) -> jax.Array:
        return self.lm.lengths

    def take(self, rows: jax.Array) -> "FlamingoCache":
        return FlamingoCache(self.lm.take(rows), self.visual.take(rows), self.image_index[rows])


class Flamingo:
    """Parameters {"vision", "resampler", "xattn", "lm"}; see `models.interface.Model` for the methods."""

    def __init__(self, config: FlamingoConfig):
        self.config = config
        self.vision = vision_tower(config.vision)
        self.resampler = PerceiverResampler(config.resampler, parent=None)
        self.xattn = GatedXAttn(config.xattn, parent=None)
        self.lm = Decoder(config.lm, parent=None)

    def _init(self, key: jax.Array) -> Any:
        c = self.config
        keys = jax.random.split(key, 4)
        image = jnp.zeros((1, c.vision.image_size, c.vision.image_size, 3), jnp.uint8)
        features = jnp.zeros((1, 1, 1, c.resampler.input_dim))
        stack = init_stack(self.xattn, num_hooks(c.lm.num_layers, c.xattn_every, c.xattn_offset),
                           jnp.zeros((1, 1, c.xattn.embed_dim)), jnp.zeros((1, 1, c.xattn.visual_dim)),
                           masks.all_keys(1, 1, 1))
        return {
            "vision": init_params(self.vision, keys[0], image),
            "resampler": init_params(self.resampler, keys[1], features),
            "xattn": stack(keys[2]),
            "lm": init_params(self.lm, keys[3], text_example()),
        }

    def init(self, key: jax.Array) -> Params:
        return unbox(self._init(key))

    @property
    def axes(self) -> Any:
        return axes_of(jax.eval_shape(self._init, jax.random.key(0)))

    def logits(self, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        lm = self.lm.bind({"params": params["lm"]})
        hook = self._cross_attention(params, batch)
        return lm.run(lm.embed(batch.tokens), batch.segment_ids, batch.positions, key=key, hook=hook)

    def loss(self, params: Params, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
        lm = self.lm.bind({"params": params["lm"]})
        return lm.loss(lm.embed(batch.tokens), batch, key=key, hook=self._cross_attention(params, batch))

    def image_features(self, params: Params, images: jax.Array) -> jax.Array:
        return pooled_features(self.vision, params["vision"], images)

    def prefill(self, params: Params, batch: Batch, max_len: int) -> tuple[jax.Array, FlamingoCache]:
        visual, lengths = self._visual(params, batch), row_lengths(batch)
        k, v = jax.vmap(lambda p: self.xattn.apply({"params": p}, visual, method="project_kv"))(params["xattn"])
        k, v = (x.reshape(*x.shape[:3], -1) for x in (k, v))
        kept = KVCache(k, v, jnp.full(k.shape[1], k.shape[2], jnp.int32))
        last = jnp.take_along_axis(batch.image_index, jnp.maximum(lengths - 1, 0)[:, None], axis=1)[:, 0]
        cache = FlamingoCache(empty_cache(self.config.lm, batch.tokens.shape[0], max_len), kept, last)
        return self._extend(params, batch.tokens, cache, lengths, batch.image_index)

    def decode(self, params: Params, tokens: jax.Array, cache: FlamingoCache) -> tuple[jax.Array, FlamingoCache]:
        image_index = jnp.broadcast_to(cache.image_index[:, None], tokens.shape)
        num_new = jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32)
        return self._extend(params, tokens, cache, num_new, image_index)

    def _extend(self, params: Params, tokens: jax.Array, cache: FlamingoCache, num_new: jax.Array,
                image_index: jax.Array) -> tuple[jax.Array, FlamingoCache]:
        mask = self._mask(image_index)

        def attend(layer, y):
            p, index = layer
            return self.xattn.apply({"params": p}, y, mask, cache.visual, index, method="attend_cached")

        hook = self._hook((params["xattn"], jnp.arange(len(cache.visual.k))), attend)
        lm = self.lm.bind({"params": params["lm"]})
        logits, lm_cache = lm.extend(lm.embed(tokens), cache.lm, num_new, hook=hook)
        return logits, cache.replace(lm=lm_cache)

    def flops(self, work: flops.Work, trains: flops.Trains) -> dict[str, flops.Cost]:
        c = self.config
        features = work.frames * (c.vision.num_tokens - c.vision.class_token)
        to_visual = trains("vision") or trains("resampler")
        between = to_visual or trains("xattn")
        count = num_hooks(c.lm.num_layers, c.xattn_every, c.xattn_offset)
        return {
            "vision": flops.vision(c.vision, work.frames, trains),
            "resampler": flops.perceiver(c.resampler, features, work.items, trains("resampler"), trains("vision")),
            "xattn": flops.gated_xattn(c.xattn, count, work, c.resampler.num_latents, trains("xattn"), to_visual),
            "lm": flops.decoder(c.lm, work, trains("lm"), between, untouched=c.xattn_offset),
        }

    def _cross_attention(self, params: Params, batch: Batch) -> Hook:
        """The layers that read the images of a batch."""
        visual, mask = self._visual(params, batch), self._mask(batch.image_index)
        return self._hook(params["xattn"], lambda p, y: self.xattn.apply({"params": p}, y, visual, mask))

    def _visual(self, params: Params, batch: Batch) -> jax.Array:
        """Visual tokens of all items of a row in order, float[B, I · R, visual_dim]."""
        b, i = batch.images.shape[:2]
        r, d = self.config.resampler.num_latents, self.config.resampler.embed_dim
        if i == 0:      # text only: no interval reaches this one empty item
            return jnp.zeros((b, r, d), self.config.resampler.dtype)

        def encode(items):
            features = encode_frames(self.vision, params["vision"], items)
            features = features[..., self.config.vision.class_token:, :]
            return self.resampler.apply({"params": params["resampler"]}, features)

        visual = visual_tokens(encode, batch.images, batch.image_segment_ids, self.config.vision.budget)
        return reshape(visual, (b, i * r, d), "batch", None, None)

    def _mask(self, image_index: jax.Array) -> IntervalMask:
        return masks.per_image(image_index, self.config.resampler.num_latents)

    def _hook(self, params: Any, apply: Any) -> Hook:
        return Hook(apply, params, self.config.xattn_every, self.config.xattn_offset)
