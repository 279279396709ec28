"""Weight files and where they come from: every kind goes in, nothing damaged or hostile does, nothing is half done."""

import hashlib
import importlib.util
import json
import os
import pickle
import shlex
import shutil
import ssl
import subprocess
import sys
import threading
import warnings
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import h5py
import ml_dtypes
import numpy as np
import pytest

from vit_keras import create_model
from vit_keras.weights import fetch, load, source
from vit_keras.weights.tensors import MAX_HEADER_BYTES, MAX_TENSORS

NAME = "vit_micro_patch2_8"
SIZES = {"num_layers": 1, "hidden_dim": 16, "num_heads": 2, "mlp_dim": 32}
TINY = {**SIZES, "num_classes": 4, "pooling": "token", "position_embedding": "learned"}
D, H, M, N = 16, 2, 32, 17

BLOCK = {
    "norm1": ("layernorm_before", "LayerNorm_0"),
    "norm2": ("layernorm_after", "LayerNorm_2"),
    "attn.proj": ("attention.output.dense", "MultiHeadDotProductAttention_1/out"),
    "mlp.fc1": ("intermediate.dense", "MlpBlock_3/Dense_0"),
    "mlp.fc2": ("output.dense", "MlpBlock_3/Dense_1"),
}
"""Layers of a block in timm, in Hugging Face and in Google's ViT."""
OUTSIDE = {
    "cls_token": ("vit.embeddings.cls_token", "cls"),
    "pos_embed": ("vit.embeddings.position_embeddings", "Transformer/posembed_input/pos_embedding"),
    "patch_embed.proj": ("vit.embeddings.patch_embeddings.projection", "embedding"),
    "norm": ("vit.layernorm", "Transformer/encoder_norm"),
    "head": ("classifier", "head"),
}


# The same numbers in every naming, written by hand


def timm(layers=1, width=D, hidden=M, positions=N, classes=4, seed=0):
    """Random tensors of a ViT in timm's naming."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, positions, width),
        "patch_embed.proj.weight": (width, 3, 2, 2),
        "patch_embed.proj.bias": (width,),
        **{f"{norm}.{end}": (width,) for norm in ("norm",) for end in ("weight", "bias")},
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    for i in range(layers):
        for name, shape in {
            "norm1": (width,),
            "norm2": (width,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    random = np.random.default_rng(seed)
    return {name: random.normal(size=shape).astype("float32") for name, shape in shapes.items()}


def hugging_face(tensors):
    """timm's tensors in Hugging Face's naming."""
    found = {}
    for name, array in tensors.items():
        layer, end = name.rsplit(".", 1) if "." in name else (name, "")
        if layer in OUTSIDE:
            found[f"{OUTSIDE[layer][0]}.{end}".strip(".")] = array
            continue
        _, number, inner = layer.split(".", 2)
        start = f"vit.encoder.layer.{number}."
        if inner == "attn.qkv":
            for part, piece in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                found[f"{start}attention.attention.{part}.{end}"] = piece
        else:
            found[f"{start}{BLOCK[inner][0]}.{end}"] = array
    return found


def google(tensors, heads=H):
    """timm's tensors in the naming of Google's `.npz` files: transposed, heads on an axis of their own."""
    found = {}
    for name, array in tensors.items():
        layer, end = name.rsplit(".", 1) if "." in name else (name, "")
        norm = "norm" in layer
        end = {"weight": "/scale" if norm else "/kernel", "bias": "/bias", "": ""}[end]
        array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T if array.ndim == 2 else array
        if layer in OUTSIDE:
            found[OUTSIDE[layer][1] + end] = array
            continue
        _, number, inner = layer.split(".", 2)
        start = f"Transformer/encoderblock_{number}/"
        if inner == "attn.qkv":
            for part, piece in zip(("query", "key", "value"), np.split(array, 3, axis=-1), strict=True):
                place = f"{start}MultiHeadDotProductAttention_1/{part}{end}"
                found[place] = piece.reshape(*piece.shape[:-1], heads, -1)
        elif inner == "attn.proj" and end == "/kernel":
            found[f"{start}{BLOCK[inner][1]}{end}"] = array.reshape(heads, -1, array.shape[-1])
        else:
            found[f"{start}{BLOCK[inner][1]}{end}"] = array
    return found


# Writers


DTYPES = {"<f4": "F32", "<f8": "F64", "<f2": "F16", "bfloat16": "BF16", "<i8": "I64", "|u1": "U8", "|b1": "BOOL"}


def safetensors(header, data=b"", length=None):
    """The bytes of a safetensors file; `header` is what stands there, if need be as bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def described(tensors):
    """Returns header and data of a right safetensors file."""
    header, data = {"__metadata__": {"format": "pt"}}, b""
    for name, array in tensors.items():
        dtype = DTYPES["bfloat16" if array.dtype == ml_dtypes.bfloat16 else array.dtype.str]
        offsets = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        data += array.tobytes()
    return header, data


def write_safetensors(path, tensors):
    path.write_bytes(safetensors(*described(tensors)))
    return path


def write_npz(path, tensors):
    np.savez(path, **tensors)
    return path


def npy(shape, dtype="<f4", data=b"", version=(1, 0)):
    """The bytes of a `.npy` member whose header says what it is told to say."""
    text = (
        shape if isinstance(shape, bytes) else repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    )
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + bytes(version) + len(text).to_bytes(2 if version == (1, 0) else 4, "little") + text + data


def write_zip(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Names that stand twice.
        for name, content in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, content)
    return path


@pytest.fixture(scope="module")
def model():
    """Look, do not change its shape: its weights are anybody's."""
    return create_model(NAME, **TINY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One good file of each kind, all with the same numbers."""
    folder = tmp_path_factory.mktemp("whole")
    files = {
        "timm.safetensors": write_safetensors(folder / "timm.safetensors", timm()),
        "hf.safetensors": write_safetensors(folder / "hf.safetensors", hugging_face(timm())),
        "google.npz": write_npz(folder / "google.npz", google(timm())),
    }
    ours = create_model(NAME, **TINY)
    load(ours, files["timm.safetensors"])
    ours.save(folder / "ours.keras")
    ours.save_weights(folder / "ours.weights.h5")
    return files | {name: folder / name for name in ("ours.keras", "ours.weights.h5")}


KINDS = ("timm.safetensors", "hf.safetensors", "google.npz", "ours.keras", "ours.weights.h5")


def numbers(model):
    return b"".join(np.asarray(weight).tobytes() for weight in model.weights)


def refused(model, path, *words):
    """Loads what must be refused, by an error that names the file and holds the words, and leaves the model alone."""
    before = numbers(model)
    with pytest.raises(ValueError) as error:
        load(model, path)
    message = str(error.value)
    assert str(path) in message and len(message) < 10_000
    for word in words:
        assert word in message, message
    assert numbers(model) == before
    return message


# Good files


def test_every_kind_gives_the_same_model(model, whole):
    images = np.random.default_rng(1).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    logits = {}
    for kind, path in whole.items():
        for weight in model.weights:
            weight.assign(np.zeros(weight.shape))
        assert load(model, path).parameters == model.count_params()
        logits[kind] = np.asarray(model(images))
    assert np.abs(logits["timm.safetensors"]).max() > 0.1
    for kind in KINDS:
        np.testing.assert_array_equal(logits[kind], logits["timm.safetensors"])


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_told_apart_by_content(model, whole, tmp_path, kind):
    expected = load(model, whole[kind])
    for name in ("weights", "weights.bin", "weights.npz", "weights.h5"):
        shutil.copy(whole[kind], tmp_path / name)
        assert load(model, tmp_path / name) == expected


def test_create_model_loads_by_path_and_by_folder(model, whole, tmp_path):
    load(model, whole["timm.safetensors"])
    shutil.copy(whole["hf.safetensors"], tmp_path / "model.safetensors")
    for weights in (whole["google.npz"], str(whole["google.npz"]), tmp_path):
        assert numbers(create_model(NAME, weights=weights, **TINY)) == numbers(model)


@pytest.mark.parametrize(("dtype", "tolerance"), [("<f2", 1e-2), ("<f8", 0), (ml_dtypes.bfloat16, 5e-2)])
@pytest.mark.parametrize("kind", ["timm.safetensors", "google.npz", "ours.weights.h5"])
def test_floating_point_of_other_widths(model, whole, tmp_path, kind, dtype, tolerance):
    path = tmp_path / kind
    if kind == "ours.weights.h5":
        shutil.copy(whole[kind], path)
        with h5py.File(path, "a") as file:
            names = []
            file.visititems(lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None)
            for name in names:
                array = file[name][()]
                del file[name]
                file[name] = array.astype(dtype)
    elif kind == "google.npz":
        write_npz(path, {name: array.astype(dtype) for name, array in google(timm()).items()})
    else:
        write_safetensors(path, {name: array.astype(dtype) for name, array in timm().items()})
    load(model, path)
    found = np.asarray(model.get_layer("head").kernel)
    np.testing.assert_allclose(found, timm()["head.weight"].T, atol=tolerance)


def test_compressed_and_column_major_npz(model, tmp_path):
    tensors = google(timm())
    np.savez_compressed(tmp_path / "a.npz", **{name: np.asfortranarray(array) for name, array in tensors.items()})
    load(model, tmp_path / "a.npz")
    np.testing.assert_array_equal(np.asarray(model.get_layer("head").kernel), tensors["head/kernel"])


# Tensors that do not fit


NAMINGS = {
    "timm": (
        write_safetensors,
        lambda tensors: tensors,
        "head.bias",
        "norm.weight",
        "blocks.1.attn.qkv.weight (48, 16)",
    ),
    "Hugging Face": (
        write_safetensors,
        hugging_face,
        "classifier.bias",
        "layernorm.weight",
        "encoder.layer.1.attention.attention.key.weight (16, 16)",
    ),
    "Google's ViT": (
        write_npz,
        google,
        "head/bias",
        "Transformer/encoder_norm/scale",
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel (16, 2, 8)",
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_a_missing_a_left_over_and_a_wrong_shaped_tensor_are_listed_at_once(model, tmp_path, naming):
    write, convert, bias, norm, _ = NAMINGS[naming]
    tensors = convert(timm())
    by_end = {name.removeprefix("vit."): name for name in tensors}
    del tensors[by_end[norm]]
    tensors["extra"] = np.zeros((2, 3), "float32")
    kernel = bias.replace("bias", "kernel" if "/" in bias else "weight")
    there, needed = ("(16, 5)", "(16, 4)") if "/" in bias else ("(5, 16)", "(4, 16)")
    tensors[by_end[kernel]] = np.zeros((16, 5) if "/" in bias else (5, 16), "float32")
    path = write(tmp_path / "a.npz", tensors)
    refused(
        model,
        path,
        f"({naming} naming) does not fit {NAME}",
        f"missing in the file (1): {norm} (16,)",
        "left over in the file (1): extra (2, 3)",
        f"of a wrong shape (1): {kernel} {there}, {NAME} needs {needed}",
    )


@pytest.mark.parametrize("naming", NAMINGS)
def test_another_number_of_blocks(model, tmp_path, naming):
    write, convert, *_, block = NAMINGS[naming]
    message = refused(model, write(tmp_path / "a.npz", convert(timm(layers=2))), "left over in the file", block[:20])
    assert "missing" not in message and "wrong shape" not in message
    deeper = create_model(NAME, **{**TINY, "num_layers": 2})
    count = {"timm": 12, "Hugging Face": 16, "Google's ViT": 16}[naming]
    refused(deeper, write(tmp_path / "b.npz", convert(timm())), f"missing in the file ({count}):", block)


@pytest.mark.parametrize("naming", NAMINGS)
def test_another_width(model, tmp_path, naming):
    write, convert, *_ = NAMINGS[naming]
    message = refused(model, write(tmp_path / "a.npz", convert(timm(width=24))), "of a wrong shape (", "24", "needs")
    assert "missing" not in message and "left over" not in message


def test_another_number_of_heads(model, tmp_path):
    path = write_npz(tmp_path / "a.npz", google(timm(), heads=4))
    refused(model, path, "query/kernel (16, 4, 4)", "needs (16, 2, 8)", "out/kernel (4, 4, 16)", "needs (2, 8, 16)")


@pytest.mark.parametrize("kind", ["ours.keras", "ours.weights.h5"])
def test_our_own_file_of_another_model(whole, kind):
    refused(create_model(NAME, **{**TINY, "num_layers": 2}), whole[kind], "missing in the file", "(16, 48)")
    refused(create_model(NAME, **{**TINY, "mlp_dim": 24}), whole[kind], "of a wrong shape", "(16, 32)", "(16, 24)")
    other = create_model(NAME, **{**TINY, "position_embedding": "sincos_2d"})
    refused(other, whole[kind], "left over in the file (1)", "(1, 17, 16)")


def test_create_model_with_weights_that_do_not_fit(whole):
    with pytest.raises(ValueError, match="does not fit vit_micro_patch2_8") as error:
        create_model(NAME, weights=whole["google.npz"], **{**TINY, "hidden_dim": 24})
    assert str(whole["google.npz"]) in str(error.value)


def test_of_many_tensors_some_are_listed(model, tmp_path):
    tensors = timm() | {f"extra.{i}": np.zeros(1, "float32") for i in range(500)}
    message = refused(model, write_safetensors(tmp_path / "a", tensors), "left over in the file (500)", "and 488 more")
    assert message.count("extra.") == 12


@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "..", "C:\\x", "x" * 300])
@pytest.mark.parametrize("write", [write_safetensors, write_npz])
def test_names_with_path_parts_are_unknown_names(model, tmp_path, name, write):
    folder = tmp_path / "one" / "two"
    folder.mkdir(parents=True)
    tensors = (timm() if write is write_safetensors else google(timm())) | {name: np.zeros(3, "float32")}
    path = write(folder / "a.npz", tensors)
    refused(model, path, f"left over in the file (1): {name} (3,)")
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\ud800", "x" * 301], ids=["newline", "escape", "half", "long"])
def test_names_that_would_garble_a_message_are_refused(model, tmp_path, name):
    refused(model, write_safetensors(tmp_path / "a", timm() | {name: np.zeros(3, "float32")}), "printable characters")


WRONG_TYPES = {
    "int": np.zeros(4, "int64"),
    "bool": np.zeros(4, "bool"),
    "byte": np.zeros(4, "uint8"),
    "complex": np.zeros(4, "complex64"),
    "text": np.array(["a"] * 4),
    "bytes": np.array([b"a"] * 4),
    "date": np.zeros(4, "datetime64[s]"),
    "record": np.zeros(4, [("a", "f4"), ("b", "f4")]),
}


@pytest.mark.parametrize("kind", WRONG_TYPES)
def test_wrong_types_in_npz(model, tmp_path, kind):
    path = write_npz(tmp_path / "a.npz", google(timm()) | {"head/bias": WRONG_TYPES[kind]})
    refused(model, path, "of a wrong type (1): head/bias", str(WRONG_TYPES[kind].dtype), "expected floating-point")


@pytest.mark.parametrize("kind", ["int", "bool", "byte"])
def test_wrong_types_in_safetensors(model, tmp_path, kind):
    path = write_safetensors(tmp_path / "a", timm() | {"head.bias": WRONG_TYPES[kind]})
    refused(model, path, "of a wrong type (1): head.bias", str(WRONG_TYPES[kind].dtype), "expected floating-point")


@pytest.mark.parametrize("kind", ["int", "complex", "bytes", "record"])
def test_wrong_types_in_h5(model, whole, tmp_path, kind):
    with changed_h5(whole, tmp_path) as file:
        del file["layers/dense/vars/1"]
        file["layers/dense/vars/1"] = WRONG_TYPES[kind]
    refused(model, tmp_path / "a.h5", "of a wrong type (1): layers/dense/vars/1", "expected floating-point")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("write", [write_safetensors, write_npz])
def test_values_that_are_not_finite(model, tmp_path, write, value):
    tensors, name = (timm(), "norm.bias") if write is write_safetensors else (google(timm()), "head/kernel")
    tensors[name] = tensors[name].copy()
    tensors[name].flat[3] = value
    refused(model, write(tmp_path / "a.npz", tensors), name, "not finite")


# Cut off and damaged


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_off_file_is_refused(model, whole, tmp_path, kind):
    data = whole[kind].read_bytes()
    lengths = {0, 1, 2, 7, 8, 9, 16, 63, 64, 100, 512, 1000, *(len(data) * i // 16 for i in range(1, 16))}
    lengths |= {len(data) - n for n in (1, 2, 8, 22, 100)}
    for length in sorted(lengths):
        path = tmp_path / f"{length}-{kind}"
        path.write_bytes(data[:length])
        refused(model, path, "is empty" if length == 0 else "")


def test_longer_than_declared(model, whole, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(whole["timm.safetensors"].read_bytes() + b"\0")
    refused(model, path, "cut off or too long")


CHILD = r"""
import json, pathlib, re, sys, time
import numpy as np
from vit_keras import create_model
from vit_keras.weights import load
model = create_model({name!r}, **{arguments!r})
numbers = lambda: b"".join(np.asarray(weight).tobytes() for weight in model.weights)
status = pathlib.Path("/proc/self/status")  # ru_maxrss would begin with what the parent has used.
used = lambda: int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1024 if status.exists() else 0
at_first, last = used(), numbers()
for source in json.load(sys.stdin):
    began, error = time.monotonic(), None
    try:
        report = load(model, source)
    except BaseException as caught:
        error = caught
    now = numbers()
    print(json.dumps([source, type(error).__name__, str(error)[:3000], now != last, time.monotonic() - began,
        used() - at_first]), flush=True)
    last = now
"""


def load_in_a_child(sources, timeout=120, **environment):
    """Loads one source after the other in another process, that may die or hang.

    Returns:
        By source, the error's class and words, whether the model changed, seconds, and by how much memory the process
        had grown at its largest, in MB (0 where the system does not tell).
    """
    program = CHILD.format(name=NAME, arguments=TINY)
    # Keras on NumPy starts in a quarter of the time; it needs JAX for that.
    quick = {"KERAS_BACKEND": "numpy"} if importlib.util.find_spec("jax") else {}
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps([str(source) for source in sources]),
        env=os.environ | quick | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0 and len(outcomes) == len(sources), (done.returncode, outcomes[-1:], done.stderr[-3000:])
    return {source: outcome for source, *outcome in outcomes}


VALUES = (None, True, -1, 0, 1, 2, 2**31, 2**63, 10**400, 0.5, float("nan"), "", "F32", "I8", "../x", [], [0, 4], {})


def mutate_json(random, header):
    """Changes one value somewhere in a safetensors header, or takes it out."""
    header = json.loads(json.dumps(header))
    node = header
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = keys[random.integers(len(keys))]
        inner = node[key]
        if not isinstance(inner, (dict, list)) or not inner or random.random() < 0.2:
            break
        node = inner
    if random.random() < 0.2:
        del node[key]
    else:
        node[key] = VALUES[random.integers(len(VALUES))]
    return header


def mutate_bytes(random, data):
    """Damages bytes in one of four ways."""
    data = bytearray(data)
    way, at = random.integers(4), int(random.integers(len(data)))
    if way == 0:
        for _ in range(random.integers(1, 9)):
            data[random.integers(len(data))] ^= 1 << random.integers(8)
    elif way == 1:
        data[at : at + int(random.integers(1, 64))] = random.bytes(int(random.integers(1, 64)))
    elif way == 2:
        other = int(random.integers(len(data)))
        data[at : at + 32] = data[other : other + 32]
    else:
        data[at : at + 8] = (0, 1, 2**31, 2**63, 2**64 - 1)[random.integers(5)].to_bytes(8, "little")
    return bytes(data)


def test_damage_of_any_sort_loads_or_is_refused(whole, tmp_path):
    """900 seeded mutations: never another error, a crash, a hang or a half-loaded model."""
    random = np.random.default_rng(0)
    header, data = described(timm())
    files = []
    for i in range(300):
        files.append(tmp_path / f"{i}.header")
        files[-1].write_bytes(safetensors(mutate_json(random, header), data))
    for kind in KINDS:
        good = whole[kind].read_bytes()
        tail = len(good) - 3000 if kind == "google.npz" else 0  # A zip archive's directory.
        for i in range(120):
            files.append(tmp_path / f"{i}.{kind}")
            if i % 2:
                files[-1].write_bytes(mutate_bytes(random, good))
            else:  # Where a file describes itself.
                first = good[:tail] + mutate_bytes(random, good[tail:]) if tail else mutate_bytes(random, good[:4000])
                files[-1].write_bytes(first + (b"" if tail else good[4000:]))
    outcomes = load_in_a_child(files)
    for path, (error, message, changed, seconds, _) in outcomes.items():
        assert error in ("ValueError", "NoneType"), (path, error, message)
        if error == "ValueError":
            assert path in message and not changed, (path, message)
        assert seconds < 5, path
    for kind in ("header", *KINDS):
        errors = [outcome[0] for path, outcome in outcomes.items() if path.endswith(kind)]
        assert errors.count("ValueError") > len(errors) / 10, kind


# Hostile: safetensors


def entry(shape=(4,), offsets=(0, 16), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS = {
    "length 2**63": (safetensors({}, length=2**63), "header of 9223372036854775808 bytes"),
    "length 2**40": (safetensors({}, length=2**40), "header of 1099511627776 bytes"),
    "length one too many": (safetensors({}, length=3), "header of 3 bytes in a file of 10"),
    "longer than allowed": (safetensors(b"{" + b" " * MAX_HEADER_BYTES), f"header of {MAX_HEADER_BYTES + 1} bytes"),
    "no object": (safetensors([1]), "must be a .npz, .safetensors"),
    "no JSON": (safetensors(b"{]"), "cannot be read"),
    "UTF-16": (safetensors("{}".encode("utf-16-le")), "cannot be read"),
    "no UTF-8": (safetensors(b'{"\xff":1}'), "cannot be read"),
    "nested 10**5 deep": (safetensors(b'{"a":' * 10**5), "recursion"),
    "lists 10**5 deep": (safetensors(b'{"a":' + b"[" * 10**5), "recursion"),
    "number of 10**5 digits": (safetensors(b'{"a":' + b"1" * 10**5 + b"}"), "cannot be read"),
    "a name twice": (safetensors(b'{"a":{}, "a":{}}'), "a name stands twice"),
    "no entry": (safetensors({"a": None}), "'a' cannot be understood: None"),
    "a list as entry": (safetensors({"a": []}), "'a' cannot be understood: []"),
    "no shape": (safetensors({"a": {"dtype": "F32", "data_offsets": [0, 4]}}), "'a' cannot be understood"),
    "unknown type": (safetensors({"a": entry(dtype="F128")}, bytes(16)), "F128"),
    "type is a list": (safetensors({"a": entry(dtype=["F32"])}, bytes(16)), "'a' cannot be understood"),
    "three offsets": (safetensors({"a": entry(offsets=(0, 8, 16))}, bytes(16)), "'a' cannot be understood"),
    "text as offsets": (safetensors({"a": entry(offsets="01")}, bytes(16)), "does not fit its shape"),
    "bool as size": (safetensors({"a": entry([True], (0, 4))}, bytes(4)), "does not fit its shape"),
    "float as size": (safetensors({"a": entry([4.0])}, bytes(16)), "does not fit its shape"),
    "infinite size": (safetensors({"a": entry([float("inf")])}, bytes(16)), "does not fit its shape"),
    "negative sizes": (safetensors({"a": entry([-2, -2])}, bytes(16)), "does not fit its shape"),
    "negative offset": (safetensors({"a": entry(offsets=(-16, 0))}, bytes(16)), "does not fit its shape"),
    "swapped offsets": (safetensors({"a": entry(offsets=(16, 0))}, bytes(16)), "does not fit its shape"),
    "sizes that overflow to 0": (safetensors({"a": entry([2**32, 2**32], (0, 0))}), "does not fit its shape"),
    "sizes of 4000 digits": (safetensors({"a": entry([10**4000] * 200)}), "does not fit its shape"),
    "100 axes": (safetensors({"a": entry([1] * 99 + [4])}, bytes(16)), "does not fit its shape"),
    "shape of 10**12": (
        safetensors({"a": entry([10**12], (0, 4 * 10**12))}),
        "0 bytes of data, 4000000000000 declared",
    ),
    "shape and offsets": (safetensors({"a": entry([5])}, bytes(16)), "does not fit its shape"),
    "overlap": (safetensors({"a": entry(), "b": entry(offsets=(8, 24))}, bytes(24)), "'b' should start at byte 16"),
    "the same place": (safetensors({"a": entry(), "b": entry()}, bytes(16)), "'b' should start at byte 16"),
    "gap": (safetensors({"a": entry(), "b": entry(offsets=(20, 36))}, bytes(36)), "'b' should start at byte 16"),
    "does not start at 0": (safetensors({"a": entry(offsets=(4, 20))}, bytes(20)), "'a' should start at byte 0"),
    "data left over": (safetensors({"a": entry()}, bytes(20)), "20 bytes of data, 16 declared"),
    "data cut off": (safetensors({"a": entry()}, bytes(12)), "12 bytes of data, 16 declared"),
    "too many tensors": (safetensors({str(i): entry([0], (0, 0)) for i in range(MAX_TENSORS + 1)}), "at most 20000"),
    "no tensors": (safetensors({}), "must hold a ViT or DeiT"),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_safetensors_header_that_cannot_be(model, tmp_path, kind):
    content, words = HEADERS[kind]
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    refused(model, path, words)


# Hostile: npz


MEMBERS = {
    "declared 10**12": (npy((10**12,), data=bytes(64)), "should take 4000000000128 bytes. Received: 192 bytes"),
    "declared 2**64": (npy((2**32, 2**32), data=bytes(64)), "should take"),
    "negative": (npy((-2, -2), data=bytes(16)), "'a' is negative"),
    "too short": (npy((4,), data=bytes(15)), "should take"),
    "too long": (npy((4,), data=bytes(17)), "should take"),
    "objects": (npy((1,), "|O", pickle.dumps([1])), "pickled objects"),
    "objects in a record": (npy((1,), [("a", "<f4"), ("b", "|O")], bytes(12)), "pickled objects"),
    "element of 2 GB": (npy((1,), "|V2147483647"), "should take"),
    "unknown type": (npy((1,), "<q9", bytes(4)), "a.npy"),
    "type is no text": (npy((1,), 4, bytes(4)), "a.npy"),
    "shape is no tuple": (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': 4}"), "a.npy"),
    "shape is a list": (npy([4], data=bytes(16)), "a.npy"),
    "half a header": (npy(b"{'descr': '<f4'"), "a.npy"),
    "an expression": (npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (__import__('os').getpid(),)}"), "a.npy"),
    "deep parentheses": (npy(b"(" * 9000), "a.npy"),
    "deep minus": (npy(b"-" * 9000 + b"1"), "a.npy"),
    "header too long": (npy(b"{" + b" " * 50_000 + b"}"), "a.npy"),
    "header of 4 GB declared": (b"\x93NUMPY\2\0" + (2**32 - 1).to_bytes(4, "little") + bytes(64), "a.npy"),
    "version 9": (npy((4,), data=bytes(16), version=(9, 9)), "a.npy"),
    "no array": (b"hello", "a.npy"),
    "empty": (b"", "a.npy"),
}


@pytest.mark.parametrize("kind", MEMBERS)
def test_an_npz_member_that_cannot_be(model, tmp_path, kind):
    content, words = MEMBERS[kind]
    refused(model, write_zip(tmp_path / "a.npz", {"a.npy": content}), words)


def test_numpy_s_own_object_arrays(model, tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}, []], object))
    refused(model, tmp_path / "a.npz", "a.npy holds pickled objects")


GOOD_MEMBER = npy((4,), data=bytes(16))
ARCHIVES = {
    "a name twice": ([("a.npy", GOOD_MEMBER), ("a.npy", GOOD_MEMBER)], zipfile.ZIP_STORED, "a name stands twice"),
    "bzip2": ({"a.npy": GOOD_MEMBER}, zipfile.ZIP_BZIP2, "another method than deflate"),
    "LZMA": ({"a.npy": GOOD_MEMBER}, zipfile.ZIP_LZMA, "another method than deflate"),
    "no arrays": ({"readme.txt": "hello"}, zipfile.ZIP_STORED, "without weights: neither .npz nor .keras"),
    "empty": ({}, zipfile.ZIP_STORED, "without weights"),
    "too many": ({f"{i}.npy": b"" for i in range(MAX_TENSORS + 1)}, zipfile.ZIP_STORED, "at most 20000 tensors"),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_cannot_be(model, tmp_path, kind):
    members, method, words = ARCHIVES[kind]
    refused(model, write_zip(tmp_path / "a.npz", members, method), words)


def test_an_archive_with_a_password(model, tmp_path):
    path = write_zip(tmp_path / "a.npz", {"a.npy": GOOD_MEMBER})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    refused(model, path, "encrypted")


def test_damaged_values_in_npz_are_found_by_their_checksum(model, tmp_path):
    path = write_npz(tmp_path / "a.npz", google(timm()))
    data = bytearray(path.read_bytes())
    data[data.index(timm()["head.bias"].tobytes()) + 2] ^= 1
    path.write_bytes(data)
    refused(model, path, "head/bias", "CRC")


# Hostile: .weights.h5 and .keras


@contextmanager
def changed_h5(whole, tmp_path):
    """Opens a copy of a good file, `a.h5`, to be changed."""
    shutil.copy(whole["ours.weights.h5"], tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        yield file


def _replaced(file, **options):
    del file["x"]
    return file.create_dataset("x", **options)


def _deep(file):
    for _ in range(50):
        file = file.create_group("g")


def _virtual(file):
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(4,))
    del file["x"]
    file.create_virtual_dataset("x", layout)


def _cycle(file):
    file["layers/dense/again"] = file["layers"]


H5 = {
    "soft link": (lambda f: f.update(y=h5py.SoftLink("/x")), "y is a link, which is not followed"),
    "dangling link": (lambda f: f.update(y=h5py.SoftLink("/none")), "y is a link, which is not followed"),
    "external link": (
        lambda f: f.update(y=h5py.ExternalLink("/etc/passwd", "/x")),
        "y is a link, which is not followed",
    ),
    "external storage": (
        lambda f: _replaced(f, shape=(4,), dtype="f4", external=[("/etc/passwd", 0, 16)]),
        "the data of 'x' lie in another file",
    ),
    "virtual": (_virtual, "the data of 'x' lie in another file"),
    "cycle": (_cycle, "or some that hold themselves, at layers/dense/again/"),
    "deep": (_deep, "too many groups"),
    "named type": (lambda f: f.update(y=np.dtype("f4")), "'y' is no array"),
    "no values": (lambda f: f.update(y=h5py.Empty("f4")), "'y' is no array"),
    "chunks": (lambda f: _replaced(f, data=np.zeros(4, "f4"), chunks=(2,)), "'x' is stored in chunks"),
    "huge chunks": (lambda f: _replaced(f, shape=(4,), maxshape=(None,), chunks=(2**28,)), "'x' is stored in chunks"),
    "compressed": (lambda f: _replaced(f, data=np.zeros(4, "f4"), compression="gzip"), "'x' is stored in chunks"),
    "never written": (lambda f: _replaced(f, shape=(4,), dtype="f4"), "'x' should take 16 bytes. Received: 0 bytes"),
    "declared 10**12": (lambda f: _replaced(f, shape=(10**12,), dtype="f4"), "should take 4000000000000 bytes"),
    "unknown tensor": (lambda f: f["layers"].update(y=np.zeros(3, "f4")), "left over in the file (1): layers/y (3,)"),
    "text": (lambda f: f["layers"].update(y="hello"), "left over in the file (1): layers/y ()"),
    "path parts": (lambda f: f.update({"layers/../../x": np.zeros(3, "f4")}), "layers/../../x (3,)"),
    "not finite": (lambda f: f["layers/dense/vars/1"].write_direct(np.full(4, np.nan, "f4")), "not finite"),
}


@pytest.mark.parametrize("kind", H5)
def test_an_h5_file_that_cannot_be(model, whole, tmp_path, kind):
    change, words = H5[kind]
    with changed_h5(whole, tmp_path) as file:
        file["x"] = np.zeros(4, "f4")
        change(file)
        if "x" in file and kind in ("unknown tensor", "text", "path parts", "not finite"):
            del file["x"]
    refused(model, tmp_path / "a.h5", words)


def changed_keras(whole, path, position=None, members=None, method=zipfile.ZIP_STORED):
    """Writes a copy of a good `.keras` file that describes its position layer otherwise, or has other members."""
    with zipfile.ZipFile(whole["ours.keras"]) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    description = json.loads(contents["config.json"])
    layers = {layer["config"]["name"]: layer["config"] for layer in description["config"]["layers"]}
    layers["position_embedding"].update(position or {})
    contents |= {"config.json": json.dumps(description)} | (members or {})
    return write_zip(path, {name: content for name, content in contents.items() if content is not None}, method)


NO_LAYERS = "does not describe the layers of a model"
KERAS = {
    "no description": ({"members": {"config.json": None}}, "no config.json"),
    "no JSON": ({"members": {"config.json": "{"}}, "cannot be read"),
    "a list": ({"members": {"config.json": "[]"}}, "must be a JSON object"),
    "no layers": ({"members": {"config.json": "{}"}}, NO_LAYERS),
    "layers are text": ({"members": {"config.json": '{"config": {"layers": "abc"}}'}}, NO_LAYERS),
    "nested": ({"members": {"config.json": '{"a":' * 10**5}}, "recursion"),
    "too long": ({"members": {"config.json": " " * (MAX_HEADER_BYTES + 1)}}, "config.json is too long"),
    "no weights": ({"members": {"model.weights.h5": None}}, "without weights: neither .npz nor .keras"),
    "no HDF5": ({"members": {"model.weights.h5": b"hello"}}, "cannot be read"),
    "compressed": ({"method": zipfile.ZIP_DEFLATED}, "model.weights.h5 is compressed"),
    "name is a list": ({"position": {"name": ["a"]}}, NO_LAYERS),
    "grid is text": ({"position": {"grid_size": "ab"}}, NO_LAYERS),
    "grid is negative": ({"position": {"grid_size": [-4, -4]}}, NO_LAYERS),
    "grid is infinite": ({"position": {"grid_size": [float("inf"), 4]}}, NO_LAYERS),
    "grid of 10**9": ({"position": {"grid_size": [10**9, 10**9]}}, "16 positions, not a grid of 1000000000x1000000000"),
    "prefix is negative": ({"position": {"num_prefix": -1}}, NO_LAYERS),
    "another prefix": ({"position": {"grid_size": [3, 5], "num_prefix": 2}}, "prefix"),
}


@pytest.mark.parametrize("kind", KERAS)
def test_a_keras_file_that_cannot_be(model, whole, tmp_path, kind):
    options, words = KERAS[kind]
    refused(model, changed_keras(whole, tmp_path / "a.keras", **options), words)


def test_positions_of_no_square_grid(model, tmp_path):
    refused(model, write_safetensors(tmp_path / "a", timm(positions=16)), "pos_embed (1, 16, 16)", "give grid_size=")


# Pickles and other strangers


class Trap:
    """Whoever unpickles it leaves a trace."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


PICKLES = {
    "protocol 2": pickle.dumps(Trap(), 2),
    "protocol 5": pickle.dumps(Trap(), 5),
    "torch before 1.6": pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(Trap(), 2),
    "torch": {"archive/data.pkl": pickle.dumps(Trap(), 2), "archive/data/0": bytes(16), "archive/version": "3"},
    "torch without a folder": {"data.pkl": pickle.dumps(Trap(), 2)},
}


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("name", ["pytorch_model.bin", 'it\'s "my" $(touch unpickled) `model`.pth'])
def test_a_pickle_is_refused_with_the_command_that_converts_it(model, tmp_path, monkeypatch, kind, name):
    monkeypatch.chdir(tmp_path)
    content = PICKLES[kind]
    path = tmp_path / name
    write_zip(path, content) if isinstance(content, dict) else path.write_bytes(content)
    message = refused(model, path, "is a pickle", "safetensors")
    python, flag, program, given, wanted = shlex.split(message.partition("Make it safetensors: ")[2])
    assert (python, flag, given, wanted) == ("python", "-c", str(path), str(path.with_suffix(".safetensors")))
    assert "weights_only=True" in program
    compile(program, "command", "exec")
    assert [file.name for file in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="PyTorch is not installed")
@pytest.mark.parametrize("inside", [None, "model", "state_dict"])
def test_the_command_converts(model, tmp_path, inside):
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    tensors = {name: torch.from_numpy(array) for name, array in timm().items()}
    torch.save({inside: tensors, "epoch": 3} if inside else tensors, tmp_path / "a.pth")
    command = shlex.split(refused(model, tmp_path / "a.pth").partition("Make it safetensors: ")[2])
    subprocess.run([sys.executable, *command[1:]], check=True, timeout=120)
    assert load(model, tmp_path / "a.safetensors").format == "timm"


STRANGERS = {
    "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n", "Git LFS pointer"),
    "web page": (b"<!DOCTYPE html><html><body>Not found</body></html>", "starts with b'<!DOCTYPE html><'"),
    "JSON": (b'{"error": "Repository not found"}', "must be a .npz, .safetensors, .weights.h5 or .keras file"),
    "gzip": (b"\x1f\x8b" + bytes(100), "must be a .npz"),
    "zeros": (bytes(1000), "must be a .npz"),
    "a single .npy": (npy((4,), data=bytes(16)), "must be a .npz"),
    "TFLite": (b"\x1c\0\0\0TFL3" + bytes(100), "must be a .npz"),
    "empty": (b"", "is empty"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_file_of_another_kind(model, tmp_path, kind):
    content, words = STRANGERS[kind]
    (tmp_path / "model.safetensors").write_bytes(content)
    refused(model, tmp_path / "model.safetensors", words)


def test_another_network(model, tmp_path):
    tensors = {"conv1.weight": np.zeros((64, 3, 7, 7), "float32")}
    for write in (write_safetensors, write_npz):
        refused(model, write(tmp_path / "a.npz", tensors), "must hold a ViT or DeiT", "timm", "conv1.weight")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("none.npz", "none.npz: no such file"),
        (".", "a folder without model.safetensors"),
        ("/dev/zero", "/dev/zero: no such file"),
        ("", "a folder without model.safetensors"),
    ],
)
def test_no_file(model, tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=words):
        load(model, path)


@pytest.mark.parametrize(
    "address", ["http://a/b.npz", "file:///etc/passwd", "ftp://a/b", "s3://a/b", "HTTPS://a/b.npz"]
)
def test_addresses_of_other_kinds_are_refused(model, address):
    refused(model, address, "must be a path, https://… or hf://owner/name")


# Memory and time


def _bomb(path, name, head, count, value=b"\0"):
    """Writes an archive with a member of `count` MB that take a thousandth on disk."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w") as member,
    ):
        member.write(head)
        for _ in range(count):
            member.write(value * 2**20)


def _long_directory(path):
    entry = b"PK\1\2" + bytes(24) + (1).to_bytes(2, "little") + bytes(16) + b"a"
    count = 600_000
    end = b"PK\5\6" + bytes(4) + b"\xff\xff\xff\xff" + (len(entry) * count).to_bytes(4, "little") + bytes(6)
    path.write_bytes(entry * count + end)


def _lying_size(path):
    """A member that says to be 100 bytes long and unpacks to 300 MB."""
    _bomb(path, "config.json", b"{}", 300)
    with zipfile.ZipFile(path, "a") as archive:
        archive.getinfo("config.json").file_size = 100
        archive.writestr("model.weights.h5", b"")


def _declared(path):
    """A member that says to be 4 TB long, in its header as in the archive's directory."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel.npy", npy((10**12,)))
        archive.filelist[0].file_size = 128 + 4 * 10**12


def _sparse(path, start):
    path.write_bytes(start)
    os.truncate(path, 2**36)


def _many_positions(path):
    """Zeros for a grid of 1500 x 1500 positions: 144 MB, in a file of 0.7 MB."""
    tensors, name = google(timm()), "Transformer/posembed_input/pos_embedding"
    del tensors[name]
    count = 1500**2 + 1
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(f"{name}.npy", "w") as member:
            member.write(npy((1, count, D)))
            for _ in range(count // 1500):
                member.write(bytes(1500 * D * 4))
            member.write(bytes(count % 1500 * D * 4))
        for name, array in tensors.items():
            archive.writestr(f"{name}.npy", npy(array.shape, data=array.tobytes()))


BOMBS = {
    "JSON that takes forty times its size": lambda path: path.write_bytes(
        safetensors(b'{"a":[' + b'{"":0},' * ((MAX_HEADER_BYTES - 16) // 7) + b"0]}")
    ),
    "npz header of 300 MB": lambda path: _bomb(
        path, "a.npy", b"\x93NUMPY\2\0" + (300 * 2**20).to_bytes(4, "little"), 300, b" "
    ),
    "npz member of 4 TB": _declared,
    "zip directory of 28 MB": _long_directory,
    "config.json of 300 MB": _lying_size,
    "64 GB of nothing, safetensors": lambda path: _sparse(path, safetensors(*described(timm()))),
    "64 GB of nothing, zip": lambda path: _sparse(path, b"PK\3\4"),
    "64 GB of nothing, HDF5": lambda path: _sparse(path, b"\x89HDF\r\n\x1a\n"),
    "npz grid of 1500 x 1500 positions": _many_positions,
}


def test_hostile_files_take_little_memory_and_time(tmp_path):
    for name, write in BOMBS.items():
        write(tmp_path / name)
    outcomes = load_in_a_child([tmp_path / name for name in BOMBS])
    for path, (error, message, changed, seconds, growth) in outcomes.items():
        assert error == "ValueError" and path in message and not changed, (path, error, message)
        assert seconds < 5, (path, seconds)
        assert growth < 200, (path, growth)


# https://


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost, signed by itself, and its key."""
    if not shutil.which("openssl"):
        pytest.skip("openssl, which makes the server's certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True, timeout=60)
    return folder / "cert.pem", folder / "key.pem"


@contextmanager
def serving(answer, certificate=None):
    """A server on loopback; `answer(handler)` writes what it answers, and `server.requests` lists what was asked."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(f"{self.command} {self.path}")
            answer(self)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests, server.daemon_threads, server.handle_error = requests, True, lambda *args: None
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(handler, status, body=b"", length=None, **headers):
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(body) if length is None else length), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    if handler.command == "GET":
        handler.wfile.write(body)


@pytest.fixture
def website(certificate, whole, tmp_path, monkeypatch):
    """A server that has a good file and much that goes wrong; its certificate is trusted."""
    content = whole["timm.safetensors"].read_bytes()
    release = threading.Event()

    def answer(handler):
        page = handler.path.partition("?")[0]
        if page == "/weights/good.safetensors":
            send(handler, 200, content)
        elif page == "/cut":
            send(handler, 200, content[: len(content) // 2], len(content))
        elif page == "/chunks":
            send(handler, 200, b"10\r\nabc", length="", Transfer_Encoding="chunked")
        elif page == "/hang":
            handler.send_response(200)
            handler.end_headers()
            release.wait(20)
        elif page == "/no-answer":
            release.wait(20)
        elif page == "/nonsense":
            handler.wfile.write(b"nonsense\r\n\r\n")
        elif page == "/moved":
            send(handler, 302, Location="/weights/good.safetensors")
        elif page == "/insecure":
            send(handler, 302, Location=f"http://localhost:{server.server_port}/weights/good.safetensors")
        elif page == "/file":
            send(handler, 302, Location="file:///etc/passwd")
        elif page == "/loop":
            send(handler, 302, Location="/loop")
        else:
            send(handler, int(page[1:]) if page[1:].isdigit() else 404)

    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    monkeypatch.setenv("VIT_KERAS_CACHE", str(tmp_path / "cache" / "weights"))
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving(answer, certificate) as server:
        server.url = f"https://localhost:{server.server_port}"
        server.cache = tmp_path / "cache" / "weights"
        server.content = content
        server.checksum = hashlib.sha256(content).hexdigest()
        yield server
        release.set()


@pytest.mark.parametrize("checked", [False, True])
def test_https_is_downloaded_once(model, website, checked):
    address = f"{website.url}/weights/good.safetensors" + (f"#sha256={website.checksum.upper()}" if checked else "")
    assert load(model, address).format == "timm"
    assert numbers(create_model(NAME, weights=address, **TINY)) == numbers(model)
    assert website.requests == ["GET /weights/good.safetensors"]
    (file,) = website.cache.iterdir()
    assert file == fetch(address) and file.name.endswith("-good.safetensors") and file.read_bytes() == website.content


def test_addresses_do_not_share_a_file(website):
    addresses = [f"{website.url}/weights/good.safetensors{query}" for query in ("", "?v=1", "?v=2")]
    assert len({fetch(address) for address in addresses}) == 3


def test_a_redirect_within_https_is_followed(website):
    assert fetch(f"{website.url}/moved").read_bytes() == website.content


@pytest.mark.parametrize(
    ("page", "error", "words"),
    [
        ("404", FileNotFoundError, "404"),
        ("410", FileNotFoundError, "410"),
        ("403", OSError, "403"),
        ("503", OSError, "503"),
        ("cut", OSError, "broke off after"),
        ("chunks", OSError, "cannot be fetched"),
        ("nonsense", OSError, "cannot be fetched"),
        ("hang", OSError, "timed out"),
        ("no-answer", OSError, "timed out"),
        ("insecure", OSError, "leads to an address that is not https: http://localhost"),
        ("file", OSError, "file:///etc/passwd' is not allowed"),
        ("loop", OSError, "redirect"),
        ("weights/good.safetensors#sha256=" + "0" * 64, ValueError, "should have the SHA-256 " + "0" * 64),
    ],
)
def test_a_failed_download_leaves_nothing(model, website, monkeypatch, page, error, words):
    monkeypatch.setattr(source, "TIMEOUT", 0.5)
    before = numbers(model)
    with pytest.raises(error) as caught:
        load(model, f"{website.url}/{page}")
    assert words in str(caught.value) and f"{website.url}/{page}".partition("#")[0] in str(caught.value)
    assert (error is OSError) == (type(caught.value) is OSError)
    assert list(website.cache.iterdir()) == []
    assert numbers(model) == before


def test_a_file_in_the_cache_that_has_another_checksum_is_not_used(model, website):
    address = f"{website.url}/weights/good.safetensors"
    fetch(address).write_bytes(b"changed")
    with pytest.raises(ValueError, match="downloaded earlier") as error:
        load(model, f"{address}#sha256={website.checksum}")
    assert str(website.cache) in str(error.value) and website.checksum in str(error.value)


def test_a_full_disk_is_said(website, monkeypatch):
    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    address = f"{website.url}/weights/good.safetensors"
    website.cache.mkdir(parents=True)
    monkeypatch.setattr("pathlib.Path.open", full)
    with pytest.raises(OSError, match="No space left on device") as error:
        fetch(address)
    assert address in str(error.value)


def test_an_untrusted_certificate_is_refused(website, monkeypatch):
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        fetch(f"{website.url}/weights/good.safetensors")
    assert list(website.cache.iterdir()) == [] and website.requests == []


def test_nobody_answers(website):
    website.socket.close()
    with pytest.raises(OSError, match="cannot be fetched") as error:
        fetch("https://localhost:1/weights.npz")
    assert "https://localhost:1/weights.npz" in str(error.value) and list(website.cache.iterdir()) == []


@pytest.mark.parametrize("checksum", ["md5=" + "0" * 32, "sha256=abc", "sha256=" + "g" * 64, "x"])
def test_a_checksum_that_is_none(website, checksum):
    with pytest.raises(ValueError, match="must be #sha256=<64 hexadecimal digits>"):
        fetch(f"{website.url}/weights/good.safetensors#{checksum}")
    assert website.requests == [] and not website.cache.exists()


@pytest.mark.parametrize("address", ["https://localhost:abc/x", "https://a b/x", "https:///x", "https://[::1/x"])
def test_an_address_that_is_none(model, tmp_path, monkeypatch, address):
    monkeypatch.setenv("VIT_KERAS_CACHE", str(tmp_path))
    with pytest.raises((OSError, ValueError)) as error:
        load(model, address)
    assert address in str(error.value) and list(tmp_path.iterdir()) == []


# hf://


def test_the_hub_without_huggingface_hub(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r'hf:// needs huggingface_hub: pip install "vit-keras-edge\[hub\]"'):
        load(model, "hf://owner/name")


@pytest.mark.parametrize(
    "address", ["hf://", "hf://name", "hf://a/b/c", "hf://a/b@", "hf://a/b@../../x", "hf://../b", "hf://a/b/../x.npz"]
)
def test_a_name_on_the_hub_that_is_none(model, address):
    refused(model, address, "must be hf://owner/name[@revision][/file]")


def test_the_hub(whole, tmp_path):
    """huggingface_hub itself, against a hub on loopback."""
    pytest.importorskip("huggingface_hub", reason="huggingface_hub is not installed")
    hugging, other = (whole[kind].read_bytes() for kind in ("hf.safetensors", "google.npz"))
    commits = {"main": "a" * 40, "v1": "b" * 40, "refs%2Fpr%2F1": "c" * 40}
    contents = {
        "/owner/name/resolve/main/model.safetensors": hugging,
        "/owner/name/resolve/v1/model.safetensors": hugging,
        "/owner/name/resolve/refs%2Fpr%2F1/model.safetensors": hugging,
        "/owner/name/resolve/v1/ViT-B_16.npz": other,
        "/owner/name/resolve/main/pytorch_model.bin": PICKLES["protocol 2"],
    }

    def answer(handler):
        content = contents.get(handler.path)
        if content is None:
            code = "EntryNotFound" if "/name/" in handler.path else "RepoNotFound"
            closed = "/closed/" in handler.path
            send(handler, 403, X_Error_Code="") if closed else send(handler, 404, X_Error_Code=code)
        else:
            commit = commits[handler.path.split("/")[4]]
            send(handler, 200, content, X_Repo_Commit=commit, ETag=f'"{hashlib.sha256(content).hexdigest()}"')

    expected = {
        "hf://owner/name": None,
        "hf://owner/name@v1": None,
        "hf://owner/name@refs/pr/1": None,
        "hf://owner/name@v1/ViT-B_16.npz": None,
        "hf://owner/name/pytorch_model.bin": "ValueError",
        "hf://owner/name/none.safetensors": "FileNotFoundError",
        "hf://owner/none": "FileNotFoundError",
        "hf://owner/closed": "OSError",
    }
    with serving(answer) as server:
        settings = {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(tmp_path),
            "HF_HUB_DISABLE_XET": "1",
            "NO_PROXY": "127.0.0.1",
        }
        outcomes = load_in_a_child(expected, **settings)
    assert {address: outcome[0] for address, outcome in outcomes.items()} == {
        address: error or "NoneType" for address, error in expected.items()
    }
    for address, (error, message, changed, *_) in outcomes.items():
        assert error == "NoneType" or (not changed and "\n" not in message), message
        if error in ("FileNotFoundError", "OSError"):
            assert message.startswith(f"{address} cannot be fetched: ") and ("404" in message or "403" in message), (
                message
            )
    assert "is a pickle" in outcomes["hf://owner/name/pytorch_model.bin"][1]
    assert outcomes["hf://owner/name"][2], "the first file changes the model"
    files = {path.relative_to(tmp_path / "hub").parts[2] for path in tmp_path.glob("hub/*/snapshots/*/*")}
    assert files == {"a" * 40, "b" * 40, "c" * 40}
    assert {f"HEAD {path}" for path in contents} <= set(server.requests)
