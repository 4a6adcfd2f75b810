"""mmjax in the benchmark of decoding: `decoding.generate` of the language system, whole loop in one program."""

import jax
import numpy as np
import train_step_inputs as inputs
import train_step_mmjax
from train_step_mmjax import versions  # noqa: F401

from mmjax.checkpoint.paths import nest
from mmjax.decoding.generate import generate


def make(rows: int, length: int, new_tokens: int, threads: int):
    """Greedy tokens after the prompts, the prompts' own reading included."""
    model = train_step_mmjax.model_of()
    params = jax.device_put(nest({f"lm/{path}": x for path, x in inputs.parameters().items()}))
    prompts = jax.device_put(train_step_mmjax.batch(rows, length))

    def run() -> list[float]:
        tokens, _ = generate(model, params, prompts, jax.random.key(0), max_new_tokens=new_tokens)
        return np.asarray(tokens).reshape(-1).tolist()

    return run
