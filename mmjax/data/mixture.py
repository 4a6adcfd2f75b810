"""Mixtures: whose turn it is among weighted sources, without chance and without end."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from mmjax.data.shuffle import Order


class Draw(NamedTuple):
    """One record, once: the epoch-th time that record `index` of that source is read. Names it in all streams."""

    source: int
    epoch: int
    index: int


class Mixture:
    """Draws records of several sources by weight.

    With every draw each source gets its share of a credit and the richest pays one, so that the shares hold in every
    stretch of draws. The weights are no part of the position: under others it goes on from the same records.

    Args:
        weights: of the sources, above 0.
        orders: of the sources.
    """

    def __init__(self, weights: Sequence[float], orders: Sequence[Order]):
        self._shares = [w / sum(weights) for w in weights]
        self._orders = orders
        self._credits = [0.0] * len(orders)

    def __iter__(self) -> "Mixture":
        return self

    def __next__(self) -> Draw:
        after = [c + s for c, s in zip(self._credits, self._shares, strict=True)]
        source = max(range(len(after)), key=after.__getitem__)
        draw = Draw(source, *self._orders[source].peek())
        self.follow(draw)
        return draw

    def follow(self, draw: Draw) -> None:
        """Goes on by one draw, which the same mixture elsewhere has made."""
        for i, share in enumerate(self._shares):
            self._credits[i] += share
        self._credits[draw.source] -= 1
        self._orders[draw.source].advance()

    def get_state(self) -> dict[str, Any]:
        """The position, as JSON values."""
        return dict(credits=list(self._credits), positions=[order.position for order in self._orders])

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position."""
        self._credits = list(state["credits"])
        for order, position in zip(self._orders, state["positions"], strict=True):
            order.position = position
