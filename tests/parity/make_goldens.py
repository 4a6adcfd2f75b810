"""Runs tiny random reference modules in float32 and writes their weights, inputs and outputs as goldens.

    python tests/parity/make_goldens.py                            # the files in tests/parity/goldens
    python tests/parity/make_goldens.py --seed 7 --out /tmp/fresh  # other weights and inputs

Needs the reference packages; tests/parity/requirements.txt says how to install them. Nothing is downloaded: every
module is built from a small configuration and all its parameters are drawn at random, gates and biases included.
"""

import argparse
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import references as ref
import torch
from golden import Golden

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGE_ID = 3        # the token that stands for an image in the Flamingo and KOSMOS-1 cases


def resampler(g: torch.Generator) -> Golden:
    """open_flamingo's PerceiverResampler with frame embeddings, on 3 of 4 frames; its inner width is not D."""
    config = dict(dim=24, depth=2, dim_head=8, heads=2, num_latents=5, max_num_frames=4)
    module = ref.randomize(ref.open_flamingo.PerceiverResampler(**config), g)
    x = torch.randn(2, 2, 3, 7, 24, generator=g)
    return golden(module, config, {"x": x}, {"y": module(x)})


def gated_xattn(g: torch.Generator) -> Golden:
    """open_flamingo's GatedCrossAttentionBlock; text before any image, adjacent images, an image at the start."""
    config = dict(dim=32, dim_visual=24, dim_head=8, heads=2)
    module = ref.randomize(ref.open_flamingo.GatedCrossAttentionBlock(**config), g)
    x, media = torch.randn(2, 17, 32, generator=g), torch.randn(2, 3, 4, 24, generator=g)
    locations = torch.zeros(2, 17, dtype=torch.bool)
    locations[0, [4, 9, 10]] = locations[1, [0, 12]] = True
    inputs = {"x": x, "media": media, "media_locations": locations}
    return golden(module, config, inputs, {"y": module(**inputs)})


def flamingo(g: torch.Generator) -> Golden:
    """All of open_flamingo: an open_clip ViT without its CLS token, a resampler, OPT, cross-attention where
    (i + 1) mod 2 = 0. Rows with 3 images and with 2 and padding; text before the first image."""
    config = dict(image_size=16, patch_size=4, vision_dim=24, vision_layers=2, vision_heads=3,
                  dim=32, layers=5, heads=4, ffn_dim=64, vocab_size=50, max_positions=32,
                  every=2, dim_head=8, xattn_heads=2, num_latents=3, depth=2)
    vision = ref.open_clip.VisionTransformer(
        config["image_size"], config["patch_size"], config["vision_dim"], config["vision_layers"],
        config["vision_heads"], mlp_ratio=4.0, output_dim=8, output_tokens=True)
    lm = ref.transformers.OPTForCausalLM(opt_config(config))
    ref.open_flamingo_utils.extend_instance(lm, ref.FlamingoLMMixin)
    lm.set_decoder_layers_attr_name("model.decoder.layers")
    model = ref.Flamingo(SimpleNamespace(visual=vision), lm, eoc_token_id=1, media_token_id=IMAGE_ID,
                         vis_dim=config["vision_dim"], cross_attn_every_n_layers=config["every"])
    shrink(model, config)
    ref.randomize(model, g)

    tokens = torch.randint(4, 50, (2, 19), generator=g)
    tokens[0, [2, 8, 9]] = tokens[1, [5, 11]] = IMAGE_ID
    mask = torch.ones(2, 19, dtype=torch.int64)
    mask[1, 15:] = 0
    images = random_images(g, 2, 3, 1, 16)
    images[1, 2] = 0                                   # an unused slot, which no text sees
    pixels = normalize(images).permute(0, 1, 2, 5, 3, 4)
    inputs = {"tokens": tokens, "attention_mask": mask, "images": images}
    outputs = {"logits": model(pixels, tokens, attention_mask=mask).logits}
    return golden(model, config, inputs, outputs, drop=("vision_encoder.proj",))


def shrink(model: torch.nn.Module, config: dict) -> None:
    """Replaces the resampler and the blocks that open_flamingo placed, whose 8 heads of 64 it fixes, by small ones."""
    lm, sizes = model.lang_encoder, dict(dim_head=config["dim_head"], heads=config["xattn_heads"])
    block = dict(dim=config["dim"], dim_visual=config["vision_dim"], **sizes)
    model.perceiver = ref.open_flamingo.PerceiverResampler(
        dim=config["vision_dim"], depth=config["depth"], num_latents=config["num_latents"], **sizes)
    lm.gated_cross_attn_layers = torch.nn.ModuleList(
        placed and ref.open_flamingo.GatedCrossAttentionBlock(**block) for placed in lm.gated_cross_attn_layers)
    lm.init_flamingo_layers(gradient_checkpointing=False)


def decoder_sub_ln_xpos(g: torch.Generator) -> Golden:
    """torchscale's Decoder with Sub-LN and xPos, at an even and at an odd length (its scale is centred)."""
    config = dict(dim=32, layers=3, heads=4, ffn_dim=64, vocab_size=50, scale_embedding=False)
    module = ref.randomize(torchscale_decoder(config), g)
    even, odd = torch.randint(0, 50, (2, 32), generator=g), torch.randint(0, 50, (2, 45), generator=g)
    outputs = {"logits_even": module(even)[0], "logits_odd": module(odd)[0]}
    return golden(module, config, {"tokens_even": even, "tokens_odd": odd}, outputs)


def kosmos1(g: torch.Generator) -> Golden:
    """KOSMOS-1 from two references, since the released KOSMOS-2 has no xPos: vision tower, L2-normalised features and
    connector of transformers' Kosmos2, whose image embeddings torchscale's decoder then reads in place of tokens."""
    config = dict(image_size=16, patch_size=4, vision_dim=24, vision_layers=2, vision_heads=3, vision_ffn_dim=96,
                  num_latents=5, dim=32, layers=2, heads=4, ffn_dim=64, vocab_size=50, scale_embedding=True)
    kosmos2 = ref.randomize(kosmos2_model(config), g)
    decoder = ref.randomize(torchscale_decoder(config), g)
    images = random_images(g, 2, 2, 1, 16)
    pixels = normalize(images).flatten(0, 2).permute(0, 3, 1, 2)
    embeds = kosmos2.get_image_features(pixels).pooler_output.reshape(2, 2, 5, 32)

    tokens = torch.randint(4, 50, (2, 23), generator=g)
    slots = torch.full((2, 23), -1)                    # which image embedding of the row stands at each position
    slots[0, 2:7], slots[1, 3:8], slots[1, 12:17] = torch.arange(5), torch.arange(5), torch.arange(5, 10)
    tokens[slots >= 0] = IMAGE_ID
    rows = torch.arange(2)[:, None]
    inserted = torch.where(slots[..., None] >= 0, embeds.flatten(1, 2)[rows, slots], decoder.embed_tokens(tokens))
    logits = decoder(tokens, token_embeddings=inserted)[0]
    used = torch.nn.ModuleDict({"vision_model": kosmos2.vision_model, "decoder": decoder,
                                "image_to_text_projection": kosmos2.image_to_text_projection})
    inputs = {"tokens": tokens, "slots": slots, "images": images}
    return golden(used, config, inputs, {"image_embeds": embeds, "logits": logits})


def kosmos2_model(config: dict) -> torch.nn.Module:
    """Vision tower and connector of KOSMOS-2, with a text model that is not used."""
    return ref.transformers.Kosmos2Model(ref.transformers.Kosmos2Config(
        vision_config=dict(hidden_size=config["vision_dim"], intermediate_size=config["vision_ffn_dim"],
                           num_hidden_layers=config["vision_layers"], num_attention_heads=config["vision_heads"],
                           image_size=config["image_size"], patch_size=config["patch_size"]),
        text_config=dict(embed_dim=config["dim"], layers=1, ffn_dim=8, attention_heads=config["heads"], vocab_size=8),
        latent_query_num=config["num_latents"], attn_implementation="eager"))


def clip_vision(g: torch.Generator) -> Golden:
    """transformers' CLIP vision tower (QuickGELU): tokens before, and the pooled token after, the last layer norm."""
    config = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, image_size=20,
                  patch_size=4)
    c = ref.transformers.CLIPVisionConfig(**config, attn_implementation="eager")
    module = ref.randomize(ref.transformers.CLIPVisionModel(c), g)
    images = random_images(g, 3, 20)
    out = module(normalize(images).permute(0, 3, 1, 2))
    return golden(module, config, {"images": images}, {"tokens": out.last_hidden_state, "pooled": out.pooler_output})


def llama(g: torch.Generator) -> Golden:
    """transformers' LLaMA with grouped queries (4 heads, 2 key heads), untied."""
    config = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
                  num_key_value_heads=2, vocab_size=50, max_position_embeddings=64, rms_norm_eps=1e-6)
    c = ref.transformers.LlamaConfig(**config, attn_implementation="eager")
    return causal_lm(ref.transformers.LlamaForCausalLM(c), config, g)


def opt(g: torch.Generator) -> Golden:
    """transformers' OPT: layer norms, ReLU, learned positions that start at row 2, tied head."""
    config = dict(dim=32, layers=3, heads=4, ffn_dim=64, vocab_size=50, max_positions=32)
    return causal_lm(ref.transformers.OPTForCausalLM(opt_config(config)), config, g)


def causal_lm(module: torch.nn.Module, config: dict, g: torch.Generator) -> Golden:
    tokens = torch.randint(0, 50, (2, 21), generator=g)
    return golden(ref.randomize(module, g), config, {"tokens": tokens}, {"logits": module(tokens).logits})


def opt_config(config: dict):
    return ref.transformers.OPTConfig(
        vocab_size=config["vocab_size"], hidden_size=config["dim"], num_hidden_layers=config["layers"],
        ffn_dim=config["ffn_dim"], num_attention_heads=config["heads"], word_embed_proj_dim=config["dim"],
        max_position_embeddings=config["max_positions"], pad_token_id=0, bos_token_id=1, eos_token_id=2,
        attn_implementation="eager")


def torchscale_decoder(config: dict) -> torch.nn.Module:
    c = ref.torchscale_config.DecoderConfig(
        decoder_embed_dim=config["dim"], decoder_layers=config["layers"], decoder_attention_heads=config["heads"],
        decoder_ffn_embed_dim=config["ffn_dim"], vocab_size=config["vocab_size"], subln=True, xpos_rel_pos=True,
        share_decoder_input_output_embed=True, no_scale_embedding=not config["scale_embedding"])
    return ref.torchscale.Decoder(c, embed_tokens=torch.nn.Embedding(config["vocab_size"], config["dim"]))


def random_images(g: torch.Generator, *shape: int) -> torch.Tensor:
    """uint8[*shape, H, 3] images, H the last of `shape`."""
    return torch.randint(0, 256, (*shape, shape[-1], 3), dtype=torch.uint8, generator=g)


def normalize(images: torch.Tensor) -> torch.Tensor:
    """CLIP's normalisation of uint8[..., 3]: float32[..., 3]."""
    return (images.float() / 255 - torch.tensor(CLIP_MEAN)) / torch.tensor(CLIP_STD)


def golden(module: torch.nn.Module, config: dict, inputs: dict, outputs: dict, drop: tuple[str, ...] = ()) -> Golden:
    """Collects a run; `drop` names parameters that the outputs do not depend on."""
    weights = {name: p for name, p in module.named_parameters() if name not in drop}
    arrays = [{name: np.asarray(t.detach()) for name, t in group.items()} for group in (weights, inputs, outputs)]
    return Golden(*arrays, config, about={})


CASES = {f.__name__: f for f in
         (resampler, gated_xattn, flamingo, decoder_sub_ln_xpos, kosmos1, clip_vision, llama, opt)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "goldens")
    args = parser.parse_args()
    torch.set_num_threads(1)                           # the same sums in the same order on every machine
    args.out.mkdir(parents=True, exist_ok=True)
    for index, (name, case) in enumerate(CASES.items()):
        with torch.no_grad():
            result = case(torch.Generator().manual_seed(1000 * args.seed + index))
        about = {"reference": case.__doc__, "versions": ref.versions(), "seed": args.seed}
        result._replace(about=about).save(args.out / f"{name}.safetensors")


if __name__ == "__main__":
    main()
