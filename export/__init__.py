"""From a Keras model to files for phones, browsers and boards, each proven on real data.

Names are imported when they are first used: the command line and the converting process need only a few of them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle import write_bundle
    from .calibrate import RANGES
    from .devices import DeviceCheck, Refusal, RulesCheck, check_devices
    from .flatbuffer import FileInfo, OperatorInfo, TensorInfo
    from .framing import Framing
    from .golden import GoldenCheck, verify_golden, write_golden
    from .inspection import Run, inspect_file, try_file
    from .interpreter import Classifier, OperatorCensus
    from .latency import Benchmark, Latency, benchmark, measure_latency
    from .metadata import read_labels, with_metadata
    from .page import build_page, page_server, page_url
    from .platforms import PLATFORMS, Platform
    from .quantize import KINDS, ROUNDINGS, Kind, Rule
    from .rewriting import REWRITES, rewrite
    from .saved_model import to_saved_model
    from .sensitivity import LayerError, Relaxation
    from .targets import TARGETS, Target
    from .tflite import FileOptions, measure_sensitivity, to_tflite, to_tflite_files, to_tflite_within
    from .vendoring import vendor
    from .verification import Agreement, Proof, compare, verify

_HOME = {
    "Agreement": "verification",
    "Benchmark": "latency",
    "Classifier": "interpreter",
    "DeviceCheck": "devices",
    "FileInfo": "flatbuffer",
    "FileOptions": "tflite",
    "Framing": "framing",
    "GoldenCheck": "golden",
    "KINDS": "quantize",
    "Kind": "quantize",
    "Latency": "latency",
    "LayerError": "sensitivity",
    "OperatorCensus": "interpreter",
    "OperatorInfo": "flatbuffer",
    "PLATFORMS": "platforms",
    "Platform": "platforms",
    "Proof": "verification",
    "RANGES": "calibrate",
    "REWRITES": "rewriting",
    "ROUNDINGS": "quantize",
    "Refusal": "devices",
    "Relaxation": "sensitivity",
    "Rule": "quantize",
    "RulesCheck": "devices",
    "Run": "inspection",
    "TARGETS": "targets",
    "Target": "targets",
    "TensorInfo": "flatbuffer",
    "benchmark": "latency",
    "build_page": "page",
    "check_devices": "devices",
    "compare": "verification",
    "inspect_file": "inspection",
    "measure_latency": "latency",
    "measure_sensitivity": "tflite",
    "page_server": "page",
    "page_url": "page",
    "read_labels": "metadata",
    "rewrite": "rewriting",
    "to_saved_model": "saved_model",
    "to_tflite": "tflite",
    "to_tflite_files": "tflite",
    "to_tflite_within": "tflite",
    "try_file": "inspection",
    "vendor": "vendoring",
    "verify": "verification",
    "verify_golden": "golden",
    "with_metadata": "metadata",
    "write_bundle": "bundle",
    "write_golden": "golden",
}

__all__ = [
    "KINDS",
    "PLATFORMS",
    "RANGES",
    "REWRITES",
    "ROUNDINGS",
    "TARGETS",
    "Agreement",
    "Benchmark",
    "Classifier",
    "DeviceCheck",
    "FileInfo",
    "FileOptions",
    "Framing",
    "GoldenCheck",
    "Kind",
    "Latency",
    "LayerError",
    "OperatorCensus",
    "OperatorInfo",
    "Platform",
    "Proof",
    "Refusal",
    "Relaxation",
    "Rule",
    "RulesCheck",
    "Run",
    "Target",
    "TensorInfo",
    "benchmark",
    "build_page",
    "check_devices",
    "compare",
    "inspect_file",
    "measure_latency",
    "measure_sensitivity",
    "page_server",
    "page_url",
    "read_labels",
    "rewrite",
    "to_saved_model",
    "to_tflite",
    "to_tflite_files",
    "to_tflite_within",
    "try_file",
    "vendor",
    "verify",
    "verify_golden",
    "with_metadata",
    "write_bundle",
    "write_golden",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
