"""What a training step will cost on a machine that need not be at hand."""
