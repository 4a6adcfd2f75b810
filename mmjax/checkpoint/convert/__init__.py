"""Published weights: a table of names per format, read in both directions."""
