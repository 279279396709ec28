"""The ways to explain a decision, as data: what each shows, what it needs, and whether it can be trusted."""

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from vit_keras.export.verification import wilson_interval
from vit_keras.messages import nearest

logger = logging.getLogger(__name__)

EVIDENCE = Path(__file__).with_name("pointing.json")
"""What the pointing test has measured; `benchmarks/pointing.py` writes it."""


@dataclass(frozen=True)
class Method:
    """A way to explain a decision.

    Attributes:
        name: What it is called on the command line.
        shows: What its map shows.
        needs: `"attention"` (our transformer blocks, or for the rollout a file with its attention), `"features"` (a
            Keras model with transformer blocks or convolutions), `"gradients"` (any functional Keras model) or
            `"scores"` (any classifier, TensorFlow Lite files included).
        per_class: Whether the map is of a class, and another one for another class.
        source: Paper.
    """

    name: str
    shows: str
    needs: str
    per_class: bool
    source: str


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            "attention",
            "what is read in the end attends to in the last block, heads averaged",
            "attention",
            False,
            "arXiv:2104.14294, figure 1",
        ),
        Method(
            "rollout",
            "attention followed back through all blocks",
            "attention",
            False,
            "arXiv:2005.00928, section 3",
        ),
        Method(
            "gradient_rollout",
            "attention followed back where the class's score hangs on it",
            "attention",
            True,
            "arXiv:2103.15679, equations 5 and 6",
        ),
        Method(
            "saliency",
            "pixels whose change changes the class's score most",
            "gradients",
            True,
            "arXiv:1312.6034, section 3",
        ),
        Method(
            "smooth_grad",
            "the same, averaged over noisy copies",
            "gradients",
            True,
            "arXiv:1706.03825",
        ),
        Method(
            "grad_cam",
            "feature maps weighted by their mean gradient",
            "features",
            True,
            "arXiv:1610.02391, equations 1 and 2",
        ),
        Method(
            "grad_cam_plus_plus",
            "feature maps weighted by their positive gradients",
            "features",
            True,
            "arXiv:1710.11063",
        ),
        Method(
            "layer_cam",
            "feature maps weighted by their gradient at every place",
            "features",
            True,
            "Jiang et al., IEEE TIP 2021, 9462463",
        ),
        Method(
            "score_cam",
            "feature maps weighted by the score of the picture seen through them",
            "features",
            True,
            "arXiv:1910.01279",
        ),
        Method(
            "faster_score_cam",
            "the same with the ten feature maps that vary most",
            "features",
            True,
            "github.com/tabayashi0117/Score-CAM",
        ),
        Method(
            "occlusion",
            "what the class's score loses where a square is covered",
            "scores",
            True,
            "arXiv:1311.2901, section 4.2",
        ),
    )
}


@dataclass(frozen=True)
class Evidence:
    """How a method did in the pointing test.

    Attributes:
        hits: Pictures in which the map's highest place was the planted cue.
        pictures: How many there were, of all models together.
        chance: Share that blind guessing hits.
        seeds: Number of models.
    """

    hits: int
    pictures: int
    chance: float
    seeds: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the hit rate (Wilson)."""
        return wilson_interval(self.hits, self.pictures)

    @property
    def beats_chance(self) -> bool:
        """Whether the whole interval is above chance."""
        return self.interval[0] > self.chance


@cache
def _measured() -> dict[str, dict[str, Evidence]]:
    found = json.loads(EVIDENCE.read_text(encoding="utf-8"))
    return {
        pooling: {name: Evidence(chance=found["chance"], **row) for name, row in rows.items()}
        for pooling, rows in found["methods"].items()
    }


def evidence(name: str, pooling: str | None = None) -> Evidence:
    """Returns what the pointing test that comes with the package has measured.

    Args:
        name: Of a method.
        pooling: How the models pooled; those of all poolings together if `None`, or another one.
    """
    measured = _measured()
    if pooling in measured:
        return measured[pooling][name]
    rows = [methods[name] for methods in measured.values()]
    hits, pictures, seeds = (sum(getattr(row, field) for row in rows) for field in ("hits", "pictures", "seeds"))
    return Evidence(hits, pictures, rows[0].chance, seeds)


def warning_of(name: str, pooling: str | None = None) -> str | None:
    """Says why a method is not to be trusted; `None` where it beats chance. Arguments as of `evidence`."""
    found = evidence(name, pooling)
    if found.beats_chance:
        return None
    of = f" with {pooling} pooling" if pooling in _measured() else ""
    return (
        f"{name} does not beat chance: in the pointing test it hit the planted cue in {found.hits} of "
        f"{found.pictures} pictures of models{of}, {found.chance * found.pictures:.0f} would be chance "
        "(docs/explain.md)"
    )


@dataclass(frozen=True)
class FigureKind:
    """A figure of what is inside a model.

    Attributes:
        name: What it is called on the command line.
        shows: What it shows.
        needs: As of `Method`; `"weights"` for a functional Keras model.
        source: Paper.
        per_picture: Whether it is made of each picture, else of all together or of none.
    """

    name: str
    shows: str
    needs: str
    source: str
    per_picture: bool = False


FIGURES: dict[str, FigureKind] = {
    figure.name: figure
    for figure in (
        FigureKind(
            "heads",
            "attention of what is read in the end, per head and block",
            "attention",
            "arXiv:2104.14294, figure 1",
            per_picture=True,
        ),
        FigureKind(
            "distance",
            "mean attention distance and entropy per head and block",
            "attention",
            "arXiv:2010.11929, figure 7 (right)",
        ),
        FigureKind(
            "filters",
            "filters of the patch embedding or the first convolution, and their first 28 principal components",
            "weights",
            "arXiv:2010.11929, figure 7 (left)",
        ),
        FigureKind(
            "positions",
            "cosine similarity of the position embeddings",
            "attention",
            "arXiv:2010.11929, figure 7 (middle)",
        ),
        FigureKind(
            "features",
            "the feature maps that vary most, layer by layer",
            "features",
            "arXiv:1311.2901, figure 2",
            per_picture=True,
        ),
        FigureKind(
            "norms",
            "length of every token behind every block: outliers are artefacts",
            "attention",
            "arXiv:2309.16588, figure 3",
            per_picture=True,
        ),
        FigureKind(
            "similarity",
            "linear CKA between all layers, of four pictures or more",
            "features",
            "arXiv:2108.08810, figure 1",
        ),
        FigureKind(
            "maximised",
            "pictures painted so that a class's score is large",
            "gradients",
            "Erhan et al., 2009",
        ),
    )
}
DEFAULTS = (
    "rollout",
    "gradient_rollout",
    "saliency",
    "occlusion",
    "heads",
    "distance",
    "filters",
    "positions",
    "features",
    "norms",
)
"""What is shown if nothing is asked for, as far as the classifier has what it takes."""


def check_methods(names: Iterable[str], possible: Iterable[str]) -> tuple[str, ...]:
    """Returns the methods and figures that are asked for: `possible` ones for `"all"`, the default ones of those for
    no name.

    Raises:
        ValueError: an unknown name (with the nearest one).
    """
    names, possible = tuple(names), tuple(possible)
    if not names:
        return tuple(name for name in DEFAULTS if name in possible)
    known = {**METHODS, **FIGURES}
    chosen: list[str] = []
    for name in names:
        if name not in known and name != "all":
            raise ValueError(
                f"method must be one of {', '.join(known)} or all.{nearest(name, known)} Received: method={name!r}"
            )
        chosen += possible if name == "all" else [name]
    return tuple(dict.fromkeys(chosen))
