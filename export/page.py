"""A static page that runs a file in the browser: building its folder, and serving it on this machine.

The page is in `web/`. It runs files in LiteRT.js, whose WebAssembly `vendoring.py` fetches.
"""

import errno
import json
import os
import shutil
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from .files import replacing
from .flatbuffer import FileInfo
from .framing import Framing
from .inspection import inspect_file
from .metadata import check_labels, read_labels
from .vendoring import VENDORED, WEB, missing_files, vendored_files

LOOPBACK = "127.0.0.1"
DESCRIPTION = "model.json"
_DTYPES = ("float32", "uint8", "int8", "int16")
_HOW_TO_VENDOR = "`make web` in a checkout, or `python -m vit_keras.export.vendoring`, fetches them with npm"


def build_page(
    file: str | Path,
    folder: str | Path,
    labels: tuple[str, ...] | None = None,
    framing: Framing | None = None,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a folder that any web server can hand out: the page, LiteRT.js and a TensorFlow Lite file.

    Args:
        file: A `.tflite` file from pictures to class scores, of any kind.
        folder: The folder to write, whole or not at all.
        labels: Class names; those inside the file if `None`, and numbers if it has none.
        framing: How pictures of other sizes are cut and resized; as `predict` does by default if `None`.
        name: What the page is headed with; the file's name if `None`.
        overwrite: Whether to replace a page that is there; a folder that holds something else is left alone.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder is there, and is no page or not to be replaced.
        FileNotFoundError: there is no such file, or LiteRT.js was not fetched; the message says how to.
        ValueError: the file is not from pictures to class scores, or labels do not fit.
    """
    file, folder = Path(file), _writable(folder, overwrite)
    num_classes = check_classifier(inspect_file(file), file)
    labels = read_labels(file) if labels is None else labels
    labels = None if labels is None else check_labels(labels, num_classes)
    missing = missing_files()
    if missing:
        raise FileNotFoundError(f"The page needs LiteRT.js: {_HOW_TO_VENDOR}. Missing: {', '.join(missing)}")
    description = _description(file, labels, framing or Framing(), name or file.stem)
    with replacing(folder) as temporary:
        (temporary / VENDORED.name).mkdir(parents=True)
        for source in _own_files():
            shutil.copyfile(source, temporary / source.name)
        for vendored in vendored_files():
            shutil.copyfile(VENDORED / vendored, temporary / VENDORED.name / vendored)
        shutil.copyfile(file, temporary / description["file"])
        text = json.dumps(description, indent=2, ensure_ascii=False) + "\n"
        (temporary / DESCRIPTION).write_text(text, encoding="utf-8")
    return folder


def check_classifier(info: FileInfo, file: str | Path) -> int:
    """Returns the number of classes of a file that the page can run.

    Raises:
        ValueError: it is not from one picture, `(B, H, W, 3)`, to class scores, `(B, num_classes)`, with or without its
            attention behind them, or has another type of numbers at its ends than the page knows.
    """
    inputs, outputs = ([info.tensors[i] for i in numbers] for numbers in (info.inputs, info.outputs))
    shapes, dtypes = ([getattr(t, what) for t in (*inputs, *outputs)] for what in ("shape", "dtype"))
    if len(inputs) != 1 or [len(shape) for shape in shapes] not in ([4, 2], [4, 2, 3]) or shapes[0][3] != 3:
        raise ValueError(
            f"{file} must take pictures, (B, H, W, 3), and give class scores, (B, num_classes). "
            f"Received: shapes={shapes}"
        )
    if not set(dtypes) <= set(_DTYPES):
        raise ValueError(f"{file} must take and give {', '.join(_DTYPES)}. Received: dtypes={dtypes}")
    return shapes[1][1]


def _writable(folder: str | Path, overwrite: bool) -> Path:
    """Returns a folder that may be written: not there, empty, or a page that is to be replaced."""
    folder = Path(folder)
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return folder
    if not (folder / DESCRIPTION).is_file() or not (folder / "index.html").is_file():
        raise FileExistsError(f"{folder} exists and is no page; choose another folder.")
    if not overwrite:
        raise FileExistsError(f"{folder} exists already; pass overwrite to replace it.")
    return folder


def _own_files() -> list[Path]:
    return sorted(path for path in WEB.iterdir() if path.is_file() and not path.name.startswith("."))


def _description(file: Path, labels: tuple[str, ...] | None, framing: Framing, name: str) -> dict[str, Any]:
    """What the page is told besides the file: the file itself says its sizes, types and quantisation."""
    return {
        "name": name,
        "file": "model.tflite" if file.name == DESCRIPTION or (WEB / file.name).exists() else file.name,
        "labels": labels,
        "interpolation": framing.interpolation,
        "crop_fraction": framing.crop_fraction,
    }


# Serving


class _Handler(SimpleHTTPRequestHandler):
    """Hands out files with the types that browsers insist on, and isolated from other pages: threads need that."""

    extensions_map: ClassVar[dict[str, str]] = {
        ".css": "text/css",
        ".html": "text/html; charset=utf-8",
        ".js": "text/javascript",
        ".json": "application/json",
        ".svg": "image/svg+xml",
        ".txt": "text/plain; charset=utf-8",
        ".wasm": "application/wasm",
    }

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def list_directory(self, path: Any) -> None:
        self.send_error(404, "File not found")

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


class _Server(ThreadingHTTPServer):
    allow_reuse_address = os.name != "nt"  # On Windows it would share a port that is in use.

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # A browser may close what it asked for.
            super().handle_error(request, client_address)


def page_server(folder: str | Path, port: int = 8000) -> ThreadingHTTPServer:
    """Returns a server of a page on this machine's loopback address; others cannot reach it.

    Call its `serve_forever`, and `server_close` in the end; `page_url` says where the page is.

    Args:
        folder: What `build_page` wrote.
        port: The port, 0 for any free one.

    Raises:
        FileNotFoundError: the folder holds no page.
        OSError: the port is in use, or not for everybody.
        ValueError: no port has such a number.
    """
    folder = Path(folder)
    if not (folder / "index.html").is_file():
        raise FileNotFoundError(f"No page at {folder}: it holds no index.html.")
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be a number from 0 to 65535. Received: port={port}")
    try:
        return _Server((LOOPBACK, port), partial(_Handler, directory=str(folder)))
    except OSError as error:
        reasons = {errno.EADDRINUSE: "a port that is not in use", errno.EACCES: "a port that is for everybody"}
        if error.errno not in reasons:
            raise
        raise OSError(f"port must be {reasons[error.errno]}, or 0 for any free one. Received: port={port}") from error


def page_url(server: ThreadingHTTPServer) -> str:
    """Returns the address of the page that a server hands out."""
    return f"http://{LOOPBACK}:{server.server_address[1]}/"
