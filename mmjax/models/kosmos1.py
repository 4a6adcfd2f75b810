"""KOSMOS-1 (arXiv:2302.14045): a causal decoder that reads images as embeddings in its token sequence."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.layers import KVCache, axes_of, init_params, l2_normalize, unbox
from mmjax.models.interface import Metrics, Params
from mmjax.parallel import reshape
from mmjax.parts import flops
from mmjax.parts.connectors import AttentivePool, AttentivePoolConfig, insert_visual
from mmjax.parts.decoder import Decoder, DecoderConfig, empty_cache, row_lengths, text_example
from mmjax.parts.visual import encode_frames, visual_tokens
from mmjax.parts.vit import ViT, ViTConfig, pooled_features


@dataclasses.dataclass(frozen=True)
class Kosmos1Config:
    """The system `kosmos1`.

    Attributes:
        vision: the vision tower; all its tokens, the class token among them, are L2-normalised for the connector.
        connector: attentive pooling to R embeddings per image.
        lm: the decoder; Magneto with xPos as published.
    """

    vision: ViTConfig
    connector: AttentivePoolConfig
    lm: DecoderConfig

    def __post_init__(self):
        widths = {
            "connector.input_dim": (self.connector.input_dim, "vision.block.embed_dim", self.vision.block.embed_dim),
            "connector.embed_dim": (self.connector.embed_dim, "lm.block.embed_dim", self.lm.block.embed_dim),
        }
        for name, (value, other, wanted) in widths.items():
            if value != wanted:
                raise ValueError(f"{name}={value} must equal {other}={wanted}")


class Kosmos1:
    """Parameters {"vision", "connector", "lm"}; see `models.interface.Model` for the methods."""

    def __init__(self, config: Kosmos1Config):
        self.config = config
        self.vision = ViT(config.vision, parent=None)
        self.connector = AttentivePool(config.connector, parent=None)
        self.lm = Decoder(config.lm, parent=None)

    def _init(self, key: jax.Array) -> Any:
        c = self.config
        keys = jax.random.split(key, 3)
        image = jnp.zeros((1, c.vision.image_size, c.vision.image_size, 3), jnp.uint8)
        return {
            "vision": init_params(self.vision, keys[0], image),
            "connector": init_params(self.connector, keys[1], jnp.zeros((1, 1, c.connector.input_dim))),
            "lm": init_params(self.lm, keys[2], text_example()),
        }

    def init(self, key: jax.Array) -> Params:
        return unbox(self._init(key))

    @property
    def axes(self) -> Any:
        return axes_of(jax.eval_shape(self._init, jax.random.key(0)))

    def logits(self, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        lm = self.lm.bind({"params": params["lm"]})
        x = self._embed(params, batch, lm)
        return lm.run(x, batch.segment_ids, batch.positions, key=key)

    def loss(self, params: Params, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
        lm = self.lm.bind({"params": params["lm"]})
        return lm.loss(self._embed(params, batch, lm), batch, key=key)

    def image_features(self, params: Params, images: jax.Array) -> jax.Array:
        return pooled_features(self.vision, params["vision"], images)

    def prefill(self, params: Params, batch: Batch, max_len: int) -> tuple[jax.Array, KVCache]:
        lm = self.lm.bind({"params": params["lm"]})
        cache = empty_cache(self.config.lm, batch.tokens.shape[0], max_len)
        return lm.extend(self._embed(params, batch, lm), cache, row_lengths(batch))

    def decode(self, params: Params, tokens: jax.Array, cache: KVCache) -> tuple[jax.Array, KVCache]:
        lm = self.lm.bind({"params": params["lm"]})
        return lm.extend(lm.embed(tokens), cache, jnp.full(tokens.shape[:1], tokens.shape[1], jnp.int32))

    def _embed(self, params: Params, batch: Batch, lm: Decoder) -> jax.Array:
        """float[B, T, D]: text embeddings with the images' put in their places; the decoder scales both alike."""
        text = lm.embed(batch.tokens)
        if batch.images.shape[1] == 0:
            return text
        return insert_visual(text, self._visual(params, batch), batch)

    def _visual(self, params: Params, batch: Batch) -> jax.Array:
        """float[B, I, R, D]; the frames of a video are pooled together."""
        def encode(items):
            features = l2_normalize(encode_frames(self.vision, params["vision"], items))
            n, f, p, d = features.shape
            features = reshape(features, (n, f * p, d), "batch", None, None)
            return self.connector.apply({"params": params["connector"]}, features)

        return visual_tokens(encode, batch.images, batch.image_segment_ids, self.config.vision.budget)

    def flops(self, work: flops.Work, trains: flops.Trains) -> dict[str, flops.Cost]:
        c = self.config
        features, to_connector = work.frames * c.vision.num_tokens, trains("vision")
        to_lm = to_connector or trains("connector")
        return {
            "vision": flops.vit(c.vision, work.frames, trains),
            "connector": flops.attentive_pool(c.connector, features, work.items, trains("connector"), to_connector),
            "lm": flops.decoder(c.lm, work, trains("lm"), to_lm),
        }
