"""Distillation: the losses, who learns what from whom, and that the teacher stays as it is."""

import importlib.util
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from harness import randomise_zeros

from vit_keras import create_model, load_model
from vit_keras.distillation import DistillationLoss, Distiller

CLASSES = 3
TINY = {"patch_size": 4, "hidden_dim": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32}


def make_student(distilled=True, **overrides):
    name = "deit_tiny_distilled_patch16_224" if distilled else "deit_tiny_patch16_224"
    student = create_model(name, CLASSES, image_size=8, **TINY, **overrides)
    randomise_zeros(student)
    return student


def make_teacher(size=8, classes=CLASSES, activation=None):
    """A small convolutional network with all that differs between training and inference."""
    rng = np.random.default_rng(5)
    teacher = keras.Sequential(
        [
            keras.Input((size, size, 3)),
            keras.layers.Rescaling(1 / 128, -1),
            keras.layers.Conv2D(8, 3, strides=2),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.Dropout(0.5),
            keras.layers.Flatten(),
            keras.layers.Dense(classes, activation=activation),
        ],
        name="teacher",
    )
    for variable in teacher.trainable_variables:
        variable.assign(rng.normal(0, 0.5, variable.shape))
    return teacher


def make_data(count=6, size=8):
    rng = np.random.default_rng(1)
    pictures = rng.uniform(0, 255, (count, size, size, 3)).astype("float32")
    return pictures, rng.integers(0, CLASSES, count), rng.uniform(0.5, 1.5, count).astype("float32")


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def numpy_distillation(kind, teacher, student, temperature=1.0):
    """Equations 2 and 3, picture by picture."""
    if kind == "hard":
        return -log_softmax(student)[np.arange(len(student)), teacher.argmax(axis=1)]
    t, s = log_softmax(teacher / temperature), log_softmax(student / temperature)
    return temperature**2 * (np.exp(t) * (t - s)).sum(axis=1)


@pytest.mark.parametrize(("kind", "temperature"), [("hard", 1.0), ("soft", 1.0), ("soft", 3.0)])
def test_loss_equals_its_formula(kind, temperature):
    teacher, student = np.random.default_rng(0).normal(0, 3, (2, 5, CLASSES)).astype("float32")
    expected = numpy_distillation(kind, teacher, student, temperature)
    loss = DistillationLoss(kind, temperature)
    np.testing.assert_allclose(loss(teacher, student), expected.mean(), rtol=1e-5)
    weights = np.arange(5, dtype="float32")
    np.testing.assert_allclose(loss(teacher, student, weights), (weights * expected).mean(), rtol=1e-5)
    probabilities = np.exp(log_softmax(teacher))
    loss = DistillationLoss(kind, temperature, teacher_from_logits=False)
    np.testing.assert_allclose(loss(probabilities, student), expected.mean(), rtol=1e-4)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert again.get_config() == loss.get_config()
    certain = loss(np.eye(CLASSES, dtype="float32"), np.zeros((CLASSES, CLASSES), "float32"))
    assert np.isfinite(certain)


@pytest.mark.parametrize("labels", ["integers", "distributions"])
@pytest.mark.parametrize("distilled", [True, False])
@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_training_loss_is_the_sum_of_its_parts(kind, distilled, labels):
    student, teacher = make_student(distilled), make_teacher()
    student.get_layer("head").kernel_regularizer = keras.regularizers.L2(0.1)
    student.get_layer("head").kernel.regularizer = keras.regularizers.L2(0.1)
    pictures, integers, weights = make_data()
    targets = np.eye(CLASSES, dtype="float32")[integers]
    if labels == "integers":
        y, loss = integers, keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    else:
        targets = 0.7 * targets + 0.3 * targets[::-1]  # As MixUp makes them.
        y, loss = targets, keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
        targets = 0.9 * targets + 0.1 / CLASSES
    heads = [student.output, student.output]
    if distilled:
        heads = [student.get_layer(name).output for name in ("head", "head_distillation")]
    head, head_distillation = keras.Model(student.input, heads).predict(pictures, verbose=0)
    answer = teacher.predict(pictures, verbose=0)
    penalty = 0.1 * (keras.ops.convert_to_numpy(student.get_layer("head").kernel) ** 2).sum()
    from_labels = -(targets * log_softmax(head)).sum(axis=1)
    from_teacher = numpy_distillation(kind, answer, head_distillation, 2.0)
    expected = (weights * (0.7 * from_labels + 0.3 * from_teacher)).mean() + penalty

    distiller = Distiller(student, teacher, kind, alpha=0.3, temperature=2.0)
    distiller.compile("sgd", loss)
    total = distiller.compute_loss(pictures, y, distiller(pictures, training=True), weights)
    np.testing.assert_allclose(total, expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("alpha", "learns", "idle"), [(0, "head", "head_distillation"), (1, "head_distillation", "head")]
)
def test_each_head_learns_from_its_own_source(alpha, learns, idle):
    student = make_student()
    before = {name: student.get_layer(name).kernel.numpy() for name in (learns, idle)}
    distiller = Distiller(student, make_teacher(), alpha=alpha)
    distiller.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.train_on_batch(*make_data()[:2])
    assert np.abs(student.get_layer(learns).kernel.numpy() - before[learns]).max() > 1e-4
    np.testing.assert_array_equal(student.get_layer(idle).kernel.numpy(), before[idle])


@pytest.mark.parametrize("setting", ["jit", "mixed_float16", "accumulation"])
def test_fit_leaves_the_teacher_as_it_is(setting):
    """In every manner of training; all of the student's variables move. XLA fails on `keras.ops.image.resize`."""
    teacher = make_teacher(size=12)
    if setting.startswith("mixed"):
        keras.mixed_precision.set_global_policy(setting)
    try:
        student = make_student(dropout_rate=0.1, drop_path_rate=0.1)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    before = [v.numpy() for v in teacher.variables]
    start = [v.numpy() for v in student.trainable_variables]
    distiller = Distiller(student, teacher, "soft")
    distiller.compile(
        keras.optimizers.AdamW(1e-2, gradient_accumulation_steps=2 if setting == "accumulation" else None),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=setting == "jit",
    )
    pictures, labels, _ = make_data(8)
    history = distiller.fit(pictures, labels, validation_data=(pictures, labels), batch_size=4, epochs=2, verbose=0)
    assert all(np.isfinite(value).all() for value in history.history.values())
    for variable, value in zip(teacher.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)
    assert all((v.numpy() != value).any() for v, value in zip(student.trainable_variables, start, strict=True))
    assert teacher.trainable
    theirs = {id(v) for v in teacher.variables}
    assert not theirs & {id(v) for v in (*distiller.trainable_variables, *distiller.weights)}
    assert distiller.count_params() == student.count_params()
    assert len(distiller.optimizer._trainable_variables) == len(student.trainable_variables)


def test_alpha_1_teaches_the_teachers_labels_and_alpha_0_the_true_ones():
    rng = np.random.default_rng(0)
    true = rng.integers(0, CLASSES, 96)
    pictures = rng.uniform(0, 40, (96, 8, 8, 3)).astype("float32")
    pictures[np.arange(96), :, :, true] += 150  # The brightest channel is the class.
    inputs = keras.Input((8, 8, 3))
    shifted = keras.layers.Dense(CLASSES, use_bias=False)(keras.layers.GlobalAveragePooling2D()(inputs))
    teacher = keras.Model(inputs, shifted)
    teacher.set_weights([np.roll(np.eye(CLASSES), 1, axis=1)])  # Every class is the next one for it.
    for alpha, expected in ((1.0, (true + 1) % CLASSES), (0.0, true)):
        keras.utils.set_random_seed(0)
        student = create_model("vit_micro_patch2_8", CLASSES, num_layers=1)
        distiller = Distiller(student, teacher, "soft", alpha=alpha)
        distiller.compile(keras.optimizers.Adam(3e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        distiller.fit(pictures, true, batch_size=32, epochs=6, verbose=0)
        assert (distiller.predict(pictures, verbose=0).argmax(axis=1) == expected).mean() > 0.95


def test_everything_but_training_is_the_students():
    student = make_student()
    pictures, labels, _ = make_data()
    distiller = Distiller(student, make_teacher())
    for model in (student, distiller):
        model.compile(loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    np.testing.assert_array_equal(distiller.predict(pictures, verbose=0), student.predict(pictures, verbose=0))
    ours, its = (m.evaluate(pictures, labels, verbose=0, return_dict=True) for m in (distiller, student))
    assert ours == its
    accuracy = (student.predict(pictures, verbose=0).argmax(axis=1) == labels).mean()
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    logs = distiller.train_on_batch(pictures, labels, return_dict=True)
    assert set(logs) == {"loss", "accuracy"}
    np.testing.assert_allclose(logs["accuracy"], accuracy, rtol=1e-6)  # Of the mean of both heads.


@pytest.mark.parametrize(("size", "given"), [(12, None), (5, None), (None, (11, 7))])
def test_teacher_sees_pictures_of_its_own_size(size, given):
    """Resized as Pillow does it."""
    inputs = keras.Input((size, size, 3))
    teacher = keras.Model(inputs, keras.layers.GlobalMaxPooling2D()(keras.layers.Rescaling(0.01)(inputs)))
    pictures, labels, _ = make_data()
    resized = keras.ops.image.resize(
        pictures, given or (size, size), "bicubic", antialias=True, data_format="channels_last"
    )
    answer = np.clip(resized, 0, 255).max(axis=(1, 2)) / 100
    student = make_student(distilled=False)
    expected = numpy_distillation("soft", answer, student.predict(pictures, verbose=0)).mean()
    distiller = Distiller(student, teacher, "soft", alpha=1.0, teacher_image_size=given)
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    total = distiller.compute_loss(pictures, labels, distiller(pictures, training=True))
    np.testing.assert_allclose(total, expected, rtol=1e-3)


def test_teacher_may_be_any_subclass_with_probabilities():
    class Teacher(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Conv2D(3, 1)
            self.network = make_teacher(activation="softmax")

        def call(self, pictures):
            return self.network(self.first(pictures))

    distiller = Distiller(make_student(), Teacher(), "soft", teacher_from_logits=False)
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    pictures, labels = make_data()[:2]
    assert np.isfinite(distiller.train_on_batch(pictures.astype("uint8"), labels))  # As our batches are.


def test_student_and_weights_are_saved_without_the_teacher_and_a_whole_distiller_with_it(tmp_path):
    student, teacher = make_student(), make_teacher()
    distiller = Distiller(student, teacher, "soft", alpha=0.25, teacher_image_size=(8, 8))
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    pictures, labels, _ = make_data()
    distiller.train_on_batch(pictures, labels)
    logits = student.predict(pictures, verbose=0)

    distiller.student.save(tmp_path / "student.keras")
    np.testing.assert_allclose(load_model(tmp_path / "student.keras").predict(pictures, verbose=0), logits, atol=1e-6)

    distiller.save_weights(tmp_path / "small.weights.h5")
    other = make_teacher()
    other.set_weights([w + 1 for w in other.get_weights()])
    again = Distiller(make_student(), other)
    kept = other.get_weights()
    again.load_weights(tmp_path / "small.weights.h5")
    np.testing.assert_allclose(again.predict(pictures, verbose=0), logits, atol=1e-6)
    assert all((a == b).all() for a, b in zip(kept, other.get_weights(), strict=True))

    distiller.save(tmp_path / "whole.keras")
    again = load_model(tmp_path / "whole.keras", compile=True)
    for key in ("kind", "alpha", "temperature", "teacher_from_logits", "teacher_image_size", "name"):
        assert again.get_config()[key] == distiller.get_config()[key]
    np.testing.assert_allclose(
        again.train_on_batch(pictures, labels), distiller.train_on_batch(pictures, labels), rtol=1e-5
    )


def test_what_does_not_fit_is_refused():
    student = make_student()
    with pytest.raises(ValueError, match=r"student's 3 classes.*Received: teacher='teacher' with output shape=.*5"):
        Distiller(student, make_teacher(classes=5))
    inputs = keras.Input((8, 8, 3))
    with pytest.raises(ValueError, match="one output"):
        Distiller(student, keras.Model(inputs, {"a": make_teacher()(inputs)}))
    with pytest.raises(ValueError, match="share no variables"):
        Distiller(student, student)
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\]\. Received: alpha=2"):
        Distiller(student, make_teacher(), alpha=2)
    with pytest.raises(ValueError, match=r"kind must be one of.*Received: kind='warm'"):
        Distiller(student, make_teacher(), kind="warm")
    with pytest.raises(ValueError, match=r"temperature must be above 0\. Received: temperature=0"):
        DistillationLoss("soft", 0)


PROGRAM = """
import sys
import keras, numpy as np
import vit_keras, vit_keras.distillation
assert keras.backend.backend() == sys.argv[1]
distiller = vit_keras.load_model("whole.keras")
before = [keras.ops.convert_to_numpy(v) for v in distiller._untracked.teacher.variables]
pictures, labels = np.load("pictures.npy"), np.load("labels.npy")
distiller.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
history = distiller.fit(pictures, labels, validation_data=(pictures, labels), epochs=4, batch_size=6, shuffle=False,
                        verbose=0).history
for variable, value in zip(distiller._untracked.teacher.variables, before, strict=True):
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)
np.save(sys.argv[1] + ".npy", [history["loss"], history["val_loss"]])
"""


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_backends_train_alike(backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed; Keras can run on it, vit_keras does not need it")
    distiller = Distiller(make_student(), make_teacher(size=12), "soft")
    distiller.save(tmp_path / "whole.keras")
    pictures, labels, _ = make_data()
    np.save(tmp_path / "pictures.npy", pictures)
    np.save(tmp_path / "labels.npy", labels)
    distiller.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    history = distiller.fit(
        pictures, labels, validation_data=(pictures, labels), epochs=4, batch_size=6, shuffle=False, verbose=0
    ).history
    environment = {**os.environ, "KERAS_BACKEND": backend}
    command = [sys.executable, "-c", PROGRAM, backend]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    np.testing.assert_allclose(np.load(tmp_path / f"{backend}.npy"), [history["loss"], history["val_loss"]], rtol=1e-3)
