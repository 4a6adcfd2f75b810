"""Names of text towers: CLIP, SigLIP and BERT in Hugging Face transformers, CLIP in open_clip and OpenAI's release.

Each function gives the entries of one tower with our paths relative to it; `table.under` puts them in a system.
"""

from mmjax.checkpoint.convert.forms import flat, fused, linear
from mmjax.checkpoint.convert.table import Entry, dense, norm, under
from mmjax.parts.text_tower import TextTowerConfig

Entries = tuple[Entry, ...]
IGNORED = (r"(.*\.)?position_ids", r"(.*\.)?attn_mask")


def clip(c: TextTowerConfig) -> Entries:
    """The text side of `CLIPModel`, and `CLIPTextModelWithProjection`."""
    output = dense("output", "text_projection", use_bias=False) if c.output_dim else ()
    return (*under("", "text_model.", _encoder(c)), *output)


def siglip(c: TextTowerConfig) -> Entries:
    """The parameters of `SiglipTextModel`; in `SiglipModel` they stand under `text_model.`."""
    return (*_encoder(c), *dense("output", "head"))


def _encoder(c: TextTowerConfig) -> Entries:
    attention = (*(e for n in "qkv" for e in dense(f"attention/{n}", f"self_attn.{n}_proj")),
                 *dense("attention/out", "self_attn.out_proj", inputs=2))
    layer = (*norm("attention_norm", "layer_norm1"), *attention, *norm("mlp_norm", "layer_norm2"),
             *dense("mlp/up", "mlp.fc1"), *dense("mlp/down", "mlp.fc2"))
    return (Entry("token_embed/table", "embeddings.token_embedding.weight"),
            Entry("position_embed/table", "embeddings.position_embedding.weight"),
            *norm("final_norm", "final_layer_norm"),
            *under("blocks/", "encoder.layers.{layer}.", layer, layer=range(c.num_layers)))


def bert(c: TextTowerConfig) -> Entries:
    """`BertModel`, with its pooler if the tower has an output."""
    output = dense("output", "pooler.dense") if c.output_dim else ()
    return (Entry("token_embed/table", "embeddings.word_embeddings.weight"),
            Entry("position_embed/table", "embeddings.position_embeddings.weight"),
            Entry("type_embed/table", "embeddings.token_type_embeddings.weight"),
            *norm("embed_norm", "embeddings.LayerNorm"), *output,
            *under("blocks/", "encoder.layer.{layer}.", bert_layer(), layer=range(c.num_layers)))


def bert_layer() -> Entries:
    """One of its layers, which is a post-norm `Block`."""
    names = (("q", "query"), ("k", "key"), ("v", "value"))
    return (*(e for ours, theirs in names for e in dense(f"attention/{ours}", f"attention.self.{theirs}")),
            *dense("attention/out", "attention.output.dense", inputs=2),
            *norm("attention_norm", "attention.output.LayerNorm"),
            *dense("mlp/up", "intermediate.dense"), *dense("mlp/down", "output.dense"),
            *norm("mlp_norm", "output.LayerNorm"))


def open_clip(c: TextTowerConfig) -> Entries:
    """The text side of open_clip's `CLIP` and of OpenAI's, whose projection stands as [D, out]."""
    kernels, biases = (tuple(f"attention/{n}/{kind}" for n in "qkv") for kind in ("kernel", "bias"))
    layer = (*norm("attention_norm", "ln_1"), Entry(kernels, "attn.in_proj_weight", fused(linear())),
             Entry(biases, "attn.in_proj_bias", fused(flat)), *dense("attention/out", "attn.out_proj", inputs=2),
             *norm("mlp_norm", "ln_2"), *dense("mlp/up", "mlp.c_fc"), *dense("mlp/down", "mlp.c_proj"))
    output = (Entry("output/kernel", "text_projection"),) if c.output_dim and not c.output_bias else (
        dense("output", "text_projection") if c.output_dim else ())
    return (Entry("token_embed/table", "token_embedding.weight"), Entry("position_embed/table", "positional_embedding"),
            *norm("final_norm", "ln_final"), *output,
            *under("blocks/", "transformer.resblocks.{layer}.", layer, layer=range(c.num_layers)))
