"""Published architectures by the `model_type` of their `config.json`: what each config says, and its names.

Source: the configuration classes of Hugging Face transformers, whose defaults stand for absent keys.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from mmjax.checkpoint.convert import (
    open_clip_vision,
    text_towers,
    timm_vision,
    transformers_language,
    transformers_vision,
)
from mmjax.checkpoint.convert.config_table import ConfigTable, Field
from mmjax.checkpoint.convert.forms import batched
from mmjax.checkpoint.convert.table import Entry, Table, under
from mmjax.checkpoint.convert.weights import CONFIG, WEIGHTS, WeightsError
from mmjax.models.clip import ClipConfig
from mmjax.parts.decoder import DecoderConfig
from mmjax.parts.encoder_decoder import EncoderDecoderConfig
from mmjax.parts.nfnet import NFNetConfig
from mmjax.parts.text_tower import TextTowerConfig
from mmjax.parts.vision_head import VisionHeadConfig
from mmjax.parts.vision_presets import PRESETS
from mmjax.parts.vision_tower import VisionConfig
from mmjax.parts.vit import ViTConfig

OPEN_CLIP_CONFIG = "open_clip_config.json"
HALF = (0.5, 0.5, 0.5)
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "relu": "relu"}
THETA = ("rope_parameters.rope_theta", "rope_theta")


class Format(NamedTuple):
    """A published architecture.

    Attributes:
        architecture: class of transformers, for a config that we write.
        config: how its config is published, a `ConfigTable` as a rule.
        entries: our config -> the names of its parameters.
        ignored: names of tensors that hold no parameters.
        config_file, weights_file: names in its folder.
    """

    architecture: str
    config: Any
    entries: Callable[[Any], tuple[Entry, ...]]
    ignored: tuple[str, ...] = ()
    config_file: str = CONFIG
    weights_file: str = WEIGHTS

    def read(self, published: dict[str, Any], where: str) -> Any:
        """Our config; see `ConfigTable.read`."""
        if self.config_file == OPEN_CLIP_CONFIG:
            published = spread(published)
        elif self.architecture == "CLIPModel" and "projection_dim" in published:    # what the towers say does not count
            own = dict(projection_dim=published["projection_dim"])
            published = published | {name: {**(published.get(name) or {}), **own}
                                     for name in ("vision_config", "text_config")}
        return self.config.read(published, where)

    def write(self, config: Any) -> dict[str, Any]:
        """The published config; see `ConfigTable.write`."""
        published = self.config.write(config)
        if self.config_file == OPEN_CLIP_CONFIG:
            return gather(published, config)
        return {"architectures": [self.architecture], **published}

    def table(self, config: Any) -> Table:
        tied = transformers_language.TIED_HEAD if getattr(config, "tie_embeddings", False) else ()
        return Table(self.entries(config), (*self.ignored, *tied))


def _activation(name: str, _: Any) -> str:
    if name not in ACTIVATIONS:
        raise ValueError(f"config.json: hidden_act={name!r} is unknown; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _published_activation(name: str, _: Any) -> str:
    return next(theirs for theirs, ours in ACTIVATIONS.items() if ours == name)


def _decoder_fields(width="hidden_size", layers="num_hidden_layers", heads="num_attention_heads",
                    positions="max_position_embeddings") -> tuple[Field, ...]:
    return (Field("vocab_size", "vocab_size"), Field(width, "block.embed_dim"), Field(layers, "num_layers"),
            Field(heads, "block.num_heads"), Field(positions, "max_positions"))


_NO_SCALING = {"rope_scaling": (None,), "rope_parameters.rope_type": (None, "default"),
               "rope_parameters.type": (None, "default")}
_LLAMA = (
    *_decoder_fields(), Field("intermediate_size", "block.mlp_dim"), Field("rms_norm_eps", "block.norm_eps", 1e-6),
    Field("num_key_value_heads", "block.num_kv_heads", None, store=lambda _, c: c.block.heads[1]),
    Field("head_dim", "block.head_dim", None, store=lambda _, c: c.block.heads[2]),
    Field(THETA, "rotary_base", 10_000.0, load=lambda v, _: float(v)),
    Field("tie_word_embeddings", "tie_embeddings", False))
_LLAMA_OURS = {"block.norm": "rms", "block.use_bias": False, "block.activation": "swiglu", "positions": "rotary",
               "rotary_layout": "split"}
_SILU = {"hidden_act": ("silu", None), "attention_bias": (False, None), "mlp_bias": (False, None)} | _NO_SCALING

LLAMA = ConfigTable(DecoderConfig, _LLAMA, _LLAMA_OURS, _SILU)
MISTRAL = ConfigTable(DecoderConfig, _LLAMA, _LLAMA_OURS, _SILU | {"sliding_window": (None,)})
MIXTRAL = ConfigTable(
    DecoderConfig,
    (*(dataclasses.replace(f, default={"rotary_base": 1e6, "block.norm_eps": 1e-5}.get(f.ours, f.default))
       for f in _LLAMA),
     Field("num_local_experts", "block.moe.num_experts", 8),
     Field("num_experts_per_tok", "block.moe.top_k", 2),
     Field("router_aux_loss_coef", "block.moe.balance_weight", 0.001)),
    _LLAMA_OURS | {"block.moe.balance": "mixtral", "block.moe.z_weight": 0.0}, _SILU | {"sliding_window": (None,)})
OPT = ConfigTable(
    DecoderConfig,
    (*_decoder_fields(), Field("ffn_dim", "block.mlp_dim"), Field("tie_word_embeddings", "tie_embeddings", True)),
    {"block.activation": "relu", "positions": "learned", "position_offset": 2},
    {"activation_function": ("relu", None), "do_layer_norm_before": (True, None), "enable_bias": (True, None),
     "layer_norm_elementwise_affine": (True, None), "_remove_final_layer_norm": (False, None)})
GPT_NEOX = ConfigTable(
    DecoderConfig,
    (*_decoder_fields(), Field("intermediate_size", "block.mlp_dim"), Field("layer_norm_eps", "block.norm_eps", 1e-5),
     Field(("rope_parameters.rope_theta", "rope_theta", "rotary_emb_base"), "rotary_base", 10_000.0,
           load=lambda v, _: float(v)),
     Field(("rope_parameters.partial_rotary_factor", "partial_rotary_factor", "rotary_pct"), "rotary_dim", 0.25,
           load=lambda share, c: int(share * (c["hidden_size"] // c["num_attention_heads"])),
           store=lambda dim, c: dim / c.block.heads[2]),
     Field("tie_word_embeddings", "tie_embeddings", False)),
    {"block.activation": "gelu", "block.norm_place": "parallel", "positions": "rotary", "rotary_layout": "split"},
    {"hidden_act": ("gelu", None), "use_parallel_residual": (True, None), "attention_bias": (True, None)} | _NO_SCALING)
MPT = ConfigTable(
    DecoderConfig,
    (*_decoder_fields("d_model", "n_layers", "n_heads", "max_seq_len"),
     Field("expansion_ratio", "block.mlp_dim", 4, load=lambda ratio, c: ratio * c["d_model"],
           store=lambda dim, c: dim // c.block.embed_dim),
     Field("layer_norm_epsilon", "block.norm_eps", 1e-5)),
    {"block.use_bias": False, "block.activation": "gelu", "positions": "alibi", "tie_embeddings": True},
    {"no_bias": (True, None), "tie_word_embeddings": (True, None), "attn_config.alibi": (True, None),
     "attn_config.clip_qkv": (None,),
     "attn_config.qk_ln": (False, None), "attn_config.prefix_lm": (False, None),
     "attn_config.alibi_bias_max": (8, None), "attn_config.softmax_scale": (None,)})

T5 = ConfigTable(
    EncoderDecoderConfig,
    (Field("vocab_size", "vocab_size"), Field("d_model", "block.embed_dim"), Field("num_layers", "num_layers"),
     Field(("num_decoder_layers", "num_layers"), "num_decoder_layers"), Field("num_heads", "block.num_heads"),
     Field("d_kv", "block.head_dim"), Field("d_ff", "block.mlp_dim"),
     Field("layer_norm_epsilon", "block.norm_eps", 1e-6),
     Field("relative_attention_num_buckets", "num_buckets", 32),
     Field("relative_attention_max_distance", "max_distance", 128),
     Field("feed_forward_proj", "block.activation", "relu",
           load=lambda name, _: {"relu": "relu", "gated-gelu": "geglu_tanh"}[name],
           store=lambda name, _: {"relu": "relu", "geglu_tanh": "gated-gelu"}[name]),
     Field("tie_word_embeddings", "tie_embeddings", True),
     Field(("scale_decoder_outputs", "tie_word_embeddings"), "scale_tied_logits", True)),
    {"block.norm": "rms", "block.use_bias": False, "block.attention_scale": 1.0},
    {"feed_forward_proj": ("gated-gelu", "relu", None)})
BERT = ConfigTable(
    TextTowerConfig,
    (Field("vocab_size", "vocab_size"), Field("hidden_size", "block.embed_dim"),
     Field("num_hidden_layers", "num_layers"), Field("num_attention_heads", "block.num_heads"),
     Field("intermediate_size", "block.mlp_dim"), Field("max_position_embeddings", "max_positions"),
     Field("type_vocab_size", "num_token_types", 2), Field("layer_norm_eps", "block.norm_eps", 1e-12),
     Field("hidden_size", "output_dim")),
    {"block.activation": "gelu", "block.norm_place": "post", "causal": False, "pool": "first", "output_bias": True,
     "output_tanh": True, "embed_norm": True, "final_norm": False},
    {"hidden_act": ("gelu", None), "position_embedding_type": ("absolute", None), "is_decoder": (False, None)})


_TOWER = dict(hidden_size="block.embed_dim", intermediate_size="block.mlp_dim", num_hidden_layers="num_layers",
              num_attention_heads="block.num_heads", hidden_act="block.activation", layer_norm_eps="block.norm_eps")
_IMAGES = _TOWER | dict(image_size="image_size", patch_size="patch_size")
_TEXTS = _TOWER | dict(vocab_size="vocab_size", max_position_embeddings="max_positions")


def _tower(config: type, keys: dict[str, str], ours: dict[str, Any], *more: Field, **defaults: Any) -> ConfigTable:
    """CLIP's and SigLIP's configs, which leave out what is as the class has it."""
    convert = dict(hidden_act=dict(load=_activation, store=_published_activation))
    fields = tuple(Field(key, path, defaults[key], **convert.get(key, {})) for key, path in keys.items())
    return ConfigTable(config, (*fields, *more), ours, {"num_channels": (3, None)} if config is ViTConfig else {})


_BASE = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
CLIP_VISION = _tower(ViTConfig, _IMAGES, {}, **_BASE, image_size=224, patch_size=32, hidden_act="quick_gelu",
                     layer_norm_eps=1e-5)
# With eos_token_id=2, as the first uploads have it, transformers takes the token with the largest id.
CLIP_TEXT = _tower(
    TextTowerConfig, _TEXTS, {},
    Field("projection_dim", "output_dim", 512),
    Field("eos_token_id", "pool", 49_407, load=lambda eos, _: "largest_id" if eos == 2 else "eos",
          store=lambda pool, c: 2 if pool == "largest_id" else c.eos_id),
    Field("eos_token_id", "eos_id", 49_407, load=lambda eos, _: None if eos == 2 else eos,
          store=lambda eos, c: 2 if eos is None else eos),
    hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8, vocab_size=49_408,
    max_position_embeddings=77, hidden_act="quick_gelu", layer_norm_eps=1e-5)
SIGLIP_VISION = _tower(
    ViTConfig, _IMAGES, {"class_token": False, "patch_bias": True, "pre_norm": False, "pixel_mean": HALF,
                         "pixel_std": HALF},
    **_BASE, image_size=224, patch_size=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)
SIGLIP_TEXT = _tower(
    TextTowerConfig, _TEXTS, {"causal": False, "pool": "last", "output_bias": True},
    Field("projection_size", "output_dim", 768), **_BASE, vocab_size=32_000, max_position_embeddings=64,
    hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6)


def _head(*fields: Field, **ours: Any) -> ConfigTable:
    """Of a vision head, whose fields stand among those of the tower."""
    width = Field("hidden_size", "input_dim", 768)
    return ConfigTable(VisionHeadConfig, (width, *fields), ours)


CLIP = ConfigTable(ClipConfig, ours={"loss": "softmax"}, parts={
    "vision": ("vision_config", CLIP_VISION), "text": ("text_config", CLIP_TEXT),
    "head": ("vision_config", _head(Field("projection_dim", "output_dim", 512),
                                    Field("layer_norm_eps", "norm_eps", 1e-5)))},
    repeats=(Field("projection_dim", "head.output_dim", 512), Field("projection_dim", "text.output_dim", 512)))
SIGLIP = ConfigTable(ClipConfig, ours={"loss": "sigmoid", "text_padding": True}, parts={
    "vision": ("vision_config", SIGLIP_VISION), "text": ("text_config", SIGLIP_TEXT),
    "head": ("vision_config", _head(
        Field("num_attention_heads", "num_heads", 12), Field("intermediate_size", "mlp_dim", 3072),
        Field("hidden_act", "activation", "gelu_pytorch_tanh", load=_activation, store=_published_activation),
        Field("layer_norm_eps", "norm_eps", 1e-6), pool="latent"))})


def clip(c: ClipConfig) -> tuple[Entry, ...]:
    """`CLIPModel`."""
    return (*under("vision/", "vision_model.", transformers_vision.clip_tower(c.vision)),
            *under("head/", "", transformers_vision.clip_head()), *under("text/", "", text_towers.clip(c.text)),
            Entry("log_scale", "logit_scale"))


def siglip(c: ClipConfig) -> tuple[Entry, ...]:
    """`SiglipModel`, whose scale and bias have one element."""
    return (*under("vision/", "vision_model.", transformers_vision.siglip_tower(c.vision)),
            *under("head/", "vision_model.", transformers_vision.siglip_head(c.head)),
            *under("text/", "text_model.", text_towers.siglip(c.text)),
            Entry("log_scale", "logit_scale", batched), Entry("bias", "logit_bias", batched))


_SHARED = ("embed_dim", "quick_gelu")        # what open_clip says once for both towers


def spread(published: dict[str, Any]) -> dict[str, Any]:
    """`open_clip_config.json` with what it says once said in both towers."""
    c = published["model_cfg"]
    shared = {name: c[name] for name in _SHARED if name in c}
    return {name: {**c.get(name, {}), **shared} for name in ("vision_cfg", "text_cfg")} | {
        name: value for name, value in c.items() if name not in ("vision_cfg", "text_cfg")}


def gather(published: dict[str, Any], config: ClipConfig) -> dict[str, Any]:
    """The inverse of `spread`, with the normalisation of images."""
    shared = {name: published["text_cfg"][name] for name in _SHARED}
    towers = {part: {k: v for k, v in published[part].items() if k not in _SHARED}
              for part in ("vision_cfg", "text_cfg")}
    pixels = dict(mean=list(config.vision.pixel_mean), std=list(config.vision.pixel_std))
    return {"model_cfg": shared | towers, "preprocess_cfg": pixels}


def _open_clip_tower(config: type, *fields: Field, **theirs: tuple[Any, ...]) -> ConfigTable:
    """What open_clip's towers share: feed-forward networks by ratio, one switch for the activation."""
    common = (
        Field("width", "block.embed_dim", 768 if config is ViTConfig else 512), Field("layers", "num_layers", 12),
        Field("mlp_ratio", "block.mlp_dim", 4.0, load=lambda ratio, c: int(c["width"] * ratio),
              store=lambda dim, c: dim / c.block.embed_dim),
        Field("quick_gelu", "block.activation", False, load=lambda quick, _: "quick_gelu" if quick else "gelu",
              store=lambda name, _: name == "quick_gelu"))
    same = {name: (None,) for name in ("norm_kwargs", "act_kwargs", "ls_init_value")}
    return ConfigTable(config, (*common, *fields), theirs=theirs | same)


OPEN_CLIP = ConfigTable(
    ClipConfig, ours={"loss": "softmax"}, theirs={"custom_text": (None, False), "multimodal_cfg": (None,)},
    parts={
        "vision": ("vision_cfg", _open_clip_tower(
            ViTConfig, Field("image_size", "image_size", 224), Field("patch_size", "patch_size", 16),
            Field("head_width", "block.num_heads", 64, load=lambda head, c: c["width"] // head,
                  store=lambda heads, c: c.block.embed_dim // heads),
            pool_type=("tok", None), attentional_pool=(None, False), timm_model_name=(None,), no_ln_pre=(None, False),
            final_ln_after_pool=(None, False), pos_embed_type=(None, "learnable"))),
        "text": ("text_cfg", _open_clip_tower(
            TextTowerConfig, Field("context_length", "max_positions", 77), Field("vocab_size", "vocab_size", 49_408),
            Field("heads", "block.num_heads", 8), Field("embed_dim", "output_dim"),
            pool_type=("argmax", None), hf_model_name=(None,), no_causal_mask=(None, False), embed_cls=(None, False),
            proj_bias=(None, False), proj_type=("linear", None))),
        "head": ("vision_cfg", ConfigTable(
            VisionHeadConfig, (Field("width", "input_dim", 768), Field("embed_dim", "output_dim")),
            {"norm_eps": 1e-5}))})


def open_clip(c: ClipConfig) -> tuple[Entry, ...]:
    """open_clip's `CLIP` with a ViT, and OpenAI's."""
    return (*under("vision/", "visual.", open_clip_vision.vit_tower(c.vision)),
            *under("head/", "visual.", open_clip_vision.vit_head()),
            *under("text/", "", text_towers.open_clip(c.text)), Entry("log_scale", "logit_scale"))


AIMV2 = ConfigTable(
    ViTConfig,
    (Field("hidden_size", "block.embed_dim", 1024), Field("intermediate_size", "block.mlp_dim", 2816),
     Field("num_hidden_layers", "num_layers", 24), Field("num_attention_heads", "block.num_heads", 8),
     Field("image_size", "image_size", 224), Field("patch_size", "patch_size", 14),
     Field("rms_norm_eps", "block.norm_eps", 1e-5),
     Field("is_native", "positions", False, load=lambda native, _: "sincos" if native else "learned",
           store=lambda positions, _: positions == "sincos")),
    {"block.activation": "swiglu", "block.norm": "rms", "block.use_bias": False, "class_token": False,
     "patch_bias": True, "pre_norm": False, "patch_norm": True},
    {"use_head": (False,), "hidden_act": ("silu", None), "qkv_bias": (False, None), "mlp_bias": (False, None),
     "num_channels": (3, None)})

TIMM = {
    **{f"vit_base_patch16_siglip_{size}": f"siglip_b16_{size}" for size in (224, 256, 384)},
    **{f"vit_large_patch16_siglip_{size}": f"siglip_l16_{size}" for size in (256, 384)},
    **{f"vit_so400m_patch14_siglip_{size}": f"siglip_so400m14_{size}" for size in (224, 384)},
    "eva_giant_patch14_clip_224": "eva_clip_g14", "eva02_tiny_patch14_224": "eva02_ti14",
    "eva02_small_patch14_224": "eva02_s14", "eva02_base_patch14_224": "eva02_b14",
    "eva02_large_patch14_224": "eva02_l14", "eva02_base_patch16_clip_224": "eva02_clip_b16",
    "eva02_large_patch14_clip_224": "eva02_clip_l14", "eva02_enormous_patch14_clip_224": "eva02_clip_e14_plus",
    **{f"dm_nfnet_f{i}": f"nfnet_f{i}" for i in range(7)}}


class TimmConfig:
    """timm's config.json names a model, whose sizes are in its code, and ours in `vision_presets`."""

    def read(self, published: dict[str, Any], where: str) -> VisionConfig:
        name = str(published["architecture"]).partition(".")[0]
        if name not in TIMM:
            raise WeightsError(f"{where} has architecture={name!r}, which cannot be read; known: {', '.join(TIMM)}")
        return PRESETS[TIMM[name]].tower

    def write(self, config: Any) -> dict[str, Any]:
        raise WeightsError("timm's config.json cannot say sizes; write the tower as transformers does")


def timm_tower(c: VisionConfig) -> tuple[Entry, ...]:
    """timm's towers without their heads."""
    if isinstance(c, NFNetConfig):
        return timm_vision.nfnet_tower(c)
    return timm_vision.eva_tower(c) if c.class_token else timm_vision.vit_tower(c)


_LANGUAGE = transformers_language.IGNORED
_VISION = transformers_vision.IGNORED
FORMATS: dict[str, Format] = {
    "llama": Format("LlamaForCausalLM", LLAMA, transformers_language.llama, _LANGUAGE),
    "mistral": Format("MistralForCausalLM", MISTRAL, transformers_language.llama, _LANGUAGE),
    "mixtral": Format("MixtralForCausalLM", MIXTRAL, transformers_language.mixtral, _LANGUAGE),
    "opt": Format("OPTForCausalLM", OPT, transformers_language.opt, _LANGUAGE),
    "gpt_neox": Format("GPTNeoXForCausalLM", GPT_NEOX, transformers_language.gpt_neox, _LANGUAGE),
    "mpt": Format("MptForCausalLM", MPT, transformers_language.mpt, _LANGUAGE),
    "t5": Format("T5ForConditionalGeneration", T5, transformers_language.t5, _LANGUAGE),
    "bert": Format("BertModel", BERT, text_towers.bert, text_towers.IGNORED),
    "clip": Format("CLIPModel", CLIP, clip, _VISION),
    "clip_vision_model": Format("CLIPVisionModel", CLIP_VISION, transformers_vision.clip_tower, _VISION),
    "siglip": Format("SiglipModel", SIGLIP, siglip, _VISION),
    "aimv2_vision_model": Format("Aimv2VisionModel", AIMV2, transformers_vision.aimv2_tower, _VISION),
    "timm": Format("", TimmConfig(), timm_tower, (r"(head|fc_norm|attn_pool)\..*",)),
    "open_clip": Format("CLIP", OPEN_CLIP, open_clip, text_towers.IGNORED, OPEN_CLIP_CONFIG,
                        "open_clip_model.safetensors"),
}


def find(published: dict[str, Any], where: str) -> tuple[str, Format]:
    """The format of a `config.json`, by its `model_type`.

    Raises:
        WeightsError: if it has none, or an unknown one; lists what is known.
    """
    others = {"model_cfg": "open_clip", "architecture": "timm"}
    kind = published.get("model_type", next((kind for key, kind in others.items() if key in published), None))
    if not isinstance(kind, str) or kind not in FORMATS:
        raise WeightsError(f"{where} has model_type={kind!r}, which cannot be read; known: {', '.join(FORMATS)}")
    return kind, FORMATS[kind]
