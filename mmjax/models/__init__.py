"""Systems: one file each, composed of shared parts."""

from typing import Any

from mmjax.layers.low_rank import Choose
from mmjax.models.adapted import Adapted
from mmjax.models.clip import Clip, ClipConfig
from mmjax.models.flamingo import Flamingo, FlamingoConfig
from mmjax.models.interface import Model
from mmjax.models.kosmos1 import Kosmos1, Kosmos1Config
from mmjax.models.language import Language, LanguageConfig

SYSTEMS: dict[str, tuple[type, type]] = {
    "clip": (Clip, ClipConfig),
    "flamingo": (Flamingo, FlamingoConfig),
    "kosmos1": (Kosmos1, Kosmos1Config),
    "language": (Language, LanguageConfig),
}
CONFIGS: dict[str, type] = {system: config for system, (_, config) in SYSTEMS.items()}


def build(system: str, config: Any, low_rank: Choose | None = None) -> Model:
    """The model of a system.

    Args:
        system: a key of `SYSTEMS`.
        config: an instance of the system's config class.
        low_rank: which kernels have a low-rank adapter.

    Raises:
        ValueError: for an unknown system, or a config of another one.
    """
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}; choose from {', '.join(SYSTEMS)}")
    model, wanted = SYSTEMS[system]
    if not isinstance(config, wanted):
        raise ValueError(f"system {system!r} takes a {wanted.__name__}, not a {type(config).__name__}")
    return Adapted(model(config), low_rank) if low_rank else model(config)
