"""Our spaces inside a user's own keras-tuner code: a `HyperModel` for `keras_tuner.Tuner` and its kin."""

import tempfile
from pathlib import Path
from typing import Any

import keras
import keras_tuner
from keras_tuner.errors import FailedTrialError

from .config import RunConfig
from .fitting import build_model
from .measuring import Measurement, cached, measure_model, shape_key
from .optimizers import make_optimizer
from .resolving import resolve_sizes
from .space import Space, apply, read_space
from .training import SmoothedCrossentropy, accuracy
from .tune_config import TuneConfig


class VitHyperModel(keras_tuner.HyperModel):
    """Builds and compiles a classifier from a space, within what a device can do.

    Args:
        space: A ready space's name, a YAML file, or a `Space`.
        num_classes: Number of classes.
        config: What is not searched; `model` must be a preset's name, `fit.epochs` a number.
        steps_per_epoch: Batches in an epoch, for the schedule of the learning rate.
        tune: Constraints, kind and threads; a model above one of them fails its trial before it is trained.
        cache: Folder where measurements are kept; one for this object if `None`.

    Raises:
        ValueError: a model or epochs that are left open.
    """

    def __init__(
        self,
        space: str | Space = "small",
        num_classes: int = 10,
        config: RunConfig | None = None,
        steps_per_epoch: int = 100,
        tune: TuneConfig | None = None,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(name="vit")
        self.space = read_space(space) if isinstance(space, str) else space
        self.config = config or RunConfig()
        if self.config.model == "auto" or self.config.fit.epochs is None:
            raise ValueError(
                "config must name a preset and epochs here, where no data decide them. "
                f"Received: model={self.config.model}, fit.epochs={self.config.fit.epochs}"
            )
        self.num_classes, self.steps_per_epoch = num_classes, steps_per_epoch
        self.tune = tune or TuneConfig()
        self._temporary = tempfile.TemporaryDirectory() if cache is None else None
        self._cache = Path(cache or self._temporary.name)  # type: ignore

    def build(self, hp: Any) -> keras.Model:
        """Returns the compiled model of hyperparameter values.

        keras-tuner builds with default values first, where an error would end the whole search: of a shape that cannot
        be built this is a stand-in, whose trial `fit` fails.
        """
        values = self.space.declare(hp)
        try:
            model = self._model(values)
        except ValueError as error:
            model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])
            model.infeasible = str(error)
        fit = apply({}, self.config).fit if hasattr(model, "infeasible") else apply(values, self.config).fit
        model.compile(
            make_optimizer(model, fit, self.steps_per_epoch),
            SmoothedCrossentropy(fit.label_smoothing),
            metrics=[keras.metrics.MeanMetricWrapper(accuracy, name="accuracy")],
        )
        return model

    def fit(self, hp: Any, model: keras.Model, *args: Any, **kwargs: Any) -> Any:
        """Trains a model as keras-tuner does, with the configuration's epochs if none are given.

        Raises:
            keras_tuner.errors.FailedTrialError: a shape that cannot be built, or one above a constraint.
        """
        reason = getattr(model, "infeasible", None)
        if reason is None and self.tune.limits:
            reason = self._measured(dict(hp.values)).excess(self.tune.limits)
        if reason:
            raise FailedTrialError(reason)
        kwargs.setdefault("epochs", apply(dict(hp.values), self.config).fit.epochs)
        return super().fit(hp, model, *args, **kwargs)

    def _model(self, values: dict[str, Any], weights: bool = True) -> keras.Model:
        config = resolve_sizes(apply(values, self.config))
        keras.utils.set_random_seed(config.fit.seed)
        return build_model(config, self.num_classes, config.weights if weights else None)

    def _measured(self, values: dict[str, Any]) -> Measurement:
        kind, threads = self.tune.kind, self.tune.threads
        labels = tuple(str(i) for i in range(self.num_classes))
        key = shape_key(resolve_sizes(apply(values, self.config)), self.num_classes, kind, threads)
        return cached(self._cache, key, lambda: measure_model(self._model(values, False), kind, threads, labels))[0]
