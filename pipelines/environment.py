"""What a result may depend on beside its configuration."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import keras

import vit_keras

from .config import RunConfig
from .datasets import ImageData


def environment(config: RunConfig, data: ImageData) -> dict[str, Any]:
    """Returns what a result may depend on: versions, seeds, hardware, pictures that were left out."""
    packages = ("keras", "tensorflow", "ai-edge-litert", "ai-edge-quantizer", "numpy", "scikit-learn")
    backend = keras.backend.backend()
    return {
        "vit_keras": vit_keras.__version__,
        "python": sys.version.split()[0],
        "packages": {name: _version(name) for name in dict.fromkeys((*packages, backend))},
        "backend": backend,
        "seed": config.fit.seed,
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "skipped": {bad.picture: bad.fault for bad in data.skipped},
    }


def _version(package: str) -> str | None:
    """Returns what is installed of a package; TensorFlow goes by several names."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
