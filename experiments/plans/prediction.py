"""The plan's memory against what a step takes: peak bytes of one CPU device, predicted and measured.

Run:     python experiments/plans/prediction.py
Expect:  remat full: predicted 814 MiB, measured 817 MiB, -0.3%; remat none: 2193, 2194, -0.0% (jax 0.10.2, two cores)

Arguments are counted by the arrays that hold them. The rest is how far the process grows while it runs the step, by the
high-water mark of its resident memory in Linux's /proc, which also holds what the allocator rounds up.
"""

import gc
import os
import re
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from mmjax.batch import Batch
from mmjax.data.config import DataSetConfig, LoaderConfig, Source
from mmjax.layers import BlockConfig
from mmjax.models.language import LanguageConfig
from mmjax.parallel import make_mesh
from mmjax.parts.decoder import DecoderConfig
from mmjax.plan import lowering
from mmjax.training.config import StageConfig
from mmjax.training.step import init_state, make_train_step


def config(remat: str) -> StageConfig:
    block = BlockConfig(384, 6, 1536, activation="gelu_tanh", norm="rms", use_bias=False)
    lm = DecoderConfig(8192, 6, block, max_positions=512, remat=remat)
    data = LoaderConfig({"text": DataSetConfig((Source("data/none"),), batch_size=8, seq_len=512)})
    return StageConfig("language", LanguageConfig(lm), data, total_steps=10)


def resident(field: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def measure(remat: str) -> tuple[float, float]:
    """(predicted, measured) peak bytes of a step."""
    stage = config(remat)
    mesh = make_mesh({"data": 1}, jax.devices()[:1])
    predicted = lowering.compile_step(lowering.trace(stage, mesh), mesh).memory["needed"]
    step = lowering.trace(stage, mesh)
    rng = np.random.default_rng(0)
    with jax.set_mesh(mesh):
        state = init_state(step.model, step.plan, jax.random.key(0))
        tokens = rng.integers(0, 8192, (8, 512), np.int32)
        ones, at = np.ones((8, 512), np.int32), np.tile(np.arange(512, dtype=np.int32), (8, 1))
        batch = Batch(tokens, tokens, ones.astype(np.float32), ones, at, -ones, -ones,
                      np.zeros((8, 0, 1, 224, 224, 3), np.uint8), np.zeros((8, 0), np.int32))
        update = make_train_step(step.model, step.plan, {})
        key = jax.random.key(1)
        for _ in range(2):
            state, metrics = update(state, {"text": batch}, key)
            jax.block_until_ready(metrics)
        gc.collect()
        arguments = sum(x.nbytes for x in jax.tree.leaves((state, batch)))
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")       # starts a new high-water mark
        jax.block_until_ready(update(state, {"text": batch}, key))
    return predicted, arguments + resident("VmHWM") - before


if __name__ == "__main__":
    for policy in ("full", "none"):
        predicted, measured = measure(policy)
        print(f"remat {policy}: predicted {predicted / 2**20:.0f} MiB, measured {measured / 2**20:.0f} MiB, "
              f"{predicted / measured - 1:+.1%}")
