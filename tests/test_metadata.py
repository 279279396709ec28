"""Metadata inside the files: class names, normalisation, buffers taken inside, hostile archives."""

import io
import struct
import tracemalloc
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from flatbuffers import number_types
from flatbuffers.table import Table
from harness import packed, randomise_zeros

from vit_keras import create_model
from vit_keras.export import KINDS, packing, read_labels, to_tflite, with_metadata
from vit_keras.export.calibrate import observe
from vit_keras.export.conversion import quantize
from vit_keras.export.converter import convert
from vit_keras.export.metadata import OUTPUTS, check_labels
from vit_keras.export.tflite import FileOptions, _save

LABELS = ("Käuzchen", "snow owl", "貓", "crane", "crane")
RAW = ("float32", "dynamic_int8", "full_int8")


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> dict[str, bytes]:
    """Files as the converters leave them; ai-edge-quantizer puts the weights behind the flatbuffer."""
    keras.utils.set_random_seed(0)
    model = create_model("vit_mini_patch4_28", len(LABELS), num_layers=3)
    randomise_zeros(model)
    folder = tmp_path_factory.mktemp("raw") / "graph"
    _save(model, None, folder, FileOptions())
    pictures = [np.random.default_rng(0).integers(0, 256, (1, 28, 28, 3)).astype("float32") for _ in range(4)]
    float32 = convert(str(folder / "saved_model"))
    observed = observe(float32, pictures)
    return {"float32": float32} | {k: quantize(float32, KINDS[k], observed) for k in RAW[1:]}


@pytest.fixture(scope="module")
def files(raw) -> dict[str, bytes]:
    return {kind: with_metadata(content, LABELS, "owls", "Tells owls apart.") for kind, content in raw.items()}


def model_of(content: bytes) -> schema.Model:
    return schema.Model.GetRootAs(content)


def buffers(content: bytes) -> list[bytes]:
    """Returns the content of every buffer, wherever it lies."""
    found = []
    model = model_of(content)
    for i in range(model.BuffersLength()):
        buffer = model.Buffers(i)
        inside = b"" if buffer.DataIsNone() else buffer.DataAsNumpy().tobytes()
        found.append(content[buffer.Offset() : buffer.Offset() + buffer.Size()] if buffer.Offset() > 1 else inside)
    return found


def outputs(content: bytes) -> list[bytes]:
    """Runs a file on a few pictures."""
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    [images], [logits] = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for picture in np.random.default_rng(1).integers(0, 256, (5, *images["shape"])):
        interpreter.set_tensor(images["index"], picture.astype(images["dtype"]))
        interpreter.invoke()
        found.append(interpreter.get_tensor(logits["index"]).tobytes())
    assert len(set(found)) > 1
    return found


# Files with metadata


@pytest.mark.parametrize("kind", RAW)
def test_what_a_file_computes_stays_the_same_to_the_bit(raw, files, kind):
    assert outputs(files[kind]) == outputs(raw[kind])
    signatures = Interpreter(model_content=files[kind]).get_signature_list()
    assert signatures == {"serving_default": {"inputs": ["images"], "outputs": ["logits"]}}


@pytest.mark.parametrize("kind", RAW)
def test_all_buffers_are_inside_and_aligned(raw, files, kind):
    model = model_of(files[kind])
    for i in range(model.BuffersLength()):
        buffer = model.Buffers(i)
        assert (buffer.Offset(), buffer.Size()) == (0, 0)
        if not buffer.DataIsNone():
            assert buffer._tab.Vector(buffer._tab.Offset(4)) % 16 == 0
    assert buffers(files[kind])[:-1] == buffers(raw[kind])
    outside = [model_of(raw[kind]).Buffers(i).Offset() > 1 for i in range(model.BuffersLength() - 1)]
    assert any(outside) == (kind != "float32")
    assert len(files[kind]) - len(raw[kind]) < 2000 + 8 * len(outside) + 48 * sum(outside)


def tree(value):
    """Turns an unpacked flatbuffer into lists and dictionaries that can be compared."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, list):
        return [tree(item) for item in value]
    return {key: tree(item) for key, item in vars(value).items()} if hasattr(value, "__dict__") else value


@pytest.mark.parametrize("kind", RAW)
def test_everything_else_stays_as_it_was(raw, files, kind):
    before, after = (schema.ModelT.InitFromObj(model_of(content[kind])) for content in (raw, files))
    assert after.metadata.pop().name == b"TFLITE_METADATA"
    before.buffers = after.buffers = []
    assert tree(after) == tree(before)


def test_files_beyond_two_gigabytes_keep_their_buffers_outside(raw, monkeypatch):
    monkeypatch.setattr(packing, "LARGEST", 100_000)
    content = with_metadata(raw["dynamic_int8"], LABELS)
    model = model_of(content)
    spans = [model.Buffers(i).Offset() for i in range(model.BuffersLength())]
    assert sum(start > 0 for start in spans) > 10
    assert all(start % 16 == 0 for start in spans)
    assert buffers(content)[:-1] == buffers(raw["dynamic_int8"])
    assert outputs(content) == outputs(raw["dynamic_int8"])


def test_tensorflow_s_analyzer_reads_the_file(files, capfd):
    tf.lite.experimental.Analyzer.analyze(model_content=files["dynamic_int8"])
    assert "FULLY_CONNECTED" in capfd.readouterr().out


class Node:
    """Reads a table of the metadata by the numbers of its fields."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def _place(self, field: int) -> int:
        assert self.table.Offset(4 + 2 * field)
        return self.table.Offset(4 + 2 * field) + self.table.Pos

    def child(self, field: int) -> "Node":
        return Node(Table(self.table.Bytes, self.table.Indirect(self._place(field))))

    def children(self, field: int) -> list["Node"]:
        place = self.table.Offset(4 + 2 * field)
        start = self.table.Vector(place)
        count = self.table.VectorLen(place)
        return [Node(Table(self.table.Bytes, self.table.Indirect(start + 4 * i))) for i in range(count)]

    def string(self, field: int) -> str:
        return self.table.String(self._place(field)).decode()

    def byte(self, field: int) -> int:
        return self.table.Get(number_types.Uint8Flags, self._place(field))

    def floats(self, field: int) -> list[float]:
        return self.table.GetVectorAsNumpy(number_types.Float32Flags, self.table.Offset(4 + 2 * field)).tolist()


@pytest.mark.parametrize("kind", RAW)
def test_metadata_says_what_the_schema_has_words_for(raw, files, kind):
    content = buffers(files[kind])[-1]
    assert content[4:8] == b"M001"
    root = Node(Table(content, struct.unpack_from("<I", content)[0]))
    assert (root.string(0), root.string(1), root.string(7)) == ("owls", "Tells owls apart.", "1.0.0")
    [graph] = root.children(3)
    [images], [logits] = graph.children(2), graph.children(3)
    assert (images.string(0), logits.string(0)) == ("images", "logits")
    assert images.child(3).byte(0) == 2  # ImageProperties
    assert images.child(3).child(1).byte(0) == 1  # RGB
    [unit] = images.children(4)
    assert unit.byte(0) == 1  # NormalizationOptions
    assert (unit.child(1).floats(0), unit.child(1).floats(1)) == ([0], [1])
    assert (images.child(5).floats(0), images.child(5).floats(1)) == ([255], [0])
    assert logits.child(3).byte(0) == 1  # FeatureProperties
    [labels] = logits.children(6)
    assert (labels.string(0), labels.byte(2)) == ("labels.txt", 2)  # TENSOR_AXIS_LABELS
    without = buffers(with_metadata(raw[kind]))[-1]
    assert b"images" in without
    assert b"labels.txt" not in without


def test_to_tflite_writes_metadata(tmp_path):
    model = create_model("vit_micro_patch2_8", 3, num_layers=1)
    file = to_tflite(model, tmp_path / "a.tflite", labels=["á", "b c", "d"])
    assert read_labels(file) == ("á", "b c", "d")
    assert model.name.encode() in buffers(file.read_bytes())[-1]
    with pytest.raises(ValueError, match="labels must name 3 classes"):
        to_tflite(model, tmp_path / "b.tflite", labels=["a"])
    assert not (tmp_path / "b.tflite").exists()


@pytest.mark.parametrize("output", OUTPUTS)
def test_metadata_says_what_the_scores_are(output, tmp_path):
    model = create_model("vit_micro_patch2_8", 3, num_layers=1)
    told = buffers(to_tflite(model, tmp_path / "a.tflite", output=output).read_bytes())[-1]
    assert [text.encode() in told for text in OUTPUTS.values()] == [name == output for name in OUTPUTS]


def test_mediapipe_runs_the_files(files):
    mediapipe = pytest.importorskip("mediapipe")
    vision = mediapipe.tasks.vision
    pictures = np.random.default_rng(2).integers(0, 256, (5, 28, 28, 3), "uint8")
    for content in files.values():
        base = mediapipe.tasks.BaseOptions(model_asset_buffer=content)
        options = vision.ImageClassifierOptions(base)
        with vision.ImageClassifier.create_from_options(options) as classifier:
            for picture in pictures:
                image = mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=picture)
                names = {c.category_name for c in classifier.classify(image).classifications[0].categories}
                assert names == set(LABELS)  # Negative scores too.


# What is refused


def test_what_is_no_plain_file_is_refused(raw, files):
    with pytest.raises(ValueError, match=r"output must be one of logits, probabilities\. Received: output='chances'"):
        with_metadata(raw["float32"], output="chances")
    with pytest.raises(ValueError, match="no metadata entry TFLITE_METADATA yet"):
        with_metadata(files["float32"], LABELS)
    for content in (b"", b"text", b"\x1c\x00\x00\x00TFL2" + bytes(64)):
        with pytest.raises(ValueError, match=f"TensorFlow Lite file. Received: {len(content)} bytes"):
            with_metadata(content)
    with pytest.raises(ValueError, match="must be whole"):
        with_metadata(raw["dynamic_int8"][:-1000])


def test_what_cannot_be_moved_is_refused():
    operator = schema.OperatorT(inputs=[0], outputs=[0])
    graph = schema.SubGraphT(tensors=[schema.TensorT(shape=[1, 2])], inputs=[0], outputs=[0], operators=[operator])
    model = schema.ModelT(version=3, subgraphs=[graph], buffers=[schema.BufferT()])
    assert buffers(with_metadata(packed(model)))[0] == b""
    operator.largeCustomOptionsOffset = 1000
    with pytest.raises(ValueError, match="builtin operators only"):
        with_metadata(packed(model))
    graph.inputs = [0, 0]
    with pytest.raises(ValueError, match="2 inputs, 1 outputs"):
        with_metadata(packed(model))


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a"], "must name 2 classes. Received: 1 names"),
        ("ab", "list of names. Received: labels='ab'"),
        (["a", ""], r"Received: labels\[1\]=''"),
        ([" ", "b"], r"labels\[0\]=' '"),
        (["a", 7], r"labels\[1\]=7"),
        (["a\nb", "c"], r"line breaks.*labels\[0\]='a\\nb'"),
        (["a", "b\u2028"], r"labels\[1\]"),
        (["a\x1b[31m", "b"], r"labels\[0\]"),
        (["a", "b\udc80"], r"labels\[1\]"),
        (["a", "b" * 2**22], "bytes in all"),
    ],
)
def test_wrong_labels(labels, words):
    with pytest.raises(ValueError, match=words):
        check_labels(labels, 2)


def test_wrong_number_of_labels_for_a_file(raw):
    with pytest.raises(ValueError, match="labels must name 5 classes"):
        with_metadata(raw["float32"], LABELS[:4])


# Reading


def test_labels_are_read_back(raw, files, tmp_path):
    file = tmp_path / "a.tflite"
    for content in files.values():
        file.write_bytes(content)
        assert read_labels(file) == LABELS
        with zipfile.ZipFile(file) as archive:
            assert archive.read("labels.txt").decode() == "\n".join(LABELS) + "\n"
        central = struct.unpack_from("<I", content, len(content) - 6)[0]
        assert content[central : central + 4] == b"PK\x01\x02"  # Places count from the file's beginning.
    file.write_bytes(with_metadata(raw["float32"]))
    assert read_labels(file) is None
    file.write_bytes(raw["float32"])
    assert read_labels(file) is None
    with pytest.raises(FileNotFoundError, match="none"):
        read_labels(tmp_path / "none")


def archive_of(content: bytes, name: str = "labels.txt", compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        archive.writestr(name, content)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", None),
        (b"x", None),
        (archive_of(b"a\nb", "other.txt"), None),
        (archive_of(b"a\r\nb\r\n"), ("a", "b")),
        (archive_of(b"\xff\xfe\n"), ValueError),
        (archive_of(b""), ValueError),
        (archive_of(b"a\n\nb"), ValueError),
        (archive_of(b"a\x1b[31m\nb"), ValueError),
        (archive_of(bytes(10**7), compression=zipfile.ZIP_DEFLATED), ValueError),
        (archive_of(bytes(10**7), compression=zipfile.ZIP_LZMA), ValueError),
        (archive_of(b"a\n" * 2**22), ValueError),
        (archive_of(b"a\nb\n")[10:], ValueError),
    ],
)
def test_strange_archives(tmp_path, content, expected):
    file = tmp_path / "a.tflite"
    file.write_bytes(b"TFL3" * 100 + content)
    if expected is ValueError:
        with pytest.raises(ValueError, match=r"a\.tflite holds class names that cannot be read"):
            read_labels(file)
    else:
        assert read_labels(file) == expected


def test_damaged_archives_end_in_names_or_one_clear_error(tmp_path):
    rng = np.random.default_rng(0)
    whole = archive_of("\n".join(LABELS).encode())
    file = tmp_path / "a.tflite"
    outcomes = set()
    for _ in range(2000):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 5)):
            damaged[place] = rng.integers(0, 256)
        file.write_bytes(bytes(100) + damaged)
        try:
            outcomes.add(type(read_labels(file)))
        except ValueError as error:
            assert "a.tflite" in str(error)
            outcomes.add(ValueError)
    assert outcomes == {tuple, type(None), ValueError}


def test_reading_needs_little_memory(tmp_path):
    file = tmp_path / "a.tflite"
    many = io.BytesIO()
    with zipfile.ZipFile(many, "w") as archive:
        for i in range(30_000):
            archive.writestr(str(i), b"")
    for content in (archive_of(b"a\nb\n"), many.getvalue()):
        with file.open("wb") as stream:
            stream.truncate(2**31)  # Sparse.
            stream.seek(2**31)
            stream.write(content)
        tracemalloc.start()
        try:
            assert read_labels(file) in (("a", "b"), None)
            assert tracemalloc.get_traced_memory()[1] < 2**26
        finally:
            tracemalloc.stop()


def test_predict_takes_the_names_inside_a_file(files, tmp_path):
    from vit_keras.pipelines.prediction import predict

    file, picture = tmp_path / "alone.tflite", tmp_path / "a.png"
    file.write_bytes(files["float32"])
    (tmp_path / "labels.txt").write_text("other\n" * len(LABELS))
    picture.write_bytes(tf.io.encode_png(np.full((28, 28, 3), 90, "uint8")).numpy())
    [prediction] = predict(file, [picture])
    assert prediction.label in LABELS
    archive = archive_of(b"a\nb\n")
    file.write_bytes(with_metadata_of(files["float32"], archive))
    with pytest.raises(ValueError, match=r"alone\.tflite must name 5 classes. Received: 2"):
        predict(file, [picture])


def with_metadata_of(content: bytes, archive: bytes) -> bytes:
    """Puts another archive behind a file."""
    return content[: content.rindex(b"PK\x03\x04")] + archive
