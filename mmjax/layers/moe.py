"""Mixture-of-experts feed-forward: a router sends each token to its best few of E networks.

One path serves both forms. Without a capacity every token reaches the experts it chose. With one, an expert takes only
so many tokens of a row, first choices before second ones and earlier tokens before later ones; what does not fit is
dropped (the residual stream carries the token on) and counted.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec as P

from mmjax.kernels.grouped_matmul import grouped_matmul
from mmjax.kernels.placement import EXPERTS, HEADS, ROWS, SEQUENCE, axes_for, free_axes, is_explicit, num_devices
from mmjax.layers.linear import Linear
from mmjax.layers.mlp import ACTIVATIONS, GATED
from mmjax.layers.params import param, scaled
from mmjax.parallel import shard

BALANCES = ("switch", "mixtral")
Statistics = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class MoeConfig:
    """Experts and their router.

    Attributes:
        num_experts: E.
        top_k: experts per token, 1 (Switch, arXiv:2101.03961) or 2 (GShard, Mixtral, MM1) as a rule.
        capacity_factor: an expert takes at most capacity_factor · T / E tokens of a row of T; None for all that come.
            AXLearn has 2.0 with top_k = 2. Generation never drops a token.
        normalize_gates: whether the gates of the chosen experts are made to sum to 1.
        balance: "switch" counts first choices and averages the loss over layers (Switch, AXLearn); "mixtral" counts all
            choices, and over all layers together, as transformers' Mixtral.
        balance_weight, z_weight: factors of the two losses in that of the language model (MM1: 0.01 and 0.001).
    """

    num_experts: int
    top_k: int = 2
    capacity_factor: float | None = None
    normalize_gates: bool = True
    balance: str = "switch"
    balance_weight: float = 0.01
    z_weight: float = 0.001

    def __post_init__(self):
        if not 1 <= self.top_k <= self.num_experts:
            raise ValueError(f"top_k={self.top_k} must be at least 1 and at most num_experts={self.num_experts}")
        if self.capacity_factor is not None and not self.capacity_factor > 0:
            raise ValueError(f"capacity_factor={self.capacity_factor} must be positive, or None to drop no token")
        if self.balance not in BALANCES:
            raise ValueError(f"unknown balance {self.balance!r}; choose from {', '.join(BALANCES)}")


def route(logits: jax.Array, top_k: int, normalize: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Chooses experts.

    Args:
        logits: float32[..., E].

    Returns:
        gates float32[..., k], best first; the experts int32[..., k] they belong to; probabilities float32[..., E].
    """
    probs = jax.nn.softmax(logits, axis=-1)
    gates, experts = jax.lax.top_k(probs, top_k)
    return gates / gates.sum(-1, keepdims=True) if normalize else gates, experts, probs


def within_capacity(experts: jax.Array, real: jax.Array, num_experts: int, capacity: int) -> jax.Array:
    """Which choices an expert has room for: bool[B, T, k].

    Args:
        experts: int32[B, T, k] choices, best first.
        real: bool[B, T]; padding takes no room.
        capacity: tokens that one expert takes of one row.
    """
    chosen = jax.nn.one_hot(experts, num_experts, dtype=jnp.int32) * real[..., None, None]
    chosen = shard(chosen, "batch", None, None, None)               # a queue needs its whole row
    totals = chosen.sum(1, keepdims=True)
    place = jnp.cumsum(chosen, axis=1) + jnp.cumsum(totals, axis=2) - totals        # behind all choices of lower rank
    fits = shard((place * chosen).sum(-1) <= capacity, "batch", "seq", None)
    return real[..., None] & fits


def statistics(logits: jax.Array, probs: jax.Array, experts: jax.Array, real: jax.Array, kept: jax.Array) -> Statistics:
    """What the losses need of one layer, as means over the real tokens.

    Returns:
        first, chosen: float32[E] first choices, and choices of any rank, per token; probs: float32[E]; z: the square
        of the logits' log-sum-exp; dropped: choices of real tokens that found no room, a count.
    """
    weight = real.astype(jnp.float32)
    weight = weight / jnp.maximum(weight.sum(), 1.0)
    chosen = jax.nn.one_hot(experts, logits.shape[-1], dtype=jnp.float32)
    return {"first": jnp.einsum("bt,bte->e", weight, chosen[..., 0, :]),
            "chosen": jnp.einsum("bt,btke->e", weight, chosen),
            "probs": jnp.einsum("bt,bte->e", weight, probs),
            "z": (weight * jnp.square(jax.nn.logsumexp(logits, axis=-1))).sum(),
            "dropped": (real[..., None] & ~kept).sum().astype(jnp.float32)}


def router_losses(config: MoeConfig, layers: Statistics) -> tuple[jax.Array, Statistics]:
    """The weighted sum of both losses, and metrics.

    Args:
        config: of the experts.
        layers: `statistics`, stacked over layers.

    Returns:
        A scalar; `balance_loss` E Σ_e f_e P_e, 1 (or top_k) when balanced; `z_loss`; and `dropped`, choices dropped in
        all layers.

    Source: Switch (arXiv:2101.03961) equations 4-6; ST-MoE (arXiv:2202.08906) equation 5.
    """
    if config.balance == "switch":
        balance = (layers["first"] * layers["probs"]).sum(-1).mean()
    else:
        balance = (layers["chosen"].mean(0) * layers["probs"].mean(0)).sum()
    balance, z = config.num_experts * balance, layers["z"].mean()
    metrics = {"balance_loss": balance, "z_loss": z, "dropped": layers["dropped"].sum()}
    return config.balance_weight * balance + config.z_weight * z, metrics


def run_experts(x: jax.Array, gates: jax.Array, experts: jax.Array, kernels: dict[str, jax.Array], activation: str
                ) -> jax.Array:
    """Each token through its experts, summed with its gates; on any mesh.

    Every device runs its own experts, and its share of their width, on its own tokens; sums over the mesh axes of
    experts and width complete the outputs.

    Args:
        x: float[B, T, D].
        gates: float32[B, T, k].
        experts: int32[B, T, k]; E stands for none.
        kernels: "up" (and "gate") float[E, D, F], "down" float[E, F, D], in the dtype of `x`.

    Returns:
        float[B, T, D] in the dtype of `x`.
    """
    num_experts, _, width = kernels["up"].shape
    rows, sequence = axes_for(ROWS, len(x)), axes_for(SEQUENCE, x.shape[1])
    own, inner = axes_for(EXPERTS, num_experts), axes_for(HEADS, width)
    _, free = free_axes()
    if num_devices(free) == 1 and not is_explicit():
        return _run_local(x, gates, experts, kernels, activation)
    split = num_experts // num_devices(own)

    def local(first, x, gates, experts, kernels):
        experts = experts - first[0]
        y = _run_local(x, gates, jnp.where(experts < 0, split, experts), kernels, activation)
        return jax.lax.psum(y, own + inner) if own + inner else y

    tokens, wide = P(rows, sequence, None), P(own, None, inner)
    specs = (P(own), tokens, tokens, tokens, {n: P(own, inner, None) if n == "down" else wide for n in kernels})
    arguments = (split * jnp.arange(num_devices(own), dtype=jnp.int32), x, gates, experts, kernels)
    if is_explicit():
        arguments = jax.tree.map(jax.reshard, arguments, specs)
    return jax.shard_map(local, in_specs=specs, out_specs=tokens, axis_names=free, check_vma=False)(*arguments)


def _run_local(x, gates, experts, kernels, activation: str) -> jax.Array:
    """`run_experts` on one device: choices sorted by expert, three grouped products, sorted back."""
    b, t, k = experts.shape
    num_experts = len(kernels["up"])
    choice = experts.reshape(-1)
    order = jnp.argsort(jnp.minimum(choice, num_experts), stable=True)      # those without an expert last: they give 0
    sizes = jnp.bincount(choice, length=num_experts).astype(jnp.int32)
    rows = x.reshape(b * t, -1)[order // k]
    h = ACTIVATIONS[activation](grouped_matmul(rows, kernels["gate" if activation in GATED else "up"], sizes))
    if activation in GATED:
        h = h * grouped_matmul(rows, kernels["up"], sizes)
    out = grouped_matmul(h, kernels["down"], sizes)[jnp.argsort(order)].reshape(b, t, k, -1)
    return jnp.einsum("btkd,btk->btd", out.astype(jnp.float32), gates).astype(x.dtype)


class Moe(nn.Module):
    """y = Σ_k gate_k(x) · expert_k(x), each expert an `Mlp` without biases; the router works in float32.

    Attributes:
        config: experts and router.
        embed_dim, mlp_dim: D, and F of one expert.
        activation, kernel_init, gain, dtype: see `Mlp`.
    """

    config: MoeConfig
    embed_dim: int
    mlp_dim: int
    activation: str = "swiglu"
    kernel_init: Any = scaled
    gain: float = 1.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array, drop: bool = True) -> tuple[jax.Array, Statistics]:
        """float[B, T, D], and bool[B, T] that is False on padding -> dtype[B, T, D] and `statistics`.

        `drop`: whether experts have the capacity of the config.
        """
        c, (d, f) = self.config, (self.embed_dim, self.mlp_dim)
        logits = Linear((d,), (c.num_experts,), ("embed", None), False, out_dtype=jnp.float32, name="router")(x)
        gates, experts, probs = route(logits, c.top_k, c.normalize_gates)
        kept = jnp.broadcast_to(real[..., None], experts.shape)
        if drop and c.capacity_factor is not None:
            capacity = max(int(c.capacity_factor * x.shape[1] / c.num_experts), 1)
            kept = within_capacity(experts, real, c.num_experts, capacity)
        names = ("gate", "up", "down") if self.activation in GATED else ("up", "down")
        kernels = {name: self._kernels(name, *((f, d) if name == "down" else (d, f))) for name in names}
        reached = jnp.where(kept, experts, c.num_experts)
        y = run_experts(jnp.asarray(x, self.dtype), gates, reached, kernels, self.activation)
        return y, statistics(logits, probs, experts, real, kept)

    def _kernels(self, name: str, size_in: int, size_out: int) -> jax.Array:
        def init(key, shape, dtype):
            one = self.kernel_init(self.gain, 0, 1)
            return jax.vmap(lambda k: one(k, shape[1:], dtype))(jax.random.split(key, shape[0]))

        axes = ("mlp", "embed") if name == "down" else ("embed", "mlp")
        return param(self, name, init, (self.config.num_experts, size_in, size_out), ("experts", *axes)
                     ).astype(self.dtype)
