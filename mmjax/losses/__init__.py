"""Losses as pure functions of model outputs and targets."""

from mmjax.losses.language import token_cross_entropy, token_log_probs

__all__ = ["token_cross_entropy", "token_log_probs"]
