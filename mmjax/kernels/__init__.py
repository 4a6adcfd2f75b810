"""Kernels: plain JAX functions for the hot paths. Nothing here knows Flax or configs."""
