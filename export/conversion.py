"""The child process that converts: TensorFlow's converter leaks memory and may die.

`python -m vit_keras.export.conversion JOB` reads the folder that `tflite.py` filled: `saved_model/` (one signature with
a static batch), `calibration.npy` and `job.json`, `{"targets": {kind: path}}`. Each file appears under its name when
it is whole.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .calibrate import tensor_ranges
from .files import replacing
from .quantize import KINDS, Method


def main(job: Path) -> None:
    """Converts every kind of a job, in the order of the job's file."""
    description = json.loads((job / "job.json").read_text())
    calibration_file = job / "calibration.npy"
    calibration: list[np.ndarray] = []
    if calibration_file.exists():
        calibration = list(_batches(np.load(calibration_file, allow_pickle=False), description["batch_size"]))
    saved_model = str(job / "saved_model")
    float32 = None
    for kind, target in description["targets"].items():
        if KINDS[kind].method is Method.QUANTIZER:
            float32 = float32 or convert(saved_model, "float32", calibration)
            content = quantize(float32, kind, calibration)
        else:
            content = convert(saved_model, kind, calibration)
            float32 = content if kind == "float32" else float32
        with replacing(target) as temporary:
            temporary.write_bytes(content)


def convert(saved_model: str, kind: str, calibration: list[np.ndarray]) -> bytes:
    """Converts a SavedModel with TensorFlow's converter, to builtin operators only."""
    import tensorflow as tf

    # From the concrete function, so that weights are frozen into constants: `from_saved_model` leaves READ_VARIABLE.
    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
    if kind == "float16":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    elif KINDS[kind].integer_only:
        int16 = tf.lite.OpsSet.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
        int8 = tf.lite.OpsSet.TFLITE_BUILTINS_INT8
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_ops = [int16 if kind == "int16x8" else int8]
        converter.inference_input_type = converter.inference_output_type = tf.dtypes.as_dtype(KINDS[kind].input_dtype)
        converter.representative_dataset = lambda: ({"images": batch} for batch in calibration)
    return converter.convert()


def quantize(float32: bytes, kind: str, calibration: list[np.ndarray]) -> bytes:
    """Quantises a float32 file with ai-edge-quantizer.

    Static ranges are our own: the quantiser's keep a moving average of minimum and maximum, which cost 4.8 points of
    accuracy on CIFAR-10.
    """
    from ai_edge_quantizer import recipe
    from ai_edge_quantizer.qtyping import TFLOperationName
    from ai_edge_quantizer.quantizer import Quantizer

    if kind == "dynamic_int8":
        quantizer, ranges = Quantizer(bytearray(float32), recipe.dynamic_wi8_afp32()), None
    else:
        operators = (TFLOperationName.FULLY_CONNECTED, TFLOperationName.CONV_2D)
        quantizer = Quantizer(bytearray(float32))
        for operator in operators:
            quantizer.add_static_config(".*", operator, activation_num_bits=8, weight_num_bits=8)
        ranges = tensor_ranges(float32, calibration, {operator.value for operator in operators})
    return bytes(quantizer.quantize(ranges, enable_progress_report=False).quantized_model)


def _batches(pictures: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Cuts pictures into batches of exactly `size`; the last is filled up with the first pictures."""
    for start in range(0, len(pictures), size):
        yield np.take(pictures, range(start, start + size), axis=0, mode="wrap")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
