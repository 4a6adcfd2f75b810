"""Attention over intervals of keys."""

from mmjax.kernels.attention.api import attention
from mmjax.kernels.attention.mask import IntervalMask
from mmjax.kernels.attention.rotary import Rotary, rotate

__all__ = ["IntervalMask", "Rotary", "attention", "rotate"]
