"""Plain JAX in the benchmark of the train step: what one writes first. Layers in a loop, attention of the library or by
einsum, the loss from the logits of all tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import train_step_inputs as inputs


def make(rows: int, length: int, threads: int, attention: str):
    """One update by its loss; `attention` is "einsum" or "library" (`jax.nn.dot_product_attention`)."""
    attend = {"einsum": _einsum, "library": lambda q, k, v: jax.nn.dot_product_attention(q, k, v, is_causal=True)}
    attend = attend[attention]
    text = inputs.tokens(rows, length + 1)
    batch = jnp.asarray(text[:, :-1]), jnp.asarray(text[:, 1:])
    params = {path: jnp.asarray(x) for path, x in inputs.parameters().items()}
    a = inputs.ADAMW
    tx = optax.adamw(a["lr"], a["b1"], a["b2"], a["eps"], weight_decay=a["weight_decay"])
    state = params, tx.init(params)

    def loss_of(params, tokens, targets):
        log_probs = jax.nn.log_softmax(_logits(params, tokens, attend))
        return -jnp.take_along_axis(log_probs, targets[..., None], axis=-1).mean()

    def update(state, tokens, targets):
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_of)(params, tokens, targets)
        updates, opt_state = tx.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    step = jax.jit(update, donate_argnums=0)

    def run() -> list[float]:
        nonlocal state
        state, loss = step(state, *batch)
        return [float(loss)]

    return run


def _logits(params, tokens, attend):
    table = params["token_embed/table"]
    blocks = {path.removeprefix("blocks/"): x for path, x in params.items() if path.startswith("blocks/")}
    x = table[tokens]
    cos, sin = _angles(tokens.shape[1])
    for layer in range(inputs.LAYERS):
        p = {path: array[layer] for path, array in blocks.items()}
        h = _norm(x, p["attention_norm/scale"])
        q, k, v = (jnp.einsum("btd,dnh->btnh", h, p[f"attention/{name}/kernel"]) for name in "qkv")
        x = x + jnp.einsum("btnh,nhd->btd", attend(_rotate(q, cos, sin), _rotate(k, cos, sin), v),
                           p["attention/out/kernel"])
        h = jax.nn.gelu(_norm(x, p["mlp_norm/scale"]) @ p["mlp/up/kernel"], approximate=False)
        x = x + h @ p["mlp/down/kernel"]
    return _norm(x, params["final_norm/scale"]) @ table.T


def _norm(x, scale):
    return x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + inputs.EPS) * scale


def _angles(length: int):
    half = inputs.WIDTH // inputs.HEADS // 2
    angles = np.arange(length)[:, None] * inputs.ROTARY_BASE ** (-np.arange(half) / half)
    return (jnp.asarray(f(angles)[:, None], jnp.float32) for f in (np.cos, np.sin))


def _rotate(x, cos, sin):
    a, b = jnp.split(x, 2, -1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _einsum(q, k, v):
    logits = jnp.einsum("btnh,bsnh->bnts", q, k) / q.shape[-1] ** 0.5
    logits = jnp.where(jnp.tril(jnp.ones(logits.shape[-2:], bool)), logits, -1e30)
    return jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(logits), v)


def versions() -> dict[str, str]:
    return dict(jax=jax.__version__, optax=optax.__version__)
