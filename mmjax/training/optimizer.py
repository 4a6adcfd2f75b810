"""Which parameters train, and how: path rules, the split into trainable and frozen, and the optax chain.

Parameters are nested dicts; a path joins the keys with "/". Only the trainable part is differentiated and has
optimizer state, so a frozen parameter costs its own storage and nothing else.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mmjax.checkpoint.paths import flatten, nest
from mmjax.layers.low_rank import is_adapter, kernel_of
from mmjax.training.config import FROZEN, GroupConfig, OptimizerConfig
from mmjax.training.structure import ConfigError, require

Params = dict[str, Any]


def resolve_rules(params: Mapping[str, Any], rules: tuple[tuple[str, str], ...],
                  groups: Mapping[str, GroupConfig] | None = None) -> dict[str, str]:
    """Finds the group of every parameter: that of the first rule whose regex matches the whole path.

    The parameters of a low-rank adapter go by the rule of their kernel, and in their group nothing else trains.

    Args:
        params: nested dict of arrays or shapes.
        rules: (regex, group) pairs in order.
        groups: settings of the groups; needed where some have adapters.

    Returns:
        {path: group} in the order of `params`.

    Raises:
        ConfigError: if a parameter has no rule, a rule decides about no parameter, or all parameters are frozen.
    """
    everything = list(flatten(params))
    paths = [p for p in everything if not is_adapter(p)]
    labels: dict[str, str] = {}
    for regex, group in rules:
        matched = [p for p in paths if re.fullmatch(regex, p)]
        taken = [p for p in matched if p not in labels]
        if not taken:
            why = (f"the {len(matched)} it matches, such as {matched[0]!r}, are decided by earlier rules; move it up"
                   if matched else f"none of the {len(paths)} paths matches as a whole, such as {_sample(paths)}")
            raise ConfigError(f"rule ({regex!r}, {group!r}) decides about no parameter: {why}, or remove it")
        labels |= dict.fromkeys(taken, group)
    adapted = {name for name, group in (groups or {}).items() if group.lora_rank}
    kernels = {kernel_of(p) for p in everything if is_adapter(p)}
    for name in adapted & set(labels.values()):
        require(any(labels[kernel] == name for kernel in kernels),
                f"group {name!r} has lora_rank={groups[name].lora_rank}, but its rules match no kernel, only "
                f"{_sample([p for p, g in labels.items() if g == name])}")
    bare = [p for p in paths if p not in labels]
    require(not bare, f"{len(bare)} of {len(paths)} parameters have no rule: {_sample(bare)}; "
                      f"add a last rule such as ('.*', {FROZEN!r})")
    final = {p: labels[kernel_of(p)] if is_adapter(p) else FROZEN if labels[p] in adapted else labels[p]
             for p in everything}
    require(any(g != FROZEN for g in final.values()),
            f"rules={rules} leave all {len(paths)} parameters frozen, so that nothing would train")
    return final


def _sample(paths: list[str], limit: int = 3) -> str:
    return ", ".join(map(repr, paths[:limit])) + (", ..." if len(paths) > limit else "")


def partition(params: Mapping[str, Any], labels: Mapping[str, str]) -> tuple[Params, Params]:
    """Splits nested parameters into (trainable, frozen) nested dicts without empty branches."""
    flat = flatten(params)
    return (nest({p: x for p, x in flat.items() if labels[p] != FROZEN}),
            nest({p: x for p, x in flat.items() if labels[p] == FROZEN}))


def merge(trainable: Mapping[str, Any], frozen: Mapping[str, Any]) -> Params:
    """Joins what `partition` split; in general any two nested dicts with different leaves."""
    merged = dict(trainable)
    for key, value in frozen.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return merged


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate of update n + 1 as a function of n, the updates made before it.

    The warm-up rises linearly to `lr` at its last update, the last of all updates uses `end_lr` exactly.
    """
    rest = max(total_steps - config.warmup_steps, 1)
    tails: dict[str, Callable[[], optax.Schedule]] = {
        "constant": lambda: optax.constant_schedule(config.lr),
        "linear": lambda: optax.linear_schedule(config.lr, config.end_lr, rest),
        "cosine": lambda: optax.cosine_decay_schedule(config.lr, rest, alpha=config.end_lr / config.lr),
    }
    warmup = optax.linear_schedule(0.0, config.lr, config.warmup_steps)
    joined = optax.join_schedules([warmup, tails[config.schedule]()], [config.warmup_steps])
    return lambda count: jnp.maximum(joined(count + 1), 0.0)      # rounding may end a fall to 0 at -1e-11


def make_optimizer(config: OptimizerConfig, groups: Mapping[str, GroupConfig], labels: Mapping[str, str],
                   total_steps: int) -> optax.GradientTransformation:
    """Builds the transformation of the trainable gradients.

    Args:
        config: optimizer and schedule.
        groups: settings of each group.
        labels: {path: group} of all parameters, from `resolve_rules`.
        total_steps: length of the schedule in updates.

    Returns:
        An optax transformation over the nested trainable parameters: the gradient is clipped by its global norm over
        all groups, then every group is updated by the optimizer with its own rate and decay.
    """
    schedule = make_schedule(config, total_steps)
    tree = nest({p: g for p, g in labels.items() if g != FROZEN})
    used = {g for g in labels.values() if g != FROZEN}
    updates = optax.partition({name: _group_optimizer(config, groups[name], schedule) for name in sorted(used)}, tree)
    return updates if config.clip_norm is None else optax.chain(optax.clip_by_global_norm(config.clip_norm), updates)


def _group_optimizer(config: OptimizerConfig, group: GroupConfig,
                     schedule: optax.Schedule) -> optax.GradientTransformation:
    decay = config.weight_decay if group.weight_decay is None else group.weight_decay
    bound = () if group.max_value is None else (_at_most(group.max_value),)

    def rate(count):
        return group.lr_mult * schedule(count)

    if config.name == "lion":
        update = optax.lion(rate, b1=config.b1, b2=config.b2, weight_decay=decay)
    else:
        update = optax.adamw(rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=decay)
    return optax.chain(update, *bound) if bound else update


def _at_most(limit: float) -> optax.GradientTransformation:
    """Shortens updates so that no parameter ends above `limit`."""
    def shorten(updates, params):
        return jax.tree.map(lambda update, value: jnp.minimum(update, limit - value), updates, params)

    return optax.stateless(shorten)


def param_table(params: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """A printable table of every parameter: path, shape, dtype, sharding, group; and the totals below.

    Args:
        params: nested dict of arrays or `jax.ShapeDtypeStruct`; shardings are shown where leaves carry one.
        labels: {path: group}.
    """
    rows = [("path", "shape", "dtype", "sharding", "group", "trainable")]
    for path, x in flatten(params).items():
        spec = getattr(getattr(x, "sharding", None), "spec", None)
        rows.append((path, "x".join(map(str, x.shape)) or "scalar", str(x.dtype), _spec_text(spec), labels[path],
                     "no" if labels[path] == FROZEN else "yes"))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join([lines[0], rule, *lines[1:], rule, param_summary(params, labels)])


def param_summary(params: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """One line with the number of parameters in all, in training, and per group."""
    sizes: dict[str, int] = {}
    for path, x in flatten(params).items():
        sizes[labels[path]] = sizes.get(labels[path], 0) + int(np.prod(x.shape))
    total = sum(sizes.values())
    groups = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
    return f"{total:,} parameters, {total - sizes.get(FROZEN, 0):,} trainable ({groups})"


def _spec_text(spec: jax.sharding.PartitionSpec | None) -> str:
    if spec is None:
        return "-"
    return "(" + ", ".join("-" if s is None else "+".join(s) if isinstance(s, tuple) else s for s in spec) + ")"
