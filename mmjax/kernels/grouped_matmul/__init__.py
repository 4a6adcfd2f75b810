"""Matrix products of groups of rows, each group with a matrix of its own: mixture-of-experts."""

from mmjax.kernels.grouped_matmul.api import grouped_matmul

__all__ = ["grouped_matmul"]
