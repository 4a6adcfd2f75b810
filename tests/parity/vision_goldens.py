"""Runs tiny random vision towers of the reference packages and writes goldens, as `make_goldens.py` does.

    python tests/parity/vision_goldens.py                            # the files in tests/parity/goldens/vision
    python tests/parity/vision_goldens.py --seed 7 --out /tmp/fresh

Each tower has two shapes, "a" and "b". For "a" of those in `WITH_GRADIENT` the golden also holds the gradient of a
scalar, the sum of the output times random numbers, in every parameter.
"""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import references as ref
import timm.models.eva
import timm.models.nfnet
import timm.models.vision_transformer
import torch
from golden import Golden
from open_clip.modified_resnet import ModifiedResNet
from torch.nn import functional as F

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SHAPES = {"a": dict(image_size=15, patch_size=5, width=24, layers=2, heads=3, mlp=40),
          "b": dict(image_size=28, patch_size=7, width=16, layers=3, heads=2, mlp=28)}
Tower = tuple[torch.nn.Module, Callable, tuple]         # module, pixels -> outputs by name, pixel mean and deviation


def open_clip_vit(c: dict) -> Tower:
    """open_clip's VisionTransformer, projected; QuickGELU at shape "b" as in OpenAI's weights."""
    act = ref.open_clip.QuickGELU if c["name"] == "b" else torch.nn.GELU
    module = ref.open_clip.VisionTransformer(c["image_size"], c["patch_size"], c["width"], c["layers"], c["heads"],
                                             c["mlp"] / c["width"], output_dim=9, act_layer=act, output_tokens=True)

    def run(pixels):
        pooled, tokens = module(pixels)
        return {"pooled": pooled, "tokens": tokens}

    return module, run, CLIP


def siglip(c: dict) -> Tower:
    """transformers' SigLIP vision tower with its attention pooling."""
    config = ref.transformers.SiglipVisionConfig(**hugging_face(c), attn_implementation="eager")
    return hugging_face_tower(ref.transformers.SiglipVisionModel(config)), HALF


def siglip_timm(c: dict) -> Tower:
    """timm's ViT as open_clip has it for SigLIP; its GELU is exact."""
    module = timm.models.vision_transformer.VisionTransformer(
        c["image_size"], c["patch_size"], embed_dim=c["width"], depth=c["layers"], num_heads=c["heads"],
        mlp_ratio=c["mlp"] / c["width"], class_token=False, global_pool="map", num_classes=0)
    return timm_tower(module), HALF


def blip2(c: dict) -> Tower:
    """transformers' BLIP-2 vision tower, EVA's ViT-g in small."""
    config = ref.transformers.Blip2VisionConfig(**hugging_face(c), attn_implementation="eager")
    module = ref.transformers.Blip2VisionModel(config)
    return (module, lambda pixels: {"tokens": module(pixels).last_hidden_state}), CLIP


def aimv2(c: dict) -> Tower:
    """transformers' AIMv2 vision tower, with a table of positions ("a") and with fixed ones ("b")."""
    config = ref.transformers.Aimv2VisionConfig(**hugging_face(c), use_head=False, is_native=c["name"] == "b",
                                                attn_implementation="eager")
    module = ref.transformers.Aimv2VisionModel(config)
    return (module, lambda pixels: {"tokens": module(pixels).last_hidden_state}), CLIP


def eva_giant(c: dict) -> Tower:
    """timm's EVA-g as EVA-CLIP has it."""
    return eva(c, global_pool="token", num_classes=9)


def eva02_tiny(c: dict) -> Tower:
    """timm's EVA-02-Ti and S: SwiGLU, rotation by row and column on a grid that is not 16 x 16, mean pooling."""
    return eva(c, swiglu_mlp=True, use_rot_pos_emb=True, ref_feat_shape=(16, 16), num_classes=0)


def eva02_base(c: dict) -> Tower:
    """timm's EVA-02-B and L: as Ti, with a norm inside the feed-forward network."""
    return eva(c, swiglu_mlp=True, scale_mlp=True, qkv_fused=False, use_rot_pos_emb=True, ref_feat_shape=(16, 16),
               num_classes=0)


def eva02_clip(c: dict) -> Tower:
    """timm's EVA-02-CLIP-B and L: with a norm inside attention, too."""
    return eva(c, swiglu_mlp=True, scale_mlp=True, scale_attn_inner=True, qkv_fused=False, use_rot_pos_emb=True,
               ref_feat_shape=(16, 16), global_pool="token", num_classes=9)


def eva02_enormous(c: dict) -> Tower:
    """timm's EVA-02-CLIP-E: norms after the branches, no rotation."""
    return eva(c, use_post_norm=True, global_pool="token", num_classes=9)


def eva(c: dict, **form) -> Tower:
    module = timm.models.eva.Eva(c["image_size"], c["patch_size"], embed_dim=c["width"], depth=c["layers"],
                                 num_heads=c["heads"], mlp_ratio=c["mlp"] / c["width"],
                                 norm_layer=lambda dim, **kw: torch.nn.LayerNorm(dim, eps=1e-6, **kw), **form)
    return timm_tower(module), CLIP


def nfnet(c: dict) -> Tower:
    """timm's NFNet in the form of DeepMind's weights, at an odd size."""
    form = timm.models.nfnet.model_cfgs["dm_nfnet_f0"]
    c |= {"a": dict(image_size=45, depths=(2, 1), widths=(16, 32), stem=8, group=8, features=24),
          "b": dict(image_size=33, depths=(1, 3, 1), widths=(16, 16, 32), stem=8, group=4, features=16)}[c["name"]]
    module = timm.models.nfnet.NormFreeNet(
        form, num_classes=0, depths=c["depths"], channels=c["widths"], stem_chs=c["stem"], group_size=c["group"],
        num_features=c["features"])

    def run(pixels):
        return {"tokens": module.forward_features(pixels).flatten(2).transpose(1, 2)}

    return module, run, IMAGENET


def clip_resnet(c: dict) -> Tower:
    """open_clip's ModifiedResNet with its attention pooling."""
    c |= {"a": dict(image_size=64, depths=(2, 1, 1, 1), width=2, heads=4),
          "b": dict(image_size=32, depths=(1, 2, 1, 1), width=2, heads=2)}[c["name"]]
    module = ModifiedResNet(c["depths"], 9, c["heads"], c["image_size"], c["width"])
    return module, lambda pixels: {"pooled": module(pixels)}, CLIP


class Aim(torch.nn.Module):
    """AIM's trunk and pixel head, written for this comparison from the paper: ml-aim is no package, its pre-training
    code is not published. Names of the trunk are those of ml-aim's files."""

    def __init__(self, c: dict):
        super().__init__()
        self.c, d, f, p, w = c, c["width"], c["mlp"], 3 * c["patch_size"] ** 2, 8
        self.p = {"preprocessor.patchifier.proj.weight": (d, 3, c["patch_size"], c["patch_size"]),
                  "preprocessor.patchifier.proj.bias": (d,), **both("preprocessor.patchifier.norm", d),
                  **both("trunk.post_trunk_norm", d), "input_proj": (w, d), "output_proj": (p, w),
                  **both("final_norm", w)}
        for i in range(c["layers"]):
            name = f"trunk.blocks.{i}."
            self.p |= {**both(f"{name}norm_1", d), f"{name}attn.qkv.weight": (3 * d, d),
                       f"{name}attn.proj.weight": (d, d), **both(f"{name}norm_2", d), f"{name}mlp.fc1.weight": (f, d),
                       f"{name}mlp.fc2.weight": (d, f)}
        for i in range(2):
            self.p |= {**both(f"blocks.{i}.norm", w), f"blocks.{i}.up": (4 * w, w), f"blocks.{i}.down": (w, 4 * w)}
        self.p = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in self.p.items()}

    def named_parameters(self, *_, **__):
        yield from self.p.items()

    def parameters(self, *_, **__):
        yield from self.p.values()

    def norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.p[f"{name}.weight"], self.p[f"{name}.bias"], eps=1e-6)

    def positions(self, dim: int) -> torch.Tensor:
        """One entry at a time: sin and cos of the column, then of the row."""
        side, rows = self.c["image_size"] // self.c["patch_size"], []
        for row in range(side):
            for column in range(side):
                angles = [[place / 10_000 ** (i / (dim // 4)) for i in range(dim // 4)] for place in (column, row)]
                rows.append([f(angle) for axis in angles for f in (math.sin, math.cos) for angle in axis])
        return torch.tensor(rows)

    def forward(self, pixels: torch.Tensor, prefix: torch.Tensor | None) -> torch.Tensor:
        c, p = self.c, self.p
        x = F.conv2d(pixels, p["preprocessor.patchifier.proj.weight"], p["preprocessor.patchifier.proj.bias"],
                     stride=c["patch_size"]).flatten(2).transpose(1, 2)
        x = self.norm("preprocessor.patchifier.norm", x) + self.positions(c["width"])
        b, n, d = x.shape
        sees = torch.ones(n, n, dtype=torch.bool).tril().expand(b, n, n).clone()
        for row in range(b):
            sees[row, :, :n if prefix is None else prefix[row]] = True
        for i in range(c["layers"]):
            name = f"trunk.blocks.{i}."
            q, k, v = (h.reshape(b, n, c["heads"], -1).transpose(1, 2) for h in (
                self.norm(f"{name}norm_1", x) @ p[f"{name}attn.qkv.weight"].T).chunk(3, -1))
            logits = (q @ k.transpose(2, 3) / math.sqrt(d / c["heads"])).masked_fill(~sees[:, None], -math.inf)
            x = x + (logits.softmax(-1) @ v).transpose(1, 2).reshape(b, n, d) @ p[f"{name}attn.proj.weight"].T
            x = x + F.gelu(self.norm(f"{name}norm_2", x) @ p[f"{name}mlp.fc1.weight"].T) @ p[f"{name}mlp.fc2.weight"].T
        return self.norm("trunk.post_trunk_norm", x)

    def loss(self, pixels: torch.Tensor, prefix: torch.Tensor) -> torch.Tensor:
        """Prefix mask, head, and the squared error patch by patch."""
        x = self(pixels, prefix) @ self.p["input_proj"].T + self.positions(8)
        for i in range(2):
            h = F.gelu(self.norm(f"blocks.{i}.norm", x) @ self.p[f"blocks.{i}.up"].T)
            x = x + h @ self.p[f"blocks.{i}.down"].T
        predicted = self.norm("final_norm", x) @ self.p["output_proj"].T
        size, side, errors = self.c["patch_size"], self.c["image_size"] // self.c["patch_size"], []
        for row, image in enumerate(pixels):
            for n in range(int(prefix[row]), side**2):
                top, left = n // side * size, n % side * size
                target = image[:, top:top + size, left:left + size].permute(1, 2, 0).flatten()
                target = (target - target.mean()) / (target.var() + 1e-6).sqrt()
                errors.append((predicted[row, n - 1] - target).square().mean())
        return torch.stack(errors).mean()


def both(name: str, width: int) -> dict:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def aim(c: dict) -> Tower:
    """AIM's trunk without a mask and with one, and the loss; an independent module, see `Aim`."""
    c["prefix"] = [1, 5]
    module, prefix = Aim(c), torch.tensor(c["prefix"])

    def run(pixels):
        return {"loss": module.loss(pixels, prefix), "tokens": module(pixels, None), "masked": module(pixels, prefix)}

    return module, run, IMAGENET


def hugging_face(c: dict) -> dict:
    return dict(image_size=c["image_size"], patch_size=c["patch_size"], hidden_size=c["width"],
                num_hidden_layers=c["layers"], num_attention_heads=c["heads"], intermediate_size=c["mlp"])


def hugging_face_tower(module):
    def run(pixels):
        out = module(pixels)
        return {"pooled": out.pooler_output, "tokens": out.last_hidden_state}

    return module, run


def timm_tower(module):
    def run(pixels):
        tokens = module.forward_features(pixels)
        return {"pooled": module.forward_head(tokens), "tokens": tokens}

    return module, run


CASES = {f.__name__: f for f in (open_clip_vit, siglip, siglip_timm, blip2, aimv2, eva_giant, eva02_tiny, eva02_base,
                                 eva02_clip, eva02_enormous, nfnet, clip_resnet, aim)}

WITH_GRADIENT = CASES.keys() - {"siglip_timm", "eva_giant", "eva02_base"}      # whose towers are in other cases, too


def interpolation(g: torch.Generator) -> Golden:
    """Position tables of 5 x 5 and a class token, larger and smaller: the calls of transformers, and of timm and
    open_clip."""
    grid = torch.randn(25, 6, generator=g)
    outputs = {}
    for size in (3, 4, 8, 11):
        for antialias in (False, True):
            x = F.interpolate(grid.reshape(1, 5, 5, 6).permute(0, 3, 1, 2), size=(size, size), mode="bicubic",
                              align_corners=False, antialias=antialias)
            outputs[f"{size}.{'antialias' if antialias else 'plain'}"] = x.permute(0, 2, 3, 1).reshape(-1, 6)
    return Golden({}, {"grid": grid.numpy()}, {k: np.ascontiguousarray(v) for k, v in outputs.items()}, {}, {})


def run_case(name: str, shape: str, g: torch.Generator) -> Golden:
    c = SHAPES[shape] | {"name": shape}
    built = CASES[name](c)
    (module, run), norm = built if len(built) == 2 else (built[:2], built[2])
    norms = {id(p) for n, p in module.named_parameters() if "norm" in n and n.endswith("weight")}
    ref.randomize(module, g)
    with torch.no_grad():
        for p in module.parameters():
            if id(p) in norms and p.ndim == 1:
                p.copy_(1 + 0.3 * torch.randn(p.shape, generator=g))
        for buffer_name, buffer in module.named_buffers():
            if "running" in buffer_name:
                noise = torch.randn(buffer.shape, generator=g)
                buffer.copy_(noise.exp() if "var" in buffer_name else 0.3 * noise)
    images = torch.randint(0, 256, (2, c["image_size"], c["image_size"], 3), dtype=torch.uint8, generator=g)
    mean, std = (torch.tensor(v) for v in norm)
    pixels = ((images.float() / 255 - mean) / std).permute(0, 3, 1, 2)
    weights = {n: p.detach() for n, p in module.named_parameters()}
    weights |= {n: b for n, b in module.named_buffers() if "running" in n}
    with torch.no_grad():
        outputs = run(pixels)
    inputs = {"images": images}
    if shape == "a" and name in WITH_GRADIENT:
        inputs["cotangent"], outputs = gradient(module, run, pixels, outputs, g)
    arrays = [{n: np.array(t.detach()) for n, t in group.items()} for group in (weights, inputs, outputs)]
    return Golden(*arrays, c, about={})


def gradient(module, run, pixels, outputs: dict, g: torch.Generator) -> tuple[torch.Tensor, dict]:
    """Random numbers like the first output, and the outputs with the gradient of their product's sum."""
    first = next(iter(outputs))
    cotangent = torch.randn(outputs[first].shape, generator=g)
    parameters = dict(module.named_parameters())
    for p in parameters.values():
        p.requires_grad_(True)
    grads = torch.autograd.grad((run(pixels)[first] * cotangent).sum(), parameters.values(), allow_unused=True)
    grads = {f"grad.{n}": torch.zeros_like(p) if d is None else d
             for (n, p), d in zip(parameters.items(), grads, strict=True)}
    return cotangent, outputs | grads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "goldens" / "vision")
    args = parser.parse_args()
    torch.set_num_threads(1)                           # the same sums in the same order on every machine
    args.out.mkdir(parents=True, exist_ok=True)
    versions = ref.versions() | {"timm": timm.__version__}
    for index, (name, shape) in enumerate((n, s) for n in CASES for s in SHAPES):
        result = run_case(name, shape, torch.Generator().manual_seed(1000 * args.seed + index))
        about = {"reference": CASES[name].__doc__, "versions": versions, "seed": args.seed}
        result._replace(about=about).save(args.out / f"{name}_{shape}.safetensors")
    result = interpolation(torch.Generator().manual_seed(args.seed))
    result._replace(about={"reference": interpolation.__doc__, "versions": versions, "seed": args.seed}).save(
        args.out / "interpolation.safetensors")


if __name__ == "__main__":
    main()
