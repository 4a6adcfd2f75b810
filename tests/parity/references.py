"""The reference implementations: importing them together, and giving them random weights."""

import importlib.metadata
import math
import warnings

import torch
from torch import nn

PACKAGES = ("torch", "transformers", "open_clip_torch", "open_flamingo", "torchscale")


def import_torchvision() -> None:
    """Imports torchvision, also where its wheel was built for a CUDA torch and stands beside a CPU torch.

    timm, open_clip and transformers import it. Its C++ operators then fail to load and the import stops at the
    registration of their shapes; declaring the two operators is enough, since nothing here calls them.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        import_torchvision.library = torch.library.Library("torchvision", "DEF")     # declarations live as long as it
        for name in ("nms", "qnms"):
            import_torchvision.library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


warnings.filterwarnings("ignore")           # torchscale and fairscale use deprecated spellings of timm and torch
import_torchvision()
import open_clip.transformer as open_clip  # noqa: E402, F401
import transformers  # noqa: E402, F401
from open_flamingo import Flamingo  # noqa: E402, F401
from open_flamingo.src import helpers as open_flamingo  # noqa: E402, F401
from open_flamingo.src import utils as open_flamingo_utils  # noqa: E402, F401
from open_flamingo.src.flamingo_lm import FlamingoLMMixin  # noqa: E402, F401
from torchscale.architecture import config as torchscale_config  # noqa: E402, F401
from torchscale.architecture import decoder as torchscale  # noqa: E402, F401


def versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in PACKAGES}


def randomize(module: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draws every parameter anew, so that no bias, norm or gate hides behind an initial 0 or 1.

    Matrices get N(0, 1 / fan_in), single numbers (gates) 0.5 to 1.5 with either sign, norm scales N(1, 0.09) and
    other vectors N(0, 0.09).
    """
    norms = {id(m.weight) for m in module.modules() if "Norm" in type(m).__name__ and hasattr(m, "weight")}
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator)
            if p.numel() == 1:
                p.copy_(noise.sign() * (0.5 + torch.rand(p.shape, generator=generator)))
            elif p.ndim > 1:
                p.copy_(noise / math.sqrt(p[0].numel()))
            else:
                p.copy_(0.3 * noise + (id(p) in norms))
    return module.eval().requires_grad_(False)
