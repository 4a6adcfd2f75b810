"""Runs tiny random language models of the reference packages and writes goldens, as `make_goldens.py` does.

    python tests/parity/language_goldens.py                            # the files in tests/parity/goldens/language
    python tests/parity/language_goldens.py --seed 7 --out /tmp/fresh

Each model has two shapes, "a" and "b". For "a" the golden also holds the gradient of a scalar, the sum of the first
output times random numbers, in every parameter. Weights are what `save_pretrained` writes.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import references as ref
import safetensors.torch
import torch
from golden import Golden
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

hf = ref.transformers
SHAPES = {"a": dict(vocab=23, width=12, layers=2, heads=3, mlp=20, length=13),
          "b": dict(vocab=19, width=16, layers=3, heads=2, mlp=28, length=9)}


class Model(NamedTuple):
    """A reference.

    Attributes:
        module: with random parameters.
        run: inputs -> outputs, the first of which is differentiated.
        inputs: by name.
    """

    module: torch.nn.Module
    run: Callable[[dict], dict]
    inputs: dict


def llama(c: dict, g: torch.Generator) -> Model:
    """transformers' LLaMA; grouped queries and base 5000 at shape "b", tied at shape "a"."""
    return causal_lm(hf.LlamaForCausalLM(hf.LlamaConfig(**llama_config(c), tie_word_embeddings=c["name"] == "a")), c, g)


def llama_config(c: dict) -> dict:
    return dict(vocab_size=c["vocab"], hidden_size=c["width"], intermediate_size=c["mlp"],
                num_hidden_layers=c["layers"], num_attention_heads=c["heads"], rms_norm_eps=1e-6,
                num_key_value_heads=c["heads"] if c["name"] == "a" else 1, max_position_embeddings=64,
                rope_parameters=dict(rope_type="default", rope_theta=1e4 if c["name"] == "a" else 5e3),
                attn_implementation="eager")


def mixtral(c: dict, g: torch.Generator) -> Model:
    """transformers' Mixtral with 5 experts, and its loss of balance; top 2 at shape "a", top 3 at "b"."""
    top_k = 2 if c["name"] == "a" else 3
    module = hf.MixtralForCausalLM(hf.MixtralConfig(**llama_config(c), num_local_experts=5, num_experts_per_tok=top_k))

    def run(inputs):
        out = module(inputs["tokens"], output_router_logits=True)
        return {"logits": out.logits, "balance": load_balancing_loss_func(out.router_logits, 5, top_k)}

    return Model(module, run, tokens(c, g))


def opt(c: dict, g: torch.Generator) -> Model:
    """transformers' OPT."""
    return causal_lm(hf.OPTForCausalLM(hf.OPTConfig(
        vocab_size=c["vocab"], hidden_size=c["width"], num_hidden_layers=c["layers"], ffn_dim=c["mlp"],
        num_attention_heads=c["heads"], word_embed_proj_dim=c["width"], max_position_embeddings=16, pad_token_id=0,
        bos_token_id=1, eos_token_id=2, attn_implementation="eager")), c, g)


def gpt_neox(c: dict, g: torch.Generator) -> Model:
    """transformers' GPT-NeoX; half of each head of 4 turns at shape "a", a quarter of 8 at "b"."""
    pct = 0.5 if c["name"] == "a" else 0.25
    return causal_lm(hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(
        vocab_size=c["vocab"], hidden_size=c["width"], num_hidden_layers=c["layers"], intermediate_size=c["mlp"],
        num_attention_heads=c["heads"], max_position_embeddings=64, tie_word_embeddings=False,
        rope_parameters=dict(rope_type="default", rope_theta=1e4, partial_rotary_factor=pct),
        attn_implementation="eager")), c, g)


def mpt(c: dict, g: torch.Generator) -> Model:
    """transformers' MPT; 3 heads, no power of two, at shape "a". Its feed-forward network is always 4 D wide."""
    return causal_lm(hf.MptForCausalLM(hf.MptConfig(
        vocab_size=c["vocab"], d_model=c["width"], n_heads=c["heads"], n_layers=c["layers"], max_seq_len=32)), c, g)


def causal_lm(module: torch.nn.Module, c: dict, g: torch.Generator) -> Model:
    return Model(module, lambda inputs: {"logits": module(inputs["tokens"]).logits}, tokens(c, g))


def t5(c: dict, g: torch.Generator) -> Model:
    """transformers' T5 with few buckets and one more decoder layer; v1.1, untied by hand, at shape "a" (its config ties
    it whatever it says), v1.0 with a scaled tied head at "b". The second source row is padded."""
    is_gated = c["name"] == "a"
    module = hf.T5ForConditionalGeneration(hf.T5Config(
        vocab_size=c["vocab"], d_model=c["width"], d_kv=6, d_ff=c["mlp"], num_layers=c["layers"],
        num_decoder_layers=c["layers"] + 1, num_heads=c["heads"], relative_attention_num_buckets=8,
        relative_attention_max_distance=10, feed_forward_proj="gated-gelu" if is_gated else "relu",
        tie_word_embeddings=not is_gated, decoder_start_token_id=0))
    if is_gated:
        module.lm_head.weight = torch.nn.Parameter(torch.empty_like(module.lm_head.weight))
    assert module.config.scale_decoder_outputs != is_gated
    inputs = tokens(c, g) | {"targets": torch.randint(0, c["vocab"], (2, 8), generator=g)}
    inputs["mask"] = torch.ones_like(inputs["tokens"])
    inputs["mask"][1, -3:] = 0

    def run(inputs):
        out = module(input_ids=inputs["tokens"], attention_mask=inputs["mask"], decoder_input_ids=inputs["targets"])
        return {"logits": out.logits, "features": out.encoder_last_hidden_state}

    return Model(module, run, inputs)


def bert(c: dict, g: torch.Generator) -> Model:
    """transformers' BERT with two token types; the second row is padded."""
    module = hf.BertModel(hf.BertConfig(
        vocab_size=c["vocab"], hidden_size=c["width"], num_hidden_layers=c["layers"], num_attention_heads=c["heads"],
        intermediate_size=c["mlp"], max_position_embeddings=15, attn_implementation="eager"))
    inputs = tokens(c, g) | {"types": torch.randint(0, 2, (2, c["length"]), generator=g)}
    inputs["mask"] = torch.ones_like(inputs["tokens"])
    inputs["mask"][1, -4:] = 0

    def run(inputs):
        out = module(inputs["tokens"], inputs["mask"], inputs["types"])
        return {"pooled": out.pooler_output, "features": out.last_hidden_state}

    return Model(module, run, inputs)


def clip_text(c: dict, g: torch.Generator) -> Model:
    """transformers' CLIP text tower, projected; the largest id pools at shape "a" (`eos_token_id` 2), the first end
    token, not the largest id, at "b"."""
    end = c["vocab"] - 1 if c["name"] == "a" else 5
    module = hf.CLIPTextModelWithProjection(hf.CLIPTextConfig(
        vocab_size=c["vocab"], hidden_size=c["width"], num_hidden_layers=c["layers"], num_attention_heads=c["heads"],
        intermediate_size=c["mlp"], max_position_embeddings=15, projection_dim=9, hidden_act="quick_gelu",
        eos_token_id=2 if c["name"] == "a" else end, bos_token_id=0, pad_token_id=1, attn_implementation="eager"))

    def run(inputs):
        out = module(inputs["tokens"])
        return {"pooled": out.text_embeds, "features": out.last_hidden_state}

    return Model(module, run, {"tokens": ended(c, g, end)})


def open_clip_text(c: dict, g: torch.Generator) -> Model:
    """open_clip's TextTransformer, projected, GELU."""
    module = ref.open_clip.TextTransformer(context_length=c["length"], vocab_size=c["vocab"], width=c["width"],
                                           heads=c["heads"], layers=c["layers"], mlp_ratio=c["mlp"] / c["width"],
                                           output_dim=9)
    return Model(module, lambda inputs: {"pooled": module(inputs["tokens"])}, {"tokens": ended(c, g, c["vocab"] - 1)})


def siglip_text(c: dict, g: torch.Generator) -> Model:
    """transformers' SigLIP text tower."""
    module = hf.SiglipTextModel(hf.SiglipTextConfig(
        vocab_size=c["vocab"], hidden_size=c["width"], num_hidden_layers=c["layers"], num_attention_heads=c["heads"],
        intermediate_size=c["mlp"], max_position_embeddings=c["length"], projection_size=11,
        attn_implementation="eager"))

    def run(inputs):
        out = module(inputs["tokens"])
        return {"pooled": out.pooler_output, "features": out.last_hidden_state}

    return Model(module, run, tokens(c, g))


def xlnet_attention(c: dict, g: torch.Generator) -> Model:
    """The attention of transformers' XLNet, which is Transformer-XL's, causal and without its residual and norm."""
    heads, width, length = c["heads"], c["width"], c["length"]
    module = hf.models.xlnet.modeling_xlnet.XLNetRelativeAttention(hf.XLNetConfig(
        d_model=width, n_head=heads, d_inner=4, n_layer=1, dropout=0.0))
    del module.layer_norm, module.r_s_bias, module.seg_embed
    module.layer_norm = torch.nn.Identity()
    frequency = 1 / 10_000 ** (torch.arange(0, width, 2.0) / width)
    angle = torch.arange(length, -1, -1.0)[:, None] * frequency          # distances from T down to 0
    sinusoids = torch.cat([angle.sin(), angle.cos()], -1)[:, None]
    hidden = (torch.arange(length)[None, :] > torch.arange(length)[:, None]).float()[:, :, None, None]

    def run(inputs):
        h = inputs["x"].transpose(0, 1)
        q, k, v = (torch.einsum("ibh,hnd->ibnd", h, p) for p in (module.q, module.k, module.v))
        r = torch.einsum("ibh,hnd->ibnd", sinusoids, module.r).expand(-1, h.shape[1], -1, -1)
        out = module.rel_attn_core(q, k, v, r, attn_mask=hidden.expand(-1, -1, h.shape[1], -1))
        return {"y": module.post_attention(h, out, residual=False).transpose(0, 1)}

    return Model(module, run, {"x": torch.randn(2, length, width, generator=g)})


def tokens(c: dict, g: torch.Generator) -> dict:
    return {"tokens": torch.randint(3, c["vocab"], (2, c["length"]), generator=g)}


def ended(c: dict, g: torch.Generator, end: int) -> torch.Tensor:
    """Two texts, each with its end token at another place, and twice in the second; padding of 0 behind."""
    x = torch.randint(6, c["vocab"] - 2, (2, c["length"]), generator=g)
    x[0, 5], x[0, 6:], x[1, 3], x[1, 7] = end, 0, end, end
    return x


CASES = {f.__name__: f for f in (llama, mixtral, opt, gpt_neox, mpt, t5, bert, clip_text, open_clip_text, siglip_text,
                                 xlnet_attention)}


def published(module: torch.nn.Module) -> dict[str, np.ndarray]:
    """Parameters as the reference writes them to disk, where it does.

    In memory some have other names, and all experts of a Mixtral layer are one tensor. T5's head, untied by hand, would
    not be written.
    """
    named = {name: p.detach().clone() for name, p in module.named_parameters()}
    if isinstance(module, hf.PreTrainedModel) and not isinstance(module, hf.T5ForConditionalGeneration):
        with tempfile.TemporaryDirectory() as folder:
            module.save_pretrained(folder)
            named = safetensors.torch.load_file(Path(folder) / "model.safetensors")
    return {name: p.numpy() for name, p in named.items()}


def run_case(name: str, shape: str, g: torch.Generator) -> Golden:
    c = SHAPES[shape] | {"name": shape}
    module, run, inputs = CASES[name](c, g)
    ref.randomize(module, g)
    weights = published(module)
    outputs = {n: np.array(t) for n, t in run(inputs).items()}
    if shape == "a":
        inputs["cotangent"] = torch.randn(next(iter(outputs.values())).shape, generator=g)
        outputs |= {f"grad.{n}": w for n, w in gradient(module, run, inputs).items()}
    return Golden(weights, {n: t.numpy() for n, t in inputs.items()}, outputs, c, about={})


def gradient(module, run, inputs: dict) -> dict[str, np.ndarray]:
    """The gradient by published name; ends with the gradient in the module's parameters."""
    parameters = list(module.parameters())
    for p in parameters:
        p.requires_grad_(True)
    first = next(iter(run(inputs).values()))
    grads = torch.autograd.grad((first * inputs["cotangent"]).sum(), parameters, allow_unused=True)
    for p, d in zip(parameters, grads, strict=True):
        p.requires_grad_(False)
        p.copy_(torch.zeros_like(p) if d is None else d)
    return published(module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "goldens" / "language")
    args = parser.parse_args()
    torch.set_num_threads(1)                           # the same sums in the same order on every machine
    args.out.mkdir(parents=True, exist_ok=True)
    for index, (name, shape) in enumerate((n, s) for n in CASES for s in SHAPES):
        result = run_case(name, shape, torch.Generator().manual_seed(1000 * args.seed + index))
        about = {"reference": CASES[name].__doc__, "versions": ref.versions(), "seed": args.seed}
        result._replace(about=about).save(args.out / f"{name}_{shape}.safetensors")


if __name__ == "__main__":
    main()
