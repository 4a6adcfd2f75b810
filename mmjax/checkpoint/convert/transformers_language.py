"""Names of the language models of Hugging Face transformers: LLaMA, Mixtral, OPT, GPT-NeoX, MPT and T5.

Each function gives the entries of a whole model with our paths relative to it; `table.under` puts them in a system.
"""

from mmjax.checkpoint.convert.forms import flat, fused, interleaved, linear
from mmjax.checkpoint.convert.table import Entry, dense, norm, under
from mmjax.parts.decoder import DecoderConfig
from mmjax.parts.encoder_decoder import EncoderDecoderConfig

Entries = tuple[Entry, ...]
# Buffers of earlier versions, and copies of tied weights.
IGNORED = (r".*\.rotary_emb\.inv_freq", r".*\.attention\.(masked_)?bias",
           r"(encoder|decoder)\.embed_tokens\.weight", r".*\.EncDecAttention\.relative_attention_bias\.weight")
TIED_HEAD = (r"(.*\.)?lm_head\.weight",)
QKV = ("q", "k", "v")


def llama(c: DecoderConfig) -> Entries:
    """`LlamaForCausalLM`: LLaMA, Vicuna, Llama-2 and later, Mistral."""
    mlp = (e for name in ("gate", "up", "down") for e in dense(f"mlp/{name}", f"mlp.{name}_proj", use_bias=False))
    return _llama(c, tuple(mlp))


def mixtral(c: DecoderConfig) -> Entries:
    """`MixtralForCausalLM`."""
    experts = (Entry(f"moe/{ours}", f"block_sparse_moe.experts.{{expert}}.{theirs}.weight", linear())
               for ours, theirs in (("gate", "w1"), ("down", "w2"), ("up", "w3")))
    router = dense("moe/router", "block_sparse_moe.gate", use_bias=False)
    return _llama(c, (*router, *under("", "", experts, expert=range(c.block.moe.num_experts))))


def _llama(c: DecoderConfig, mlp: Entries) -> Entries:
    layer = (*norm("attention_norm", "input_layernorm", use_bias=False),
             *_attention("attention", "self_attn", "o_proj", use_bias=False),
             *norm("mlp_norm", "post_attention_layernorm", use_bias=False), *mlp)
    head = () if c.tie_embeddings else dense("head", "lm_head", use_bias=False)
    return (Entry("token_embed/table", "model.embed_tokens.weight"), *norm("final_norm", "model.norm", use_bias=False),
            *head, *under("blocks/", "model.layers.{layer}.", layer, layer=range(c.num_layers)))


def opt(c: DecoderConfig, layers: str = "layers.{layer}.") -> Entries:
    """`OPTForCausalLM`; `position_offset` must be 2. OpenFlamingo wraps its layers, whose name is then another."""
    layer = (*norm("attention_norm", "self_attn_layer_norm"), *_attention("attention", "self_attn", "out_proj"),
             *norm("mlp_norm", "final_layer_norm"), *dense("mlp/up", "fc1"), *dense("mlp/down", "fc2"))
    top = (Entry("token_embed/table", "embed_tokens.weight"), Entry("position_embed/table", "embed_positions.weight"),
           *norm("final_norm", "final_layer_norm"), *under("blocks/", layers, layer, layer=range(c.num_layers)))
    return under("", "model.decoder.", top)


def gpt_neox(c: DecoderConfig) -> Entries:
    """`GPTNeoXForCausalLM`, Pythia among them; queries, keys and values stand side by side head by head."""
    heads, (kernels, biases) = c.block.num_heads, _fused_paths()
    layer = (*norm("attention_norm", "input_layernorm"), *norm("mlp_norm", "post_attention_layernorm"),
             Entry(kernels, "attention.query_key_value.weight", interleaved(linear(), heads)),
             Entry(biases, "attention.query_key_value.bias", interleaved(flat, heads)),
             *dense("attention/out", "attention.dense", inputs=2),
             *dense("mlp/up", "mlp.dense_h_to_4h"), *dense("mlp/down", "mlp.dense_4h_to_h"))
    head = () if c.tie_embeddings else dense("head", "embed_out", use_bias=False)
    return (Entry("token_embed/table", "gpt_neox.embed_in.weight"), *norm("final_norm", "gpt_neox.final_layer_norm"),
            *head, *under("blocks/", "gpt_neox.layers.{layer}.", layer, layer=range(c.num_layers)))


def mpt(c: DecoderConfig) -> Entries:
    """`MptForCausalLM`, which has no biases."""
    layer = (*norm("attention_norm", "norm_1", use_bias=False), *norm("mlp_norm", "norm_2", use_bias=False),
             Entry(_fused_paths()[0], "attn.Wqkv.weight", fused(linear())),
             *dense("attention/out", "attn.out_proj", inputs=2, use_bias=False),
             *dense("mlp/up", "ffn.up_proj", use_bias=False), *dense("mlp/down", "ffn.down_proj", use_bias=False))
    top = (Entry("token_embed/table", "wte.weight"), *norm("final_norm", "norm_f", use_bias=False),
           *under("blocks/", "blocks.{layer}.", layer, layer=range(c.num_layers)))
    return under("", "transformer.", top)


def t5(c: EncoderDecoderConfig) -> Entries:
    """`T5ForConditionalGeneration`, v1.0 and v1.1 (FlanT5)."""
    if c.block.activation == "geglu_tanh":
        inner = (*dense("mlp/gate", "DenseReluDense.wi_0", use_bias=False),
                 *dense("mlp/up", "DenseReluDense.wi_1", use_bias=False))
    else:
        inner = dense("mlp/up", "DenseReluDense.wi", use_bias=False)
    own = under("", "layer.0.", (*norm("attention_norm", "layer_norm", use_bias=False),
                                 *_t5_attention("attention", "SelfAttention")))
    cross = under("", "layer.1.", (*norm("cross_norm", "layer_norm", use_bias=False),
                                   *_t5_attention("cross", "EncDecAttention")))
    mlp = (*norm("mlp_norm", "layer_norm", use_bias=False), *inner,
           *dense("mlp/down", "DenseReluDense.wo", use_bias=False))
    head = () if c.tie_embeddings else dense("head", "lm_head", use_bias=False)
    first = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    return (Entry("token_embed/table", "shared.weight"), *head,
            Entry("encoder_distance/table", f"encoder.{first}"), Entry("decoder_distance/table", f"decoder.{first}"),
            *norm("encoder_norm", "encoder.final_layer_norm", use_bias=False),
            *norm("decoder_norm", "decoder.final_layer_norm", use_bias=False),
            *under("encoder/", "encoder.block.{layer}.", (*own, *under("", "layer.1.", mlp)),
                   layer=range(c.num_layers)),
            *under("decoder/", "decoder.block.{layer}.", (*own, *cross, *under("", "layer.2.", mlp)),
                   layer=range(c.num_decoder_layers)))


def _attention(ours: str, theirs: str, out: str, use_bias: bool = True) -> Entries:
    projections = (e for n in QKV for e in dense(f"{ours}/{n}", f"{theirs}.{n}_proj", use_bias=use_bias))
    return (*projections, *dense(f"{ours}/out", f"{theirs}.{out}", inputs=2, use_bias=use_bias))


def _t5_attention(ours: str, theirs: str) -> Entries:
    return (*(e for n in QKV for e in dense(f"{ours}/{n}", f"{theirs}.{n}", use_bias=False)),
            *dense(f"{ours}/out", f"{theirs}.o", inputs=2, use_bias=False))


def _fused_paths() -> tuple[tuple[str, ...], tuple[str, ...]]:
    return tuple(tuple(f"attention/{n}/{kind}" for n in QKV) for kind in ("kernel", "bias"))
