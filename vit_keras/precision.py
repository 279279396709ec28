"""The policy that new layers take."""

from collections.abc import Iterator
from contextlib import contextmanager

import keras


@contextmanager
def precision(policy: str) -> Iterator[None]:
    """Lets layers that are built meanwhile have a dtype policy; also the decorator of a function that builds some.

    Args:
        policy: Name of a Keras policy, as `"mixed_bfloat16"`.
    """
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
