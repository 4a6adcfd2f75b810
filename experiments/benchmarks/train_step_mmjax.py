"""mmjax in the benchmark of the train step: its language system, optimizer and update, as `mmjax train` runs them."""

import jax
import numpy as np
import train_step_inputs as inputs

from mmjax.batch import Batch
from mmjax.checkpoint.paths import nest
from mmjax.layers import BlockConfig
from mmjax.models.language import Language, LanguageConfig
from mmjax.parallel import batch_sharding, make_mesh
from mmjax.parts.decoder import DecoderConfig
from mmjax.training import step as step_lib
from mmjax.training.config import GroupConfig, OptimizerConfig, StageConfig


def model_of(num_layers: int = inputs.LAYERS, max_positions: int = 2048) -> Language:
    block = BlockConfig(inputs.WIDTH, inputs.HEADS, inputs.MLP, norm="rms", norm_eps=inputs.EPS, use_bias=False)
    return Language(LanguageConfig(DecoderConfig(inputs.VOCAB, num_layers, block, max_positions=max_positions,
                                                 rotary_base=inputs.ROTARY_BASE, remat="none")))


def make(rows: int, length: int, threads: int):
    """One update by its loss."""
    step, state, batches = prepare(model_of(), rows, length)

    def run() -> list[float]:
        nonlocal state
        state, metrics = step(state, batches, jax.random.key(0))
        return [float(metrics["loss"])]

    return run


def prepare(model: Language, rows: int, length: int):
    """(step, state, batches) on all devices, rows split over them."""
    plan, step, mesh = plan_of(model)
    given = nest({f"lm/{path}": x for path, x in inputs.parameters(model.config.lm.num_layers).items()})
    given = jax.tree.map(lambda x, leaf: jax.device_put(x, leaf.sharding), given, plan.params)
    state = step_lib.init_state(model, plan, jax.random.key(0), {"": given})
    return step, state, jax.device_put({"text": batch(rows, length)}, batch_sharding(mesh))


def plan_of(model: Language):
    """(plan, step, mesh); the mesh is that of this process from now on."""
    optimizer = OptimizerConfig(clip_norm=None, **inputs.ADAMW)
    config = StageConfig("language", model.config, None, total_steps=1000, optimizer=optimizer,
                         groups={"main": GroupConfig()})
    mesh = make_mesh({"fsdp": -1})
    jax.set_mesh(mesh)
    plan = step_lib.make_plan(model, config, mesh)
    return plan, step_lib.make_train_step(model, plan, {}), mesh


def batch(rows: int, length: int) -> Batch:
    """One document a row."""
    text = inputs.tokens(rows, length + 1)
    ones, minus = np.ones((rows, length), np.int32), np.full((rows, length), -1, np.int32)
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    return Batch(text[:, :-1], text[:, 1:], ones.astype(np.float32), ones, positions, minus, minus,
                 np.zeros((rows, 0, 1, 1, 1, 3), np.uint8), np.zeros((rows, 0), np.int32))


def versions() -> dict[str, str]:
    return dict(jax=jax.__version__, devices=str(jax.device_count()))
