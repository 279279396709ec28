"""Running a TensorFlow Lite classifier as a user's program does: pixels in, logits out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .inspection import check_threads
from .packing import with_all_results
from .quantize import layer_of


class Classifier:
    """A TensorFlow Lite file with one picture input and one output of class scores; a second one is its attention.

    Args:
        path: The `.tflite` file, or its content.
        num_threads: Threads of the interpreter, 1 to 64; 1 gives comparable times.
        keep_tensors: Whether `tensors` can be called after a run.
        image_size: Height and width of the pictures, for a file with a signature for each of several sizes; the first
            signature's if `None`. What is told of operators and tensors is always the first's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no TensorFlow Lite model, not from a picture to class scores, or not for pictures of
            this size; or another number of threads.
    """

    def __init__(
        self,
        path: str | Path | bytes,
        num_threads: int = 1,
        keep_tensors: bool = False,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        from ai_edge_litert.interpreter import Interpreter

        check_threads(num_threads, "num_threads")
        if not isinstance(path, bytes) and not Path(path).is_file():
            raise FileNotFoundError(f"No TensorFlow Lite file at {path}.")
        source = {"model_content": path} if isinstance(path, bytes) else {"model_path": str(path)}
        if keep_tensors:
            source = {"model_content": with_all_results(path if isinstance(path, bytes) else Path(path).read_bytes())}
        path = "The content" if isinstance(path, bytes) else path
        try:
            self._interpreter = Interpreter(**source, num_threads=num_threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{path} is not a TensorFlow Lite model that can be run here: {error}") from error
        self._runner = None
        inputs, results = self._interpreter.get_input_details(), self._interpreter.get_output_details()
        outputs = results[:1] if keep_tensors else results
        shapes = _shapes(inputs, outputs)
        if image_size is not None and inputs and shapes[0][1:3] != tuple(image_size):
            self._runner, inputs, outputs = self._for_size(image_size, path)
            shapes = _shapes(inputs, outputs)
        if len(inputs) != 1 or [len(shape) for shape in shapes] not in ([4, 2], [4, 2, 3]) or shapes[0][3] != 3:
            raise ValueError(
                f"{path} must take pictures, (B, H, W, 3), and give class scores, (B, num_classes). "
                f"Received: shapes={shapes}"
            )
        self._input, self._outputs, self._results = inputs[0], outputs, results
        self._input_name = next(iter(self._runner.get_input_details())) if self._runner else ""
        self._pixels = np.empty(0)
        self._given: list[np.ndarray] = []
        self.batch_size = shapes[0][0]
        self.image_size = shapes[0][1], shapes[0][2]
        self.num_classes = shapes[1][1]
        self.num_tokens = shapes[2][2] if len(shapes) > 2 else 0

    def _for_size(self, image_size: tuple[int, int], path: Any):
        """Returns the signature for pictures of a size, and the details of its inputs and outputs."""
        known = []
        for name in self._interpreter.get_signature_list():
            runner = self._interpreter.get_signature_runner(name)
            inputs, outputs = (list(d.values()) for d in (runner.get_input_details(), runner.get_output_details()))
            outputs.sort(key=lambda detail: len(detail["shape"]))  # Scores first.
            known.append(_shapes(inputs[:1])[0][1:3] if inputs else ())
            if known[-1] == tuple(image_size):
                return runner, inputs, outputs
        sizes = ", ".join("x".join(map(str, size)) for size in known) or "other"
        raise ValueError(f"{path} takes {sizes} pictures. Received: image_size={image_size[0]}x{image_size[1]}")

    def logits(self, pictures: np.ndarray) -> np.ndarray:
        """Returns the float32 class scores, `(n, num_classes)`, of pictures `(n, H, W, 3)` with pixels 0 to 255.

        Raises:
            ValueError: no pictures, or pictures of another size.
        """
        return self._all(pictures)[0]

    def logits_and_attention(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns what `logits` does, and the rows of attention weights: see `vit_keras.export.attention`.

        Raises:
            ValueError: as `logits`, or a file that gives no attention.
        """
        if len(self._outputs) == 1:
            raise ValueError("The file must give its attention (with_attention). Received: one that gives scores only")
        logits, attention = self._all(pictures)
        return logits, attention

    def _all(self, pictures: np.ndarray) -> list[np.ndarray]:
        """Returns every output for all pictures, as real numbers."""
        if not len(pictures) or np.shape(pictures)[1:] != (*self.image_size, 3):
            height, width = self.image_size
            raise ValueError(
                f"pictures must be of shape (n, {height}, {width}, 3), n >= 1. Received: shape={np.shape(pictures)}"
            )
        given = [self._run(pictures[i : i + self.batch_size]) for i in range(0, len(pictures), self.batch_size)]
        return [np.concatenate(parts) for parts in zip(*given, strict=True)]

    def set_input(self, pictures: np.ndarray) -> None:
        """Writes one batch of pictures, `(batch_size, H, W, 3)`, quantised as the file wants it."""
        self._pixels = _quantised(pictures, self._input)
        if self._runner is None:
            self._interpreter.set_tensor(self._input["index"], self._pixels)

    @property
    def input_name(self) -> str:
        """Name of the tensor that pictures go into."""
        return self._input["name"]

    def invoke(self) -> None:
        """Runs the file once on the input that was set."""
        if self._runner is None:
            self._interpreter.invoke()
        else:
            given = self._runner(**{self._input_name: self._pixels})
            self._given = sorted(given.values(), key=np.ndim)

    def _run(self, pictures: np.ndarray) -> list[np.ndarray]:
        filled = np.take(pictures, range(self.batch_size), axis=0, mode="wrap")
        self.set_input(filled)
        self.invoke()
        if self._runner is None:
            self._given = [self._interpreter.get_tensor(output["index"]) for output in self._outputs]
        given = zip(self._given, self._outputs, strict=True)
        return [_real(values, output)[: len(pictures)] for values, output in given]

    def tensors(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yields what every operator gave in the last run, tensor name and real numbers, in no certain order.

        Integers that stand for no real number, such as indices, are left out. One after another, they take little
        memory, and little time: a fresh hundred megabytes for each picture cost as much as running the file.
        """
        for detail in self._results:
            if np.dtype(detail["dtype"]).kind == "f" or detail["quantization"][0]:
                yield detail["name"], _real(self._interpreter.get_tensor(detail["index"]), detail)

    def float_operators(self) -> dict[str, list[str]]:
        """Returns the operators that touch a float tensor: name to the Keras layers that they came from."""
        details = {detail["index"]: detail for detail in self._interpreter.get_tensor_details()}
        found: dict[str, list[str]] = {}
        for operator in self._interpreter._get_ops_details():
            tensors = [details[int(i)] for i in (*operator["inputs"], *operator["outputs"]) if int(i) in details]
            if operator["op_name"] != "DELEGATE" and any(np.dtype(t["dtype"]).kind == "f" for t in tensors):
                layer = layer_of(details[int(operator["outputs"][0])]["name"])
                if layer not in found.setdefault(operator["op_name"], []):
                    found[operator["op_name"]].append(layer)
        return found

    def operators(self) -> "OperatorCensus":
        """Counts the operators of the file, and the delegate's partitions of the graph that runs here."""
        details = self._interpreter._get_ops_details()
        dtypes = {detail["index"]: np.dtype(detail["dtype"]) for detail in self._interpreter.get_tensor_details()}
        partitions, names, floating = 0, Counter(), Counter()
        for operator in details:
            name = operator["op_name"]
            if name == "DELEGATE":
                partitions += 1
                continue
            names[name] += 1
            tensors = (int(i) for i in (*operator["inputs"], *operator["outputs"]) if i >= 0)
            if any(dtypes[i].kind == "f" for i in tensors if i in dtypes):
                floating[name] += 1
        return OperatorCensus(
            names.total(), names.total() - floating.total(), floating.total(), partitions, dict(names)
        )


@dataclass(frozen=True)
class OperatorCensus:
    """What a file is made of.

    Attributes:
        total: Number of operators.
        integer: Operators none of whose tensors is of a floating-point type.
        float: The others, QUANTIZE and DEQUANTIZE included.
        delegate_partitions: Parts of the graph that the CPU delegate (XNNPACK) takes; 1 is best, 0 is none.
        names: Operator name to number.
    """

    total: int
    integer: int
    float: int
    delegate_partitions: int
    names: dict[str, int]


def _shapes(*details: list[dict]) -> list[tuple[int, ...]]:
    return [tuple(int(n) for n in detail["shape"]) for part in details for detail in part]


def _quantised(values: np.ndarray, detail: dict) -> np.ndarray:
    dtype = np.dtype(detail["dtype"])
    if dtype.kind == "f":
        return np.asarray(values, dtype)
    scale, zero_point = detail["quantization"]
    limits = np.iinfo(dtype)
    return np.clip(np.rint(np.asarray(values) / scale) + zero_point, limits.min, limits.max).astype(dtype)


def _real(values: np.ndarray, detail: dict) -> np.ndarray:
    if values.dtype.kind == "f":
        return values.astype("float32", copy=False)
    scale, zero_point = detail["quantization"]
    return ((values.astype("float64") - zero_point) * scale).astype("float32")
