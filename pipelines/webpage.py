"""A run's file as a web page: which file, its class names, how pictures are cut."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import ThreadingHTTPServer
from pathlib import Path

from vit_keras.export import KINDS, TARGETS, build_page, inspect_file, page_server
from vit_keras.export.page import check_classifier
from vit_keras.messages import nearest

from .run_folder import RunFolder, framing_of, labels_of, recover_file


@dataclass(frozen=True)
class WebPage:
    """A page that was built: its folder, and the file in it."""

    folder: Path
    file: Path


def web_page(path: str | Path, out: str | Path, kind: str | None = None, overwrite: bool = False) -> WebPage:
    """Builds the page of a run, or of a file.

    Pictures are cut as in the run, and the class names are those that `predict` gives.

    Args:
        path: A run's folder, or a `.tflite` file.
        out: The folder to write; see `vit_keras.export.build_page`.
        kind: Of a run, the kind of file; `None` stands for the one that suits browsers (`TARGETS["web"]`), and for
            float32 if the run does not have that. Where there is one that gives its attention, it is that one.
        overwrite: Whether to replace a page that is there.

    Returns:
        The folder, and the file that was taken.

    Raises:
        FileExistsError: `out` is there, and is no page or not to be replaced.
        FileNotFoundError: there is no such run or file, the run has no file of the kind, or LiteRT.js was not fetched.
        ValueError: an unknown kind, a kind given for a file, or a file that is not from pictures to class scores.
    """
    path = Path(path)
    file = chosen_file(path, kind)
    name = path.resolve().name if path.is_dir() else file.stem
    labels = labels_of(file, check_classifier(inspect_file(file), file))
    return WebPage(build_page(file, out, labels, framing_of(file), name, overwrite), file)


@contextmanager
def serve_page(
    path: str | Path, kind: str | None = None, port: int = 8000
) -> Iterator[tuple[WebPage, ThreadingHTTPServer]]:
    """Builds the page of a run, or of a file, in a temporary folder, and gives it with a server of it.

    Call the server's `serve_forever`. When the block ends, the server is closed and the folder is gone.

    Args:
        path: A run's folder, or a `.tflite` file.
        kind: As for `web_page`.
        port: The port on this machine's loopback address, 0 for any free one.

    Raises:
        OSError: the port is in use; else as `web_page`.
        ValueError: as `web_page`, or no port has such a number.
    """
    with tempfile.TemporaryDirectory(prefix="vit-keras-web-") as folder:
        page = web_page(path, Path(folder) / "page", kind)
        with page_server(page.folder, port) as server:
            yield page, server


def chosen_file(path: Path, kind: str | None = None) -> Path:
    """Returns the file that a page is built of; see `web_page`."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"Unknown kind {kind!r}.{nearest(kind, KINDS)} Known kinds: {', '.join(KINDS)}")
    if path.suffix == ".tflite":
        if kind is not None:
            raise ValueError(f"kind belongs to a run's folder. Received: kind={kind!r} for {path}")
        recover_file(path)
        return path
    run = RunFolder(path)
    run.load_config()
    run.recover()
    kinds = [kind] if kind else list(dict.fromkeys([TARGETS["web"].kind, "float32"]))
    for file in (file(kind) for kind in kinds for file in (run.attention_file, run.tflite_file)):
        if file.is_file():
            return file
    raise FileNotFoundError(
        f"The run at {path} has no {' or '.join(run.tflite_file(k).name for k in kinds)}; "
        f"`vit-keras export {path} --kinds {kinds[0]}` makes one."
    )
