"""Writing files and folders whole or not at all."""

import errno
import importlib.util
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

ALMOST_FULL = 2**16
"""A disk with fewer free bytes is taken to be the reason of a failed write."""
LOCKS = importlib.util.find_spec("fcntl") is not None
"""Whether files can be locked; on Windows they cannot."""

PARTIAL = ".partial."
"""How the name of what is not whole yet begins."""
_ASIDE = f"{PARTIAL}replaced"
_ABSENT = ".absent"
"""How the name of what was not there before ends, where what was there is kept."""


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
        with saying_what_is_full(path):
            yield temporary
            if temporary.is_dir():
                remove(path)
            temporary.replace(path)
    finally:
        remove(temporary)


@contextmanager
def saying_what_is_full(path: str | Path) -> Iterator[None]:
    """Raises the error of a full disk in place of one that comes of it: writers have many ways to say so.

    Args:
        path: What is written.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename:
            raise
        if free_bytes(Path(path).parent) < ALMOST_FULL or os.strerror(errno.ENOSPC) in str(error):
            raise disk_full(path) from error
        raise


@contextmanager
def set_aside(folder: str | Path, names: Iterable[str], kept: Iterable[str] = ()) -> Iterator[None]:
    """Takes what lies in a folder out of the way of what is new there, and brings it back on an error.

    What a killed program has set aside, the next one brings back: see `bring_back`.

    Args:
        folder: The folder.
        names: What the block makes anew in it, files or folders.
        kept: Files in it that the block changes, and that are as they were after an error.
    """
    folder, kept = Path(folder), set(kept)
    bring_back(folder)
    place, is_new = folder / _ASIDE, not folder.exists()
    place.mkdir(parents=True)
    try:
        for name in (*names, *kept):
            if not (folder / name).exists():
                (place / f"{name}{_ABSENT}").touch()
            elif name in kept:
                with replacing(place / name) as temporary:
                    shutil.copy2(folder / name, temporary)
            else:
                (folder / name).replace(place / name)
        yield
    except BaseException:
        bring_back(folder)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
        raise
    # In one step: what was replaced must not come back because the program was killed while it was removed.
    done = place.with_name(f"{_ASIDE}.done")
    remove(done)
    place.replace(done)
    remove(done)


def has_set_aside(folder: str | Path) -> bool:
    """Whether something of a folder is out of the way: see `set_aside`."""
    return (Path(folder) / _ASIDE).is_dir()


def bring_back(folder: str | Path) -> None:
    """Brings back what `set_aside` has taken out of the way in a folder, if the program was killed then."""
    folder = Path(folder)
    place = folder / _ASIDE
    for path in sorted(place.iterdir()) if has_set_aside(folder) else ():
        if path.name.startswith(PARTIAL):
            continue
        remove(folder / path.name.removesuffix(_ABSENT))
        if not path.name.endswith(_ABSENT):
            path.replace(folder / path.name)
    remove(place)


@contextmanager
def alone(folder: str | Path, doing: str) -> Iterator[None]:
    """Keeps other programs out of a folder while one works there; one that is killed leaves no lock.

    Args:
        folder: The folder; it is made, and removed again if it is left empty.
        doing: What is done there, for the error: "export".

    Raises:
        FileExistsError: another program does so.
    """
    folder = Path(folder)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{PARTIAL}lock"
    with lock.open("w") as file:
        if not _lock(file):
            raise FileExistsError(f"Another {doing} is running in {folder}.")
        try:
            yield
        finally:
            remove(lock)
            for path in made:
                if not any(path.iterdir()):
                    path.rmdir()


def _lock(file: IO[str]) -> bool:
    """Locks an open file for this process, where the system can; whether that went well."""
    if not LOCKS:
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # One who has just left may have removed the file before it was locked here: nobody else would see this lock.
    return Path(file.name).exists() and os.path.samestat(os.fstat(file.fileno()), Path(file.name).stat())


def is_whole(path: Path) -> bool:
    """Whether a file is there for good: what a killed program has left behind while it wrote is not."""
    return not path.name.startswith(PARTIAL)


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
