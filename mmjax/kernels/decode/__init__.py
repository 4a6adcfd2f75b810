"""Attention of one new token per row to cached keys and values."""

from mmjax.kernels.decode.api import cached_attention, decode_attention

__all__ = ["cached_attention", "decode_attention"]
