"""The process in which TensorFlow's converter runs: it leaks memory and may die.

`python -m vit_keras.export.converter` reads two lines, the folder of a SavedModel with one signature and a file to
write, and converts it to float32 with builtin operators only. Until they come, it imports TensorFlow.
"""

import gc
import sys
from pathlib import Path

from .packing import with_batch_axis


def convert(saved_model: str) -> bytes:
    """Converts a SavedModel in this process; returns the content of the file."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(saved_model)
    # Each spares a copy or two of all weights: the loaded model, of which only the folder's name is used from here on,
    # and two ways from bytes to objects and back, in Python and through a buffer that grows by doubling.
    converter._trackable_obj = None
    converter.exclude_conversion_metadata = True
    converter._experimental_use_buffer_offset = True
    gc.collect()
    return with_batch_axis(converter.convert())


def main() -> None:
    """Converts what standard input asks for; nothing if whoever started it has given up."""
    # TensorFlow imports both where they are installed, with all that they import; without them it is there in half the
    # time, and the converter asks for neither.
    sys.modules["jax"] = sys.modules["keras"] = None  # type: ignore[assignment]
    import tensorflow  # noqa: F401

    saved_model, file = (sys.stdin.readline().rstrip("\n") for _ in range(2))
    if file:
        Path(file).write_bytes(convert(saved_model))


if __name__ == "__main__":
    main()
