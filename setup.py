"""Packaging: three folders, one package. Beside it, pyproject.toml holds the settings of the tools."""

import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "vit_keras" / "__init__.py").read_text(encoding="utf-8"))[1]

HUB = ["huggingface_hub>=0.26"]
TEST = [
    *HUB,
    "import-linter>=2.1",
    "ipykernel>=6.29",
    "jax>=0.4.35",  # The layers and models are tested on this backend too.
    "mediapipe>=0.10.20",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "packaging>=24.0",
    "playwright>=1.49",  # Drives an installed Chromium; it need not download one.
    "pyright>=1.1.390",
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "setuptools>=77",  # A test builds a wheel without isolation.
    "tree-sitter>=0.25",
    "tree-sitter-kotlin>=1.1",
    "tree-sitter-swift>=0.7",
]

setup(
    name="vit-keras-edge",
    version=VERSION,
    description="From a folder of pictures to a Vision Transformer that is proven on the device",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[
        "vit_keras",
        "vit_keras.layers",
        "vit_keras.models",
        "vit_keras.heads",
        "vit_keras.explain",
        "vit_keras.weights",
        "vit_keras.export",
        "vit_keras.pipelines",
        "vit_keras.pipelines.explanation",
    ],
    package_dir={"vit_keras": "vit_keras", "vit_keras.export": "export", "vit_keras.pipelines": "pipelines"},
    package_data={
        "vit_keras": ["py.typed"],
        "vit_keras.export": ["bundles/*/*", "standalone/*.py", "web/*", "web/vendor/*"],  # `make web` fetches vendor/.
        "vit_keras.pipelines": ["recipes/*.yaml", "spaces/*.yaml"],
        "vit_keras.pipelines.explanation": ["*.json"],  # What the pointing test has measured.
    },
    install_requires=[
        "ai-edge-litert>=2.1",
        "ai-edge-quantizer>=0.5",
        "cloudpickle>=3.0",
        "flatbuffers>=24.3.25",
        "grpcio>=1.60",
        "h5py>=3.11",
        "importlib_resources>=6.4",  # tensorflow-datasets needs it and does not say so.
        "jsonargparse>=4.49",
        "keras-tuner>=1.4.7",
        "keras>=3.10",
        "matplotlib>=3.9",
        "ml_dtypes>=0.4",
        "numpy>=1.26",
        "pillow>=10.3",
        "pyyaml>=6.0",
        "rich>=13.7",
        "scikit-learn>=1.5",
        "scipy>=1.11",
        "tensorboard>=2.19",
        "tensorflow-datasets>=4.9.7",
        "tensorflow>=2.19",
        "tf-keras-vis>=0.8.7",
    ],
    extras_require={
        "test": TEST,
        "hub": HUB,
        # What benchmarks/parity.py compares with.
        "parity": [
            "flax>=0.10",
            "jax>=0.4.35",
            "safetensors>=0.4.5",
            "timm>=1.0.12",
            "torch>=2.5",
            "transformers>=4.46",
        ],
        "gpu": ["tensorflow[and-cuda]>=2.19"],
        "dev": [*TEST, "pre-commit>=4.0"],
    },
    entry_points={"console_scripts": ["vit-keras = vit_keras.pipelines.cli:main"]},
)
