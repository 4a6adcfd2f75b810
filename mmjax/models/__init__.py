"""Systems: one file each, composed of shared parts."""

from typing import Any

from mmjax.models.flamingo import Flamingo, FlamingoConfig
from mmjax.models.interface import Model
from mmjax.models.kosmos1 import Kosmos1, Kosmos1Config
from mmjax.models.language import Language, LanguageConfig

SYSTEMS: dict[str, tuple[type, type]] = {
    "flamingo": (Flamingo, FlamingoConfig),
    "kosmos1": (Kosmos1, Kosmos1Config),
    "language": (Language, LanguageConfig),
}
CONFIGS: dict[str, type] = {system: config for system, (_, config) in SYSTEMS.items()}


def build(system: str, config: Any) -> Model:
    """The model of a system.

    Args:
        system: a key of `SYSTEMS`.
        config: an instance of the system's config class.

    Raises:
        ValueError: for an unknown system, or a config of another one.
    """
    if system not in SYSTEMS:
        raise ValueError(f"unknown system {system!r}; choose from {', '.join(SYSTEMS)}")
    model, wanted = SYSTEMS[system]
    if not isinstance(config, wanted):
        raise ValueError(f"system {system!r} takes a {wanted.__name__}, not a {type(config).__name__}")
    return model(config)
