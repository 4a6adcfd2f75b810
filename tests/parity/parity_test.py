"""Our parts and systems against the reference implementations: weights copied across, all of them random, float32.

Each test runs twice: against the goldens in this folder, and, where the reference packages are installed, against
fresh ones with other weights and inputs. `-rP` shows the differences measured.
"""

import dataclasses
import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import golden
import jax
import mapping
import numpy as np
import pytest

from mmjax.batch import Batch
from mmjax.kernels.attention import mask as masks
from mmjax.layers import BlockConfig, init_params, l2_normalize, unbox
from mmjax.models import build
from mmjax.models.flamingo import FlamingoConfig
from mmjax.models.kosmos1 import Kosmos1Config
from mmjax.models.language import LanguageConfig
from mmjax.parts.connectors import AttentivePool, AttentivePoolConfig
from mmjax.parts.decoder import DecoderConfig
from mmjax.parts.gated_xattn import GatedXAttn, GatedXAttnConfig
from mmjax.parts.perceiver import PerceiverConfig, PerceiverResampler
from mmjax.parts.vit import ViT, ViTConfig

TOLERANCE = 2e-5        # largest difference over the reference's largest value
HERE = Path(__file__).parent
IMAGE_ID = 3
PACKAGES = ("torch", "torchvision", "transformers", "timm", "open_clip", "open_flamingo", "einops_exts", "torchscale",
            "fairscale")


@pytest.fixture(scope="session", params=[pytest.param("stored", marks=pytest.mark.quick), "fresh"])
def goldens(request, tmp_path_factory):
    """The folder of goldens: the stored one, or one drawn for this run."""
    if request.param == "stored":
        return HERE / "goldens"
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}; see tests/parity/requirements.txt")
    seed = random.SystemRandom().randrange(1, 2**30)
    folder = tmp_path_factory.mktemp(f"goldens-seed-{seed}-")          # a failure shows the folder, hence the seed
    subprocess.run([sys.executable, HERE / "make_goldens.py", "--seed", str(seed), "--out", folder], check=True)
    return folder


def test_perceiver_resampler(goldens):
    g = load(goldens, "resampler")
    c, x = g.config, g.inputs["x"]
    ours = PerceiverResampler(resampler_config(c, num_layers=c["depth"], num_frames=c["max_num_frames"]))
    y = apply(ours, g, mapping.resampler("", "", c["depth"], c["max_num_frames"]), x.reshape(-1, *x.shape[2:]))
    check("resampler", y.reshape(g.outputs["y"].shape), g.outputs["y"])


def test_gated_xattn(goldens):
    g = load(goldens, "gated_xattn")
    image_index = np.cumsum(g.inputs["media_locations"], axis=1, dtype=np.int32) - 1
    media = g.inputs["media"]
    b, _, r, d = media.shape
    ours = GatedXAttn(xattn_config(g.config["dim"], d, g.config["heads"], g.config["dim_head"]))
    y = apply(ours, g, mapping.rows("", "", mapping.XATTN_LAYER), g.inputs["x"], media.reshape(b, -1, d),
              masks.per_image(image_index, r))
    assert (image_index == -1).any()
    check("gated_xattn", y, g.outputs["y"])


def test_flamingo(goldens):
    g = load(goldens, "flamingo")
    c, images = g.config, g.inputs["images"]
    with_xattn = range(c["every"] - 1, c["layers"], c["every"])
    vision = vit_config(c["image_size"], c["patch_size"], c["vision_dim"], c["vision_layers"], c["vision_heads"],
                        4 * c["vision_dim"], "gelu")
    config = FlamingoConfig(
        vision, resampler_config(dict(c, dim=c["vision_dim"], heads=c["xattn_heads"]), c["depth"], num_frames=0),
        opt_config(c), xattn_config(c["dim"], c["vision_dim"], c["xattn_heads"], c["dim_head"]),
        xattn_every=c["every"], xattn_offset=with_xattn.start)
    table = (mapping.open_clip_vision("vision_encoder.", "vision/", c["vision_layers"])
             + mapping.resampler("perceiver.", "resampler/", c["depth"], 0)
             + mapping.opt("lang_encoder.", "lm/", c["layers"], "layers.{}.decoder_layer.")
             + mapping.layers("lang_encoder.model.decoder.layers.{}.gated_cross_attn_layer.", "xattn/", with_xattn,
                              mapping.XATTN_LAYER))
    tokens, mask = g.inputs["tokens"], g.inputs["attention_mask"]
    seen = np.cumsum(tokens == IMAGE_ID, axis=1) - 1
    batch = text_batch(tokens, mask, image_index=seen, images=images, image_segment_ids=np.ones(images.shape[:2]))
    got = logits(build("flamingo", config), g, table, batch)
    real = mask > 0
    check("flamingo", got[real], g.outputs["logits"][real])


@pytest.mark.parametrize("length", ["even", "odd"])
def test_sub_ln_xpos_decoder(goldens, length):
    g = load(goldens, "decoder_sub_ln_xpos")
    model = build("language", LanguageConfig(magneto_config(g.config)))
    table = mapping.torchscale_decoder("", "lm/", g.config["layers"])
    got = logits(model, g, table, text_batch(g.inputs[f"tokens_{length}"]))
    check(f"decoder_sub_ln_xpos, {length} length", got, g.outputs[f"logits_{length}"])


def test_kosmos1(goldens):
    g = load(goldens, "kosmos1")
    c, tokens, slots = g.config, g.inputs["tokens"], g.inputs["slots"]
    config = Kosmos1Config(kosmos_vision_config(c), kosmos_connector_config(c), magneto_config(c))
    table = (mapping.clip_vision("vision_model.model.", "vision/", c["vision_layers"], num_last_layers=1)
             + mapping.kosmos_connector("image_to_text_projection.", "connector/")
             + mapping.torchscale_decoder("decoder.", "lm/", c["layers"]))
    images, r = g.inputs["images"], c["num_latents"]
    batch = text_batch(tokens, image_index=np.where(slots >= 0, slots // r, -1),
                       slot_index=np.where(slots >= 0, slots % r, -1), images=images,
                       image_segment_ids=np.ones(images.shape[:2]))
    check("kosmos1", logits(build("kosmos1", config), g, table, batch), g.outputs["logits"])


def test_kosmos_connector_on_normalised_features(goldens):
    g = load(goldens, "kosmos1")
    c, images = g.config, g.inputs["images"]
    features = apply(ViT(kosmos_vision_config(c)), only(g, "vision_model."),
                     mapping.clip_vision("vision_model.model.", "", c["vision_layers"], num_last_layers=1),
                     images.reshape(-1, *images.shape[3:]))
    embeds = apply(AttentivePool(kosmos_connector_config(c)), only(g, "image_to_text_projection."),
                   mapping.kosmos_connector("image_to_text_projection.", ""), l2_normalize(features))
    want = g.outputs["image_embeds"]
    check("kosmos_connector", embeds.reshape(want.shape), want)


def test_clip_vision(goldens):
    g = load(goldens, "clip_vision")
    c = g.config
    config = vit_config(c["image_size"], c["patch_size"], c["hidden_size"], c["num_hidden_layers"],
                        c["num_attention_heads"], c["intermediate_size"], "quick_gelu")
    table = mapping.clip_vision("", "", c["num_hidden_layers"])
    tokens = apply(ViT(config), g, table, g.inputs["images"])
    check("clip_vision, pooled", tokens[:, 0], g.outputs["pooled"])
    without = dataclasses.replace(config, final_norm=False)         # HF returns all tokens before the last norm
    g = g._replace(weights={k: v for k, v in g.weights.items() if "post_layernorm" not in k})
    tokens = apply(ViT(without), g, [row for row in table if "final_norm" not in row.path], g.inputs["images"])
    check("clip_vision, tokens", tokens, g.outputs["tokens"])


def test_llama(goldens):
    g = load(goldens, "llama")
    c = g.config
    block = BlockConfig(c["hidden_size"], c["num_attention_heads"], c["intermediate_size"],
                        num_kv_heads=c["num_key_value_heads"], activation="swiglu", norm="rms",
                        norm_eps=c["rms_norm_eps"], use_bias=False)
    lm = DecoderConfig(c["vocab_size"], c["num_hidden_layers"], block, positions="rotary", tie_embeddings=False)
    table = mapping.llama("", "lm/", c["num_hidden_layers"])
    check("llama", logits(build("language", LanguageConfig(lm)), g, table, text_batch(g.inputs["tokens"])),
          g.outputs["logits"])


def test_opt(goldens):
    g = load(goldens, "opt")
    table = mapping.opt("", "lm/", g.config["layers"])
    got = logits(build("language", LanguageConfig(opt_config(g.config))), g, table, text_batch(g.inputs["tokens"]))
    check("opt", got, g.outputs["logits"])


@pytest.mark.quick
def test_a_table_with_a_gap_is_refused():
    g = load(HERE / "goldens", "opt")
    model = build("language", LanguageConfig(opt_config(g.config)))
    table = mapping.opt("", "lm/", g.config["layers"])
    with pytest.raises(ValueError, match="fc2.bias.*mlp/down/bias"):
        logits(model, g, [row for row in table if "fc2.bias" not in row.names[0]], text_batch(g.inputs["tokens"]))


def resampler_config(c: dict, num_layers: int, num_frames: int) -> PerceiverConfig:
    return PerceiverConfig(input_dim=c["dim"], embed_dim=c["dim"], num_latents=c["num_latents"], num_layers=num_layers,
                           num_heads=c["heads"], head_dim=c["dim_head"], mlp_dim=4 * c["dim"], activation="gelu",
                           num_frames=num_frames)


def xattn_config(dim: int, visual_dim: int, num_heads: int, head_dim: int) -> GatedXAttnConfig:
    return GatedXAttnConfig(dim, visual_dim, num_heads, head_dim, mlp_dim=4 * dim, activation="gelu")


def vit_config(image_size, patch_size, dim, num_layers, num_heads, mlp_dim, activation, **fields) -> ViTConfig:
    return ViTConfig(image_size, patch_size, num_layers, BlockConfig(dim, num_heads, mlp_dim, activation=activation),
                     **fields)


def kosmos_vision_config(c: dict) -> ViTConfig:
    return vit_config(c["image_size"], c["patch_size"], c["vision_dim"], c["vision_layers"], c["vision_heads"],
                      c["vision_ffn_dim"], "quick_gelu", num_last_layers=1)


def kosmos_connector_config(c: dict) -> AttentivePoolConfig:
    return AttentivePoolConfig(c["vision_dim"], c["dim"], c["num_latents"], c["heads"])


def magneto_config(c: dict) -> DecoderConfig:
    block = BlockConfig(c["dim"], c["heads"], c["ffn_dim"], sub_norm=True)
    return DecoderConfig(c["vocab_size"], c["layers"], block, positions="xpos", rotary_layout="interleaved",
                         scale_embedding=c["scale_embedding"])


def opt_config(c: dict) -> DecoderConfig:
    block = BlockConfig(c["dim"], c["heads"], c["ffn_dim"], activation="relu")
    return DecoderConfig(c["vocab_size"], c["layers"], block, positions="learned", max_positions=c["max_positions"])


def only(g: golden.Golden, prefix: str) -> golden.Golden:
    """The golden with the weights of one of its modules."""
    return g._replace(weights={name: w for name, w in g.weights.items() if name.startswith(prefix)})


def load(folder: Path, name: str) -> golden.Golden:
    return golden.Golden.load(folder / f"{name}.safetensors")


def check(name: str, got: jax.Array, want: np.ndarray) -> None:
    assert got.shape == want.shape
    difference = float(np.abs(got - want).max() / np.abs(want).max())
    print(f"{name}: {difference:.1e}")
    assert difference <= TOLERANCE, name


def apply(module, g: golden.Golden, table: list[mapping.Row], *args) -> jax.Array:
    """Runs a part with the weights of a golden."""
    shapes = jax.eval_shape(lambda: unbox(init_params(module, jax.random.key(0), *args)))
    params = mapping.copy_weights(g.weights, table, shapes)
    return jax.jit(module.apply)({"params": params}, *args)


def logits(model, g: golden.Golden, table: list[mapping.Row], batch: Batch) -> jax.Array:
    """Runs a system with the weights of a golden."""
    params = mapping.copy_weights(g.weights, table, jax.eval_shape(model.init, jax.random.key(0)))
    return jax.jit(model.logits)(params, batch)


def text_batch(tokens: np.ndarray, mask: np.ndarray | None = None, **fields) -> Batch:
    """One document per row; `mask` is 0 on padding at its end. Without images unless `fields` bring some."""
    b, t = tokens.shape
    mask = np.ones_like(tokens) if mask is None else mask
    none = np.full((b, t), -1)
    values = dict(
        tokens=tokens, targets=np.zeros_like(tokens), loss_weights=np.zeros((b, t)), segment_ids=mask,
        positions=np.arange(t) * mask, image_index=none, slot_index=none, images=np.zeros((b, 0, 1, 1, 1, 3), np.uint8),
        image_segment_ids=np.zeros((b, 0))) | fields
    return Batch(**{k: v if k == "images" else np.asarray(v, np.float32 if k == "loss_weights" else np.int32)
                    for k, v in values.items()})
