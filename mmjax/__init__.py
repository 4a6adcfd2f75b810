"""mmjax: multimodal language models in JAX, from one set of shared, purely functional parts."""

__version__ = "0.1.0"
