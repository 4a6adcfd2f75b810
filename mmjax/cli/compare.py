"""Outputs of published weights beside those of the reference implementation, transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.batch import Batch
from mmjax.checkpoint.convert.formats import FORMATS
from mmjax.checkpoint.convert.pretrained import Pretrained
from mmjax.models.clip import Clip, ClipConfig
from mmjax.parts.decoder import Decoder, DecoderConfig
from mmjax.parts.encoder_decoder import EncoderDecoder, EncoderDecoderConfig
from mmjax.parts.text_tower import TextTower, TextTowerConfig
from mmjax.parts.vit import ViT, ViTConfig

ROWS, LENGTH, SEED = 2, 16, 0
Inputs = dict[str, np.ndarray]


def compare(model: Pretrained, folder: Path) -> float:
    """Prints the largest and the mean difference of outputs on random inputs, and returns the largest of its share.

    Args:
        model: as we have read it.
        folder: the same weights, for the reference.

    Raises:
        ImportError: if torch or transformers is not installed.
    """
    if not (FORMATS[model.kind].architecture and model.kind != "open_clip"):
        raise ValueError(f"--compare runs transformers, which does not read folders of {model.kind}")
    reference = _reference(FORMATS[model.kind].architecture, folder)
    inputs, ours = RUNS[type(model.config)](model.config, model.params)
    theirs = reference(inputs)
    worst = 0.0
    for name, a in ours.items():
        b = theirs[name]
        difference = np.abs(np.asarray(a, np.float64) - b)
        share = float(difference.max() / np.abs(b).max())
        print(f"{name} {list(b.shape)}: largest difference {difference.max():.3e}, mean {difference.mean():.3e}, "
              f"largest as a share of the largest output {share:.3e}")
        worst = max(worst, share)
    return worst


def _reference(architecture: str, folder: Path) -> Callable[[Inputs], dict[str, np.ndarray]]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError("--compare needs torch and transformers; install mmjax[parity]") from error
    module = getattr(transformers, architecture).from_pretrained(folder, dtype=torch.float32).eval()

    def run(inputs: Inputs) -> dict[str, np.ndarray]:
        with torch.no_grad():
            out = module(**{name: torch.from_numpy(np.array(x)) for name, x in inputs.items()})
        return {name: x.numpy() for name, x in out.items() if isinstance(x, torch.Tensor)}

    return run


def _tokens(vocab_size: int, last: int | None = None, length: int = LENGTH) -> np.ndarray:
    """int64[B, T] that hold no end token but, if given, the last."""
    tokens = np.random.default_rng(SEED).integers(3, vocab_size - 1, (ROWS, length))
    if last is not None:
        tokens = np.where(tokens == last, 3, tokens)
        tokens[:, -1] = last
    return tokens


def _pixels(size: int) -> np.ndarray:
    return np.random.default_rng(SEED).integers(0, 256, (ROWS, size, size, 3)).astype(np.uint8)


def _normalized(pixels: np.ndarray, c: ViTConfig) -> np.ndarray:
    """float32[B, 3, H, W], as the reference takes them."""
    x = (pixels / np.float32(255) - np.float32(c.pixel_mean)) / np.float32(c.pixel_std)
    return x.transpose(0, 3, 1, 2).astype(np.float32)


def _batch(tokens: np.ndarray) -> Batch:
    ids, row = jnp.asarray(tokens, jnp.int32), jnp.ones(tokens.shape, jnp.int32)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return Batch(ids, ids, row.astype(jnp.float32), row, places, -row, -row, None, None)


def _decoder(c: DecoderConfig, params: Any) -> tuple[Inputs, dict[str, jax.Array]]:
    tokens = _tokens(c.vocab_size, length=min(LENGTH, c.max_positions))
    logits = jax.jit(Decoder(c, parent=None).apply)({"params": params}, _batch(tokens))
    return {"input_ids": tokens}, {"logits": logits}


def _encoder_decoder(c: EncoderDecoderConfig, params: Any) -> tuple[Inputs, dict[str, jax.Array]]:
    tokens = _tokens(c.vocab_size)
    logits = jax.jit(EncoderDecoder(c, parent=None).apply)({"params": params}, tokens, tokens)
    return {"input_ids": tokens, "decoder_input_ids": tokens}, {"logits": logits}


def _text_tower(c: TextTowerConfig, params: Any) -> tuple[Inputs, dict[str, jax.Array]]:
    tokens = _tokens(c.vocab_size, length=min(LENGTH, c.max_positions))
    return {"input_ids": tokens}, {"pooler_output": TextTower(c, parent=None).apply({"params": params}, tokens)}


def _vit(c: ViTConfig, params: Any) -> tuple[Inputs, dict[str, jax.Array]]:
    pixels = _pixels(c.image_size)
    tokens = jax.jit(ViT(c, parent=None).apply)({"params": params}, pixels)     # the norm is on all of them here
    said = {"pooler_output": tokens[:, 0]} if c.class_token else {"last_hidden_state": tokens}
    return {"pixel_values": _normalized(pixels, c)}, said


def _clip(c: ClipConfig, params: Any) -> tuple[Inputs, dict[str, jax.Array]]:
    eos = c.text.eos_id if c.text.pool == "eos" else c.text.vocab_size - 1
    tokens, pixels = _tokens(c.text.vocab_size, eos, min(LENGTH, c.text.max_positions)), _pixels(c.vision.image_size)
    if c.text.pool == "last":
        tokens = _tokens(c.text.vocab_size, length=c.text.max_positions)
    model = Clip(c)
    images, texts = model.image_features(params, pixels), model.text_features(params, _batch(tokens))
    logits = jnp.exp(params["log_scale"]) * images @ texts.T + params.get("bias", 0.0)
    return {"input_ids": tokens, "pixel_values": _normalized(pixels, c.vision)}, {"logits_per_image": logits}


RUNS: dict[type, Callable[[Any, Any], tuple[Inputs, dict[str, jax.Array]]]] = {
    DecoderConfig: _decoder, EncoderDecoderConfig: _encoder_decoder, TextTowerConfig: _text_tower, ViTConfig: _vit,
    ClipConfig: _clip,
}
