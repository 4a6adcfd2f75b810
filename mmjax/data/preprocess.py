"""The specs under which published vision towers were trained: geometry here, normalisation for the model's config."""

import dataclasses
import difflib
from typing import Any, NamedTuple

import numpy as np

from mmjax.data.image_spec import ImageSpec

Triple = tuple[float, float, float]
CLIP_MEAN: Triple = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Triple = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN: Triple = (0.485, 0.456, 0.406)
IMAGENET_STD: Triple = (0.229, 0.224, 0.225)
HALF: Triple = (0.5, 0.5, 0.5)


class Preset(NamedTuple):
    """What a published tower expects; `mean` and `std` normalise RGB in [0, 1] and belong into the model's config."""

    spec: ImageSpec
    mean: Triple
    std: Triple


def _preset(size: int, policy: str, mean: Triple = CLIP_MEAN, std: Triple = CLIP_STD, **more: Any) -> Preset:
    return Preset(ImageSpec(size, "bicubic", policy, draft=0, **more), mean, std)


PRESETS = {
    "clip-224": _preset(224, "center_crop"),                        # OpenAI, OpenCLIP; KOSMOS-1 and MetaLM use it
    "clip-336": _preset(336, "center_crop"),
    "dfn-224": _preset(224, "squash"),                              # ViT-H/14 of DFN-5B, MM1's encoder
    "dfn-378": _preset(378, "squash"),
    "siglip-224": _preset(224, "squash", HALF, HALF),
    "siglip-384": _preset(384, "squash", HALF, HALF),
    "eva-clip-224": _preset(224, "center_crop"),                    # EVA01-g, EVA02-E-plus
    "eva-clip-336": _preset(336, "center_crop"),                    # EVA02-L
    "blip2-224": _preset(224, "squash"),                            # EVA01-g as BLIP-2 and MiniGPT-4 feed it
    "blip2-364": _preset(364, "squash"),
    "emu2-224": _preset(224, "squash"),                             # EVA02-E-plus as Emu2 feeds it
    "emu2-448": _preset(448, "squash"),
    "nfnet-f6-448": _preset(448, "squash", IMAGENET_MEAN, IMAGENET_STD, resize_to=468),     # 468 = floor(448 / 0.956)
    "nfnet-f6-576": _preset(576, "squash", IMAGENET_MEAN, IMAGENET_STD, resize_to=602),
    "flamingo-320": _preset(320, "pad", IMAGENET_MEAN, IMAGENET_STD, fill=(124, 116, 104)),  # the mean in grey levels
}


def preset(name: str) -> Preset:
    """The preset of that name; ValueError names the nearest."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(PRESETS)}"
        raise ValueError(f"image preset {name!r} is unknown; {hint}")
    return PRESETS[name]


def image_spec(name: str, **changes: Any) -> ImageSpec:
    """The spec of a preset with some fields changed, `draft=1.0` for speed say.

    Presets decode JPEG in full, as the reference processors do. They differ from these in two declared ways:
    transparency is laid on white (not black), and an odd margin is halved as by torchvision (transformers may cut one
    pixel beside that).

    Raises:
        ValueError: if there is no such preset, or a field has a value it may not have.
    """
    return dataclasses.replace(preset(name).spec, **changes)


def normalise(pixels: np.ndarray, mean: Triple, std: Triple) -> np.ndarray:
    """float32 of uint8[..., 3]: (pixels / 255 - mean) / std, what the vision towers do to their input."""
    return (pixels.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
