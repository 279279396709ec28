"""Opening a weight file of any kind as named tensors that are read one at a time.

Files come from others: nothing is unpickled, and sizes are checked before memory is taken. What a file declares is
compared with how long it is, and a tensor is read only when somebody who knows its shape asks for it.
"""

import io
import json
import math
import shlex
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import ml_dtypes
import numpy as np

MAX_HEADER_BYTES = 2**22
"""Longest header that is read; that of a ViT-H takes 0.1 MB. In memory it takes up to forty times as much."""
MAX_TENSORS = 20_000
MAX_NAME = 300
SAFETENSORS_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_TO_SAFETENSORS = (
    "import sys, torch, safetensors.torch as s; w = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
    "w = w.get('model', w.get('state_dict', w)); s.save_file({k: v.contiguous() for k, v in w.items()}, sys.argv[2])"
)


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: what is declared of it, and how to read it."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class TensorFile:
    """An open weight file.

    Attributes:
        path: The file.
        tensors: Its tensors by name.
        layers: Of a `.keras` file: class and name of its layers, in their order.
        positions: Of a `.keras` file: `grid_size` and `num_prefix` of layers that have both, by name.
    """

    path: Path
    tensors: Mapping[str, Tensor]
    layers: list[tuple[str, str]] = field(default_factory=list)
    positions: Mapping[str, dict[str, Any]] = field(default_factory=dict)


@contextmanager
def open_tensors(path: str | Path) -> Iterator[TensorFile]:
    """Opens a `.npz`, `.safetensors`, `.weights.h5` or `.keras` file, told apart by content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, cut off, of another kind, or says of itself what cannot be.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"No weight file at {path}.")
    with path.open("rb") as file, ExitStack() as stack:
        with _named(path):
            opened = _open(path, file, stack)
            tensors = {name: _checked(path, name, tensor) for name, tensor in opened.tensors.items()}
        yield replace(opened, tensors=tensors)


def _open(path: Path, file: BinaryIO, stack: ExitStack) -> TensorFile:
    start = file.read(64)
    file.seek(0)
    if start.startswith(b"PK"):
        with _ShortReads(path) as short, zipfile.ZipFile(short):
            pass  # Its directory is not too long.
        return _open_zip(path, stack.enter_context(zipfile.ZipFile(file)), stack)
    if start.startswith(b"\x89HDF\r\n\x1a\n"):
        return TensorFile(path, _h5_tensors(path, stack.enter_context(h5py.File(file, "r"))))
    if start[8:9] == b"{":
        return TensorFile(path, _safetensors(path, file))
    raise ValueError(_what_it_is(path, start))


@contextmanager
def _named(place: Path | str) -> Iterator[None]:
    """Turns whatever a library says of a damaged file into an error that names the file."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(place)):
            raise  # One of ours.
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{place} cannot be read: it is cut off or damaged ({reason[:300]}).") from error


def _checked(path: Path, name: str, tensor: Tensor) -> Tensor:
    """Checks what all kinds of files have in common."""
    if len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(
            f"{path}: names must be at most {MAX_NAME} printable characters. Received: {len(name)}, {name[:50]!r}"
        )
    if any(n < 0 for n in tensor.shape):
        raise ValueError(f"{path}: the shape of {name!r} is negative: {tensor.shape}")
    brain_float = tensor.dtype == np.dtype("V2")  # How NumPy and h5py write bfloat16.

    def read() -> np.ndarray:
        with _named(path):
            array = tensor.read()
        return array.view(ml_dtypes.bfloat16) if brain_float else array

    return Tensor(tensor.shape, np.dtype(ml_dtypes.bfloat16) if brain_float else tensor.dtype, read)


def _what_it_is(path: Path, start: bytes) -> str:
    """Says why a file is none that can be opened."""
    if not start:
        return f"{path} is empty."
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a Git LFS pointer, not the weights: fetch the file itself (git lfs pull)."
    if start[:1] == b"\x80":
        return _pickle_message(path)
    return (
        f"{path} must be a .npz, .safetensors, .weights.h5 or .keras file. Received: a file that starts with "
        f"{start[:16]!r}"
    )


def _pickle_message(path: Path) -> str:
    files = shlex.join([str(path), str(path.with_suffix(".safetensors"))])
    return (
        f"{path} is a pickle, which can run any program when opened. Make it safetensors: "
        f'python -c "{_TO_SAFETENSORS}" {files}'
    )


class _ShortReads(io.FileIO):
    """A file that refuses long reads: a zip archive's directory is read in one, as long as the archive says it is."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_HEADER_BYTES:
            raise ValueError(f"its directory takes {size} bytes, more than {MAX_HEADER_BYTES}")
        return super().read(-1 if size is None else size)


def _open_zip(path: Path, archive: zipfile.ZipFile, stack: ExitStack) -> TensorFile:
    members = {info.filename: info for info in archive.infolist()}
    if len(members) > MAX_TENSORS:
        raise ValueError(f"{path} must hold at most {MAX_TENSORS} tensors. Received: {len(members)}")
    if len(members) < len(archive.infolist()):
        raise ValueError(f"{path}: a name stands twice in the archive.")
    if any(name.endswith("data.pkl") for name in members):
        raise ValueError(_pickle_message(path))
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in members.values()):
        raise ValueError(f"{path} is compressed by another method than deflate.")
    if "model.weights.h5" in members:
        return _open_keras(path, archive, members, stack)
    names = [name for name in members if name.endswith(".npy")]
    if not names:
        raise ValueError(f"{path} is a zip archive without weights: neither .npz nor .keras.")
    return TensorFile(path, {name.removesuffix(".npy"): _npy(path, archive, members[name]) for name in names})


def _open_keras(
    path: Path, archive: zipfile.ZipFile, members: Mapping[str, zipfile.ZipInfo], stack: ExitStack
) -> TensorFile:
    if "config.json" not in members:
        raise ValueError(f"{path} holds model.weights.h5 but no config.json: it is no .keras file.")
    if members["config.json"].file_size > MAX_HEADER_BYTES:
        raise ValueError(f"{path}: its config.json is too long: {members['config.json'].file_size} bytes.")
    if members["model.weights.h5"].compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{path}: its model.weights.h5 is compressed, which Keras does not do.")
    with archive.open(
        "config.json"
    ) as file:  # `archive.read` unpacks all that there is, whatever its size is said to be.
        layers, positions = _keras_layers(path, file.read(MAX_HEADER_BYTES))
    h5 = stack.enter_context(h5py.File(stack.enter_context(archive.open("model.weights.h5")), "r"))
    return TensorFile(path, _h5_tensors(path, h5), layers, positions)


def _keras_layers(path: Path, text: bytes) -> tuple[list[tuple[str, str]], dict[str, dict[str, Any]]]:
    """Reads off a model's configuration, without building anything, which layers its weight file holds."""
    layers, positions = [], {}
    try:
        for layer in _json(path, text)["config"]["layers"]:
            class_name, config = layer["class_name"], layer["config"]
            layers.append((str(class_name), str(config["name"])))
            if "grid_size" in config and "num_prefix" in config:
                height, width = grid_size = tuple(map(int, config["grid_size"]))
                num_prefix = int(config["num_prefix"])
                if height < 1 or width < 1 or num_prefix < 0:
                    raise ValueError(f"{grid_size=}, {num_prefix=}")
                positions[config["name"]] = {"grid_size": grid_size, "num_prefix": num_prefix}
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: its config.json does not describe the layers of a model ({error}).") from error
    return layers, positions


def _npy(path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    """Reads the header of an array in a .npz archive."""
    with _named(f"{path}: {info.filename}"), archive.open(info) as member:
        file = io.BytesIO(member.read(2**16))  # Far more than NumPy takes for a header.
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"{version=}")
        reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = reader(file)
    size = file.tell() + math.prod(shape) * dtype.itemsize
    if dtype.hasobject:
        raise ValueError(f"{path}: {info.filename} holds pickled objects, which are not read.")
    if info.file_size != size:
        raise ValueError(f"{path}: {info.filename} should take {size} bytes. Received: {info.file_size} bytes")

    def read() -> np.ndarray:
        with archive.open(info) as file:
            return np.lib.format.read_array(file, allow_pickle=False)

    return Tensor(tuple(shape), dtype, read)


def _h5_tensors(path: Path, h5: h5py.File) -> dict[str, Tensor]:
    """Lists the datasets of an HDF5 file; links and data in other files are refused."""
    tensors: dict[str, Tensor] = {}
    seen = set()

    def visit(group: h5py.Group, prefix: str) -> None:
        address = h5py.h5o.get_info(group.id).addr
        if address in seen or len(seen) > MAX_TENSORS or prefix.count("/") > 32:
            raise ValueError(f"{path}: too many groups, or some that hold themselves, at {prefix}")
        seen.add(address)
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{path}: {prefix}{name} is a link, which is not followed.")
            item = group[name]
            if isinstance(item, h5py.Group):
                visit(item, f"{prefix}{name}/")
            else:
                tensors[prefix + name] = _dataset(path, prefix + name, item)
            if len(tensors) > MAX_TENSORS:
                raise ValueError(f"{path} must hold at most {MAX_TENSORS} tensors.")

    visit(h5, "")
    return tensors


def _dataset(path: Path, name: str, item: Any) -> Tensor:
    """Accepts what Keras writes: a dataset in one piece. What lies in pieces can be far longer than its shape says."""
    if not isinstance(item, h5py.Dataset) or item.shape is None:
        raise ValueError(f"{path}: {name!r} is no array.")
    if item.external or item.is_virtual:
        raise ValueError(f"{path}: the data of {name!r} lie in another file, which is not opened.")
    if item.chunks:
        raise ValueError(f"{path}: {name!r} is stored in chunks or compressed, which Keras does not do.")
    stored = item.id.get_storage_size()
    if stored != item.nbytes and not item.dtype.hasobject:
        raise ValueError(f"{path}: {name!r} should take {item.nbytes} bytes. Received: {stored} bytes")
    return Tensor(item.shape, item.dtype, lambda: np.asarray(item[()]))


def _safetensors(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    """Reads the header of a safetensors file: 8 bytes of length, JSON, then the data without gaps."""
    size = path.stat().st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, MAX_HEADER_BYTES):
        raise ValueError(f"{path} is cut off or no safetensors file: a header of {length} bytes in a file of {size}.")
    header = _json(path, file.read(length))
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise ValueError(f"{path} must hold at most {MAX_TENSORS} tensors. Received: {len(header)}")
    tensors: dict[str, Tensor] = {}
    places = []
    for name, entry in header.items():
        try:
            dtype = np.dtype(SAFETENSORS_DTYPES[entry["dtype"]])
            shape, (begin, end) = tuple(entry["shape"]), entry["data_offsets"]
            whole = len(shape) <= 32 and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: the entry of {name!r} cannot be understood: {str(entry)[:200]}") from error
        if not whole or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{path}: the size of {name!r} does not fit its shape: {str(entry)[:200]}")
        places.append((begin, end, name))

        def read(begin=begin, end=end, dtype=dtype, shape=shape) -> np.ndarray:
            file.seek(8 + length + begin)
            return np.frombuffer(file.read(end - begin), dtype).reshape(shape)

        tensors[name] = Tensor(shape, dtype, read)
    position = 0
    for begin, end, name in sorted(places):
        if begin != position:
            raise ValueError(f"{path}: {name!r} should start at byte {position} of the data. Received: {begin}")
        position = end
    if position != size - 8 - length:
        raise ValueError(f"{path} is cut off or too long: {size - 8 - length} bytes of data, {position} declared.")
    return tensors


def _json(path: Path, text: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands twice")
        return found

    try:
        found = json.loads(str(text, "utf-8"), object_pairs_hook=unique)
    except (RecursionError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path}: its description cannot be read ({error}).") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: its description must be a JSON object. Received: {type(found).__name__}")
    return found
