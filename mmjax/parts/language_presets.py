"""Sizes of published language models: name -> config, as the authors (or transformers' config.json) give them."""

import dataclasses

from mmjax.layers import BlockConfig, MoeConfig
from mmjax.parts.decoder import DecoderConfig
from mmjax.parts.encoder_decoder import EncoderDecoderConfig


def opt(num_layers: int, embed_dim: int, num_heads: int) -> DecoderConfig:
    """OPT (arXiv:2205.01068). The 350M model, with norms behind the branches, is not of this form."""
    block = BlockConfig(embed_dim, num_heads, 4 * embed_dim, activation="relu")
    return DecoderConfig(50_272, num_layers, block, positions="learned", position_offset=2)


def llama(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int, num_kv_heads: int | None = None,
          norm_eps: float = 1e-6, max_positions: int = 2048) -> DecoderConfig:
    """LLaMA (arXiv:2302.13971), Vicuna and Llama-2 (arXiv:2307.09288)."""
    block = BlockConfig(embed_dim, num_heads, mlp_dim, num_kv_heads, activation="swiglu", norm="rms", norm_eps=norm_eps,
                        use_bias=False)
    return DecoderConfig(32_000, num_layers, block, max_positions=max_positions, tie_embeddings=False)


def t5(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int) -> EncoderDecoderConfig:
    """T5 v1.1 and FlanT5 (arXiv:2210.11416): heads of 64, whatever the width."""
    block = BlockConfig(embed_dim, num_heads, mlp_dim, head_dim=64, activation="geglu_tanh", norm="rms", norm_eps=1e-6,
                        use_bias=False, attention_scale=1.0)
    return EncoderDecoderConfig(32_128, num_layers, num_layers, block)


def chinchilla(num_layers: int, embed_dim: int, num_heads: int) -> DecoderConfig:
    """Chinchilla (arXiv:2203.15556) as Flamingo freezes it: RMSNorm, relative positions, GELU."""
    block = BlockConfig(embed_dim, num_heads, 4 * embed_dim, norm="rms", use_bias=False, relative=True)
    return DecoderConfig(32_000, num_layers, block, positions="relative")


def mixtral(num_layers: int, embed_dim: int, num_heads: int, mlp_dim: int) -> DecoderConfig:
    """Mixtral (arXiv:2401.04088): 8 experts, 2 per token."""
    config = llama(num_layers, embed_dim, num_heads, mlp_dim, num_kv_heads=8, norm_eps=1e-5, max_positions=32_768)
    moe = MoeConfig(8, balance="mixtral", balance_weight=0.02, z_weight=0.0)
    return dataclasses.replace(config, rotary_base=1e6, block=dataclasses.replace(config.block, moe=moe))


def gpt_neox(num_layers: int, embed_dim: int, num_heads: int) -> DecoderConfig:
    """GPT-NeoX (arXiv:2204.06745) and Pythia: a quarter of each head turns, the branches are parallel."""
    block = BlockConfig(embed_dim, num_heads, 4 * embed_dim, norm_place="parallel")
    return DecoderConfig(50_432, num_layers, block, rotary_dim=embed_dim // num_heads // 4, tie_embeddings=False)


def mpt(num_layers: int, embed_dim: int, num_heads: int) -> DecoderConfig:
    """MPT: ALiBi, no biases."""
    return DecoderConfig(50_432, num_layers, BlockConfig(embed_dim, num_heads, 4 * embed_dim, use_bias=False),
                         positions="alibi")


PRESETS: dict[str, DecoderConfig | EncoderDecoderConfig] = {
    "opt-125m": opt(12, 768, 12), "opt-1.3b": opt(24, 2048, 32), "opt-2.7b": opt(32, 2560, 32),
    "opt-6.7b": opt(32, 4096, 32), "opt-13b": opt(40, 5120, 40), "opt-30b": opt(48, 7168, 56),
    "opt-66b": opt(64, 9216, 72),
    "llama-7b": llama(32, 4096, 32, 11_008), "llama-13b": llama(40, 5120, 40, 13_824),
    "llama-33b": llama(60, 6656, 52, 17_920), "llama-65b": llama(80, 8192, 64, 22_016),
    "llama2-70b": llama(80, 8192, 64, 28_672, num_kv_heads=8, norm_eps=1e-5, max_positions=4096),
    "flan-t5-base": t5(12, 768, 12, 2048), "flan-t5-large": t5(24, 1024, 16, 2816),
    "flan-t5-xl": t5(24, 2048, 32, 5120), "flan-t5-xxl": t5(24, 4096, 64, 10_240),
    "flamingo-lm-1.4b": chinchilla(24, 2048, 16), "flamingo-lm-70b": chinchilla(80, 8192, 64),
    "gpt-neox-20b": gpt_neox(44, 6144, 64), "mpt-7b": mpt(32, 4096, 32), "mixtral-8x7b": mixtral(32, 4096, 32, 14_336),
}
