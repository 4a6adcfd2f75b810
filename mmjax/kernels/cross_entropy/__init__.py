"""Cross-entropy over large vocabularies."""

from mmjax.kernels.cross_entropy.api import cross_entropy

__all__ = ["cross_entropy"]
