"""Fetching LiteRT.js, which the web page runs files with: pinned, held against its checksum, from npm.

    python -m vit_keras.export.vendoring

What comes from others is not in the repository. `make web` calls this, and wheels that are built afterwards hold it.
"""

import base64
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .files import replacing

WEB = Path(__file__).parent / "web"
VENDORED = WEB / "vendor"
NOTICE = "NOTICE.txt"
SECONDS = 600.0


@dataclass(frozen=True)
class Package:
    """A package of npm, and what is taken out of it.

    Attributes:
        name: Its name.
        version: The only version that is taken.
        integrity: Its checksum, as npm writes it: `sha512-` and base64.
        files: Path inside the package to the name that the file gets.
    """

    name: str
    version: str
    integrity: str
    files: dict[str, str]


_VARIANTS = ("litert_wasm_internal", "litert_wasm_threaded_internal", "litert_wasm_compat_internal")
"""With relaxed SIMD; with threads as well; with neither, for browsers that have none. JSPI is for GPUs only."""

PACKAGES = (
    Package(
        "@litertjs/core",
        "2.5.3",
        "sha512-PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
        {
            "dist/index.js": "litert.js",
            **{f"wasm/{name}{suffix}": f"{name}{suffix}" for name in _VARIANTS for suffix in (".js", ".wasm")},
        },
    ),
    Package(
        "@litertjs/wasm-utils",
        "2.5.3",
        "sha512-4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
        {"dist/index.js": "wasm_utils.js"},
    ),
)

_IMPORT = (b'from "@litertjs/wasm-utils"', b'from "./wasm_utils.js"')
"""What npm's name becomes: a browser finds no package by its name."""
_SOURCE_MAP = b"//# sourceMappingURL=index.js.map"


def vendored_files() -> tuple[str, ...]:
    """Returns the names of all files that `vendor` writes."""
    return (NOTICE, *(name for package in PACKAGES for name in package.files.values()))


def missing_files() -> tuple[str, ...]:
    """Returns the names of those that are not there."""
    return tuple(name for name in vendored_files() if not (VENDORED / name).is_file())


def vendor(folder: str | Path = VENDORED) -> Path:
    """Fetches LiteRT.js with npm and writes what the page needs of it. A folder that is there is replaced.

    Args:
        folder: Where the files go; where `build_page` takes them from if not given.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: there is no npm.
        OSError: npm could not fetch a package.
        ValueError: a package is another one than was pinned.
    """
    with replacing(folder) as temporary:
        temporary.mkdir()
        for package in PACKAGES:
            for name, content in unpacked(package, npm_pack(package)).items():
                (temporary / name).write_bytes(content)
        (temporary / NOTICE).write_text(_notice(), encoding="utf-8")
    return Path(folder)


def npm_pack(package: Package) -> bytes:
    """Returns the archive that npm has of a package.

    Raises:
        FileNotFoundError: there is no npm.
        OSError: npm could not fetch it; the message ends with what npm said.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError("npm must be installed to fetch LiteRT.js; it comes with Node.js. Received: no npm")
    wanted = f"{package.name}@{package.version}"
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", "--silent", "--ignore-scripts", wanted]
        try:
            result = subprocess.run(command, cwd=folder, capture_output=True, timeout=SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise OSError(f"npm must fetch {wanted} within {SECONDS:g} s. Received: no answer") from None
        archives = list(Path(folder).glob("*.tgz"))
        if result.returncode or len(archives) != 1:
            said = " ".join((result.stderr or result.stdout).decode(errors="replace").split())
            raise OSError(f"npm must fetch {wanted}. Received: exit code {result.returncode}: {said[:500]}")
        return archives[0].read_bytes()


def unpacked(package: Package, archive: bytes) -> dict[str, bytes]:
    """Returns what is taken out of a package's archive: name to content.

    Raises:
        ValueError: the archive does not have the pinned checksum, or lacks a file.
    """
    received = "sha512-" + base64.b64encode(hashlib.sha512(archive).digest()).decode()
    wanted = f"{package.name}@{package.version}"
    if received != package.integrity:
        raise ValueError(f"{wanted} must have the checksum {package.integrity}. Received: {received}")
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        for path, name in package.files.items():
            try:
                member = tar.extractfile(f"package/{path}")
            except KeyError:
                member = None
            if member is None:
                raise ValueError(f"{wanted} must hold {path}. Received: a package without it")
            content = member.read()
            found[name] = _for_browsers(content) if name.endswith(".js") else content
    return found


def _for_browsers(script: bytes) -> bytes:
    """Lets a module find the other one beside it, and no source map, which is not taken along."""
    return script.replace(*_IMPORT).replace(_SOURCE_MAP, b"").rstrip() + b"\n"


def _notice() -> str:
    lines = [
        "LiteRT.js, copyright Google LLC, under the Apache License, Version 2.0; its text is in ../LICENSE.txt.",
        "",
    ]
    for package in PACKAGES:
        lines += [f"{package.name} {package.version}, {package.integrity}", f"  {', '.join(package.files.values())}"]
    return "\n".join([*lines, "", "Changed: litert.js imports ./wasm_utils.js, and no source map is named.", ""])


def main() -> int:
    """Fetches the files and says where they are; returns an exit code."""
    try:
        folder = vendor()
    except (OSError, ValueError) as error:
        print(f"vendoring: error: {error}", file=sys.stderr)
        return 2
    print(f"LiteRT.js {PACKAGES[0].version}: {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
