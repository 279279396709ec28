"""From a Keras model to files for phones, browsers and boards, each proven on real data.

Names are imported when they are first used: the command line and the converting process need only a few of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .interpreter import Classifier, OperatorCensus
    from .latency import Latency, measure_latency
    from .quantize import KINDS, Kind
    from .saved_model import to_saved_model
    from .tflite import to_tflite, to_tflite_files
    from .verification import Agreement, Proof, compare, verify

_HOME = {
    "Agreement": "verification",
    "Classifier": "interpreter",
    "KINDS": "quantize",
    "Kind": "quantize",
    "Latency": "latency",
    "OperatorCensus": "interpreter",
    "Proof": "verification",
    "compare": "verification",
    "measure_latency": "latency",
    "to_saved_model": "saved_model",
    "to_tflite": "tflite",
    "to_tflite_files": "tflite",
    "verify": "verification",
}

__all__ = [
    "KINDS",
    "Agreement",
    "Classifier",
    "Kind",
    "Latency",
    "OperatorCensus",
    "Proof",
    "compare",
    "measure_latency",
    "to_saved_model",
    "to_tflite",
    "to_tflite_files",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
