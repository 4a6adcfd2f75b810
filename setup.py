"""Packaging of mmjax: lower bounds only; the versions that were tested stand in tests/constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "absl-py>=2.1",
    "array_record>=0.8",
    "flax>=0.12",
    "grain>=0.2.15",
    "jax>=0.10",
    "jinja2>=3.1",
    "matplotlib>=3.8",
    "ml_collections>=1.0",
    "msgpack>=1.0",
    "numpy>=2.0",
    "optax>=0.2.5",
    "orbax-checkpoint>=0.12",
    "pillow>=11.0",
    "safetensors>=0.5",
    "tensorboardX>=2.6",
    "tokenizers>=0.21",
    "tqdm>=4.66",
]
EXTRAS = {
    "tpu": ["jax[tpu]>=0.10"],
    "cuda": ["jax[cuda13]>=0.10"],
    "data": ["importlib_resources>=6.0", "pyarrow>=18.0", "scikit-learn>=1.4", "scipy>=1.13",
             "tensorflow-datasets>=4.9.7"],
    "web": ["fastwarc>=2.0", "resiliparse>=2.0", "selectolax>=1.0"],
    "pipelines": ["apache-beam>=2.70", "fastwarc>=2.0", "resiliparse>=2.0", "selectolax>=1.0"],
    "hf": ["huggingface_hub>=0.30"],
    "video": ["av>=14.0"],
    "wandb": ["wandb>=0.19"],
    "notebooks": ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10"],
    "test": ["chex>=0.1.90", "pytest>=8.0", "ruff>=0.9", "sentencepiece>=0.2", "warcio>=1.7", "webdataset>=1.0"],
    "parity": ["einops>=0.8", "einops-exts>=0.0.4", "open_clip_torch>=3.0", "timm>=1.0", "torch>=2.4",
               "torchvision>=0.19", "transformers>=5.0"],
}

setup(
    name="mmjax",
    version="0.1.0",
    description="Multimodal language models in JAX: KOSMOS-1, Flamingo, CLIP, BLIP-2, MiniGPT-4, MM1, Emu2",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["mmjax", "mmjax.*", "data_pipelines", "data_pipelines.*"]),
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["mmjax=mmjax.cli.main:main"]},
)
