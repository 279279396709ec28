"""The pointing test: does a method find what a model decides by, where that is known?

Models are trained on pictures in which a planted cue, one cell of a grid, alone tells the class, and on some without
one: those are a class of their own, so that a model must see every cue to name it. A map whose highest place is the cue
is a hit; blind guessing hits one in as many as there are cells.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import keras
import numpy as np
from scipy.stats import rankdata

from vit_keras import create_model

from ..correlation import rank_correlations
from .maps import Explainer, on_grid
from .subject import of_model

SIDE, CELL, CUES, DISTRACTORS = 32, 4, 4, 4
SHOWN = 0.75
"""Share of the pictures that a distractor is in, whatever their class."""
CLASSES = CUES + 1
"""One for each cue, and the last one for pictures without any."""
GRID = (SIDE // CELL, SIDE // CELL)
CHANCE = 1 / (GRID[0] * GRID[1])
RANDOMISED = 4
"""Pictures whose maps are compared with those of a model with its weights mixed."""
LEARNT = 0.98
"""Share of fresh pictures that a model must name rightly to have learnt its cues."""
STEPS = 16
"""Steps of a deletion or insertion curve."""


@dataclass(frozen=True)
class PlantedPictures:
    """Pictures with a planted cue.

    Attributes:
        images: Float32 `(n, 32, 32, 3)`, pixels 0 to 255: blurred noise, a cue or none, and up to four distractors that
            tell nothing.
        labels: The class that the cue stands for, `(n,)`; `CUES` where there is none.
        cells: Row and column of the cue's cell, `(n, 2)`; of no meaning where there is none.
    """

    images: np.ndarray
    labels: np.ndarray
    cells: np.ndarray


def planted_pictures(count: int, seed: int) -> PlantedPictures:
    """Makes pictures with a planted cue; the cues are the same for every seed."""
    patterns = np.random.default_rng(0).uniform(0, 255, (CUES + DISTRACTORS, CELL, CELL, 3))
    rng = np.random.default_rng([seed, count])
    coarse = rng.uniform(60, 200, (count, *GRID, 3))
    images = np.repeat(np.repeat(coarse, CELL, axis=1), CELL, axis=2)
    for axis in (1, 2):
        images = (np.roll(images, 1, axis) + images + np.roll(images, -1, axis)) / 3
    images = images + rng.normal(0, 12, images.shape)
    labels = rng.integers(0, CLASSES, count)
    cells = np.stack([rng.permutation(GRID[0] * GRID[1])[: 1 + DISTRACTORS] for _ in range(count)])
    present = np.concatenate([labels[:, None] < CUES, rng.uniform(size=(count, DISTRACTORS)) < SHOWN], axis=1)
    for i, label in enumerate(labels):
        shown = np.array([label, *range(CUES, CUES + DISTRACTORS)])
        for pattern, cell in zip(shown[present[i]], cells[i][present[i]], strict=True):
            row, column = CELL * (cell // GRID[1]), CELL * (cell % GRID[1])
            images[i, row : row + CELL, column : column + CELL] = patterns[pattern] + rng.normal(0, 12, (CELL, CELL, 3))
    places = np.stack([cells[:, 0] // GRID[1], cells[:, 0] % GRID[1]], axis=1)
    return PlantedPictures(np.clip(images, 0, 255).astype("float32"), labels.astype("int32"), places)


def planted_model(seed: int, pooling: str = "token", epochs: int = 8) -> keras.Model:
    """Trains a small ViT on planted pictures, in seconds: again, at most twice, while it names fewer than `LEARNT` of
    others rightly, since one that has not learnt a cue cannot be asked where it is."""
    keras.utils.set_random_seed(seed)
    model = create_model("vit_micro_patch4_32", CLASSES, num_layers=3, pooling=pooling)
    data, others = planted_pictures(1536, 1000 + seed), planted_pictures(256, 2000 + seed)
    steps = epochs * (len(data.labels) // 64)
    for _ in range(3):
        rate = keras.optimizers.schedules.CosineDecay(0.0, steps - 50, warmup_target=1e-3, warmup_steps=50)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.AdamW(rate, weight_decay=0.01), loss)
        model.fit(data.images, data.labels, batch_size=64, epochs=epochs, verbose=0)
        named = model.predict(others.images, verbose=0).argmax(axis=1)
        if np.mean(named == others.labels) >= LEARNT:
            break
    return model


def randomised(model: keras.Model, seed: int = 0) -> keras.Model:
    """Returns a model of the same build whose weights, the last layer's too, are mixed among themselves."""
    rng = np.random.default_rng(seed)
    copy = keras.models.clone_model(model)
    copy.set_weights([rng.permutation(w.ravel()).reshape(w.shape) for w in model.get_weights()])
    return copy


def hits(maps: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Says of maps, `(n, h, w)`, brought to the grid, whether their highest cell is the cue's, `(n,)`."""
    flat = on_grid(maps, GRID).reshape(len(maps), -1)
    return flat.argmax(axis=1) == cells[:, 0] * GRID[1] + cells[:, 1]


def curves(
    scores: Callable[[np.ndarray], np.ndarray],
    images: np.ndarray,
    classes: np.ndarray,
    maps: np.ndarray,
    steps: int = STEPS,
) -> tuple[np.ndarray, np.ndarray]:
    """Covers cells in the order of a map, highest first, and uncovers them in a picture that is wholly covered.

    Args:
        scores: Gives logits, `(n, num_classes)`, of pictures.
        images: `(n, H, W, 3)`.
        classes: `(n,)`.
        maps: `(n, h, w)`; h and w must divide H and W.
        steps: Number of steps.

    Returns:
        Deletion and insertion: the mean probability of the class after each step, from none to all, `(steps + 1,)`
        each. A good map makes the first fall and the second rise early.

    Reference:
        Petsiuk, Das, Saenko, "RISE" (arXiv:1806.07421), section 4.2; covered cells take the picture's mean colour.
    """
    count, height, width = maps.shape
    cell = images.shape[1] // height, images.shape[2] // width
    order = rankdata(-maps.reshape(count, -1), method="ordinal", axis=1) - 1  # 0 is the highest.
    colour = images.mean(axis=(1, 2), keepdims=True)
    cells = np.linspace(0, 1, steps + 1) * height * width
    chosen = (order < cells.round()[:, None, None]).reshape(steps + 1, count, height, width)
    results = []
    for covered_first in (True, False):
        covered = np.repeat(np.repeat(chosen == covered_first, cell[0], axis=2), cell[1], axis=3)
        pictures = np.where(covered[..., None], colour, images)  # (steps + 1, n, H, W, 3)
        logits = scores(pictures.reshape(-1, *images.shape[1:])).astype("float64")
        chances = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = chances[range(len(logits)), np.tile(classes, steps + 1)] / chances.sum(axis=1)
        results.append(shares.reshape(steps + 1, count).mean(axis=1))
    return results[0], results[1]


def area(curve: np.ndarray) -> float:
    """Returns the area under a curve over 0 to 1."""
    return float(np.mean((curve[1:] + curve[:-1]) / 2))


@dataclass(frozen=True)
class Pointed:
    """How one method did on one model.

    Attributes:
        method: Its name.
        hits: Pictures whose map is highest at the cue.
        pictures: How many there were; refused maps count as missed.
        refused: How many maps were refused.
        deletion: Area under the deletion curve; small is good.
        insertion: Area under the insertion curve; large is good.
        same_after_randomising: Mean rank correlation between the maps and those of the model with its weights mixed:
            a map that hangs on what was learnt has about 0.
    """

    method: str
    hits: int
    pictures: int
    refused: int
    deletion: float
    insertion: float
    same_after_randomising: float


def pointing_test(
    model: keras.Model, methods: Sequence[str], pictures: int = 64, seed: int = 0
) -> tuple[float, list[Pointed]]:
    """Holds methods against planted pictures that a model names rightly.

    Args:
        model: Of `planted_model`.
        methods: Names of methods.
        pictures: How many pictures, all with a cue.
        seed: Of the pictures.

    Returns:
        The model's accuracy on fresh pictures, and a result for each method, the last one `"random"`, a map of noise.
    """
    data = planted_pictures(4 * pictures, seed)
    subject = of_model(model)
    right = subject.scores(data.images).argmax(axis=1) == data.labels
    chosen = np.flatnonzero(right & (data.labels < CUES))[:pictures]
    images, labels, cells = data.images[chosen], data.labels[chosen], data.cells[chosen]
    explainer, other = Explainer(subject), Explainer(of_model(randomised(model, seed)))
    rows = []
    for method in methods:
        found = explainer.maps(method, images, labels)
        kept = [i for i, one in enumerate(found.maps) if one is not None]
        good = [one for one in found.maps if one is not None]
        if not kept:
            rows.append(Pointed(method, 0, len(images), len(images), 1.0, 0.0, 0.0))
            continue
        maps = on_grid(np.stack(good), GRID)
        few = kept[:RANDOMISED]
        blind = other.maps(method, images[few], labels[few])
        deletion, insertion = curves(subject.scores, images[kept], labels[kept], maps)
        rows.append(
            Pointed(
                method,
                int(hits(maps, cells[kept]).sum()),
                len(images),
                len(images) - len(kept),
                area(deletion),
                area(insertion),
                _likeness(maps[: len(few)], blind.maps),
            )
        )
    noise = np.random.default_rng(seed).uniform(size=(len(images), *GRID))
    deletion, insertion = curves(subject.scores, images, labels, noise)
    found_by_chance = int(hits(noise, cells).sum())
    rows.append(Pointed("random", found_by_chance, len(images), 0, area(deletion), area(insertion), 0.0))
    return float(right.mean()), rows


def _likeness(maps: np.ndarray, others: Sequence[np.ndarray | None]) -> float:
    """Returns the mean rank correlation of maps with others; a refused one is like nothing."""
    pairs = [
        (one[None], on_grid(other[None], GRID)) for one, other in zip(maps, others, strict=True) if other is not None
    ]
    return float(sum(rank_correlations(*pair)[0] for pair in pairs)) / len(maps)
