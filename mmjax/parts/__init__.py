"""Parts that systems are composed of."""
