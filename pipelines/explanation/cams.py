"""Saliency and class-activation maps of tf-keras-vis, made right for tokens."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import keras
import numpy as np
from keras import ops

from vit_keras.explain import TokenLayout
from vit_keras.graph import flat_copy, layers_of
from vit_keras.layers import TransformerBlock

MAP = "token_map"
"""Name of the layer that gives the tokens as a true 2-D map."""
SMOOTH_SAMPLES = 20
SMOOTH_NOISE = 0.1
"""Of SmoothGrad: noisy copies, and their noise as a share of the picture's range."""
FASTER_MAPS = 10


def scoring_copy(model: keras.Model) -> tuple[keras.Model, str | None]:
    """Copies a classifier into one flat float32 model that tf-keras-vis takes, with a feature map on its way.

    The patch tokens pass through a map, `(B, h, w, D)`, before the last block: after it, gradients of a class token's
    score are zero at all patches, and of tokens, `(B, N, D)`, tf-keras-vis makes a wrong map in silence. A softmax at
    the end is left out.

    Returns:
        The copy, and the name of the layer that gives the map: the last convolution's where there are no blocks,
        `None` where there is neither.

    Raises:
        ValueError: a subclassed model.
    """
    blocks = [layer for layer in layers_of(model) if isinstance(layer, TransformerBlock)]
    seen: list[str] = []
    name = None

    def visit(layer, *args, **kwargs):
        nonlocal name
        if isinstance(layer, TransformerBlock):
            seen.append(layer.name)
            if len(seen) == len(blocks):
                name = MAP
                return layer(_through_map(args[0], TokenLayout.of(model).grid), *args[1:], **kwargs)
        if isinstance(layer, keras.layers.Softmax):
            return args[0]
        if getattr(layer, "activation", None) is keras.activations.softmax:
            layer.activation = keras.activations.linear
        if not blocks and isinstance(layer, keras.layers.Conv2D):
            name = layer.name
        return layer(*args, **kwargs)

    copy = keras.Model(*flat_copy(model, visit), name=model.name)
    copy.predict = functools.partial(copy.predict, verbose=0)  # Score-CAM calls it, and would print a bar.
    return copy, name


def _through_map(tokens, grid: tuple[int, int]):
    """Sends the patches among tokens through a layer that gives them as a map, and back."""
    height, width = grid
    start = tokens.shape[1] - height * width
    patches = keras.layers.Reshape((height, width, tokens.shape[2]), name=MAP)(tokens[:, start:])
    patches = keras.layers.Reshape((height * width, tokens.shape[2]), name=f"{MAP}_back")(patches)
    return ops.concatenate([tokens[:, :start], patches], axis=1) if start else patches


class ClassMaps:
    """Makes maps of a class's evidence with tf-keras-vis.

    Args:
        model: A functional classifier, `(B, H, W, 3)` to `(B, num_classes)`.

    Raises:
        ValueError: a subclassed model.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model, self.layer = scoring_copy(model)

    def __call__(self, method: str, images: np.ndarray, classes: np.ndarray, seed: int = 0) -> np.ndarray:
        """Returns a method's maps, float32 `(n, h, w)`, in pixels or in the cells of the feature map, as they are.

        Args:
            method: `"saliency"`, `"smooth_grad"`, `"grad_cam"`, `"grad_cam_plus_plus"`, `"layer_cam"`, `"score_cam"` or
                `"faster_score_cam"`.
            images: `(n, H, W, 3)`.
            classes: `(n,)`.
            seed: Of the noise.
        """
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The structure of `inputs`")  # tf-keras-vis gives lists of one.
            return self._maps(method, images, classes, seed)

    def _maps(self, method: str, images: np.ndarray, classes: np.ndarray, seed: int) -> np.ndarray:
        from tf_keras_vis.utils.scores import CategoricalScore

        score = CategoricalScore([int(c) for c in classes])
        if method in ("saliency", "smooth_grad"):
            from tf_keras_vis.saliency import Saliency

            samples = SMOOTH_SAMPLES if method == "smooth_grad" else 0
            with _seeded(seed):
                maps = Saliency(self.model)(
                    score, images, smooth_samples=samples, smooth_noise=SMOOTH_NOISE, normalize_map=False
                )
            return np.asarray(maps, "float32")
        options = {
            "penultimate_layer": self.layer,
            "seek_penultimate_conv_layer": False,
            "expand_cam": False,
            "normalize_cam": False,
        }
        if method in ("score_cam", "faster_score_cam"):
            return self._score_cam(method, images, classes, options)
        from tf_keras_vis.gradcam import Gradcam
        from tf_keras_vis.gradcam_plus_plus import GradcamPlusPlus
        from tf_keras_vis.layercam import Layercam

        kind = {"grad_cam": Gradcam, "grad_cam_plus_plus": GradcamPlusPlus, "layer_cam": Layercam}[method]
        return np.asarray(kind(self.model)(score, images, **options), "float32")

    def _score_cam(self, method: str, images: np.ndarray, classes: np.ndarray, options: dict) -> np.ndarray:
        """One picture at a time: it holds a masked copy of the picture for every channel."""
        from tf_keras_vis.scorecam import Scorecam
        from tf_keras_vis.utils.scores import CategoricalScore

        channels = self.model.get_layer(self.layer).output.shape[-1]
        options = {**options, "max_N": min(FASTER_MAPS, channels) if method == "faster_score_cam" else None}
        scorecam = Scorecam(self.model)
        maps = [
            scorecam(CategoricalScore(int(c)), image[None], **options) for image, c in zip(images, classes, strict=True)
        ]
        return np.concatenate([np.asarray(found, "float32") for found in maps])

    def maximised(self, classes: np.ndarray, steps: int = 200, seed: int = 0) -> np.ndarray:
        """Paints pictures that make a class's score large, float32 `(n, H, W, 3)` with pixels 0 to 255.

        Reference:
            Erhan et al., "Visualizing Higher-Layer Features of a Deep Network", 2009; as tf-keras-vis does it, from
            noise around gray, held smooth by total variation, and jittered where the side has 64 pixels or more: on
            smaller ones jitter would wash out what hangs on places.
        """
        from tf_keras_vis.activation_maximization import ActivationMaximization
        from tf_keras_vis.activation_maximization.input_modifiers import Jitter
        from tf_keras_vis.activation_maximization.regularizers import TotalVariation2D
        from tf_keras_vis.utils.scores import CategoricalScore

        height, width = self.model.input_shape[1:3]
        noise = np.random.default_rng(seed).uniform(118, 138, (len(classes), height, width, 3)).astype("float32")
        with _seeded(seed), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The structure of `inputs`")
            painted = ActivationMaximization(self.model)(
                CategoricalScore([int(c) for c in classes]),
                seed_input=noise,
                steps=steps,
                input_modifiers=[Jitter(jitter=4)] if min(height, width) >= 64 else [],
                regularizers=[TotalVariation2D(weight=0.01)],
            )
        return np.asarray(painted, "float32")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Lets NumPy's global generator, which tf-keras-vis draws from, start at a seed, and gives its state back."""
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
