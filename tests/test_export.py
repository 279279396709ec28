"""Files: every kind against the Keras model, the SavedModel's signatures, calibration, refusals."""

import shutil
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from harness import without_ends

from vit_keras import create_model, load_model
from vit_keras.export import (
    KINDS,
    Classifier,
    benchmark,
    conversion,
    measure_latency,
    read_labels,
    tflite,
    to_saved_model,
    to_tflite,
    to_tflite_files,
    try_file,
    verify,
)
from vit_keras.export.calibrate import least_error, observe, sample
from vit_keras.export.conversion import Graph, _batches, quantize
from vit_keras.export.files import _lock, alone, bring_back, replacing, set_aside
from vit_keras.export.framing import check_image_sizes
from vit_keras.export.quantize import Kind
from vit_keras.export.sensitivity import relative_error
from vit_keras.export.verification import wilson_interval
from vit_keras.weights import resize


@pytest.fixture(scope="module")
def files(model, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    paths = {kind: folder / f"{kind}.tflite" for kind in KINDS}
    return to_tflite_files(model, paths, [pictures[:32]], labels=["a", "b", "ç", "d e"])


@pytest.fixture(scope="module")
def proofs(model, pictures, files):
    labels = model.predict(pictures, verbose=0).argmax(1)
    return verify(model, files, [(pictures[:40], labels[:40]), (pictures[40:], labels[40:])])


@pytest.mark.parametrize(
    ("kind", "error", "share"),
    [
        ("float32", 1e-4, 0.9),
        ("float16", 1e-2, 0.6),
        ("dynamic_int8", 0.1, 0.5),
        ("static_int8", 0.1, 0.5),
        ("full_int8", 0.4, 0.5),
        ("int16x8", 0.1, 0.55),
    ],
)
def test_kind(proofs, kind, error, share):
    proof, float32 = proofs[kind], proofs["float32"]
    assert proof.agreement.max_abs_logit_error < error
    assert proof.agreement.accuracy == proof.agreement.agreement > 0.8
    assert proof.agreement.bytes == proof.file.stat().st_size
    assert proof.agreement.bytes <= share * float32.agreement.bytes or kind == "float32"
    operators = proof.agreement.operators
    assert operators.total == operators.integer + operators.float == sum(operators.names.values())
    assert (operators.float == 0) == KINDS[kind].integer_only
    assert 0 < proof.latency.p50 <= proof.latency.p90
    assert proof.latency.threads == 1


def test_float32_is_one_partition_of_builtins(proofs):
    operators = proofs["float32"].agreement.operators
    assert operators.delegate_partitions == 1
    assert operators.names["GELU"] == 2
    assert operators.names["FULLY_CONNECTED"] == 2 * 6 + 1
    assert not any(name.startswith("Flex") or name in ("NEG", "SHAPE", "PACK", "GATHER") for name in operators.names)


def test_static_int8_computes_its_products_in_int8(files):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(files["static_int8"]))
    interpreter.allocate_tensors()
    types = {detail["index"]: detail["dtype"] for detail in interpreter.get_tensor_details()}
    products = [o for o in interpreter._get_ops_details() if o["op_name"] in ("FULLY_CONNECTED", "CONV_2D")]
    assert len(products) == 14
    assert all(types[o["inputs"][1]] == np.int8 for o in products)
    # The first and the last have a range of their own for each picture.
    calibrated = [types[o["inputs"][0]] == types[o["outputs"][0]] == np.int8 for o in products]
    assert calibrated == [False, *[True] * 12, False]


@pytest.mark.parametrize(
    ("kind", "dtype"), [("full_int8", np.uint8), ("int16x8", np.int16), ("static_int8", np.float32)]
)
def test_input_and_output_types(files, kind, dtype):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(files[kind]))
    [image], [logits] = interpreter.get_input_details(), interpreter.get_output_details()
    assert image["dtype"] == logits["dtype"] == dtype
    assert tuple(image["shape"]) == (1, 8, 8, 3)
    assert np.dtype(KINDS[kind].input_dtype) == dtype
    if kind == "full_int8":
        np.testing.assert_allclose(image["quantization"], (1, 0))  # The bytes of a picture go in as they are.


@pytest.fixture(scope="module")
def files_of_sizes(model, pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    paths = {kind: folder / f"{kind}.tflite" for kind in KINDS}
    options = {"image_sizes": [8, 12, (8, 16)], "labels": ["a", "b", "ç", "d e"]}
    return to_tflite_files(model, paths, [pictures[:32]], **options)


@pytest.mark.parametrize("kind", KINDS)
def test_several_picture_sizes(model, pictures, files, files_of_sizes, kind):
    from ai_edge_litert.interpreter import Interpreter

    file = files_of_sizes[kind]
    names = ["serving_default", "serving_12x12", "serving_8x16"]
    assert list(Interpreter(str(file)).get_signature_list()) == names
    assert read_labels(file) == ("a", "b", "ç", "d e")
    assert file.stat().st_size < 1.7 * files[kind].stat().st_size
    alone, together = Classifier(files[kind]), Classifier(file)
    assert together.operators() == alone.operators()
    np.testing.assert_array_equal(together.logits(pictures[:8]), alone.logits(pictures[:8]))
    for size in ((12, 12), (8, 16)):
        shown = np.random.default_rng(1).integers(0, 256, (16, *size, 3)).astype("float32")
        expected = resize(model, size).predict(shown, verbose=0)
        error = np.abs(Classifier(file, image_size=size).logits(shown) - expected).max()
        assert error < {"float32": 1e-5, "full_int8": 0.25, "int4": 0.5}.get(kind, 0.1) * np.abs(expected).max()
        proof = verify(model, {"a": file}, [(shown, expected.argmax(1))])["a"]
        assert proof.agreement.max_abs_logit_error == pytest.approx(error, rel=1e-3, abs=1e-5)
    with pytest.raises(ValueError, match=r"takes 8x8, 12x12, 8x16 pictures\. Received: image_size=9x9"):
        Classifier(file, image_size=(9, 9))


@pytest.mark.parametrize("sizes", [[0], [(8, 8, 8)], ["ab"], [(4.0, 4)], [None]])
def test_bad_picture_sizes(sizes):
    with pytest.raises(ValueError, match="image_sizes must hold one or two whole numbers >= 1 each"):
        check_image_sizes(sizes)


def test_picture_sizes():
    assert check_image_sizes([np.int64(8), (8, np.int32(16)), 8]) == ((8, 8), (8, 16))
    for sizes in (12, "12"):
        with pytest.raises(ValueError, match=r"image_sizes must be a list of sizes\. Received: image_sizes="):
            check_image_sizes(sizes)


def test_sizes_that_the_patch_does_not_divide(model, tmp_path):
    with pytest.raises(ValueError, match="a fixed height and width that patch_size divides"):
        to_tflite(model, tmp_path / "a.tflite", image_sizes=[9])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", KINDS)
def test_signature_has_names(files, kind):
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(str(files[kind])).get_signature_list()
    assert signatures == {"serving_default": {"inputs": ["images"], "outputs": ["logits"]}}


@pytest.mark.parametrize("kind", KINDS)
def test_file_holds_the_class_names(files, kind):
    assert read_labels(files[kind]) == ("a", "b", "ç", "d e")


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("full_int8", "int8"), ("full_int8", "float32"), ("int16x8", "float32"), ("static_int8", "float32")],
)
def test_input_types(model, pictures, tmp_path, kind, dtype):
    classifier = Classifier(to_tflite(model, tmp_path / "m", kind, [pictures[:30]], input_dtype=dtype))
    assert classifier._input["dtype"] == classifier._outputs[0]["dtype"] == np.dtype(dtype)
    np.testing.assert_allclose(classifier.logits(pictures[:9]), model.predict(pictures[:9], verbose=0), atol=0.4)


def test_probabilities(model, pictures, tmp_path):
    files = {"float32": tmp_path / "a", "full_int8": tmp_path / "b"}
    to_tflite_files(model, files, [pictures[:30]], output="probabilities")
    expected = tf.nn.softmax(model.predict(pictures[:9], verbose=0)).numpy()
    np.testing.assert_allclose(Classifier(files["float32"]).logits(pictures[:9]), expected, atol=1e-4)
    np.testing.assert_allclose(Classifier(files["full_int8"]).logits(pictures[:9]), expected, atol=0.1)


def test_probabilities_are_those_of_the_logits(model, pictures, tmp_path):
    """The head is computed the same with a softmax behind it, whose result takes the name that the logits had."""
    files = [
        Classifier(to_tflite(model, tmp_path / output, "static_int8", [pictures[:30]], output=output, ranges="minmax"))
        for output in ("logits", "probabilities")
    ]
    logits, probabilities = (file.logits(pictures) for file in files)
    np.testing.assert_allclose(probabilities, tf.nn.softmax(logits).numpy(), atol=1e-6)


def test_number_of_calibration_pictures(model, pictures, tmp_path):
    def made(name, calibration, **options):
        return to_tflite(model, tmp_path / name, "static_int8", [calibration], ranges="minmax", **options).read_bytes()

    assert made("a", pictures, calibration_pictures=9) == made("b", pictures[:9]) != made("c", pictures)
    many = np.concatenate([pictures] * 4)  # The default is 200.
    many[210] = 255 * (many[210] > 128)
    assert made("d", many, calibration_pictures=256) != made("e", many) == made("f", many[:200])


def test_samples_are_per_picture(float32, pictures, model, tmp_path):
    """A batch of eight shows as many values as eight pictures do, and a tensor's do not depend on what others are."""
    alone = observe(float32, (p[None] for p in pictures[:16]), sampled=True)
    batched = to_tflite(model, tmp_path / "m", batch_size=8).read_bytes()
    together = observe(batched, [pictures[:8], pictures[8:16]], sampled=True)
    assert sorted(o.sample.size for o in together.values()) == sorted(o.sample.size for o in alone.values())
    attention = to_tflite(model, tmp_path / "a", with_attention=True).read_bytes()
    beside = observe(attention, (p[None] for p in pictures[:16]), sampled=True)
    shared = [name for name in alone if "block_0" in name and name in beside]
    assert len(shared) > 20
    for name in shared:
        np.testing.assert_array_equal(alone[name].sample, beside[name].sample)


@pytest.mark.parametrize("ranges", ["percentile", "mse"])
def test_ranges_without_outliers(files, pictures, ranges):
    float32 = files["float32"].read_bytes()
    observed = observe(float32, (p[None] for p in pictures[:8]), sampled=True)
    whole, cut = (np.array([[e.item() for e in o.cut(r)] for o in observed.values()]) for r in ("minmax", ranges))
    widths = np.stack([cut[:, 1] - cut[:, 0], whole[:, 1] - whole[:, 0]])
    assert (widths[0] <= widths[1] * (1 + 1e-6)).all()
    assert (widths[0] < widths[1]).any()
    assert [o.item() for o in observed["serving_default_images:0"].cut(ranges)] == [0, 255]


@pytest.mark.parametrize("values", [[1, 1.0000001], [1, 1.0003], [5000, 5000], [-5000, -5000], [0, 0], [-3, 3e30]])
def test_ranges_of_tensors_that_hardly_differ(values):
    sample = np.array(values, "float32")
    low, high = least_error(sample, sample.min().item(), sample.max().item())
    assert sample.min() <= low <= high <= sample.max()


def test_16_bits_keep_the_whole_range(float32, pictures):
    """What is computed in 16 bits for its outliers' sake is not cut for the sake of 8."""
    observed = observe(float32, (p[None] for p in pictures[:8]), sampled=True)
    wide = {name: replace(o, high=20 * o.high) if o.sample.size else o for name, o in observed.items()}
    kind = replace(KINDS["int16x8"], ranges="mse")
    files = [quantize(float32, replace(kind, ranges=ranges), wide) for ranges in ("minmax", "mse")]
    assert files[0] == files[1]
    assert quantize(float32, replace(KINDS["full_int8"], ranges="minmax"), wide) != quantize(
        float32, replace(KINDS["full_int8"], ranges="mse"), wide
    )


@pytest.mark.parametrize("outlier", [False, True])
@pytest.mark.parametrize("kind", [KINDS["static_int8"], KINDS["full_int8"]], ids=lambda kind: kind.name)
def test_closest_ranges(float32, pictures, kind, outlier):
    """Of the ways to choose ranges that one is taken whose logits are closest, on the sample that it is given."""
    observed = observe(float32, (p[None] for p in pictures[:8]), sampled=True)
    if outlier:  # One value far beyond all others in every tensor: the whole range is the worst.
        observed = {name: replace(o, high=20 * o.high) if o.sample.size else o for name, o in observed.items()}
    graph = Graph(float32, observed, None)
    exact = Classifier(float32).logits(pictures[:8])
    errors = {}
    for name in ("minmax", "percentile", "mse"):
        content = graph.make(replace(kind, ranges=name))
        errors[name] = relative_error(Classifier(content).logits(pictures[:8]), exact)
    assert len(set(errors.values())) == 3
    settled = graph.settled(kind, pictures[:8])
    assert settled.ranges == min(errors, key=errors.get)
    assert outlier == (max(errors, key=errors.get) == "minmax" and errors["minmax"] > 2 * min(errors.values()))
    assert replace(graph, scores=exact).settled(kind, pictures[:8]) == settled


def test_ranges_that_are_not_chosen(float32):
    """There is nothing to choose in a kind without 8-bit activations, nor where a method is named."""
    graph = Graph(float32, {}, None)
    for name in ("float32", "dynamic_int8", "int16x8"):
        assert graph.settled(KINDS[name], np.zeros(0)) is KINDS[name]
    named = replace(KINDS["static_int8"], ranges="mse")
    assert graph.settled(named, np.zeros(0)) is named


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        ("static_int8", {"input_dtype": "uint8"}, "input_dtype of static_int8 must be one of float32"),
        ("int16x8", {"input_dtype": "int8"}, "int16, float32"),
        ("float32", {"output": "labels"}, "output='labels'"),
        ("float32", {"ranges": "max"}, "ranges='max'"),
        ("float32", {"batch_size": 0}, "batch_size=0"),
        ("static_int8", {"calibration_pictures": 0}, "calibration_pictures=0"),
        ("float32", {"rewrites": ["affin"]}, "Did you mean 'affine'"),
    ],
)
def test_wrong_options(model, pictures, tmp_path, kind, options, words):
    with pytest.raises(ValueError, match=words):
        to_tflite(model, tmp_path / "m", kind, [pictures[:8]], **options)
    assert not list(tmp_path.iterdir())


def test_batch_of_several(model, pictures, tmp_path):
    files = to_tflite_files(
        model, {"float32": tmp_path / "a", "full_int8": tmp_path / "b"}, [pictures[:30]], batch_size=4
    )
    expected = model.predict(pictures[:10], verbose=0)
    classifier = Classifier(files["float32"])
    assert classifier.batch_size == 4
    np.testing.assert_allclose(classifier.logits(pictures[:10]), expected, atol=1e-4)
    np.testing.assert_allclose(Classifier(files["full_int8"]).logits(pictures[:10]), expected, atol=0.4)


def test_saved_model_signatures(model, pictures, tmp_path):
    loaded = tf.saved_model.load(str(to_saved_model(model, tmp_path / "saved")))
    expected = model.predict(pictures[:3], verbose=0)
    outputs = loaded.signatures["serving_default"](images=tf.constant(pictures[:3]))
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    np.testing.assert_allclose(tf.reduce_sum(outputs["probabilities"], axis=1), 1, atol=1e-5)
    encoded = [tf.io.encode_png(picture.astype("uint8")).numpy() for picture in pictures[:3]]
    outputs = loaded.signatures["serving_bytes"](encoded=tf.constant(encoded))
    np.testing.assert_allclose(outputs["logits"], expected, atol=1e-5)
    large = tf.io.encode_jpeg(np.full((40, 60, 3), 200, "uint8"))
    outputs = loaded.signatures["serving_bytes"](encoded=tf.stack([large]))
    np.testing.assert_allclose(outputs["logits"], model.predict(np.full((1, 8, 8, 3), 200.0), verbose=0), atol=1e-2)


def test_existing_files_are_kept(model, pictures, tmp_path):
    file = tmp_path / "m.tflite"
    file.write_text("mine")
    with pytest.raises(FileExistsError, match=r"m\.tflite"):
        to_tflite(model, file)
    (tmp_path / "saved").mkdir()
    with pytest.raises(FileExistsError, match="saved"):
        to_saved_model(model, tmp_path / "saved")
    assert file.read_text() == "mine"


def test_failed_conversion_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "tensorflow.py").write_text("raise RuntimeError('no converter today')")
    with pytest.raises(ChildProcessError, match="Conversion ended with code 1: RuntimeError: no converter today; T"):
        to_tflite(model, tmp_path / "m.tflite")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["tensorflow.py"]


def test_a_conversion_whose_program_has_ended_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "_PARENT", -1)
    monkeypatch.setattr(tflite, "_run", lambda _, job: conversion.main(Path(job), conversion.Converter()))
    with pytest.raises(SystemExit, match="has ended"):
        to_tflite(model, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("kind", "calibration", "words"),
    [
        ("full_int8", None, "full_int8"),
        ("full_int8", [], "at least one picture"),
        ("full_int8", [np.zeros((1, 9, 9, 3))], r"\(1, 9, 9, 3\)"),
        ("full_int8", [np.full((1, 8, 8, 3), np.nan)], "NaN"),
        ("static_int8", [np.full((1, 8, 8, 3), 256.0)], "max=256"),
        ("static_int8", [np.full((1, 8, 8, 3), -1.0)], "min=-1"),
        ("static_int8", [np.full((2, 8, 8, 3), 7.0), np.zeros((1, 8, 8, 3))], "3 of one colour throughout"),
        ("full_int8", [(np.zeros((1, 8, 8, 3)), np.zeros(1))], "Received: a tuple of 2, such as pictures with labels"),
        ("fullint8", None, "Did you mean 'full_int8'"),
    ],
)
def test_wrong_calibration_or_kind(model, tmp_path, kind, calibration, words):
    with pytest.raises(ValueError, match=words):
        to_tflite(model, tmp_path / "m.tflite", kind, calibration)
    assert not list(tmp_path.iterdir())


def test_sample_takes_what_is_needed():
    batches = iter([np.arange(12.0).reshape(1, 2, 2, 3).repeat(3, axis=0)] * 5)
    pictures = sample(batches, (2, 2), limit=7)
    assert pictures.shape == (7, 2, 2, 3)
    assert (pictures[0, 0] == [[0, 0, 0], [255, 255, 255]]).all()
    assert (pictures[0, 1].ravel() == np.arange(6, 12)).all()
    assert (pictures[1:] == np.arange(12).reshape(2, 2, 3)).all()
    assert len(list(batches)) == 2


def test_observed_ranges_are_true_extremes(model, pictures, tmp_path):
    file = to_tflite(model, tmp_path / "m.tflite", rewrites=[])
    observed = observe(file.read_bytes(), (p[None] for p in pictures[:5]))
    patches = keras.Model(model.input, model.get_layer("patch_embedding").output).predict(pictures[:5], verbose=0)
    (found,) = [o for name, o in observed.items() if "patch_embedding" in name and "Reshape" in name]
    assert found.low.shape == found.high.shape == (1, 1, 1)
    np.testing.assert_allclose([found.low.item(), found.high.item()], [patches.min(), patches.max()], atol=1e-4)
    (pixels,) = [o for name, o in observed.items() if "images" in name]
    assert (pixels.low.item(), pixels.high.item()) == (pictures[:5].min(), pictures[:5].max())


def test_int16_has_room_for_more_than_the_sample_shows(float32, pictures, monkeypatch):
    observed = observe(float32, (0.75 * picture[None] for picture in pictures[:16]))
    exact = Classifier(float32).logits(pictures)

    def error() -> float:
        content = quantize(float32, KINDS["int16x8"], observed)
        return np.abs(Classifier(content).logits(pictures) - exact).mean() / np.abs(exact).mean()

    roomy = error()
    monkeypatch.setattr(Kind, "headroom", 1.0)
    assert roomy < 0.25 * error()


@pytest.mark.parametrize(("kind", "parts"), [("static_int8", 1), ("full_int8", 10)])
def test_right_operands_of_attention_have_no_zero_point(files, kind, parts):
    """XNNPACK takes a product of two int8 tensors only so; LiteRT's own kernel is far slower."""
    classifier = Classifier(files[kind])
    interpreter = classifier._interpreter
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    products = [o for o in interpreter._get_ops_details() if o["op_name"] == "BATCH_MATMUL"]
    assert len(products) == 4
    for operator in products:
        left, right = (details[int(index)] for index in operator["inputs"])
        assert left["dtype"] == right["dtype"] == np.int8
        assert right["quantization"][1] == 0
    assert classifier.operators().delegate_partitions == parts


def test_results_of_all_operators(files, pictures):
    plain, keeping = (Classifier(files["float32"], keep_tensors=keep) for keep in (False, True))
    np.testing.assert_array_equal(plain.logits(pictures[:3]), keeping.logits(pictures[:3]))
    tensors = dict(keeping.tensors())
    assert len(tensors) == plain.operators().total
    np.testing.assert_array_equal(tensors["StatefulPartitionedCall:0"], keeping.logits(pictures[2:3]))
    softmax = [values for name, values in tensors.items() if "Softmax" in name]
    assert [values.shape for values in softmax] == [(1, 6, 16, 16)] * 2
    np.testing.assert_allclose([values.sum(axis=-1) for values in softmax], 1, atol=1e-5)
    assert keeping.operators().delegate_partitions == 1


def test_integers_in_a_float_file_are_no_activations(tmp_path):
    """A model from elsewhere may compute with integers: they have no range."""
    inputs = keras.Input((4, 4, 3))
    means = keras.layers.GlobalAveragePooling2D()(inputs)
    steps = keras.ops.cast(keras.ops.cast(means / 10, "int32"), "float32")
    model = keras.Model(inputs, keras.layers.Dense(5)(keras.ops.concatenate([means, steps], axis=-1)))
    shown = np.random.default_rng(0).uniform(0, 255, (9, 4, 4, 3)).astype("float32")
    classifier = Classifier(to_tflite(model, tmp_path / "a.tflite").read_bytes(), keep_tensors=True)
    classifier.logits(shown[:1])
    assert classifier.operators().names["CAST"] == 2
    assert len(dict(classifier.tensors())) == classifier.operators().total - 1
    exact = model.predict(shown, verbose=0)
    for kind in ("static_int8", "dynamic_int8"):
        found = Classifier(to_tflite(model, tmp_path / kind, kind, [shown])).logits(shown)
        assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()


def test_batches_wrap_around():
    chunks = list(_batches(np.arange(5), 3))
    assert [c.tolist() for c in chunks] == [[0, 1, 2], [3, 4, 0]]


def test_latency_measures_all_files(files, pictures):
    latencies = measure_latency({k: files[k] for k in ("float32", "int16x8")}, pictures[0], 2, rounds=2, seconds=0.01)
    assert latencies["float32"].threads == 2
    assert latencies["float32"].p50 < latencies["int16x8"].p50


def test_verify_refuses_files_of_another_model(model, pictures, files, tmp_path):
    other = create_model("vit_micro_patch2_8", 5, num_layers=1)
    with pytest.raises(ValueError, match="num_classes=4"):
        verify(other, {"float32": files["float32"]}, [(pictures, np.zeros(64, int))])
    with pytest.raises(ValueError, match="at least one batch"):
        verify(model, files, [])
    with pytest.raises(FileNotFoundError, match="nothing"):
        Classifier(tmp_path / "nothing.tflite")


@pytest.fixture
def head():
    """What a classifier of four classes is made of by hand: pixels to features."""
    inputs = keras.Input((8, 8, 3))
    return inputs, keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(8, 3)(inputs / 255))


@pytest.mark.parametrize("end", ["activation", "layer", "operation", "nested"])
def test_the_softmax_at_the_end_is_not_counted_twice(head, pictures, tmp_path, end):
    inputs, features = head
    logits = keras.layers.Dense(4)(features)
    ends = {
        "activation": lambda: keras.layers.Dense(4, activation="softmax")(features),
        "layer": lambda: keras.layers.Softmax()(logits),
        "operation": lambda: keras.ops.softmax(logits),
        "nested": lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, activation="softmax")])(logits),
    }
    model = keras.Model(inputs, ends[end]())
    expected = model.predict(pictures, verbose=0)
    scores = Classifier(to_tflite(model, tmp_path / "logits")).logits(pictures)
    chances = Classifier(to_tflite(model, tmp_path / "chances", output="probabilities")).logits(pictures)
    np.testing.assert_allclose(keras.ops.softmax(scores), expected, atol=1e-5)
    np.testing.assert_allclose(chances, expected, atol=1e-5)
    proof = verify(model, {"file": tmp_path / "logits"}, [(pictures, expected.argmax(1))])["file"]
    assert proof.agreement.max_abs_logit_error < 1e-4


def test_models_that_are_no_classifiers_of_pictures_are_refused(head, tmp_path):
    inputs, features = head
    several = keras.Model(inputs, [keras.layers.Dense(4)(features), features])
    gray = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)])
    vectors = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4)])
    for model in (several, gray, vectors):
        with pytest.raises(ValueError, match="must take pictures"):
            to_tflite(model, tmp_path / "file")
    broken = keras.Model(inputs, keras.layers.Dense(4, bias_initializer=keras.initializers.Constant(np.nan))(features))
    for export in (to_tflite, to_saved_model):
        with pytest.raises(ValueError, match=r"finite weights.*/bias"):
            export(broken, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_copied_is_refused(head, tmp_path):
    @keras.saving.register_keras_serializable("tests")
    class Restless(keras.layers.Layer):
        def call(self, inputs):
            return inputs * keras.random.uniform((), 0.5, 1.5)

    inputs, features = head
    model = keras.Model(inputs, keras.layers.Dense(4)(Restless()(features)))
    with pytest.raises(ValueError, match=r"cannot be exported: its copy .* gives other logits"):
        to_tflite(model, tmp_path / "file")
    assert not list(tmp_path.iterdir())


def test_labels_may_be_a_column(model, pictures, files):
    labels = model.predict(pictures, verbose=0).argmax(1)
    column = verify(model, {"float32": files["float32"]}, [(pictures, labels[:, None])])["float32"]
    assert column.agreement.accuracy == 1
    for wrong in (labels.astype("float32"), np.eye(4, dtype=int)[labels]):
        with pytest.raises(ValueError, match="integer labels"):
            verify(model, files, [(pictures, wrong)])


def test_verify_refuses_a_file_without_ends(model, pictures, files, tmp_path):
    file = tmp_path / "endless.tflite"
    file.write_bytes(without_ends(files["float32"].read_bytes()))
    for shown in (pictures, np.repeat(pictures, 2, axis=1)):  # Of the first signature's size, and of another.
        with pytest.raises(ValueError, match=r"endless\.tflite must take pictures"):
            verify(model, {"float32": file}, [(shown, np.zeros(len(shown), int))])


@pytest.mark.parametrize("content", [b"", b"text", b"\x1c\x00\x00\x00TFL3" + bytes(64)])
def test_damaged_file_is_refused(tmp_path, content):
    file = tmp_path / "broken.tflite"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.tflite"):
        Classifier(file)


def test_load_model_refuses_what_is_no_model(model, tmp_path):
    with pytest.raises(FileNotFoundError, match="none"):
        load_model(tmp_path / "none.keras")
    model.save(tmp_path / "whole.keras")
    content = (tmp_path / "whole.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cut\.keras"):
        load_model(tmp_path / "cut.keras")


def test_a_converter_that_is_killed_is_told_of(model, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "tensorflow.py").write_text("import os\nos.kill(os.getpid(), 9)")
    with pytest.raises(ChildProcessError, match=r"code 1: .*TensorFlow's converter ended with SIGKILL"):
        to_tflite(model, tmp_path / "m.tflite")


@pytest.mark.parametrize("kind", ["static_int8", "dynamic_int8"])
def test_activations_without_a_range_are_refused(pictures, tmp_path, kind):
    """TensorFlow Lite computes a softplus by its exponential, which has no number for more than 88."""
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dense(8, activation="softplus", kernel_initializer="ones", name="soft")(
        keras.layers.Flatten()(inputs)
    )
    model = keras.Model(inputs, keras.layers.Dense(4)(x), name="large")
    with pytest.raises(ValueError, match=r"cannot be quantised: soft gives infinity or NaN .* model='large'"):
        to_tflite(model, tmp_path / "m.tflite", kind, [pictures])
    assert not list(tmp_path.iterdir())


def test_files_that_would_replace_one_another_or_a_folder_are_refused(model, pictures, tmp_path):
    with pytest.raises(ValueError, match=r"paths must give each kind a file of its own\. Received: .*m, .*m"):
        to_tflite_files(model, {"float32": tmp_path / "m", "float16": tmp_path / "x" / ".." / "m"})
    with pytest.raises(FileExistsError, match="is a folder"):
        to_tflite(model, tmp_path, overwrite=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("threads", [0, 65, 100_000])
def test_numbers_of_threads_that_no_interpreter_has(files, threads):
    with pytest.raises(ValueError, match=f"num_threads must be 1 to 64. Received: num_threads={threads}"):
        Classifier(files["float32"], threads)
    for measured in (benchmark, lambda paths, threads: try_file(paths[0], threads)):
        with pytest.raises(ValueError, match=f"threads must be 1 to 64. Received: threads={threads}"):
            measured([files["float32"]], threads)


def test_wilson_interval():
    np.testing.assert_allclose(wilson_interval(355, 360), (0.96793, 0.99405), atol=1e-4)
    assert wilson_interval(0, 10)[0] == 0
    assert wilson_interval(10, 10)[1] == 1


def test_replacing_is_all_or_nothing(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), replacing(file) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    with replacing(file) as temporary:
        temporary.write_text("new")
    assert file.read_text() == "new"
    with replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "x").write_text("1")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "folder"]


def test_what_a_killed_program_has_set_aside_comes_back(tmp_path):
    def content(folder):
        return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}

    folder, killed = tmp_path / "export", tmp_path / "killed"
    (folder / "saved").mkdir(parents=True)
    for name in ("a", "told", "other", "saved/x"):
        (folder / name).write_text("old")
    before = content(folder)
    with set_aside(folder, ["a", "b", "saved"], ["told", "untold"]):
        assert content(folder).get("a") is None and (folder / "told").read_text() == "old"
        for name in ("a", "b", "told", "untold"):
            (folder / name).write_text("new")
        shutil.copytree(folder, killed)
    assert content(folder) == dict.fromkeys(("a", "b", "told", "untold"), "new") | {"other": "old"}
    bring_back(killed)
    assert content(killed) == before
    bring_back(killed)
    assert content(killed) == before


def test_two_programs_do_not_work_in_one_folder(tmp_path):
    with alone(tmp_path / "a" / "b", "export"):
        with (
            pytest.raises(FileExistsError, match=r"Another export is running in .*b\."),
            alone(tmp_path / "a" / "b", "export"),
        ):
            pass
        (tmp_path / "a" / "file").write_text("kept")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "file"]


def test_a_lock_that_nobody_else_sees_is_none(tmp_path):
    pytest.importorskip("fcntl", reason="this system locks no files")
    path = tmp_path / "lock"
    with path.open("w") as file:
        assert _lock(file)
        path.unlink()  # Whoever held it before has just left.
        assert not _lock(file)
        path.touch()  # And the next one has come.
        assert not _lock(file)


@pytest.mark.parametrize(("hidden_dim", "mlp_dim", "broken"), [(48, 96, "block_0_attention"), (64, 80, "block_0_mlp")])
def test_int4_takes_widths_that_are_no_whole_number_of_blocks(pictures, tmp_path, caplog, hidden_dim, mlp_dim, broken):
    sizes = {"hidden_dim": hidden_dim, "mlp_dim": mlp_dim, "num_heads": 2, "num_layers": 1}
    model = create_model("vit_micro_patch2_8", num_classes=4, **sizes)
    model.get_layer("head").kernel.assign(np.random.default_rng(0).normal(size=(hidden_dim, 4)))
    to_tflite(model, tmp_path / "whole", "dynamic_int8", [pictures[:32]])
    assert "int8 weights" not in caplog.text
    file = to_tflite(model, tmp_path / "blocks", "int4", [pictures[:32]])
    assert f"int4 has int8 weights in {broken}" in caplog.text
    expected = model.predict(pictures[:16], verbose=0)
    assert np.abs(Classifier(file).logits(pictures[:16]) - expected).max() < 0.5 * np.abs(expected).max()
    if broken == "block_0_mlp":  # Its second product alone; the others have blocks.
        assert file.stat().st_size < (tmp_path / "whole").stat().st_size


def test_int4_takes_weights_that_are_all_zero(pictures, tmp_path):
    fresh = create_model("vit_micro_patch2_8", num_classes=4, hidden_dim=32, mlp_dim=64, num_heads=2, num_layers=1)
    assert not fresh.get_layer("head").kernel.numpy().any()
    file = to_tflite(fresh, tmp_path / "fresh", "int4", [pictures[:32]])
    assert np.abs(Classifier(file).logits(pictures[:16])).max() < 1e-4


class Own(keras.Model):
    """A model of a class of its own."""

    def __init__(self):
        super().__init__(name="own")
        self.convolution, self.dense = keras.layers.Conv2D(4, 3), keras.layers.Dense(4)

    def call(self, pictures):
        return self.dense(keras.ops.mean(self.convolution(pictures / 255.0), axis=(1, 2)))


def test_models_of_classes_of_their_own(pictures, tmp_path, caplog):
    model = Own()
    with pytest.raises(ValueError, match=r"called on one batch of pictures.*'own', a Own built on"):
        to_tflite(model, tmp_path / "a")
    expected = keras.ops.convert_to_numpy(model(pictures))
    file = to_tflite(model, tmp_path / "b", "full_int8", [pictures], labels=list("abcd"))
    assert np.abs(Classifier(file).logits(pictures) - expected).max() < 0.1 * np.abs(expected).max()
    assert "own is no chain of vit_keras's blocks" in caplog.text
    served = tf.saved_model.load(str(to_saved_model(model, tmp_path / "saved"))).signatures["serving_default"]
    np.testing.assert_allclose(served(images=tf.constant(pictures))["logits"], expected, atol=1e-5)
    proof = verify(model, {"file": file}, [(pictures, expected.argmax(1))])["file"]
    assert proof.agreement.accuracy == proof.agreement.agreement > 0.9


def test_scores_that_are_summed_keep_their_shape(pictures, tmp_path):
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(8, 3)(inputs / 255)
    ends = keras.layers.Flatten()(x), keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Add()([keras.layers.Dense(4)(end) for end in ends]))
    expected = model.predict(pictures, verbose=0)
    for kind in ("float32", "static_int8"):
        found = Classifier(to_tflite(model, tmp_path / kind, kind, [pictures])).logits(pictures)
        assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
