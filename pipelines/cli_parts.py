"""What several commands share. Imports no TensorFlow at the top."""

import os
import signal
import threading
from argparse import SUPPRESS
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from .parsing import Parser


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


def asked(given: Sequence[str] | None) -> tuple[str, ...]:
    """Returns the names in the values of `--for` or `--bundle`: several flags, or names with commas between them."""
    return tuple(name.strip() for value in given or () for name in value.split(","))


def add_overwrite(parser: Parser) -> None:
    """Adds `--overwrite` to a command."""
    # No setting: `--print_config` leaves it out, so that `--config` takes what that prints.
    parser.add_argument("--overwrite", default=SUPPRESS, action="store_true", help="Replace what is there already.")


@contextmanager
def ended_as_by_hand() -> Iterator[None]:
    """Lets SIGTERM, by which systems end programs, do what Ctrl+C does: what was set aside comes back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
