"""The published image processors, and the goldens they make: `python tests/parity/preprocess_references.py`."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from mmjax.data import preprocess

GOLDENS = Path(__file__).parent / "goldens" / "preprocess.npz"
SHAPES = ((300, 452), (518, 260))           # height, width; the margins of a crop are even


def pictures() -> list[np.ndarray]:
    """uint8[H, W, 3] of noise over slopes: every filter and every offset gives something else."""
    rng = np.random.default_rng(0)
    out = []
    for h, w in SHAPES:
        y, x = np.mgrid[:h, :w]
        slopes = np.stack([x * 255 // w, y * 255 // h, (x + y) % 256], -1)
        out.append(np.clip(slopes + rng.integers(-60, 60, (h, w, 3)), 0, 255).astype(np.uint8))
    return out


def grid(pixels: np.ndarray) -> np.ndarray:
    """20 x 20 of the pixels of an image, its edges among them."""
    at = np.linspace(0, len(pixels) - 1, 20).astype(int)
    return pixels[np.ix_(at, at)]


def references() -> dict[str, list[Callable[[Image.Image], np.ndarray]]]:
    """For each preset the processors that it must equal: RGB image -> float32[size, size, 3]."""
    from references import import_torchvision
    import_torchvision()
    import open_clip
    import timm
    import transformers
    from torchvision import transforms

    def hf(kind, **size):
        processor = kind(**size)
        return lambda image: processor(image)["pixel_values"][0].transpose(1, 2, 0)

    def tv(transform):
        return lambda image: transform(image).numpy().transpose(1, 2, 0)

    def oc(model, tag, size):
        c = open_clip.get_pretrained_cfg(model, tag)
        return tv(open_clip.image_transform(size, is_train=False, mean=c["mean"], std=c["std"],
                                            interpolation=c["interpolation"], resize_mode=c["resize_mode"]))

    def tm(model, test=False):
        c = timm.get_pretrained_cfg(model).to_dict()
        return tv(timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=c, use_test_size=test)))

    def squash(size):
        return tv(transforms.Compose([
            transforms.Resize((size, size), interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.ToTensor(), transforms.Normalize(preprocess.CLIP_MEAN, preprocess.CLIP_STD)]))

    clip, siglip = transformers.CLIPImageProcessorPil, transformers.SiglipImageProcessorPil
    blip = transformers.BlipImageProcessorPil
    return {
        "clip-224": [hf(clip), oc("ViT-L-14", "openai", 224)],
        "clip-336": [hf(clip, size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
                     oc("ViT-L-14-336", "openai", 336)],
        "dfn-224": [oc("ViT-H-14-quickgelu", "dfn5b", 224)],
        "dfn-378": [oc("ViT-H-14-378-quickgelu", "dfn5b", 378)],
        "siglip-224": [hf(siglip), oc("ViT-B-16-SigLIP", "webli", 224)],
        "siglip-384": [hf(siglip, size={"height": 384, "width": 384}), oc("ViT-SO400M-14-SigLIP-384", "webli", 384)],
        "eva-clip-224": [oc("EVA01-g-14", "laion400m_s11b_b41k", 224), oc("EVA02-E-14-plus", "laion2b_s9b_b144k", 224)],
        "eva-clip-336": [oc("EVA02-L-14-336", "merged2b_s6b_b61k", 336), tm("eva02_large_patch14_clip_336.merged2b")],
        "blip2-224": [hf(blip, size={"height": 224, "width": 224}), squash(224)],
        "blip2-364": [hf(blip, size={"height": 364, "width": 364})],
        "emu2-224": [squash(224)],
        "emu2-448": [squash(448)],
        "nfnet-f6-448": [tm("dm_nfnet_f6.dm_in1k")],
        "nfnet-f6-576": [tm("dm_nfnet_f6.dm_in1k", test=True)],
    }


def levels(values: np.ndarray, name: str) -> np.ndarray:
    """The grey levels that a processor normalised, which must be whole."""
    p = preprocess.preset(name)
    exact = (values * np.float64(p.std) + p.mean) * 255
    whole = np.round(exact)
    assert np.abs(exact - whole).max() < 1e-3, f"{name}: the processor does not give whole grey levels"
    return whole.astype(np.uint8)


if __name__ == "__main__":
    made = {f"{name}/{k}": grid(levels(processors[0](Image.fromarray(picture)), name))
            for name, processors in references().items() for k, picture in enumerate(pictures())}
    np.savez_compressed(GOLDENS, **made)
    print(f"{GOLDENS}: {len(made)} arrays, {GOLDENS.stat().st_size} bytes")
