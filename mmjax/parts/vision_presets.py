"""Published vision towers and their heads, by name."""

import dataclasses

from mmjax.layers import BlockConfig
from mmjax.parts.nfnet import NFNetConfig
from mmjax.parts.resnet import ResNetConfig
from mmjax.parts.vision_head import VisionHeadConfig
from mmjax.parts.vision_tower import VisionConfig
from mmjax.parts.vit import ViTConfig

IMAGENET = dict(pixel_mean=(0.485, 0.456, 0.406), pixel_std=(0.229, 0.224, 0.225))
HALF = dict(pixel_mean=(0.5, 0.5, 0.5), pixel_std=(0.5, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class VisionPreset:
    """A tower, and the head that makes one embedding of its tokens, if it was published with one."""

    tower: VisionConfig
    head: VisionHeadConfig | None = None


def _clip(image_size, patch_size, shape, output_dim, activation) -> VisionPreset:
    """CLIP (arXiv:2103.00020); OpenAI's weights and DFN's (arXiv:2309.17425) at 378 pixels have QuickGELU."""
    num_layers, width, num_heads, mlp_dim = shape
    block = BlockConfig(width, num_heads, mlp_dim, activation=activation)
    return VisionPreset(ViTConfig(image_size, patch_size, num_layers, block), VisionHeadConfig(width, output_dim))


def _siglip(image_size, patch_size, shape) -> VisionPreset:
    """SigLIP (arXiv:2303.15343)."""
    num_layers, width, num_heads, mlp_dim = shape
    block = BlockConfig(width, num_heads, mlp_dim, activation="gelu_tanh", norm_eps=1e-6)
    tower = ViTConfig(image_size, patch_size, num_layers, block, class_token=False, patch_bias=True, pre_norm=False,
                      **HALF)
    return VisionPreset(tower, VisionHeadConfig(width, pool="latent", num_heads=num_heads, mlp_dim=mlp_dim))


def _eva(image_size, patch_size, shape, output_dim=0, is_pretrained_by_clip=True, final_norm=True, rotary_grid=0,
         **block) -> VisionPreset:
    """EVA (arXiv:2211.07636), EVA-02 (arXiv:2303.11331) and EVA-CLIP (arXiv:2303.15389): no bias on keys."""
    num_layers, width, num_heads, mlp_dim = shape
    block = BlockConfig(width, num_heads, mlp_dim, norm_eps=1e-6, **dict(key_bias=False) | block)
    tower = ViTConfig(image_size, patch_size, num_layers, block, patch_bias=True, pre_norm=False,
                      final_norm=final_norm, rotary_grid=rotary_grid)
    if is_pretrained_by_clip:
        return VisionPreset(tower, VisionHeadConfig(width, output_dim, use_bias=True) if output_dim else None)
    return VisionPreset(tower, VisionHeadConfig(width, pool="mean", norm=True, num_class_tokens=1))


def _eva02(patch_size, shape, mlp_sub_norm, **fields) -> VisionPreset:
    return _eva(224, patch_size, shape, rotary_grid=16, activation="swiglu", mlp_sub_norm=mlp_sub_norm, **fields)


def _aim(num_layers, width, num_heads) -> VisionPreset:
    """AIM (arXiv:2401.08541), the trunk."""
    block = BlockConfig(width, num_heads, 4 * width, norm_eps=1e-6, use_bias=False, norm_bias=True)
    return VisionPreset(ViTConfig(224, 14, num_layers, block, class_token=False, patch_bias=True, pre_norm=False,
                                  patch_norm=True, positions="sincos", **IMAGENET))


def _aimv2(num_layers, width, num_heads, mlp_dim) -> VisionPreset:
    """AIMv2 (arXiv:2411.14402), the trunk."""
    block = BlockConfig(width, num_heads, mlp_dim, activation="swiglu", norm="rms", use_bias=False)
    return VisionPreset(ViTConfig(224, 14, num_layers, block, class_token=False, patch_bias=True, pre_norm=False,
                                  patch_norm=True))


def _resnet(image_size, depths, width, output_dim) -> VisionPreset:
    """CLIP's ResNets."""
    tower = ResNetConfig(image_size, depths, width)
    head = VisionHeadConfig(tower.num_features, output_dim, "mean_query", num_heads=width // 2,
                            num_tokens=tower.num_tokens)
    return VisionPreset(tower, head)


def _nfnet(number, image_size) -> VisionPreset:
    """NFNet-F (arXiv:2102.06171), at the size it was trained with; Flamingo's F6 saw 288 pixels, then 320."""
    depths = tuple((number + 1) * n for n in (1, 2, 6, 3))
    return VisionPreset(NFNetConfig(image_size, depths))


# Layers, width, heads, inner width.
BASE, LARGE, HUGE = (12, 768, 12, 3072), (24, 1024, 16, 4096), (32, 1280, 16, 5120)
GIANT, BIG_G, SO400M = (40, 1408, 16, 6144), (48, 1664, 16, 8192), (27, 1152, 16, 4304)
EVA02_B, EVA02_L, EVA02_E = (12, 768, 12, 2048), (24, 1024, 16, 2730), (64, 1792, 16, 15360)

PRESETS: dict[str, VisionPreset] = {
    "clip_b32": _clip(224, 32, BASE, 512, "quick_gelu"),
    "clip_b16": _clip(224, 16, BASE, 512, "quick_gelu"),
    "clip_l14": _clip(224, 14, LARGE, 768, "quick_gelu"),
    "clip_l14_336": _clip(336, 14, LARGE, 768, "quick_gelu"),
    "open_clip_b32": _clip(224, 32, BASE, 512, "gelu"),
    "open_clip_b16": _clip(224, 16, BASE, 512, "gelu"),
    "open_clip_l14": _clip(224, 14, LARGE, 768, "gelu"),
    "open_clip_h14": _clip(224, 14, HUGE, 1024, "gelu"),
    "open_clip_g14": _clip(224, 14, GIANT, 1024, "gelu"),
    "open_clip_big_g14": _clip(224, 14, BIG_G, 1280, "gelu"),
    "dfn_h14": _clip(224, 14, HUGE, 1024, "quick_gelu"),
    "dfn_h14_378": _clip(378, 14, HUGE, 1024, "quick_gelu"),
    "clip_rn50": _resnet(224, (3, 4, 6, 3), 64, 1024),
    "clip_rn101": _resnet(224, (3, 4, 23, 3), 64, 512),
    "clip_rn50x4": _resnet(288, (4, 6, 10, 6), 80, 640),
    "clip_rn50x16": _resnet(384, (6, 8, 18, 8), 96, 768),
    "clip_rn50x64": _resnet(448, (3, 15, 36, 10), 128, 1024),
    "siglip_b16_224": _siglip(224, 16, BASE),
    "siglip_b16_256": _siglip(256, 16, BASE),
    "siglip_b16_384": _siglip(384, 16, BASE),
    "siglip_l16_256": _siglip(256, 16, LARGE),
    "siglip_l16_384": _siglip(384, 16, LARGE),
    "siglip_so400m14_224": _siglip(224, 14, SO400M),
    "siglip_so400m14_384": _siglip(378, 14, SO400M),    # of 384 pixels its patches cover 378
    "eva_clip_g14": _eva(224, 14, GIANT, 1024),
    "blip2_g14": _eva(224, 14, (39, *GIANT[1:]), key_bias=None),        # its final norm is LAVIS's ln_vision
    "eva02_ti14": _eva02(14, (12, 192, 3, 512), False, is_pretrained_by_clip=False, final_norm=False),
    "eva02_s14": _eva02(14, (12, 384, 6, 1024), False, is_pretrained_by_clip=False, final_norm=False),
    "eva02_b14": _eva02(14, EVA02_B, True, is_pretrained_by_clip=False, final_norm=False),
    "eva02_l14": _eva02(14, EVA02_L, True, is_pretrained_by_clip=False, final_norm=False),
    "eva02_clip_b16": _eva02(16, EVA02_B, True, sub_norm=True, output_dim=512),
    "eva02_clip_l14": _eva02(14, EVA02_L, True, sub_norm=True, output_dim=768),
    "eva02_clip_e14_plus": _eva(224, 14, EVA02_E, 1024, norm_place="branch"),
    "emu2_e14_448": _eva(448, 14, EVA02_E, norm_place="branch", final_norm=False),
    "aim_600m": _aim(24, 1536, 12),
    "aim_1b": _aim(24, 2048, 16),
    "aim_3b": _aim(24, 3072, 24),
    "aim_7b": _aim(32, 4096, 32),
    "aimv2_large": _aimv2(24, 1024, 8, 2816),
    "aimv2_huge": _aimv2(24, 1536, 12, 4096),
    "aimv2_1b": _aimv2(24, 2048, 16, 5632),
    "aimv2_3b": _aimv2(24, 3072, 24, 8192),
    **{f"nfnet_f{i}": _nfnet(i, size) for i, size in enumerate((192, 224, 256, 320, 384, 416, 448))},
}
