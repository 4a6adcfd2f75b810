"""Systems of a few thousand parameters and packed batches for them, made without the data floor.

All widths are multiples of 8 and all head counts even, so that parameters split over eight devices.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.batch import Batch
from mmjax.layers import BlockConfig
from mmjax.models.flamingo import FlamingoConfig
from mmjax.models.kosmos1 import Kosmos1Config
from mmjax.models.language import LanguageConfig
from mmjax.parts.connectors import AttentivePoolConfig
from mmjax.parts.decoder import DecoderConfig
from mmjax.parts.gated_xattn import GatedXAttnConfig
from mmjax.parts.perceiver import PerceiverConfig
from mmjax.parts.vit import ViTConfig

VOCAB = 48
IMAGE_SIZE = 8
NUM_LATENTS = 4         # visual tokens per image, R
SYSTEMS = ("flamingo", "kosmos1", "language")

# No other stack has 3 layers like the vision tower, and every feed-forward has a width of its own: so a jaxpr shows
# whose scan and whose gradient it holds.
VISION = ViTConfig(image_size=IMAGE_SIZE, patch_size=4, num_layers=3,
                   block=BlockConfig(16, 2, 40, activation="quick_gelu"))
VISION_LAST = dataclasses.replace(VISION, num_layers=4, num_last_layers=1)
LLAMA = DecoderConfig(VOCAB, 4, BlockConfig(32, 4, 64, num_kv_heads=2, norm="rms", use_bias=False, activation="swiglu"),
                      max_positions=64)
MAGNETO = DecoderConfig(VOCAB, 2, BlockConfig(32, 4, 64, sub_norm=True, init_gain=1.1774), positions="xpos",
                        rotary_layout="interleaved", scale_embedding=True, max_positions=64)
GPT = DecoderConfig(VOCAB, 2, BlockConfig(32, 4, 64, activation="gelu_tanh"), positions="learned", max_positions=64,
                    tie_embeddings=False)
RESAMPLER = PerceiverConfig(16, 24, NUM_LATENTS, num_layers=2, num_heads=2, head_dim=8, mlp_dim=56, num_frames=2)
CONNECTOR = AttentivePoolConfig(16, 32, NUM_LATENTS, num_heads=4)
XATTN = GatedXAttnConfig(32, 24, num_heads=2, head_dim=16, mlp_dim=48)


def config(system: str, **fields):
    """The tiny config of a system; `fields` replace some of its parts."""
    parts = {
        "flamingo": dict(vision=VISION, resampler=RESAMPLER, lm=LLAMA, xattn=XATTN, xattn_every=2),
        "kosmos1": dict(vision=VISION_LAST, connector=CONNECTOR, lm=MAGNETO),
        "language": dict(lm=LLAMA),
    }[system]
    types = {"flamingo": FlamingoConfig, "kosmos1": Kosmos1Config, "language": LanguageConfig}
    return types[system](**parts | fields)


def random_params(model, seed: int = 0):
    """Parameters with no zero among them: gates, biases and scales too, so that every path carries signal.

    Drawn with NumPy, which compiles nothing.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        center = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(center + 0.2 * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0)))


def make_batch(system: str, rows, num_tokens: int, num_images: int, seed: int = 0) -> Batch:
    """Packs documents drawn as strings: "t" is a text token, "i" an image.

    An image is one `<image>` token in Flamingo, which the tokens from there on read, and in KOSMOS-1 `<image>`, R slots
    and `</image>`. The image tokens and what stands last in a document have no loss.

    Args:
        system: name of the system.
        rows: for each row the list of its documents, such as `[["titt", "ttt"], ["itt"]]`.
        num_tokens, num_images: T and I.
        seed: of tokens and pixels.
    """
    rng = np.random.default_rng(seed)
    b, t, i = len(rows), num_tokens, num_images
    zeros = lambda: np.zeros((b, t), np.int32)  # noqa: E731
    segments, positions, weights = zeros(), zeros(), np.zeros((b, t), np.float32)
    image_index, slots = np.full((b, t), -1, np.int32), np.full((b, t), -1, np.int32)
    image_segments = np.zeros((b, i), np.int32)
    for r, documents in enumerate(rows):
        at = seen = 0
        for number, document in enumerate(documents, 1):
            start, last = at, -1
            for kind in document:
                width = NUM_LATENTS + 2 if kind == "i" and system == "kosmos1" else 1
                if kind == "i":
                    last, seen = seen, seen + 1
                    image_segments[r, last] = number
                if width > 1:
                    image_index[r, at + 1:at + width - 1] = last
                    slots[r, at + 1:at + width - 1] = np.arange(NUM_LATENTS)
                elif system == "flamingo":
                    image_index[r, at] = last
                if kind == "t":
                    weights[r, at] = 1.0
                at += width
            segments[r, start:at], positions[r, start:at] = number, np.arange(at - start)
            weights[r, at - 1] = 0.0
    images = rng.integers(0, 256, (b, i, 1, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
    images[image_segments == 0] = 0
    tokens, targets = rng.integers(1, VOCAB, (2, b, t), np.int32)
    return Batch(tokens, targets, weights, segments, positions, image_index, slots, images, image_segments)
