"""Data: documents, tokenizers, images, packing, mixtures and the loader. NumPy and Grain only, no JAX."""
