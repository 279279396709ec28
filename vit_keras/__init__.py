"""Vision Transformers as Keras 3 layers, proven on the device.

Names are imported when they are first used, so that `import vit_keras` costs nothing and loads no backend.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .adaptation import adapt, count_parameters, merge_lora
    from .loading import load_model
    from .registry import create_model, get_preset, list_models

_HOME = {
    "adapt": "adaptation",
    "count_parameters": "adaptation",
    "create_model": "registry",
    "get_preset": "registry",
    "list_models": "registry",
    "load_model": "loading",
    "merge_lora": "adaptation",
}
_MODULES = (
    "adaptation",
    "distillation",
    "explain",
    "export",
    "heads",
    "layers",
    "models",
    "pipelines",
    "weights",
)

__all__ = [
    "__version__",
    "adapt",
    "count_parameters",
    "create_model",
    "get_preset",
    "list_models",
    "load_model",
    "merge_lora",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
