"""What the quantisers need to know of real data: sample pictures, and the range of every tensor on them."""

from collections.abc import Collection, Iterable

import numpy as np


def sample(batches: Iterable[np.ndarray], image_size: tuple[int, int], limit: int = 200) -> np.ndarray:
    """Collects the pictures that the ranges of integer tensors are measured on.

    The first picture gets one black and one white corner pixel, so that the input's range is exactly 0 to 255 and a
    uint8 input needs no scaling: the bytes of a picture go in as they are.

    Args:
        batches: Batches of pictures, `(B, H, W, 3)`, 0 to 255.
        image_size: Height and width that the model takes, in pixels.
        limit: Most pictures to take; a few hundred give the true range of almost every tensor.

    Returns:
        `(n, H, W, 3)` float32 with 1 <= n <= `limit`.

    Raises:
        ValueError: no picture, or pictures of another size, with NaN, or outside 0 to 255.
    """
    taken, missing = [], limit
    for batch in batches:
        batch = np.asarray(batch, "float32")[:missing]
        if batch.shape[1:] != (*image_size, 3):
            raise ValueError(
                f"calibration pictures must have the model's shape, (n, {image_size[0]}, {image_size[1]}, 3). "
                f"Received: shape={batch.shape}"
            )
        if not (batch.min(initial=0) >= 0 and batch.max(initial=0) <= 255):
            raise ValueError(
                "calibration pictures must hold pixels 0 to 255 and no NaN. "
                f"Received: min={batch.min()}, max={batch.max()}"
            )
        taken.append(batch)
        missing -= len(batch)
        if not missing:
            break
    if missing == limit:
        raise ValueError("calibration must hold at least one picture. Received: none")
    pictures = np.concatenate(taken)
    pictures[0, 0, 0], pictures[0, 0, -1] = 0, 255
    return pictures


def tensor_ranges(
    float32: bytes, batches: Iterable[np.ndarray], operators: Collection[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Measures the true minimum and maximum of every activation that some operators read or write.

    Args:
        float32: Content of a float32 TensorFlow Lite file with one input.
        batches: Pictures as the file takes them, `(B, H, W, 3)`.
        operators: Names of the operators, such as `"FULLY_CONNECTED"`.

    Returns:
        Tensor name to `{"min": (1, ..., 1), "max": (1, ..., 1)}`, the form that ai-edge-quantizer takes.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    interpreter = Interpreter(
        model_content=float32,
        num_threads=1,
        experimental_preserve_all_tensors=True,
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    )
    interpreter.allocate_tensors()
    names = {detail["index"]: detail["name"] for detail in interpreter.get_tensor_details()}
    touched = {
        index
        for operator in interpreter._get_ops_details()
        if operator["op_name"] in operators
        for index in (operator["inputs"][0], operator["outputs"][0])
    }
    low = dict.fromkeys(touched, np.inf)
    high = dict.fromkeys(touched, -np.inf)
    image_input = interpreter.get_input_details()[0]["index"]
    for batch in batches:
        interpreter.set_tensor(image_input, batch)
        interpreter.invoke()
        for index in touched:
            values = interpreter.get_tensor(index)
            low[index] = min(low[index], values.min())
            high[index] = max(high[index], values.max())
    return {
        names[index]: {"min": np.full((1,), low[index], "float32"), "max": np.full((1,), high[index], "float32")}
        for index in touched
    }
