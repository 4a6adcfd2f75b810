"""What a training run is: every field with its default, unit and check, resolved from a ConfigDict.

A config file's `get_config()` returns one stage (a flat ConfigDict with the fields of `StageConfig`), or several:
`c.stages = ("language", "flamingo")` with each of them under its name. `resolve` turns either into dataclasses.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import ml_collections

from mmjax.layers.low_rank import Choose, LowRank
from mmjax.parallel import AXES, check_dcn, rules_of
from mmjax.training import structure
from mmjax.training.structure import ConfigError, choices, free, require

FROZEN = "frozen"       # the built-in group of parameters that do not train


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimizer and its schedule.

    Attributes:
        name: "adamw" (arXiv:1711.05101) or "lion" (arXiv:2302.06675; `eps` is not used).
        lr: peak learning rate.
        end_lr: learning rate of the last update under a "linear" or "cosine" schedule.
        warmup_steps: update n of the first `warmup_steps` uses lr * n / warmup_steps, n from 1.
        schedule: what follows the warm-up: "constant", or a "linear" or "cosine" way down to `end_lr`.
        b1: decay of the mean of gradients.
        b2: decay of the mean of squared gradients.
        eps: added to the root of the second moment.
        weight_decay: decoupled decay, multiplied by the learning rate; a group may set its own.
        clip_norm: largest global norm of the gradient over all trainable parameters; None does not clip.
    """

    name: Literal["adamw", "lion"] = "adamw"
    lr: float = 3e-4
    end_lr: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0

    def __post_init__(self):
        require(self.lr > 0, f"lr={self.lr} must be positive")
        require(0 <= self.end_lr <= self.lr, f"end_lr={self.end_lr} must lie between 0 and lr={self.lr}")
        require(self.warmup_steps >= 0, f"warmup_steps={self.warmup_steps} must not be negative")
        require(0 <= self.b1 < 1 and 0 <= self.b2 < 1, f"b1={self.b1} and b2={self.b2} must lie in [0, 1)")
        require(self.eps > 0, f"eps={self.eps} must be positive")
        require(self.weight_decay >= 0, f"weight_decay={self.weight_decay} must not be negative")
        require(self.clip_norm is None or self.clip_norm > 0,
                f"clip_norm={self.clip_norm} must be positive, or None for no clipping")


@dataclasses.dataclass(frozen=True)
class GroupConfig:
    """How one group of parameters trains.

    Attributes:
        lr_mult: factor on the learning rate.
        weight_decay: the group's own weight decay; None takes the optimizer's.
        lora_rank: if above 0, what the group's rules match stays frozen, and the kernels among it get low-rank adapters
            of this rank, which train (arXiv:2106.09685).
        lora_alpha: the adapters count lora_alpha / lora_rank times; None is twice the rank.
        max_value: parameters are never more than this, as CLIP's logit scale; None does not bound them.
    """

    lr_mult: float = 1.0
    weight_decay: float | None = None
    lora_rank: int = 0
    lora_alpha: float | None = None
    max_value: float | None = None

    def __post_init__(self):
        require(self.lr_mult > 0, f"lr_mult={self.lr_mult} must be positive; use the group {FROZEN!r} to train nothing")
        require(self.weight_decay is None or self.weight_decay >= 0,
                f"weight_decay={self.weight_decay} must not be negative")
        require(self.lora_rank >= 0, f"lora_rank={self.lora_rank} must not be negative; 0 is for no adapters")
        require(self.lora_alpha is None or self.lora_alpha > 0 and self.lora_rank > 0,
                f"lora_alpha={self.lora_alpha} must be positive, and belongs to a lora_rank above 0")

    @property
    def low_rank(self) -> LowRank | None:
        """The adapter of the group's kernels."""
        alpha = 2.0 * self.lora_rank if self.lora_alpha is None else self.lora_alpha
        return LowRank(self.lora_rank, alpha) if self.lora_rank else None


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of training, from fresh or given parameters to the last checkpoint.

    Attributes:
        system: name of the system, a key of the models table.
        model: the system's own config.
        data: what to train on.
        total_steps: updates to make.
        optimizer: optimizer and schedule.
        rules: ordered (regex, group) pairs; the first regex that matches a whole parameter path "a/b/c" decides.
            Every parameter needs a rule and every rule must decide about some parameter.
        groups: settings of each group that `rules` names. "frozen" is built in.
        init_from: sub-tree of the parameters ("" for all) -> name of an earlier stage, or path of a run directory,
            whose last checkpoint it is filled from, or path of a folder of published weights ("./llama-7b"),
            or (for "") of adapters that `mmjax convert --adapter` wrote.
        frozen_dtype: how floating-point parameters that do not train are stored.
        mesh: devices along each mesh axis; absent axes have 1, one axis may have -1: all that remain.
        dcn: mesh axis -> how many parts of it lie on different slices (or hosts), joined by the slower network.
        sharding: part of the model, such as "vision" -> rules {logical name: mesh axes} that differ there from
            `parallel.RULES`, or "replicated": whole on every device.
        accumulate: parts into which the rows of every data set are cut; one after the other goes through the model, and
            their gradients make one update. It saves activation memory and changes nothing but what dropout draws.
        seed: of fresh parameters and dropout.
        log_every: steps between rows of metrics.
        eval_every: steps between evaluations; 0 evaluates at the end only.
        checkpoint_every: steps between checkpoints; 0 saves at the end only.
        keep_checkpoints: how many of the latest checkpoints stay on disk.
        profile_steps: (first, last) step to record in `profile/` of the run directory; None records none.
        max_nonfinite: updates with a loss or gradient that is not finite to skip before the run stops.
        evals: what to evaluate.
    """

    system: str
    model: Any
    data: Any
    total_steps: int = free()
    optimizer: OptimizerConfig = OptimizerConfig()
    rules: tuple[tuple[str, str], ...] = ((".*", "main"),)
    groups: dict[str, GroupConfig] = dataclasses.field(default_factory=lambda: {"main": GroupConfig()})
    init_from: dict[str, str] = dataclasses.field(default_factory=dict)
    frozen_dtype: Literal["bfloat16", "float32"] = "bfloat16"
    mesh: dict[str, int] = free(default_factory=lambda: {"data": -1})
    dcn: dict[str, int] = free(default_factory=dict)
    sharding: dict[str, Literal["replicated"] | dict[str, tuple[str, ...]]] = free(default_factory=dict)
    accumulate: int = free(default=1)
    seed: int = 0
    log_every: int = free(default=10)
    eval_every: int = free(default=0)
    checkpoint_every: int = free(default=1000)
    keep_checkpoints: int = free(default=2)
    profile_steps: tuple[int, int] | None = free(default=None)
    max_nonfinite: int = free(default=0)
    evals: tuple[Any, ...] = free(default=())

    def __post_init__(self):
        for name in ("total_steps", "log_every", "keep_checkpoints", "accumulate"):
            require(getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive")
        for name in ("eval_every", "checkpoint_every", "max_nonfinite", "seed"):
            require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative")
        require(self.profile_steps is None or 1 <= self.profile_steps[0] <= self.profile_steps[1],
                f"profile_steps={self.profile_steps} must be (first, last) with 1 <= first <= last, or None")
        require(self.optimizer.schedule == "constant" or self.optimizer.warmup_steps < self.total_steps,
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} must be less than "
                f"total_steps={self.total_steps}, so that the rate can come down")
        _check_rules(self.rules, self.groups)
        for axis in self.mesh:
            require(axis in AXES, f"unknown mesh axis {axis!r}; {choices(axis, AXES)}")
        check_dcn(self.mesh, self.dcn)
        for tower in self.sharding:
            rules_of(tower, self.sharding)

    @property
    def low_rank(self) -> Choose | None:
        """Which kernels the rules give adapters; None if they give none."""
        adapters = {name: group.low_rank for name, group in self.groups.items()}
        if not any(adapters.values()):
            return None
        return lambda path: next((adapters.get(g) for regex, g in self.rules if re.fullmatch(regex, path)), None)


def resolve(config: Mapping[str, Any], *, model_types: Mapping[str, type], data_type: type,
            eval_type: type | Any) -> tuple[tuple[str, StageConfig], ...]:
    """Turns what a config file returned into checked stages.

    Args:
        config: a ConfigDict or plain mapping, flat (one stage) or with `stages`.
        model_types: config dataclass of every system.
        data_type: dataclass of `data`.
        eval_type: dataclass, or union of dataclasses, of the items of `evals`.

    Returns:
        (name, config) of each stage in order. The only stage of a flat config is named "".

    Raises:
        ConfigError: naming the path of the field, the value and the rule it broke.
    """
    values = _plain(config)
    if "stages" not in values:
        return (("", resolve_stage(values, "", model_types, data_type, eval_type)),)
    names = values.pop("stages")
    require(isinstance(names, list | tuple) and names and all(isinstance(n, str) and n for n in names)
            and len(set(names)) == len(names), f"stages={names!r} must be a tuple of different names")
    for key in values:
        require(key in names, f"unknown field {key!r} beside 'stages', where only the stages stand; "
                              f"{choices(key, names)}")
    stages: list[tuple[str, StageConfig]] = []
    for name in names:
        require(name in values, f"stages names {name!r}, but the config has no field {name!r}")
        stage = resolve_stage(values[name], name, model_types, data_type, eval_type)
        _check_init_from(name, stage, [n for n, _ in stages])
        stages.append((name, stage))
    return tuple(stages)


def resolve_stage(values: Mapping[str, Any], path: str, model_types: Mapping[str, type], data_type: type,
                  eval_type: type | Any) -> StageConfig:
    """Builds one stage, also from the `config.json` of a run; arguments and errors as `resolve`."""
    system = values.get("system") if isinstance(values, Mapping) else None
    where = f"{path}.system" if path else "system"
    require(system in model_types, f"{where}={system!r} is not a system; {choices(system, model_types)}")
    types = {"model": model_types[system], "data": data_type, "evals": tuple[eval_type, ...]}
    return structure.from_dict(StageConfig, values, path, types)


def to_json(config: Any) -> str:
    """The complete config as JSON, in the order of the fields."""
    return json.dumps(structure.to_dict(config), indent=2) + "\n"


def check_same_run(config: StageConfig, stored: Mapping[str, Any], where: Path) -> None:
    """Refuses to continue a run under another config.

    Args:
        config: the config now.
        stored: the mapping in the run's `config.json`.
        where: the run directory, for the message.

    Raises:
        ConfigError: with a table of the fields that differ and are not free to change.
    """
    rows = structure.difference(config, stored)
    if not rows:
        return
    cells = [("field", "in the run", "now")] + [(p, json.dumps(a), json.dumps(b)) for p, a, b in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(3)]
    table = "\n".join("  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in cells)
    raise ConfigError(f"{where} holds a run of another config; choose another workdir, or undo these changes:\n{table}")


def _plain(value: Any) -> Any:
    """ConfigDicts at any depth as plain dicts."""
    if isinstance(value, ml_collections.ConfigDict):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_plain(v) for v in value)
    return value


def _check_rules(rules: tuple[tuple[str, str], ...], groups: Mapping[str, GroupConfig]) -> None:
    require(FROZEN not in groups, f"groups.{FROZEN} is built in and has no settings; choose another name")
    known = [*groups, FROZEN]
    for regex, group in rules:
        require(group in known, f"rule ({regex!r}, {group!r}) names an unknown group; {choices(group, known)}")
        try:
            re.compile(regex)
        except re.error as error:
            raise ConfigError(f"rule ({regex!r}, {group!r}) is not a regular expression: {error}") from error


def _check_init_from(name: str, stage: StageConfig, earlier: list[str]) -> None:
    for subtree, source in stage.init_from.items():
        require("/" in source or source in earlier,
                f"{name}.init_from.{subtree}={source!r} is neither an earlier stage nor the path of a run directory "
                f"(with a '/'); {choices(source, earlier)}")

