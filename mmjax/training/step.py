"""The train state and the one jitted update that every system shares.

An update sees one batch of each data set. Its loss is the weighted sum of their losses and their gradients are
accumulated into one update, as Flamingo does (arXiv:2204.14198, section 2.4). Only trainable parameters are
differentiated. An update whose loss or gradient is not finite leaves parameters and optimizer exactly as they were.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mmjax.batch import Batch
from mmjax.checkpoint.paths import flatten, nest
from mmjax.kernels.target import platform
from mmjax.models.interface import Model, Params
from mmjax.parallel import param_shardings, shard, use_towers
from mmjax.parallel.sharding import TowerRules
from mmjax.training import optimizer
from mmjax.training.config import FROZEN, StageConfig
from mmjax.training.structure import ConfigError, choices, require

# XLA can turn the gather of a parameter into a loop of small products that overlap with it. By its own schedule for
# TPUs that costs several times the memory traffic, and more on the network, than to gather a layer's parameters.
COMPILER_OPTIONS = {"tpu": {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}}


class TrainState(NamedTuple):
    """Everything an update changes, and the frozen parameters it reads.

    Attributes:
        step: int32[] batches seen, also those whose update was skipped.
        skipped: int32[] updates that were skipped because they were not finite.
        trainable: nested dict of the parameters that train.
        frozen: nested dict of the other parameters, stored as `frozen_dtype`.
        opt_state: of optax, for `trainable` alone.
    """

    step: jax.Array
    skipped: jax.Array
    trainable: Params
    frozen: Params
    opt_state: Any

    @property
    def params(self) -> Params:
        """All parameters, as the model takes them."""
        return optimizer.merge(self.trainable, self.frozen)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a stage resolves to before any array exists: the optimizer, and the state as shapes with shardings.

    Attributes:
        labels: {path: group} of every parameter.
        tx: the optax transformation of the trainable parameters.
        schedule: learning rate as a function of the updates made.
        template: `TrainState` of `jax.ShapeDtypeStruct` with shardings.
        towers: `config.sharding`.
        accumulate: `config.accumulate`.
    """

    labels: dict[str, str]
    tx: optax.GradientTransformation
    schedule: optax.Schedule
    template: TrainState
    towers: TowerRules
    accumulate: int

    @property
    def params(self) -> Params:
        """Nested dict of `jax.ShapeDtypeStruct` with shardings, all parameters."""
        return self.template.params


def make_plan(model: Model, config: StageConfig, mesh: Mesh) -> Plan:
    """Resolves rules, optimizer, dtypes and shardings of a stage without allocating anything.

    Raises:
        ConfigError: for rules that do not fit the parameters.
        ValueError: if a dimension does not divide over the mesh.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    labels = optimizer.resolve_rules(shapes, config.rules, config.groups)
    shardings = param_shardings(model.axes, shapes, mesh, config.sharding)

    def leaf(path, shape, sharding):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_stored_low = labels[name] == FROZEN and jnp.issubdtype(shape.dtype, jnp.floating)
        dtype = jnp.dtype(config.frozen_dtype) if is_stored_low else shape.dtype
        return jax.ShapeDtypeStruct(shape.shape, dtype, sharding=sharding)

    params = jax.tree_util.tree_map_with_path(leaf, shapes, shardings)
    trainable, frozen = optimizer.partition(params, labels)
    tx = optimizer.make_optimizer(config.optimizer, config.groups, labels, config.total_steps)
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=NamedSharding(mesh, P()))
    template = TrainState(scalar, scalar, trainable, frozen, _opt_template(tx, trainable, mesh))
    schedule = optimizer.make_schedule(config.optimizer, config.total_steps)
    return Plan(labels, tx, schedule, template, config.sharding, config.accumulate)


def _opt_template(tx: optax.GradientTransformation, trainable: Params, mesh: Mesh) -> Any:
    """Optimizer state as shapes: moments lie on the devices as their parameter does, counters on all."""
    everywhere = NamedSharding(mesh, P())

    def is_masked(x):       # stands where another group's moment is
        return isinstance(x, optax.MaskedNode)

    def place(x, sharding):
        return x if is_masked(x) else jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)

    return optax.tree_map_params(
        tx, lambda moment, param: place(moment, param.sharding), jax.eval_shape(tx.init, trainable), trainable,
        is_leaf=is_masked, transform_non_params=lambda x: place(x, everywhere))


def init_state(model: Model, plan: Plan, key: jax.Array, given: Mapping[str, Params] | None = None) -> TrainState:
    """Makes the state of step 0, every array directly on its devices.

    Args:
        model: the system.
        plan: what the stage resolved to.
        key: of the parameters.
        given: {path of a sub-tree: its parameters}, laid out as in `plan.params`; "" stands for all parameters.
            Nothing is initialised below those paths. The arrays are donated.
    """
    taken = {}
    for part, params in (given or {}).items():
        taken |= {f"{part}/{path}" if part else path: x for path, x in flatten(params).items()}

    def init(key, taken):
        fresh = flatten(model.init(key))      # what is not used below is never computed
        flat = {path: taken[path] if path in taken else fresh[path].astype(leaf.dtype)
                for path, leaf in flatten(plan.params).items()}
        trainable, frozen = optimizer.partition(nest(flat), plan.labels)
        return TrainState(jnp.int32(0), jnp.int32(0), trainable, frozen, plan.tx.init(trainable))

    # It runs once: on CPU, where optimizing it takes longer than running it, compile it as it stands.
    options = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
    shardings = _shardings(plan.template)
    return jax.jit(init, donate_argnums=1, out_shardings=shardings, compiler_options=options)(key, taken)


def _shardings(template: TrainState) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, template)


def subtree(params: Mapping[str, Any], path: str) -> Params:
    """The part of nested parameters at `path` ("" is all of them).

    Raises:
        ConfigError: if there is none.
    """
    node = params
    for depth, key in enumerate(path.split("/") if path else ()):
        if not isinstance(node, Mapping) or key not in node:
            known = node if isinstance(node, Mapping) else ()
            raise ConfigError(f"init_from names the parameters {path!r}, but the model has no such part; "
                              f"{choices('/'.join(path.split('/')[depth:]), known)}")
        node = node[key]
    return node


def make_train_step(model: Model, plan: Plan, set_weights: Mapping[str, float]) -> Callable[
        [TrainState, dict[str, Batch], jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Builds the jitted update.

    Args:
        model: the system.
        plan: what the stage resolved to.
        set_weights: weight of each data set's loss; empty means 1 for all.

    Returns:
        step(state, batches, key) -> (state, metrics). `state` is donated. `key` is that of the run, the same at
        every step. Metrics are scalars: loss, grad_norm (before clipping), lr, skipped (so far), and what the
        model reports of each set, as "name/set".
    """
    def step(state, batches, key):
        weights = _weights(set_weights, batches)
        step_key = jax.random.fold_in(key, state.step)
        loss, grads, metrics = jnp.float32(0), None, {}
        for index, (name, batch) in enumerate(sorted(batches.items())):
            part, reported, grads = _add_gradients(
                model, plan, state, batch, jax.random.fold_in(step_key, index), weights[name], grads)
            loss += weights[name] * part
            metrics |= {f"{metric}/{name}": value for metric, value in reported.items()}
        norm = optax.global_norm(grads)
        is_finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        updates, opt_state = plan.tx.update(grads, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        trainable, opt_state = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old),
            (trainable, opt_state), (state.trainable, state.opt_state))
        skipped = state.skipped + (~is_finite).astype(jnp.int32)
        metrics |= {"loss": loss, "grad_norm": norm, "skipped": skipped,
                    "lr": plan.schedule(state.step - state.skipped)}
        return TrainState(state.step + 1, skipped, trainable, state.frozen, opt_state), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(_shardings(plan.template), None),
                   compiler_options=COMPILER_OPTIONS.get(platform()))


def _add_gradients(model: Model, plan: Plan, state: TrainState, batch: Batch, key: jax.Array, weight: float,
                   grads: Params | None) -> tuple[jax.Array, dict[str, jax.Array], Params]:
    """Loss and metrics of a data set, and `grads` plus `weight` times its gradients."""
    def loss(trainable, batch, key):
        with use_towers(plan.towers):
            return model.loss(optimizer.merge(trainable, state.frozen), batch, key)

    differentiate = jax.value_and_grad(loss, has_aux=True)

    def add(grads, more, factor):
        return jax.tree.map(lambda g, m: g + factor * m, grads, more)

    if plan.accumulate == 1:
        (value, reported), more = differentiate(state.trainable, batch, key)
        return value, reported, jax.tree.map(lambda m: weight * m, more) if grads is None else add(grads, more, weight)

    total = batch.loss_weights.sum()

    def one(carry, inputs):
        part, index = inputs
        (value, reported), more = differentiate(state.trainable, part, jax.random.fold_in(key, index))
        # A loss is a mean over its own tokens: by their share, the parts add up to the mean over all tokens.
        share = part.loss_weights.sum() / jnp.where(total > 0, total, 1.0)
        reported = {name: share * number for name, number in (reported | {"": value}).items()}
        return add(carry, more, weight * share), reported

    start = jax.tree.map(jnp.zeros_like, state.trainable) if grads is None else grads
    grads, shares = jax.lax.scan(one, start, (_split_rows(batch, plan.accumulate), jnp.arange(plan.accumulate)))
    reported = {name: values.sum(0) for name, values in shares.items()}
    return reported.pop(""), reported | {"tokens": total}, grads


def _split_rows(batch: Batch, parts: int) -> Batch:
    """[B, ...] -> [parts, B / parts, ...], every part with rows from every device."""
    def split(x):
        require(x.shape[0] % parts == 0, f"a batch of {x.shape[0]} rows cannot be cut into accumulate={parts} parts")
        apart = jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)
        return shard(apart, None, "batch", *[None] * (x.ndim - 1))

    return jax.tree.map(split, batch)


def _weights(set_weights: Mapping[str, float], sets: Mapping[str, Any]) -> Mapping[str, float]:
    require(not set_weights or set(set_weights) == set(sets),
            f"set_weights names the data sets {sorted(set_weights)}, but the data has {sorted(sets)}")
    return set_weights or dict.fromkeys(sets, 1.0)
