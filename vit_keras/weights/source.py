"""Where weights come from: a path, an address, the Hugging Face hub."""

import hashlib
import http.client
import logging
import os
import re
import textwrap
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

logger = logging.getLogger(__name__)

TIMEOUT = 30
"""Seconds without an answer after which a download is given up."""
HUB_FILE = "model.safetensors"
# Pickles are fetched too: the error that refuses them tells how to convert the file.
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+?)(?:@([\w./-]+?))?(?:/([\w.-]+\.(?:safetensors|npz|h5|keras|bin|pth|pt)))?")


def fetch(source: str | Path) -> Path:
    """Returns the local file that a source stands for; downloads it if it is not there yet.

    Args:
        source: A path; a folder that holds `model.safetensors`; `https://…`, with `#sha256=<64 digits>` to have the
            content checked; or `hf://owner/name[@revision][/file]`, whose file is `model.safetensors` by default.

    Returns:
        The file. Downloads lie in the folder that the environment variable `VIT_KERAS_CACHE` names, or else in
        `~/.cache/vit_keras`; those of the hub where huggingface_hub keeps them.

    Raises:
        FileNotFoundError: no such file, or the server has none.
        ImportError: `hf://` without huggingface_hub.
        OSError: the download failed.
        ValueError: an address of another kind, or content that is not what its checksum says.
    """
    if isinstance(source, str) and source.startswith("hf://"):
        return _from_hub(source)
    if isinstance(source, str) and source.startswith("https://"):
        return _download(source)
    if isinstance(source, str) and "://" in source:
        raise ValueError(f"weights must be a path, https://… or hf://owner/name. Received: {source!r}")
    path = Path(source).expanduser()
    if path.is_dir() and (path / HUB_FILE).is_file():
        return path / HUB_FILE
    if not path.is_file():
        expected = f"a folder without {HUB_FILE}" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"No weights at {path}: {expected}.")
    return path


def _from_hub(source: str) -> Path:
    match = _HUB.fullmatch(source)
    if not match or ".." in source:  # huggingface_hub makes paths of revisions.
        raise ValueError(f"weights on the hub must be hf://owner/name[@revision][/file]. Received: {source!r}")
    try:
        from huggingface_hub import errors, hf_hub_download
    except ImportError as error:
        raise ImportError('hf:// needs huggingface_hub: pip install "vit-keras-edge[hub]"') from error
    name, revision, file = match.groups()
    try:
        return Path(hf_hub_download(name, file or HUB_FILE, revision=revision))
    except Exception as error:  # Also those of the HTTP library, which differs between versions.
        missing = (errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
        kind, reason = FileNotFoundError if isinstance(error, missing) else OSError, error
        if isinstance(error, errors.LocalEntryNotFoundError):  # The hub did not answer; the cause says why.
            kind, reason = OSError, error.__cause__ or error
        raise kind(f"{source} cannot be fetched: {textwrap.shorten(str(reason), 400)}") from error


def _download(url: str) -> Path:
    address, _, fragment = url.partition("#")
    checksum = fragment.removeprefix("sha256=").lower()
    if fragment and not re.fullmatch("[0-9a-f]{64}", checksum):
        raise ValueError(f"The checksum of an address must be #sha256=<64 hexadecimal digits>. Received: #{fragment}")
    folder = Path(os.environ.get("VIT_KERAS_CACHE") or Path.home() / ".cache" / "vit_keras")
    name = re.sub(r"[^\w.-]", "_", address.partition("?")[0].rpartition("/")[2]) or "weights"
    path = folder / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{name[-100:]}"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        logger.info("Downloading %s to %s", address, path)
        _stream(address, path, checksum)
    elif checksum and _sha256(path) != checksum:
        raise ValueError(f"{path}, downloaded earlier from {address}, does not have the SHA-256 {checksum}: delete it.")
    return path


def _stream(address: str, path: Path, checksum: str) -> None:
    """Downloads to a temporary name, checks, and only then gives the file its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        expected = _receive(address, temporary)
        received = temporary.stat().st_size
        if expected and str(received) != expected:
            raise OSError(f"{address} broke off after {received} of {expected} bytes.")
        if checksum and (found := _sha256(temporary)) != checksum:
            raise ValueError(f"{address} should have the SHA-256 {checksum}. Received: {found}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _receive(address: str, path: Path) -> str | None:
    """Downloads to a file. Returns the length that the server has told, if it has."""
    opener = urllib.request.build_opener(_HttpsOnly)
    try:
        with path.open("wb") as file, opener.open(address, timeout=TIMEOUT) as answer:
            while block := answer.read(2**20):
                file.write(block)
            return answer.headers.get("Content-Length")
    except urllib.error.HTTPError as error:
        kind = FileNotFoundError if error.code in (404, 410) else OSError
        raise kind(f"{address} cannot be fetched: {error}") from error
    except (http.client.HTTPException, OSError, ValueError) as error:
        raise OSError(f"{address} cannot be fetched: {getattr(error, 'reason', error)}") from error


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        if urllib.parse.urlsplit(newurl).scheme != "https":
            raise urllib.error.URLError(f"it leads to an address that is not https: {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
