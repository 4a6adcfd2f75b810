"""Losses over all pairs of two sets of features, without the matrix of their similarities."""

from mmjax.kernels.contrastive.api import pair_loss

__all__ = ["pair_loss"]
