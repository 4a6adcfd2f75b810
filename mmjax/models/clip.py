"""CLIP (arXiv:2103.00020) and SigLIP (arXiv:2303.15343): two towers, whose embeddings of a pair are to be alike."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mmjax.batch import Batch
from mmjax.layers import axes_of, init_params, l2_normalize, unbox
from mmjax.losses import contrastive_loss
from mmjax.models.interface import Cache, Metrics, Params
from mmjax.parallel import reshape, tower
from mmjax.parts import flops
from mmjax.parts.text_tower import TextTower, TextTowerConfig
from mmjax.parts.vision_head import VisionHead, VisionHeadConfig
from mmjax.parts.vision_tower import VisionConfig, vision_tower
from mmjax.parts.visual import encode_frames


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The system `clip`.

    Attributes:
        vision: the vision tower.
        head: from its tokens to the embedding of an image.
        text: the text tower, which ends with the embedding of a text.
        loss: "softmax" over the texts and the images of a batch (CLIP), or a "sigmoid" for every pair (SigLIP).
        init_scale: what cosines are multiplied by at first; a group with max_value=ln(100) keeps it below 100 (CLIP).
        init_bias: what "sigmoid" adds to them at first.
        text_padding: whether the text tower takes padding for text, as those of SigLIP were trained.
    """

    vision: VisionConfig
    head: VisionHeadConfig
    text: TextTowerConfig
    loss: Literal["softmax", "sigmoid"] = "softmax"
    init_scale: float = 1 / 0.07
    init_bias: float = -10.0
    text_padding: bool = False

    def __post_init__(self):
        image, text = self.head.output_dim or self.head.input_dim, self.text.output_dim or self.text.block.embed_dim
        if image != text:
            raise ValueError(f"embeddings of images have {image} numbers (head.output_dim) and those of texts {text} "
                             "(text.output_dim); they must be equal")
        if not self.init_scale > 0:
            raise ValueError(f"init_scale={self.init_scale} must be positive")


class Clip:
    """Parameters {"vision", "head", "text", "log_scale"} and, for a sigmoid, "bias"; see `models.interface.Model`.

    A row of a batch is a pair: one document, whose first image and whose text belong together. Rows without an image,
    or with several documents, are no pairs and count for nothing.
    """

    def __init__(self, config: ClipConfig):
        self.config = config
        self.vision = vision_tower(config.vision)
        self.head = VisionHead(config.head, parent=None)
        self.text = TextTower(config.text, parent=None)

    def _init(self, key: jax.Array) -> Any:
        c = self.config
        keys = jax.random.split(key, 3)
        image = jnp.zeros((1, c.vision.image_size, c.vision.image_size, 3), jnp.uint8)
        vision = init_params(self.vision, keys[0], image)
        tokens = jax.eval_shape(lambda p: self.vision.apply({"params": unbox(p)}, image), vision)
        return {
            "vision": vision,
            "head": init_params(self.head, keys[1], jnp.zeros(tokens.shape, tokens.dtype)),
            "text": init_params(self.text, keys[2], jnp.zeros((1, 1), jnp.int32)),
        }

    def init(self, key: jax.Array) -> Params:
        numbers = {"log_scale": jnp.float32(math.log(self.config.init_scale))}
        if self.config.loss == "sigmoid":
            numbers["bias"] = jnp.float32(self.config.init_bias)
        return unbox(self._init(key)) | numbers

    @property
    def axes(self) -> Any:
        numbers = {"log_scale": ()} | ({"bias": ()} if self.config.loss == "sigmoid" else {})
        return axes_of(jax.eval_shape(self._init, jax.random.key(0))) | numbers

    def loss(self, params: Params, batch: Batch, key: jax.Array | None = None) -> tuple[jax.Array, Metrics]:
        if not batch.images.shape[1]:
            raise ValueError("system 'clip' learns from pairs, but the rows of this data set have no images; set "
                             "images_per_row=1")
        images = self._image_embeddings(params, batch.images[:, 0])
        texts = self.text_features(params, batch, key)
        is_pair = (batch.image_segment_ids[:, 0] == 1) & (batch.segment_ids.max(1) == 1)
        return contrastive_loss(images, texts, is_pair.astype(jnp.float32), params["log_scale"], params.get("bias"))

    def image_features(self, params: Params, images: jax.Array) -> jax.Array:
        return self._image_embeddings(params, images[:, None]).astype(jnp.float32)

    def text_features(self, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        """float[B, C] embeddings of length 1 of the text of each row."""
        segments = None if self.config.text_padding else batch.segment_ids
        with tower("text"):
            return l2_normalize(self.text.apply({"params": params["text"]}, batch.tokens, segments, key=key))

    def _image_embeddings(self, params: Params, items: jax.Array) -> jax.Array:
        """Of images or videos uint8[B, F, H, W, 3]; a video's is the mean of its frames'."""
        tokens = encode_frames(self.vision, params["vision"], items)
        b, f, p, d = tokens.shape
        flat = reshape(tokens, (b * f, p, d), "batch", None, None)
        frames = l2_normalize(self.head.apply({"params": params["head"]}, flat))
        if f == 1:
            return frames
        return l2_normalize(reshape(frames, (b, f, frames.shape[1]), "batch", None, None).mean(1))

    def logits(self, params: Params, batch: Batch, key: jax.Array | None = None) -> jax.Array:
        raise _no_language("tell the likelihood of text")

    def prefill(self, params: Params, batch: Batch, max_len: int) -> tuple[jax.Array, Cache]:
        raise _no_language("generate")

    def decode(self, params: Params, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        raise _no_language("generate")

    def flops(self, work: flops.Work, trains: flops.Trains) -> dict[str, flops.Cost]:
        return {"vision": flops.vision(self.config.vision, work.frames, trains),
                "text": flops.text_tower(self.config.text, work, trains("text"))}


def _no_language(what: str) -> ValueError:
    return ValueError(f"system 'clip' has no language model and cannot {what}; evaluate it with kind='zero_shot' or "
                      "'retrieval'")
