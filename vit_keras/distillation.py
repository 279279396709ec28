"""Distillation as in DeiT: a student learns from the true labels and from a teacher that is trained already."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from .weights.resample import resample_filter

KINDS = ("hard", "soft")


@keras.saving.register_keras_serializable("vit_keras")
class DistillationLoss(keras.losses.Loss):
    """What a student's logits are away from a teacher's answer.

    Hard: the cross-entropy with the teacher's first class, without label smoothing. Soft: the Kullback-Leibler
    divergence of the student's distribution from the teacher's, both at a temperature, times the temperature's square,
    so that its gradient does not shrink with it.

    Args:
        kind: `"hard"` or `"soft"`; hard is what the paper recommends.
        temperature: Divides both logits before the softmax, above 0. Only soft distillation has one.
        teacher_from_logits: Whether the teacher gives logits; otherwise it gives probabilities.
        name: Name of the loss.
        **kwargs: `reduction` and `dtype`, as every Keras loss takes them.

    Call arguments:
        y_true: The teacher's answer, `(B, C)`.
        y_pred: The student's logits, `(B, C)`.
        sample_weight: As in every Keras loss, `(B,)`.

    Raises:
        ValueError: an unknown `kind`, or a `temperature` that is not above 0.

    Reference:
        Touvron et al. (arXiv:2012.12877), section 4, equations 2 and 3. Their code divides the divergence by the
        number of classes as well; here, as in the equation, it is the mean over the pictures alone. So an `alpha` that
        does in theirs what `a` does here is `a C / (1 - a + a C)`.
    """

    def __init__(
        self,
        kind: str = "hard",
        temperature: float = 1.0,
        teacher_from_logits: bool = True,
        name: str = "distillation_loss",
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {KINDS}. Received: kind={kind!r}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0. Received: temperature={temperature}")
        self.kind = kind
        self.temperature = temperature
        self.teacher_from_logits = teacher_from_logits

    def call(self, y_true, y_pred):
        if self.kind == "hard":
            label = keras.ops.argmax(y_true, axis=-1)  # (B,)
            return keras.losses.sparse_categorical_crossentropy(label, y_pred, from_logits=True)
        if not self.teacher_from_logits:
            y_true = keras.ops.log(keras.ops.maximum(y_true, keras.config.epsilon()))
        teacher = keras.ops.log_softmax(y_true / self.temperature)
        student = keras.ops.log_softmax(y_pred / self.temperature)
        return self.temperature**2 * keras.ops.sum(keras.ops.exp(teacher) * (teacher - student), axis=-1)  # (B,)

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "kind": self.kind,
            "temperature": self.temperature,
            "teacher_from_logits": self.teacher_from_logits,
        }


@dataclass(frozen=True)
class _Untracked:
    """Models that Keras shall not find: no part of the variables, the optimiser or the weight files.

    Attributes:
        teacher: The teacher.
        heads: From pictures to the student's output and that of its two heads, on the student's own layers; `None`
            if it has one head.
    """

    teacher: keras.Model
    heads: keras.Model | None


@keras.saving.register_keras_serializable("vit_keras")
class Distiller(keras.Model):
    """A student and its teacher in one model for `compile` and `fit`; everything else it does as the student does.

    The training loss is `(1 - alpha) * loss + alpha * DistillationLoss`, with `loss` the one given to `compile`, on
    integer labels or distributions, smoothed or not. A student with a distillation token (`deit(distilled=True)`)
    learns the labels on the class token's head and the teacher on the distillation token's head. Any other learns both
    on its one output. Metrics, `evaluate` and `predict` are on the student's output, the mean of both heads, and
    `val_loss` is the compiled loss alone.

    The teacher runs in inference mode, on the very pictures that the student sees, and is not changed. Its variables
    are neither in the optimiser nor in weight files. Save `distiller.student` when the training is over; a whole
    `Distiller`, saved as `.keras`, holds the teacher too. In mixed precision each model keeps its own policy.

    Args:
        student: A classifier from pixels, 0 to 255, `(B, H, W, 3)`, to logits, `(B, C)`.
        teacher: A classifier from the same pixels to logits or probabilities, `(B, C)`. Any Keras model; under a
            `tf.distribute` strategy or a Keras distribution it must be made in the same scope as the student.
        kind: `"hard"` or `"soft"`, see `DistillationLoss`.
        alpha: Share of the teacher in the loss, in [0, 1]; 0.5 as in the paper's code, and in its equation 3.
        temperature: Of soft distillation, above 0; 1.0 as in the paper's code.
        teacher_from_logits: Whether the teacher gives logits; otherwise it gives probabilities.
        teacher_image_size: Height and width in pixels of the pictures for the teacher, which are resized if they have
            another size; its own input's if `None`.
        name: Name of the model.

    Call arguments:
        inputs: Pixels, float `(B, H, W, 3)`.
        training: Whether the student's dropout and stochastic depth are on.

    Returns:
        The student's logits, `(B, C)`; in training mode a dictionary of `"logits"`, `"head"` and
        `"head_distillation"`, each `(B, C)`.

    Raises:
        ValueError: `alpha` outside [0, 1], an unknown `kind`, a `temperature` that is not above 0, a teacher with
            another number of classes, or one that shares variables with the student.

    Reference:
        Touvron et al. (arXiv:2012.12877), section 4.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model,
        kind: str = "hard",
        alpha: float = 0.5,
        temperature: float = 1.0,
        teacher_from_logits: bool = True,
        teacher_image_size: tuple[int, int] | None = None,
        name: str = "distiller",
    ) -> None:
        super().__init__(name=name, dtype=student.dtype_policy, autocast=False)
        if not 0 <= alpha <= 1:
            raise ValueError(f"alpha must be in [0, 1]. Received: alpha={alpha}")
        if {id(v) for v in student.variables} & {id(v) for v in teacher.variables}:
            raise ValueError(f"teacher must share no variables with student. Received: teacher={teacher.name!r}")
        self.student = student
        self.alpha = alpha
        self.distillation_loss = DistillationLoss(kind, temperature, teacher_from_logits)
        self.teacher_image_size = tuple(teacher_image_size) if teacher_image_size else None
        self._untracked = _Untracked(teacher, _two_heads(student))
        _check_classes(student, teacher, teacher_image_size)
        self.built = student.built

    def call(self, inputs, training=None):
        if not training:
            return self.student(inputs, training=training)
        if self._untracked.heads is not None:
            return self._untracked.heads(inputs, training=training)
        logits = self.student(inputs, training=training)
        return {"logits": logits, "head": logits, "head_distillation": logits}

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if not isinstance(y_pred, dict):  # Evaluation.
            return super().compute_loss(x, y, y_pred, sample_weight, training)
        loss = super().compute_loss(x, y, y_pred["head"], sample_weight, training)
        distillation = self.distillation_loss(self._teach(x), y_pred["head_distillation"], sample_weight)
        for penalty in self.losses:  # Regularisation is part of `loss`: its share must stay 1.
            distillation += self._aggregate_additional_loss(penalty)
        return (1 - self.alpha) * loss + self.alpha * distillation

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return super().compute_metrics(x, y, y_pred["logits"] if isinstance(y_pred, dict) else y_pred, sample_weight)

    def _teach(self, pictures):
        """Returns the teacher's answer, `(B, C)`."""
        old = _image_size(self.student) or tuple(pictures.shape[1:3])
        pictures = keras.ops.cast(pictures, "float32")  # A teacher of a class of its own may not take bytes.
        pictures = _resize(pictures, old, self.teacher_image_size or _image_size(self._untracked.teacher) or old)
        return keras.ops.stop_gradient(self._untracked.teacher(pictures, training=False))

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        """The student's and all of the teacher's: the state that JAX's stateless training carries along."""
        return [*super().non_trainable_variables, *self._untracked.teacher.variables]

    def save_assets(self, path: str) -> None:
        """Writes the teacher's weights into a `.keras` file; files of weights have no assets, and no teacher."""
        self._untracked.teacher.save_weights(Path(path) / "teacher.weights.h5")

    def load_assets(self, path: str) -> None:
        """Reads them again."""
        self._untracked.teacher.load_weights(Path(path) / "teacher.weights.h5")

    def get_config(self) -> dict:
        return {
            "student": keras.saving.serialize_keras_object(self.student),
            "teacher": keras.saving.serialize_keras_object(self._untracked.teacher),
            "kind": self.distillation_loss.kind,
            "alpha": self.alpha,
            "temperature": self.distillation_loss.temperature,
            "teacher_from_logits": self.distillation_loss.teacher_from_logits,
            "teacher_image_size": self.teacher_image_size,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None) -> "Distiller":
        models = {
            key: keras.saving.deserialize_keras_object(config[key], custom_objects) for key in ("student", "teacher")
        }
        return cls(**{**config, **models})


def _two_heads(student: keras.Model) -> keras.Model | None:
    """Takes a distilled classifier's heads apart; `None` if it has only one."""
    names = ("head", "head_distillation")
    if not set(names) <= {layer.name for layer in student.layers}:
        return None
    outputs = {"logits": student.output} | {name: student.get_layer(name).output for name in names}
    return keras.Model(student.input, outputs, name="student_heads")


def _image_size(model: keras.Model) -> tuple[int, int] | None:
    """Returns the height and width of a model's pictures, or `None` if it takes any."""
    shape = getattr(model, "input_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or None in shape[1:3]:
        return None
    return shape[1], shape[2]


def _resize(pictures, old: tuple[int, ...], new: tuple[int, ...]):
    """Resizes pixels, bicubic and antialiased as Pillow does, by matrices: XLA cannot compile TensorFlow's own op."""
    if tuple(old) == tuple(new):
        return pictures
    rows, columns = (resample_filter(a, b).astype("float32") for a, b in zip(old, new, strict=True))
    pictures = keras.ops.einsum("Hh,bhwc->bHwc", rows, pictures)
    return keras.ops.clip(keras.ops.einsum("Ww,bhwc->bhWc", columns, pictures), 0, 255)


def _check_classes(student: keras.Model, teacher: keras.Model, teacher_image_size: tuple[int, int] | None) -> None:
    size = _image_size(student) or (None, None)
    shape = _output_shape(student, size)
    if len(shape) != 2:
        raise ValueError(f"student must give one output, (B, C). Received: output shape={shape}")
    answer = _output_shape(teacher, teacher_image_size or _image_size(teacher) or size)
    if len(answer) != 2 or answer[1] != shape[1]:
        raise ValueError(
            f"teacher must tell the student's {shape[1]} classes apart, with one output (B, {shape[1]}). "
            f"Received: teacher={teacher.name!r} with output shape={answer}"
        )


def _output_shape(model: keras.Model, image_size: tuple[int | None, int | None]) -> tuple[int | None, ...]:
    """Returns the shape of a model's output; an empty one if it has several."""
    output = model.compute_output_spec(keras.KerasTensor((None, *image_size, 3)))
    return getattr(output, "shape", ())
