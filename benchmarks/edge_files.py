"""The files that `edge.py` times, and how each is made: ours from `vit_keras.export`, the others' from their own tools.

All are ViT-Ti, S or B/16 at 224 pixels with 1000 classes and a batch of one. timm's model with random weights comes
first (`write_reference`); ours opens its weights, so that all files but KerasHub's must say the same of a picture.

Everything of one size lies in one folder with the size's name; the pictures lie beside these folders.

`python edge_files.py TASK FOLDER/SIZE …` is one child process: `edge.py` starts it in the right environment, watches
its memory and reads the seconds it reports. Imports stand inside the functions: no environment has them all.
"""

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from workers import memory_mb, obey

SIZES = {"tiny": 192, "small": 384, "base": 768}
PACKAGES = (
    *("ai-edge-litert", "ai-edge-quantizer", "keras", "keras-hub", "litert-converter", "litert-torch", "numpy"),
    *("onnx", "onnxruntime", "onnxscript", "tensorflow", "timm", "torch"),
)
OPSET = 20  # The first with GELU as one operator.

Write = Callable[[], Any]
"""Writes the file; only this is timed."""


@dataclass(frozen=True)
class Contestant:
    """One file of every size.

    Attributes:
        prepare: Takes the file to write; returns what is timed.
        suffix: `".tflite"` files run in LiteRT's interpreter in our environment, `".onnx"` in onnxruntime.
        ours: Whether it is made in our environment and takes pixels 0 to 255; others take -1 to 1.
        float32: Whether nothing in it is quantised.
        timm: Whether it holds timm's weights.
    """

    prepare: Callable[[Path], Write]
    suffix: str = ".tflite"
    ours: bool = False
    float32: bool = False
    timm: bool = True


# Ours.


def our_model(folder: Path) -> Any:
    from vit_keras import create_model

    weights = folder / "timm.safetensors"
    return create_model(f"vit_{folder.name}_patch16_224", weights=weights if weights.exists() else None)


def write_ours(model: Any, files: dict[str, Path], calibration: np.ndarray, **options: Any) -> None:
    from vit_keras.export import to_tflite_files

    to_tflite_files(model, files, [calibration], overwrite=True, **options)


def ours(kind: str, options: dict[str, Any], file: Path) -> Write:
    """Converts with all exact rewrites of the graph, if the options do not name others."""
    return partial(write_ours, our_model(file.parent), {kind: file}, pictures(file.parent, "calibration"), **options)


# The others. `normalised` pictures are -1 to 1, as timm's preset wants them.


def pictures(folder: Path, part: str) -> np.ndarray:
    """Returns the `"calibration"` or `"test"` pictures, `(n, 224, 224, 3)` float32, 0 to 255."""
    return np.load(folder.parent / f"{part}.npy")


def normalised(pixels: np.ndarray) -> np.ndarray:
    return pixels / np.float32(127.5) - 1


def channels_first(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))


def timm_model(folder: Path, load: bool = True) -> Any:
    from torchvision_stand_in import torchvision_stand_in

    with torchvision_stand_in():
        import timm
    model = timm.create_model(f"vit_{folder.name}_patch16_224", num_classes=1000).eval()
    if load:
        import safetensors.torch

        model.load_state_dict(safetensors.torch.load_file(folder / "timm.safetensors"))
    return model


def write_reference(folder: Path) -> None:
    """Writes timm's weights, random, and its logits of the test pictures."""
    import safetensors.torch
    import torch
    from references import randomise

    torch.manual_seed(0)
    model = timm_model(folder, load=False)
    randomise(model)
    test = torch.from_numpy(channels_first(normalised(pictures(folder, "test"))))
    with torch.inference_mode():
        logits = model(test).numpy()
    np.save(folder / "logits.npy", logits)
    safetensors.torch.save_file(model.state_dict(), folder / "timm.safetensors")


def litert_torch(file: Path) -> Write:
    import litert_torch
    import torch

    model = litert_torch.to_channel_last_io(timm_model(file.parent), args=[0]).eval()
    return lambda: litert_torch.convert(model, (torch.zeros(1, 224, 224, 3),)).export(str(file))


def litert_torch_dynamic(file: Path) -> Write:
    from ai_edge_quantizer import recipe
    from ai_edge_quantizer.quantizer import Quantizer

    def write() -> None:
        float32 = bytearray(file.with_name("litert-torch float32.tflite").read_bytes())
        result = Quantizer(float32, recipe.dynamic_wi8_afp32()).quantize(enable_progress_report=False)
        file.write_bytes(result.quantized_model)

    return write


def onnx_float32(file: Path) -> Write:
    import torch

    arguments = (timm_model(file.parent), (torch.zeros(1, 3, 224, 224),), file)
    return partial(torch.onnx.export, *arguments, opset_version=OPSET, external_data=False, dynamo=True)


def onnx_prepared(file: Path) -> Path:
    """Returns the float32 file after onnxruntime's own preparation for quantising: shapes inferred, graph optimised."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = file.with_name(f".prepared.{file.name}")
    quant_pre_process(file.with_name("onnxruntime float32.onnx"), prepared)
    return prepared


def onnx_dynamic(file: Path) -> Write:
    """Products of matrices; with the convolution too it was as fast, and per channel as fast and less exact."""
    from onnxruntime.quantization import quantize_dynamic

    def write() -> None:
        prepared = onnx_prepared(file)
        quantize_dynamic(prepared, file, op_types_to_quantize=["MatMul", "Gemm"])
        prepared.unlink()

    return write


def onnx_static(file: Path) -> Write:
    """QDQ of all operators that it can; unsigned activations and signed weights, which x86 multiplies fastest."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pictures(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            calibration = channels_first(normalised(pictures(file.parent, "calibration")))
            self.feeds = ({name: picture[None]} for picture in calibration)

        def get_next(self) -> dict | None:
            return next(self.feeds, None)

    def write() -> None:
        import onnx

        prepared = onnx_prepared(file)
        reader = Pictures(onnx.load(prepared, load_external_data=False).graph.input[0].name)
        types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
        form = {"quant_format": QuantFormat.QDQ, "per_channel": True}
        quantize_static(prepared, file, reader, **form, **types)
        prepared.unlink()

    return write


def keras_hub(file: Path) -> Write:
    """KerasHub's classifier through Keras's export with a batch of one; its default, a dynamic one, is slower."""
    import tensorflow as tf
    from speed import Row
    from speed import keras_hub as build

    model = build(Row(file.parent.name, "predict", hidden_dim=SIZES[file.parent.name]))()
    signature = [tf.TensorSpec((1, 224, 224, 3), tf.float32)]
    return partial(model.export, str(file), format="litert", input_signature=signature, verbose=False)


KINDS = ("float32", "float16", "dynamic_int8", "static_int8", "full_int8", "int16x8", "int4")
PLAIN = "ours float32, no rewrites"
CONTESTANTS = {
    PLAIN: Contestant(partial(ours, "float32", {"rewrites": ()}), ours=True, float32=True),
    **{f"ours {k}": Contestant(partial(ours, k, {}), ours=True, float32=k == "float32") for k in KINDS},
    "ours static_int8, a quarter merged": Contestant(partial(ours, "static_int8", {"merge_tokens": 0.25}), ours=True),
    "litert-torch float32": Contestant(litert_torch, float32=True),
    "litert-torch dynamic_int8": Contestant(litert_torch_dynamic),
    "onnxruntime float32": Contestant(onnx_float32, ".onnx", float32=True),
    "onnxruntime dynamic_int8": Contestant(onnx_dynamic, ".onnx"),
    "onnxruntime static_int8": Contestant(onnx_static, ".onnx"),
    "keras-hub float32": Contestant(keras_hub, float32=True, timm=False),
}


# The child process: every task yields reports.


def timed(write: Write) -> dict:
    start = time.perf_counter()
    write()
    return {"seconds": round(time.perf_counter() - start, 2)}


def reference(folder: Path) -> Iterable[dict]:
    yield timed(partial(write_reference, folder))


def contestant(folder: Path, name: str) -> Iterable[dict]:
    file = folder / f"{name}{CONTESTANTS[name].suffix}"
    yield timed(CONTESTANTS[name].prepare(file))


def conversion(folder: Path, kinds: str, times: str) -> Iterable[dict]:
    """Converts our model several times in one program, which is what a notebook or a search does."""
    model, calibration = our_model(folder), pictures(folder, "calibration")
    files = {kind: folder / f".conversion.{kind}.tflite" for kind in kinds.split(",")}
    for _ in range(int(times)):
        yield {**timed(partial(write_ours, model, files, calibration)), "rss_mb": memory_mb("VmRSS")}
    for file in files.values():
        file.unlink()


def versions() -> dict[str, str]:
    """Returns what is installed in this environment."""
    installed = {package.name.lower(): package.version for package in metadata.distributions() if package.name}
    return {name: installed[name] for name in PACKAGES if name in installed}


def work(task: str, folder: str, *arguments: str) -> Iterable[dict]:
    tasks = {"reference": reference, "contestant": contestant, "conversion": conversion}
    for report in tasks[task](Path(folder), *arguments):
        yield {**report, "versions": versions()}


if __name__ == "__main__":
    obey(work(*sys.argv[1:]))
