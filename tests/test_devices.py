"""Where files run, predicted, and for the CPU held against what its delegate really takes; damaged, hostile files."""

import dataclasses
import shutil
import struct
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from harness import randomise_zeros

from vit_keras import create_model
from vit_keras.export import KINDS, check_devices, inspect_file, rewrite, to_tflite_files, try_file
from vit_keras.export.device_conditions import CONDITIONS
from vit_keras.export.device_rules import RULE_SETS, Rule
from vit_keras.export.devices import check_rules, partition
from vit_keras.export.flatbuffer import FileInfo, OperatorInfo, TensorInfo, read_file
from vit_keras.export.layer_names import LayerNames
from vit_keras.export.targets import TARGETS
from vit_keras.heads import classifier
from vit_keras.models import deit, deit3, vit
from vit_keras.pipelines.cli import main


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    model = create_model("vit_micro_patch2_8", 4, num_layers=1)
    randomise_zeros(model)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


@pytest.fixture(scope="module")
def files(model, folder):
    """The six kinds of a small Vision Transformer."""
    pictures = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3)).astype("float32")
    return to_tflite_files(model, {kind: folder / f"{kind}.tflite" for kind in KINDS}, [pictures])


def convert(folder, name, function, *shapes, flex=False, int8=False):
    """Converts a function of float32 tensors; None in a shape is a size that is not known."""
    signature = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    concrete = tf.function(function, input_signature=signature).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
    builtins = tf.lite.OpsSet.TFLITE_BUILTINS_INT8 if int8 else tf.lite.OpsSet.TFLITE_BUILTINS
    converter.target_spec.supported_ops = [builtins, *([tf.lite.OpsSet.SELECT_TF_OPS] if flex else [])]
    if int8:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        numbers = np.random.default_rng(0)
        samples = [[numbers.normal(size=shape).astype("float32") for shape in shapes] for _ in range(4)]
        converter.representative_dataset = lambda: iter(samples)
        converter.inference_input_type = converter.inference_output_type = tf.int8
    file = folder / f"{name}.tflite"
    file.write_bytes(converter.convert())
    return file


@pytest.fixture(scope="module")
def convolutions():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((16, 16, 3)),
            layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="stem"),
            layers.DepthwiseConv2D(3, padding="same", name="spread"),
            layers.BatchNormalization(),
            layers.Activation("hard_swish", name="swish"),
            layers.MaxPooling2D(2, name="pool"),
            layers.GlobalAveragePooling2D(name="average"),
            layers.Dense(4, activation="softmax", name="classes"),
        ]
    )


def heads_in_the_batch(x):
    heads = tf.reshape(tf.transpose(tf.reshape(x, (1, 4, 6, 2)), (0, 2, 1, 3)), (6, 4, 2))
    return tf.reshape(tf.nn.softmax(tf.matmul(heads, heads, transpose_b=True)), (1, 96))


@pytest.fixture(scope="module")
def plain_keras():
    """A Transformer block of Keras's own layers, whose export asks for shapes while it runs."""
    layers = keras.layers
    pictures = layers.Input((8, 8, 3))
    tokens = layers.Reshape((16, 8))(layers.Conv2D(8, 2, strides=2, name="patches")(pictures))
    normed = layers.LayerNormalization(name="norm")(tokens)
    tokens = layers.Add()([tokens, layers.MultiHeadAttention(2, 4, name="attention")(normed, normed)])
    return keras.Model(pictures, layers.Dense(3, name="classes")(layers.Dense(8, "gelu", name="wide")(tokens)[:, 0]))


@pytest.fixture(scope="module")
def odd(model, convolutions, plain_keras, folder):
    """Files that one target or other does not take, and plain convolutions."""
    run = {"training": False}
    return {
        "dynamic_batch": convert(folder, "dynamic", lambda x: model(x, **run), (None, 8, 8, 3)),
        "dynamic_keras": convert(folder, "dynamic_keras", lambda x: plain_keras(x, **run), (None, 8, 8, 3)),
        "convolutions": convert(folder, "convolutions", lambda x: convolutions(x, **run), (1, 16, 16, 3)),
        "int8_convolutions": convert(folder, "int8", lambda x: convolutions(x, **run), (1, 16, 16, 3), int8=True),
        "rank_6": convert(folder, "rank_6", lambda x: tf.transpose(x, (0, 3, 1, 4, 2, 5)) + 1.0, (1, 2, 2, 2, 2, 3)),
        "flex": convert(folder, "flex", lambda x: tf.math.tan(x) * 2.0, (1, 4), flex=True),
        "class_token": convert(folder, "class_token", lambda x: tf.nn.gelu(x[:, 0]), (1, 5, 8)),
        "folded_heads": convert(folder, "folded", heads_in_the_batch, (1, 4, 12)),
        "int8_gelu": convert(folder, "int8_gelu", lambda x: tf.nn.gelu(x * 2.0) + 1.0, (1, 16), int8=True),
    }


def refusals(file, target, rules=None):
    """Returns operator name to reason and layer, of the first of each name."""
    result = check_rules(read_file(file), RULE_SETS[rules or TARGETS[target].rules[0]])
    found = {}
    for refusal in result.refused:
        found.setdefault(refusal.operator, (refusal.reason, refusal.layer))
    return found


# The CPU: predicted and real


def boundaries(info, parts):
    """Returns, of each part, the tensors that it hands on."""
    found = []
    for part in parts:
        outside = {i for n, o in enumerate(info.operators) if n not in part for i in o.inputs} | set(info.outputs)
        found.append(frozenset(i for n in part for i in info.operators[n].outputs if i in outside))
    return Counter(found)


def really_delegated(file):
    """Returns, of each part that XNNPACK took here, the tensors that it hands on."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    details = interpreter._get_ops_details()
    return Counter(frozenset(int(i) for i in d["outputs"]) for d in details if d["op_name"] == "DELEGATE")


REAL = (
    *KINDS,
    "convolutions",
    "int8_convolutions",
    "dynamic_batch",
    "dynamic_keras",
    "rank_6",
    "class_token",
    "folded_heads",
    "int8_gelu",
)


@pytest.mark.parametrize("name", REAL)
def test_xnnpack_takes_what_is_predicted(files, odd, name):
    file = {**files, **odd}[name]
    info = read_file(file)
    check = check_rules(info, RULE_SETS["xnnpack"])
    refused = {refusal.index for refusal in check.refused}
    parts = partition(info.operators, [n not in refused for n in range(len(info.operators))])
    assert boundaries(info, parts) == really_delegated(file)
    assert check.partitions == len(parts)


# Other targets


def test_gelu_is_refused_by_edge_tpu_and_microcontrollers(files, odd):
    for target in ("edgetpu", "micro"):
        for file in (odd["int8_gelu"], files["full_int8"]):
            assert refusals(file, target)["GELU"][0] == "not among the operators that are taken"
    assert refusals(files["full_int8"], "edgetpu")["GELU"][1].startswith("block_0_mlp")
    assert set(refusals(odd["int8_gelu"], "edgetpu")) == {"GELU"}
    assert not refusals(odd["int8_gelu"], "gpu")


def test_float16_files_run_whole_on_gpus(files):
    assert not refusals(files["float16"], "gpu")


@pytest.mark.parametrize("pooling", ["token", "attention", "distilled", "deit3"])
def test_files_of_all_poolings_run_whole_on_gpus(folder, pooling):
    small = {"image_size": 8, "patch_size": 2, "hidden_dim": 16, "num_layers": 2, "num_heads": 2, "mlp_dim": 32}
    if pooling == "distilled":
        backbone = deit(**small, distilled=True)
    else:
        backbone = deit3(**small) if pooling == "deit3" else vit(**small, pooling=pooling)
    model = classifier(backbone, 4)
    randomise_zeros(model)
    file = to_tflite_files(model, {"float16": folder / f"{pooling}.tflite"})["float16"]
    assert not refusals(file, "gpu")


def test_a_batch_that_is_not_fixed(odd, plain_keras):
    for target in ("gpu", "edgetpu", "npu", "micro"):
        found = refusals(odd["dynamic_batch"], target)
        assert "of unknown size" in found["FULLY_CONNECTED"][0]
        assert found["CONV_2D"][1] == "patch_embedding/projection"
    assert not refusals(odd["dynamic_batch"], "cpu")  # As it really is: see above.
    found = refusals(odd["dynamic_keras"], "cpu")
    assert {"SHAPE", "PACK", "RESHAPE", "STRIDED_SLICE"} <= set(found)
    assert "computed when the file runs" in found["RESHAPE"][0]
    assert found["SHAPE"][1] in {layer.name for layer in plain_keras.layers}


def test_rank_6(odd):
    assert "of rank 6" in refusals(odd["rank_6"], "gpu")["TRANSPOSE"][0]
    assert "of rank 6" in refusals(odd["rank_6"], "micro")["TRANSPOSE"][0]
    assert "only the last 3" in refusals(odd["rank_6"], "edgetpu")["TRANSPOSE"][0]


@pytest.mark.parametrize("target", TARGETS)
def test_flex_operators_are_refused_everywhere(odd, target):
    [(name, (reason, _))] = [item for item in refusals(odd["flex"], target).items() if item[0].startswith("Flex")]
    assert name == "FlexTan" and "Select TF" in reason


def test_slices_batches_and_types(files, odd):
    assert "shrink axis" in refusals(odd["class_token"], "cpu")["STRIDED_SLICE"][0]
    assert "of batch 6 in a graph of batch 1" in refusals(odd["folded_heads"], "gpu")["BATCH_MATMUL"][0]
    assert "of float32" in refusals(files["float32"], "edgetpu")["FULLY_CONNECTED"][0]
    assert "of int16" in refusals(files["int16x8"], "cpu")["FULLY_CONNECTED"][0]
    assert "float32 with int8 weights" in refusals(files["dynamic_int8"], "micro")["FULLY_CONNECTED"][0]
    assert not refusals(files["full_int8"], "npu", "qnn")
    assert not refusals(files["int16x8"], "npu16")


def test_convolutions_run_where_they_are_known_to(odd):
    for target in ("cpu", "web", "gpu", "npu", "micro"):
        [check] = check_devices(odd["convolutions"], [target])
        assert check.fits and check.best.partitions == 1
    assert refusals(odd["int8_convolutions"], "edgetpu") == {
        "HARD_SWISH": ("not among the operators that are taken", "swish")
    }


@pytest.mark.parametrize("name", ["float32", "full_int8", "convolutions", "int8_convolutions"])
def test_operators_know_their_layers(files, odd, model, convolutions, name):
    nothing = dataclasses.replace(RULE_SETS["micro"], operators={}, dynamic=True)
    file = {**files, **odd}[name]
    check = check_rules(read_file(file), nothing)
    layers = {refusal.layer for refusal in check.refused if refusal.operator != "QUANTIZE"}
    known = convolutions if name.endswith("convolutions") else model
    assert {layer.split("/")[0] for layer in layers} <= {layer.name for layer in rewrite(known).layers}
    if known is model:
        products = [refusal.layer for refusal in check.refused if refusal.operator == "FULLY_CONNECTED"]
        inner = ["attention/key", "attention/query", "attention/value", "attention/out", "mlp/expand", "mlp/contract"]
        inner = [f"block_0_{layer}" for layer in inner]
        assert [*sorted(products[:3]), *products[3:]] == [*inner, "head"]


# The rules themselves


def test_rules_are_sound():
    assert {name for target in TARGETS.values() for name in target.rules} == set(RULE_SETS)
    from ai_edge_litert.schema_py_generated import BuiltinOperator

    used = set()
    for rules in RULE_SETS.values():
        assert rules.sources and all(source.url.startswith("https://") and source.state for source in rules.sources)
        assert rules.falls_back and len(rules.operators) > 20
        for name, rule in rules.operators.items():
            assert hasattr(BuiltinOperator, name), name
            assert rule.dtypes and rule.ranks[0] <= rule.ranks[1]
            used |= set(rule.needs)
    assert used == set(CONDITIONS)


def tensor(shape, dtype="float32", **kwargs):
    return TensorInfo("m_1/layer_1/x", dtype, tuple(shape), **kwargs)


def reason(rules, name, inputs, outputs, version=1, **options):
    """Returns why an operator is refused, or None."""
    tensors = (*inputs, *outputs)
    count = len(inputs)
    operator = OperatorInfo(name, False, version, tuple(range(count)), tuple(range(count, len(tensors))), options)
    info = FileInfo(100, tensors, (operator,), (0,), (count,))
    refused = check_rules(info, RULE_SETS[rules]).refused
    return refused[0].reason if refused else None


I8 = {"scales": 1, "scale": 0.1}
AXES = tensor((1,), "int32", constant=True, values=(-1,))
X = tensor((1, 8, 8, 4))


@pytest.mark.parametrize(
    ("rules", "name", "inputs", "outputs", "options", "words"),
    [
        ("xnnpack", "SOFTMAX", [X], [X], {"beta": 2.0}, "beta 2"),
        ("xnnpack", "ADD", [X, X], [X], {"activation": "TANH"}, "TANH"),
        ("xnnpack", "ADD", [X, X], [X], {"activation": "RELU6"}, None),
        ("xnnpack", "ADD", [tensor((4,), "int8", **I8), X], [X], {}, "mixed"),
        ("xnnpack", "CONCATENATION", [X] * 6, [X], {}, "6 inputs"),
        ("xnnpack", "SPLIT", [AXES, X], [X] * 5, {}, "5 outputs"),
        ("xnnpack", "SPLIT", [AXES, X], [X] * 4, {}, None),
        ("xnnpack", "MEAN", [X, dataclasses.replace(AXES, constant=False)], [X], {}, "input 1"),
        (
            "xnnpack",
            "AVERAGE_POOL_2D",
            [X],
            [X],
            {"stride_h": 2, "stride_w": 2, "filter_h": 1, "filter_w": 1},
            "stride",
        ),
        ("xnnpack", "TRANSPOSE", [tensor([1] * 7), AXES], [tensor([1] * 7)], {}, "rank 7"),
        ("xnnpack", "EXPAND_DIMS", [X, AXES], [X], {}, "not among"),
        ("gpu", "ADD", [tensor((1, 16, 8)), tensor((16, 8))], [tensor((1, 16, 8))], {}, "(1, 16, 8) and (16, 8)"),
        ("gpu", "ADD", [X, tensor((4,), constant=True)], [X], {}, None),
        ("gpu", "ADD", [X, tensor((8, 8, 4), constant=True)], [X], {}, None),
        ("gpu", "BATCH_MATMUL", [X, tensor((1, 4, 4), constant=True)], [X], {}, "constant of rank 3"),
        ("gpu", "SLICE", [tensor((1, 8)), AXES, AXES], [tensor((1, 4))], {}, "rank 2"),
        ("nnapi", "SUM", [tensor((8,)), AXES], [tensor(())], {}, "scalar"),
        ("nnapi", "BATCH_MATMUL", [X, tensor((8, 4, 4))], [X], {}, "broadcasts"),
        ("nnapi", "UNPACK", [X], [tensor((1, 8, 8))] * 4, {"axis": 3}, "last axis"),
        ("edgetpu", "MEAN", [tensor((1, 8, 6), "int8", **I8), AXES], [tensor((1, 8, 1), "int8", **I8)], {}, "of 6"),
        ("edgetpu", "MEAN", [tensor((1, 8, 8), "int8", **I8), AXES], [tensor((1, 8, 1), "int8", **I8)], {}, None),
        ("edgetpu", "SOFTMAX", [tensor((1, 5, 5), "int8")], [tensor((1, 5, 5), "int8")], {}, "5 rows"),
        ("edgetpu", "SOFTMAX", [tensor((1, 17000), "int8")], [tensor((1, 17000), "int8")], {}, "17,000"),
        ("edgetpu", "SPLIT", [tensor((4, 8, 8, 4), "int8")], [tensor((4, 8, 8, 2), "int8")], {}, "only the last 3"),
        ("qnn", "REDUCE_PROD", [X, AXES], [X], {}, "not among"),
        ("micro", "RSQRT", [tensor((1, 8), "int16")], [tensor((1, 8), "int16")], {}, "of int16"),
        ("micro", "BROADCAST_TO", [X, dataclasses.replace(AXES, constant=False)], [X], {}, "input 1"),
        ("micro", "STRIDED_SLICE", [tensor([1] * 5), AXES, AXES, AXES], [tensor([1] * 5)], {}, "rank 5"),
    ],
)
def test_conditions(rules, name, inputs, outputs, options, words):
    found = reason(rules, name, inputs, outputs, **options)
    assert (found is None) == (words is None)
    assert words is None or words in found


def test_versions():
    assert reason("gpu", "GATHER", [X, tensor((3,), "int32")], [X]) is None
    assert "version 2" in reason("gpu", "GATHER", [X, tensor((3,), "int32")], [X], version=2)


def test_an_operator_without_outputs_is_refused_not_an_error():
    for rules in RULE_SETS.values():
        for name in rules.operators:
            assert reason(rules.name, name, [X], [])
            reason(rules.name, name, [], [X])
    assert Rule(("float32",)).ranks == (0, 8)


def test_partition_follows_the_data():
    def operators(*links):
        return [OperatorInfo("ADD", False, 1, inputs, outputs, {}) for inputs, outputs in links]

    chain = operators(((0,), (1,)), ((1,), (2,)), ((2,), (3,)))
    assert partition(chain, [True, True, True]) == [[0, 1, 2]]
    assert partition(chain, [True, False, True]) == [[0], [2]]
    assert partition(chain, [False, True, False]) == [[1]]
    assert partition(chain, [False] * 3) == partition([], []) == []
    aside = operators(((0,), (1,)), ((0, -1), (2,)), ((1,), (3,)), ((3, 2), (4,)))
    assert partition(aside, [True, False, True, True]) == [[0, 2], [3]]  # As TensorFlow Lite, which goes on at once.
    assert partition(operators(((1,), (0,)), ((0,), (1,))), [True, True]) == []  # A cycle.
    long = operators(*(((n,), (n + 1,)) for n in range(20_000)))
    assert len(partition(long, [n % 2 == 0 for n in range(20_000)])) == 10_000


# Damaged and hostile files


def test_names_cannot_steer_a_terminal(files, tmp_path):
    content = files["float32"].read_bytes()
    file = tmp_path / "hostile.tflite"
    file.write_bytes(content.replace(b"block_0", b"\x1b[2J_0_"))
    info = read_file(file)
    assert any("?[2J_0_" in tensor.name for tensor in info.tensors)
    assert all(tensor.name.isprintable() for tensor in info.tensors)


def mutations(content, count, seed=0):
    """Yields damaged copies: flipped bits, cuts, and numbers that look like counts or offsets made huge."""
    numbers = np.random.default_rng(seed)
    small = [i for i in range(0, len(content) - 4, 4) if 0 < struct.unpack_from("<I", content, i)[0] < len(content)]
    for i in range(count):
        damaged = bytearray(content)
        if i % 3 == 0:
            for place in numbers.choice(small, 1 + i % 8):
                damaged[place + numbers.integers(4)] ^= 1 << numbers.integers(8)
        elif i % 3 == 1:
            damaged = damaged[: int(numbers.integers(len(content)))]
        else:
            value = (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, len(content) - 1, 0x01000000)[i % 5]
            struct.pack_into("<I", damaged, int(numbers.choice(small)), value)
        yield bytes(damaged)


@pytest.mark.parametrize("kind", ["float32", "static_int8"])
def test_damaged_files_are_read_within_bounds(files, tmp_path, kind):
    file = tmp_path / "damaged.tflite"
    read, refused = 0, 0
    for content in mutations(files[kind].read_bytes(), 240):
        file.write_bytes(content)
        try:
            info = read_file(file)
        except ValueError as error:
            assert "damaged.tflite" in str(error) and len(str(error)) < 1000
            refused += 1
        else:
            read += 1
            for rules in RULE_SETS.values():
                assert check_rules(info, rules).operators == len(info.operators)
    assert read > 10 and refused > 100


def test_modules_beside_a_file_are_not_run(files, tmp_path, monkeypatch):
    for name in ("numpy", "struct", "json"):
        (tmp_path / f"{name}.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    monkeypatch.chdir(tmp_path)
    shutil.copy(files["float32"], "m.tflite")
    assert inspect_file("m.tflite").operators and try_file("m.tflite").memory >= 0
    assert not Path("ran").exists()


def test_damaged_files_do_not_take_their_reader_along(files, tmp_path):
    file = tmp_path / "damaged.tflite"
    answers = Counter()
    for content in mutations(files["full_int8"].read_bytes(), 24, seed=1):
        file.write_bytes(content)
        try:
            try_file(file, seconds=60)
        except ValueError as error:
            assert "damaged.tflite" in str(error) and "\n" not in str(error)
            answers["refused"] += 1
        else:
            answers["run"] += 1
    assert answers["refused"] > 8


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "of 9 to 4,294,967,296 bytes"),
        (b"TFL3", "of 9 to 4,294,967,296 bytes"),
        (b"\0" * 100, "TFL3"),
        (b"\xff\xff\xff\x7fTFL3" + b"\xff" * 100, "damaged"),
    ],
)
def test_what_is_no_file_is_refused(tmp_path, content, words):
    file = tmp_path / "a file.tflite"
    file.write_bytes(content)
    for look in (inspect_file, try_file, check_devices):
        with pytest.raises(ValueError, match=words) as error:
            look(file)
        assert str(file) in str(error.value)
    for look in (inspect_file, try_file, check_devices):
        with pytest.raises(FileNotFoundError, match="none"):
            look(tmp_path / "none.tflite")


def test_a_file_that_ends_or_holds_up_its_process(files, odd, monkeypatch):
    from vit_keras.export import inspection

    with pytest.raises(ValueError, match=r"float32\.tflite could not be run within 0\.01 s"):
        try_file(files["float32"], seconds=0.01)
    with pytest.raises(ValueError, match=r"flex\.tflite is not a TensorFlow Lite model that can be run here"):
        try_file(odd["flex"])
    script = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    real = inspection.subprocess.run
    monkeypatch.setattr(inspection.subprocess, "run", lambda a, **k: real([a[0], "-c", script], **k))
    with pytest.raises(ValueError, match=r"float32\.tflite is damaged.*SIGSEGV"):
        inspect_file(files["float32"])


def test_inspect_file_reads_in_a_process_what_read_file_reads(files):
    assert inspect_file(files["static_int8"]) == read_file(files["static_int8"])
    assert try_file(files["float32"]).memory > 0


# The command line


@pytest.mark.parametrize(
    ("name", "flags", "code"),
    [
        ("convolutions", ["--for", "cpu"], 0),
        ("convolutions", ["--for", "cpu", "--for", "edgetpu"], 1),
        ("convolutions", ["--for", "cpu,gpu"], 0),
        ("convolutions", ["--for", "all"], 1),
        ("flex", [], 0),
        ("flex", ["--for", "cpu"], 1),
        ("dynamic_batch", ["--for", "gpu"], 1),
        ("rank_6", ["--for", "gpu"], 1),
        ("int8_gelu", ["--for", "edgetpu"], 1),
    ],
)
def test_devices_exits_with_what_it_found(capsys, odd, name, flags, code):
    assert main(["devices", str(odd[name]), *flags]) == code
    captured = capsys.readouterr()
    assert captured.err == "" and "refused" in captured.out
    assert ("https://" in captured.out) == bool(code or not flags)


def test_devices_names_operators_reasons_and_layers(capsys, files):
    assert main(["devices", str(files["full_int8"]), "--for", "edgetpu"]) == 1
    out = capsys.readouterr().out
    for word in ("GELU", "block_0_mlp", "BATCH_MATMUL", "Edge TPU compiler", "coral.ai", "not verified"):
        assert word in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["devices", "none.tflite"], "none.tflite"),
        (["devices", "{damaged}"], "damaged.tflite"),
        (["devices", "{good}", "--for", "gp"], "Did you mean 'gpu'?"),
        (["devices", "{good}", "--fr", "gpu"], "Did you mean '--for'?"),
        (["benchmark", "none.tflite"], "none.tflite"),
        (["benchmark", "{good}", "{damaged}"], "damaged.tflite"),
        (["benchmark", "{good}", "--threads", "0"], "threads"),
        (["benchmark"], "files"),
    ],
)
def test_bad_input_is_one_sentence(capsys, files, tmp_path, arguments, words):
    (tmp_path / "damaged.tflite").write_bytes(files["float32"].read_bytes()[:5000])
    known = {"good": str(files["float32"]), "damaged": str(tmp_path / "damaged.tflite")}
    assert main([argument.format(**known) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and words in captured.err
    assert captured.err.startswith("vit-keras: error: ") and len(captured.err.splitlines()) == 1


def test_benchmark_prints_a_line_per_file(capsys, files):
    assert main(["benchmark", str(files["float32"]), str(files["full_int8"])]) == 0
    out = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.splitlines() if "│" in line]
    assert [Path(row[0]).name for row in rows if row[1]] == ["float32.tflite", "full_int8.tflite"]
    for row, kind in zip([row for row in rows if row[1]], ("float32", "full_int8"), strict=True):
        assert row[3] == f"{files[kind].stat().st_size:,}"
        assert 0 < float(row[1]) <= float(row[2]) and float(row[4]) > 0 and row[5] == "1"


def test_names_and_graphs_that_are_made_to_take_long():
    """A name of thousands of fused operators is cut, a scalar has no last dimension, and a cycle has an end."""
    name = "ab/c;" * 4000
    tensors = tuple(dataclasses.replace(X, name=name + str(i)) for i in range(401))
    operators = tuple(OperatorInfo("ADD", False, 1, (i, i), (i + 1,), {}) for i in range(400))
    names = LayerNames(FileInfo(100, tensors, operators, (0,), (400,)))
    assert names.of(operators[0]) == "ab"
    assert all(len(parts) <= 64 for parts in names._known.values())
    for rules in RULE_SETS:
        reason(rules, "MEAN", [tensor((), "int8", **I8), AXES], [tensor((), "int8", **I8)])
    cycle = FileInfo(100, (X, X), (OperatorInfo("QUANTIZE", False, 1, (1,), (1,), {}),), (0,), (1,))
    assert not cycle.ends_in_softmax
