"""Importing TensorFlow without a word."""

import os


def quiet_tensorflow() -> None:
    """Imports TensorFlow without the lines that its libraries print about GPUs that are not there."""
    stderr = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        try:
            import tensorflow  # noqa: F401
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
