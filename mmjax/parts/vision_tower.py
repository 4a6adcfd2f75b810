"""The vision towers by their configs."""

from flax import linen as nn

from mmjax.parts.nfnet import NFNet, NFNetConfig
from mmjax.parts.resnet import ResNet, ResNetConfig
from mmjax.parts.vit import ViT, ViTConfig

VisionConfig = ViTConfig | NFNetConfig | ResNetConfig


def vision_tower(config: VisionConfig) -> nn.Module:
    """The tower of a config: uint8[B, H, W, 3] images to float[B, P, D] tokens.

    Raises:
        ValueError: for a config of another kind.
    """
    towers = {ViTConfig: ViT, NFNetConfig: NFNet, ResNetConfig: ResNet}
    if type(config) not in towers:
        raise ValueError(f"no vision tower has a {type(config).__name__}; the configs are "
                         f"{', '.join(c.__name__ for c in towers)}")
    return towers[type(config)](config, parent=None)
