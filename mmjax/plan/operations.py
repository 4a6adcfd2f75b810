"""Operations of a traced program: products of matrices over all devices, loops multiplied out."""

import math
from collections.abc import Iterator
from typing import Any

from mmjax.kernels.attention.api import SCOPE


def count_products(jaxpr: Any) -> float:
    """Operations of all products in a jaxpr, two for each multiplication and addition.

    What is computed again for the backward pass counts again. Not counted is attention, whose products depend on the
    mask, and what kernels outside of it and loops without a fixed length hold beyond one round.

    Args:
        jaxpr: closed or not, with global shapes. A `shard_map` counts once for each device.
    """
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if SCOPE in str(eqn.source_info.name_stack):
            continue
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[d] for d in contracted)
        elif name == "conv_general_dilated":
            kernel = eqn.invars[1].aval
            out_features = kernel.shape[params["dimension_numbers"].rhs_spec[0]]
            total += 2 * eqn.outvars[0].aval.size * kernel.size / out_features
        elif name == "cond":
            total += max(map(count_products, params["branches"]))
        elif name != "pallas_call":
            total += _repeats(name, params) * sum(map(count_products, _inner(params)))
    return total


def _repeats(name: str, params: Any) -> int:
    if name == "scan":
        return params["length"]
    if name == "shard_map":
        return math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
    return 1


def _inner(params: Any) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation."""
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(getattr(item, "jaxpr", item), "eqns"):
                yield item
