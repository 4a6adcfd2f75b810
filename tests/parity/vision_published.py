"""Writes the names and shapes of the published vision towers as the reference packages build them, without memory.

    python tests/parity/vision_published.py                # tests/parity/goldens/vision/published.json

Per preset of `mmjax.parts.vision_presets`: the number of parameters, and a digest of all names with their shapes.
"""

import argparse
import hashlib
import json
from pathlib import Path

import references as ref
import timm
import torch
from open_clip.factory import get_model_config
from open_clip.modified_resnet import ModifiedResNet

OPEN_CLIP = {"clip_b32": "ViT-B-32-quickgelu", "clip_b16": "ViT-B-16-quickgelu", "clip_l14": "ViT-L-14-quickgelu",
             "clip_l14_336": "ViT-L-14-336-quickgelu", "open_clip_b32": "ViT-B-32", "open_clip_b16": "ViT-B-16",
             "open_clip_l14": "ViT-L-14", "open_clip_h14": "ViT-H-14", "open_clip_g14": "ViT-g-14",
             "open_clip_big_g14": "ViT-bigG-14", "dfn_h14": "ViT-H-14-quickgelu",
             "dfn_h14_378": "ViT-H-14-378-quickgelu", "clip_rn50": "RN50", "clip_rn101": "RN101",
             "clip_rn50x4": "RN50x4", "clip_rn50x16": "RN50x16", "clip_rn50x64": "RN50x64"}
SIGLIP = {"siglip_b16_224": "vit_base_patch16_siglip_224", "siglip_b16_256": "vit_base_patch16_siglip_256",
          "siglip_b16_384": "vit_base_patch16_siglip_384", "siglip_l16_256": "vit_large_patch16_siglip_256",
          "siglip_l16_384": "vit_large_patch16_siglip_384", "siglip_so400m14_224": "vit_so400m_patch14_siglip_224",
          "siglip_so400m14_384": "vit_so400m_patch14_siglip_384"}
EVA = {"eva_clip_g14": ("eva_giant_patch14_clip_224", 1024), "eva02_ti14": ("eva02_tiny_patch14_224", 0),
       "eva02_s14": ("eva02_small_patch14_224", 0), "eva02_b14": ("eva02_base_patch14_224", 0),
       "eva02_l14": ("eva02_large_patch14_224", 0), "eva02_clip_b16": ("eva02_base_patch16_clip_224", 512),
       "eva02_clip_l14": ("eva02_large_patch14_clip_224", 768),
       "eva02_clip_e14_plus": ("eva02_enormous_patch14_clip_224", 1024)}
AIMV2 = {"aimv2_large": (1024, 24, 8, 2816), "aimv2_huge": (1536, 24, 12, 4096), "aimv2_1b": (2048, 24, 16, 5632),
         "aimv2_3b": (3072, 24, 24, 8192)}


def modules():
    """(preset, module) one after the other, each on the meta device."""
    for preset, name in OPEN_CLIP.items():
        yield preset, open_clip_visual(name)
    for preset, name in SIGLIP.items():
        yield preset, timm.create_model(name, num_classes=0)
    for preset, (name, num_classes) in EVA.items():
        yield preset, timm.create_model(name, num_classes=num_classes)
    for n in range(7):
        yield f"nfnet_f{n}", timm.create_model(f"dm_nfnet_f{n}", num_classes=0)
    yield "blip2_g14", ref.transformers.Blip2VisionModel(ref.transformers.Blip2VisionConfig())
    for preset, (width, layers, heads, mlp) in AIMV2.items():
        yield preset, ref.transformers.Aimv2VisionModel(ref.transformers.Aimv2VisionConfig(
            hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, intermediate_size=mlp,
            use_head=False))


def open_clip_visual(name: str) -> torch.nn.Module:
    """The image side of an open_clip model, from its configuration."""
    c = get_model_config(name)
    vision, width = c["vision_cfg"], c["vision_cfg"]["width"]
    if isinstance(vision["layers"], list):
        return ModifiedResNet(vision["layers"], c["embed_dim"], width * 32 // 64, vision["image_size"], width)
    return ref.open_clip.VisionTransformer(
        vision["image_size"], vision["patch_size"], width, vision["layers"], width // vision.get("head_width", 64),
        vision.get("mlp_ratio", 4.0), output_dim=c["embed_dim"])


def describe(shapes: dict[str, tuple[int, ...]]) -> str:
    """Digest of names and shapes."""
    lines = sorted(f"{name} {list(shape)}" for name, shape in shapes.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "goldens" / "vision" / "published.json")
    args = parser.parse_args()
    found = {}
    with torch.device("meta"):
        for preset, module in modules():
            shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
            statistics = {name: tuple(b.shape) for name, b in module.named_buffers() if "running" in name}
            found[preset] = {"parameters": sum(p.numel() for p in module.parameters()),
                             "digest": describe(shapes | statistics)}
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
