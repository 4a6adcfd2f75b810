"""Data that is built before the first step, because the config asks for it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.data.config import LoaderConfig
from mmjax.data.first_light import bindings, build, captions
from mmjax.data.first_light.manifest import Manifest

BUILDERS: dict[str, tuple[type, Callable[..., Manifest]]] = {
    "first_light": (build.FirstLightConfig, build.build),
    "bindings": (bindings.BindingsConfig, bindings.write_bindings),
    "captions": (captions.CaptionsConfig, captions.write_captions),
}


@dataclasses.dataclass(frozen=True)
class Prepare:
    """Where a data set is built, and its fields that differ from their defaults."""

    folder: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class DataConfig(LoaderConfig):
    """The data of a stage.

    Attributes:
        prepare: builder, a key of `BUILDERS` -> where and what to build. What stands already is only checked.
    """

    prepare: Mapping[str, Prepare] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        super().__post_init__()
        for name, item in self.prepare.items():
            builder_config(name, item.options)


def builder_config(name: str, options: Mapping[str, Any]) -> Any:
    """The config of builder `name`; ValueError if there is no such builder or it has no such option."""
    if name not in BUILDERS:
        raise ValueError(f"prepare names {name!r}, which is no builder; known: {', '.join(BUILDERS)}")
    config = BUILDERS[name][0]
    known = [field.name for field in dataclasses.fields(config)]
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"prepare.{name} has no option {unknown[0]!r}; known: {', '.join(known)}")
    return config(**{k: tuple(v) if isinstance(v, list) else v for k, v in options.items()})


def prepare(config: DataConfig, progress: bool = True) -> dict[str, Manifest]:
    """Builds what the config asks for and does not stand yet.

    Returns:
        {folder: its manifest}.

    Raises:
        ValueError: if a folder holds anything else; nothing in it is changed.
        ImportError: if the builder needs a package that is not installed.
    """
    return {item.folder: BUILDERS[name][1](item.folder, builder_config(name, item.options), progress)
            for name, item in config.prepare.items()}
