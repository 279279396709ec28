"""The process in which TensorFlow's converter runs: it leaks memory and may die.

`python -m vit_keras.export.converter SAVED_MODEL FILE` converts a SavedModel with one signature to a float32 file of
builtin operators only.
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


if __name__ == "__main__":
    Path(sys.argv[2]).write_bytes(convert(sys.argv[1]))
