"""Writing files and folders whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

ALMOST_FULL = 2**16
"""A disk with fewer free bytes is taken to be the reason of a failed write."""


PARTIAL = ".partial."
"""How the name of what is not whole yet begins."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, and renames it to `path` when the block ends well.

    Works for files and for folders; on an error, or an interruption, nothing is left under `path` that was not there
    before, and a temporary left by a killed program is overwritten by the next one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(PARTIAL + path.name)
    remove(temporary)
    try:
        yield temporary
        if temporary.is_dir():
            remove(path)
        temporary.replace(path)
    except Exception as error:
        if free_bytes(path.parent) < ALMOST_FULL:  # Writers say so in many ways: OSError, RuntimeError, their own.
            raise disk_full(path) from error
        raise
    finally:
        remove(temporary)


@contextmanager
def set_aside(place: str | Path, paths: Iterable[str | Path], kept: Iterable[str | Path] = ()) -> Iterator[None]:
    """Takes files and folders of different names out of the way of new ones, and brings them back on an error.

    Args:
        place: A folder on the same disk for what was there; removed when the block ends.
        paths: What the block makes anew.
        kept: Files that the block changes, and that are as they were after an error.
    """
    place = Path(place)
    remove(place)
    place.mkdir(parents=True)
    paths, kept = ([Path(path) for path in given] for given in (paths, kept))
    there = [path for path in (*paths, *kept) if path.exists()]
    try:
        for path in there:
            if path in kept:
                shutil.copy2(path, place / path.name)
            else:
                path.replace(place / path.name)
        yield
    except BaseException:
        for path in (*paths, *kept):
            if (place / path.name).exists() or path not in there:
                remove(path)
            if (place / path.name).exists():
                (place / path.name).replace(path)
        raise
    finally:
        remove(place)


def free_bytes(path: str | Path) -> int:
    """Returns the free space of the disk that a path lies on, or would."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def disk_full(path: str | Path) -> OSError:
    """Returns the error of a disk that has no room for `path`."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def remove(path: str | Path) -> None:
    """Removes a file or a folder with all it holds; does nothing where there is none."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def refuse_existing(path: str | Path, overwrite: bool) -> Path:
    """Returns `path`, or raises `FileExistsError` where something is there already and `overwrite` is false."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; pass overwrite to replace it.")
    return path
