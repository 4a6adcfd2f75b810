"""Transformers in NumPy float64, written from the papers' equations: what layers and parts are checked against.

Parameters are the trees our modules have. Nothing here imports mmjax.
"""

import math

import numpy as np

erf = np.vectorize(math.erf)
sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731

ACTIVATIONS = {
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "relu": lambda x: np.maximum(x, 0),
    "squared_relu": lambda x: np.maximum(x, 0) ** 2,
    "swiglu": lambda x: x * sigmoid(x),         # of the gate
}
ACTIVATIONS["geglu_tanh"] = ACTIVATIONS["gelu_tanh"]        # of the gate


def float64(tree):
    """A nested dict of arrays in float64."""
    return {k: float64(v) for k, v in tree.items()} if isinstance(tree, dict) else np.asarray(tree, np.float64)


def layer(tree, i: int):
    """Layer i of a tree of stacked parameters."""
    return {k: layer(v, i) for k, v in tree.items()} if isinstance(tree, dict) else tree[i]


def norm(p, x, eps: float = 1e-5, kind: str = "layer"):
    if kind == "rms":
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * p["scale"]
    y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * p["scale"]
    return y + p["bias"] if "bias" in p else y


def linear(p, x, num_in: int = 1):
    """Contracts the last `num_in` dimensions of x with the first of the kernel."""
    y = np.tensordot(x, p["kernel"], num_in)
    return y + p["bias"] if "bias" in p else y


def mlp(p, x, activation: str):
    h = linear(p["up"], x)
    h = ACTIVATIONS[activation](linear(p["gate"], x)) * h if "gate" in p else ACTIVATIONS[activation](h)
    return linear(p["down"], norm(p["inner_norm"], h) if "inner_norm" in p else h)


def turn(x, positions, layout: str, base: float = 10_000.0, xpos_exponent: float = 0.0):
    """Rotary embedding of x [T, N, H] as multiplication of complex numbers.

    With xPos, pair i is scaled by zeta_i to the power `xpos_exponent` of its position (arXiv:2212.10554).
    """
    t, n, h = x.shape
    pairs = x.reshape(t, n, h // 2, 2) if layout == "interleaved" else np.stack([x[..., :h // 2], x[..., h // 2:]], -1)
    i = np.arange(h // 2)
    angle = positions[:, None] * base ** (-i / (h / 2))
    zeta = (2 * i + 0.4 * h) / (1.4 * h)
    factor = np.exp(1j * angle) * zeta ** np.reshape(xpos_exponent, (-1, 1))
    z = (pairs[..., 0] + 1j * pairs[..., 1]) * factor[:, None]
    both = np.stack([z.real, z.imag], -1)
    return both.reshape(t, n, h) if layout == "interleaved" else np.concatenate([both[..., 0], both[..., 1]], -1)


def attend(q, k, v, visible):
    """q [T, N, H], k and v [S, K, H]; `visible(t)` are the keys that query t sees. Returns [T, N, H]."""
    out = np.zeros(q.shape)
    group = q.shape[1] // k.shape[1]
    for t in range(q.shape[0]):
        keys = list(visible(t))
        for n in range(q.shape[1]):
            if keys:
                logits = k[keys, n // group] @ q[t, n] / math.sqrt(q.shape[2])
                weights = np.exp(logits - logits.max())
                out[t, n] = weights / weights.sum() @ v[keys, n // group]
    return out


def attention(p, x, visible, rotate=None, source=None):
    """One row: x [T, D], keys from `source` [S, D'] or x; `rotate` takes (q, k) to (q, k)."""
    source = x if source is None else source
    q, k, v = linear(p["q"], x), linear(p["k"], source), linear(p["v"], source)
    if rotate is not None:
        q, k = rotate(q, k)
    out = attend(q, k, v, visible)
    if "inner_norm" in p:
        out = norm(p["inner_norm"], out.reshape(len(out), -1)).reshape(out.shape)
    return linear(p["out"], out, num_in=2)


def block(p, x, visible, activation: str, kind: str = "layer", rotate=None, place: str = "pre"):
    """Norms before the branches, after the sums ("post") or after the branches ("branch"); Sub-LN where the parameters
    have inner norms (systems: Magneto, arXiv:2210.06423)."""
    branches = (("attention_norm", lambda h: attention(p["attention"], h, visible, rotate)),
                ("mlp_norm", lambda h: mlp(p["mlp"], h, activation)))
    for name, branch in branches:
        if place == "pre":
            x = x + branch(norm(p[name], x, kind=kind))
        elif place == "post":
            x = norm(p[name], x + branch(x), kind=kind)
        else:
            x = x + norm(p[name], branch(x), kind=kind)
    return x


def causal(segments):
    """visible(t) of one packed row: the keys of t's document up to t; none for padding."""
    return lambda t: [s for s in range(t + 1) if segments[s] == segments[t] > 0]


def everything(num_keys: int):
    return lambda t: range(num_keys)
