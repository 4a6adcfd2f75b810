"""The decoder of the benchmarks of train step and decoding, as arrays: all contestants start from the same numbers.

Pre-norm blocks with RMS norms, rotary positions (base 10,000, halves), GELU, no biases, the table of embeddings as the
output head too. Paths and shapes are those of mmjax's parameters; blocks are stacked over layers.
"""

import math

import numpy as np

VOCAB, LAYERS, WIDTH, HEADS, MLP = 8192, 6, 384, 6, 1536
EPS, ROTARY_BASE = 1e-5, 10_000.0
ADAMW = dict(lr=3e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)


def parameters(num_layers: int = LAYERS) -> dict[str, np.ndarray]:
    """{path: float32 array}."""
    draw = np.random.default_rng(0)

    def normal(*shape, size_in):
        return (draw.standard_normal(shape, np.float32) / math.sqrt(size_in)).astype(np.float32)

    d, n, h, f = WIDTH, HEADS, WIDTH // HEADS, MLP
    blocks = {f"attention/{name}/kernel": normal(num_layers, d, n, h, size_in=d) for name in "qkv"}
    blocks["attention/out/kernel"] = normal(num_layers, n, h, d, size_in=d)
    blocks["mlp/up/kernel"] = normal(num_layers, d, f, size_in=d)
    blocks["mlp/down/kernel"] = normal(num_layers, f, d, size_in=f)
    blocks |= {f"{name}_norm/scale": np.ones((num_layers, d), np.float32) for name in ("attention", "mlp")}
    return {"token_embed/table": 0.02 * normal(VOCAB, d, size_in=1), "final_norm/scale": np.ones(d, np.float32),
            **{f"blocks/{path}": array for path, array in blocks.items()}}


def tokens(rows: int, length: int) -> np.ndarray:
    """int32[rows, length] tokens of one document a row."""
    return np.random.default_rng(1).integers(0, VOCAB, (rows, length), np.int32)
