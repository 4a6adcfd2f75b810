"""Losses as pure functions of model outputs and targets."""

from mmjax.losses.contrastive import contrastive_loss
from mmjax.losses.language import next_token_loss, token_cross_entropy, token_log_probs

__all__ = ["contrastive_loss", "next_token_loss", "token_cross_entropy", "token_log_probs"]
