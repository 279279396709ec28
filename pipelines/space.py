"""Search spaces as data: YAML files of settings with the values that they may take, and what values make of a run.

A line is the name of a setting, as in a run's `config.yaml`, and what it may be:

    override.hidden_dim: {int: [32, 192], step: 32}
    fit.learning_rate: {float: [5e-4, 5e-3], sampling: log, default: 2e-3}
    override.pooling: {choice: [average, token]}
    adapt.rank: {choice: [4, 8], when: {adapt.method: lora}}

Two names stand for more than one setting: `mlp_ratio` (`mlp_dim` is so many times `hidden_dim`) and `augment_strength`
(the policy's amounts, times it).
"""

import dataclasses
import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from vit_keras.messages import nearest

from .config import RunConfig
from .yaml_text import read_yaml

_FOLDER = Path(__file__).parent / "spaces"
_KINDS = ("choice", "int", "float")
_SAMPLINGS = ("linear", "log", "reverse_log")
DERIVED = ("mlp_ratio", "augment_strength")
_FIXED = ("data", "out", "input.dir", "input.split_seed", "input.skip_bad", "fit.seed", "fit.tensorboard")
"""Settings that are the same in all trials of a search."""
_AMOUNTS = {"shift": 1.0, "rotation": 180.0, "zoom": 0.95, "noise": 1.0, "color_jitter": 1.0, "erasing": 1.0}
_AMOUNTS |= {"rand_augment": 10.0}
"""What `augment_strength` multiplies, and the largest value of each."""
_MOST_CANDIDATES = 20_000

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Parameter:
    """A setting and the values that it may take.

    Attributes:
        name: The setting.
        kind: "choice", "int" or "float".
        values: Of a choice all its values, of numbers the lowest and the highest.
        step: Distance of numbers; any if `None` (of whole numbers 1).
        sampling: "linear", "log" or "reverse_log".
        default: What is tried first in a grid; the first or lowest if not given.
        parent: Name of a choice that this one hangs on, if any.
        parent_values: Values of that choice for which this one counts.
    """

    name: str
    kind: str
    values: tuple[Any, ...]
    step: float | None = None
    sampling: str = "linear"
    default: Any = None
    parent: str | None = None
    parent_values: tuple[Any, ...] = ()

    def spread(self) -> list[Any]:
        """Returns some values from end to end, the ends among them."""
        if self.kind == "choice":
            return list(self.values)
        low, high = self.values
        step = self.step or (1 if self.kind == "int" else (high - low) / 3)
        count = int((high - low) / step + 1e-9) if step else 0
        numbers = [low + step * i for i in sorted({0, count // 3, 2 * count // 3, count})]
        return [int(n) if self.kind == "int" else float(n) for n in numbers]


@dataclass(frozen=True)
class Space:
    """A search space.

    Attributes:
        name: What it is called, or its file.
        parameters: What is searched, parents before those that hang on them.
    """

    name: str
    parameters: tuple[Parameter, ...]

    def hyperparameters(self) -> Any:
        """Returns the space as keras-tuner's `HyperParameters`."""
        import keras_tuner

        hp = keras_tuner.HyperParameters()
        self.declare(hp)
        return hp

    def declare(self, hp: Any) -> dict[str, Any]:
        """Declares the space on keras-tuner's `HyperParameters`, and returns the values that it holds."""
        found = {}
        for p in self.parameters:
            more: dict[str, Any] = {"default": p.default}
            if p.parent:
                more |= {"parent_name": p.parent, "parent_values": list(p.parent_values)}
            if p.kind == "choice":
                value = hp.Choice(p.name, list(p.values), **more)
            else:
                numbers = hp.Int if p.kind == "int" else hp.Float
                value = numbers(p.name, *p.values, step=p.step, sampling=p.sampling, **more)
            if not p.parent or found.get(p.parent) in p.parent_values:
                found[p.name] = value
        return found

    def smallest(self, base: RunConfig, what: str) -> list[dict[str, Any]]:
        """Returns values of some shapes that can be built, the smallest first.

        Args:
            base: What is not searched, with a preset's name.
            what: `"bytes"` to compare by parameters, else by multiplications.
        """
        names = [p for p in self.parameters if _of_shape(p.name)]
        choices = [p.spread() for p in names]
        if math.prod(map(len, choices)) > _MOST_CANDIDATES:
            draw = random.Random(0)  # noqa: S311
            ends = [[min(c), max(c)] if all(isinstance(v, (int, float)) for v in c) else c for c in choices]
            some = [tuple(draw.choice(c) for c in choices) for _ in range(_MOST_CANDIDATES)]
            tried = itertools.chain(itertools.islice(itertools.product(*ends), _MOST_CANDIDATES), some)
        else:
            tried = itertools.product(*choices)
        found = []
        for combination in tried:
            values = self._active({p.name: v for p, v in zip(names, combination, strict=True)})
            cost = shape_cost(values, base)
            if cost is not None:
                found.append((cost[0] if what == "bytes" else cost[1], len(found), values))
        return [values for _, _, values in sorted(found, key=lambda item: item[:2])[:5]]

    def _active(self, values: dict[str, Any]) -> dict[str, Any]:
        parents = {p.name: p for p in self.parameters}
        return {
            name: value
            for name, value in values.items()
            if not parents[name].parent or values.get(str(parents[name].parent)) in parents[name].parent_values
        }


# Reading


def list_spaces() -> dict[str, str]:
    """Returns the names of the ready spaces, and of each the first line of its head."""
    files = sorted(_FOLDER.glob("*.yaml"))
    return {file.stem: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in files}


def read_space(name: str) -> Space:
    """Reads a ready space, or a YAML file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: an unknown name, or a file that is no space: empty, or one that contradicts itself.
    """
    path = Path(name).expanduser()
    if name == path.stem and not path.is_file():
        known = list_spaces()
        if name not in known:
            raise ValueError(
                f"space must be one of {', '.join(known)}, or a YAML file.{nearest(name, known)} "
                f"Received: space={name!r}"
            )
        path = _FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"No search space at {path}.")
    try:
        return make_space(read_yaml(path.read_text(encoding="utf-8")), name)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is no search space: {error}") from error


def make_space(lines: Any, name: str = "space") -> Space:
    """Makes a space of what a YAML file says.

    Raises:
        ValueError: an empty space, or a line that contradicts itself or another.
    """
    if not isinstance(lines, dict) or not lines:
        raise ValueError(f"it must name settings and what they may be, and is empty. Received: {lines!r}")
    parameters = [_parameter(str(setting), line) for setting, line in lines.items()]
    known = {p.name: p for p in parameters}
    for i, p in enumerate(parameters):
        if p.parent and p.parent not in [q.name for q in parameters[:i]]:
            raise ValueError(f"{p.name} hangs on {p.parent}, which must stand before it.{nearest(p.parent, known)}")
        if p.parent and (known[p.parent].kind != "choice" or not set(p.parent_values) <= set(known[p.parent].values)):
            raise ValueError(
                f"when of {p.name} must be values of {p.parent}, {list(known[p.parent].values)}. "
                f"Received: {list(p.parent_values)}"
            )
    if "mlp_ratio" in known and "override.mlp_dim" in known:
        raise ValueError("it must hold mlp_ratio or override.mlp_dim, not both: each says the other.")
    return Space(name, tuple(parameters))


def _parameter(name: str, line: Any) -> Parameter:
    if not is_setting(name):
        raise ValueError(f"Unknown setting {name!r}.{nearest(name, [*_settings(), *DERIVED])}")
    if not isinstance(line, dict) or len([kind for kind in _KINDS if kind in line]) != 1:
        raise ValueError(f"{name} must have one of {', '.join(_KINDS)}. Received: {name}: {line!r}")
    unknown = set(line) - {*_KINDS, "step", "sampling", "default", "when"}
    if unknown:
        raise ValueError(f"{name} takes step, sampling, default and when. Received: {', '.join(sorted(unknown))}")
    kind = next(kind for kind in _KINDS if kind in line)
    values = line[kind]
    when = line.get("when") or {}
    if not isinstance(values, list) or not values:
        raise ValueError(f"{kind} of {name} must be a list, and not an empty one. Received: {values!r}")
    if not isinstance(when, dict) or len(when) > 1:
        raise ValueError(f"when of {name} must name one setting and its values. Received: {when!r}")
    parent, wanted = next(iter(when.items()), (None, ()))
    parameter = Parameter(
        name,
        kind,
        tuple(values),
        line.get("step"),
        line.get("sampling", "linear"),
        line.get("default"),
        parent,
        tuple(wanted) if isinstance(wanted, list) else (wanted,) if parent else (),
    )
    _check_values(parameter)
    return parameter


def _check_values(p: Parameter) -> None:
    """Refuses values that cannot be, or contradict each other."""
    received = f"Received: {p.name}: {p}"
    if p.kind == "choice":
        plain = all(isinstance(value, (str, bool, int, float)) for value in p.values)
        if not plain or len({type(value) for value in p.values}) > 1 or len(set(p.values)) < len(p.values):
            raise ValueError(f"choice of {p.name} must be texts or numbers, of one type, each once. {received}")
        if p.default is not None and p.default not in p.values:
            raise ValueError(f"default of {p.name} must be one of its values. {received}")
        return
    allowed = int if p.kind == "int" else (int, float)
    numbers = [*p.values, *(n for n in (p.default, p.step) if n is not None)]
    if len(p.values) != 2 or not all(isinstance(n, allowed) and not isinstance(n, bool) for n in numbers):
        raise ValueError(f"{p.kind} of {p.name} must be the lowest and the highest number. {received}")
    low, high = p.values
    inside = p.default is None or low <= p.default <= high
    if not low < high or not inside or (p.step is not None and p.step <= 0):
        raise ValueError(f"{p.kind} of {p.name} must rise from low to high, step > 0, default between. {received}")
    if p.sampling not in _SAMPLINGS or (p.sampling != "linear" and (low <= 0 or p.step is not None)):
        raise ValueError(f"sampling of {p.name} must be one of {', '.join(_SAMPLINGS)}; log from > 0 on. {received}")


def _settings() -> list[str]:
    found = []
    for field in dataclasses.fields(RunConfig):
        section = field.default_factory if field.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(section):
            found += [f"{field.name}.{inner.name}" for inner in dataclasses.fields(section)]
        else:
            found.append(field.name)
    return [name for name in found if name not in _FIXED and not name.startswith(("export.", "override"))]


def is_setting(name: str) -> bool:
    """Whether a name is one that a space may hold."""
    return name in DERIVED or name in _settings() or (name.startswith("override.") and name != "override.")


# From values to a run


def apply(values: Values, base: RunConfig) -> RunConfig:
    """Returns the run that hyperparameter values stand for.

    Args:
        values: Setting to value; names that are no settings are left out, such as keras-tuner's own.
        base: What is not searched, with a preset's name.

    Raises:
        ValueError: values that a run cannot have.
    """
    settings = base.to_dict()
    for name, value in values.items():
        section, dot, field = name.partition(".")
        if is_setting(name) and name not in DERIVED:
            (settings[section] if dot else settings)[field or section] = plain(value)
    if "mlp_ratio" in values:
        hidden_dim = settings["override"].get("hidden_dim") or _preset(settings["model"])["hidden_dim"]
        settings["override"]["mlp_dim"] = round(values["mlp_ratio"] * hidden_dim)
    config = RunConfig.from_dict(settings)
    if "augment_strength" in values:
        size = config.input.image_size or _preset(config.model)["image_size"]
        changes = dataclasses.asdict(config.augment.changes((size, size) if isinstance(size, int) else size))
        amounts = {n: plain(min(changes[n] * values["augment_strength"], top)) for n, top in _AMOUNTS.items()}
        config = dataclasses.replace(config, augment=dataclasses.replace(config.augment, **amounts))
    if "tuner/epochs" in values:  # Hyperband's.
        config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, epochs=int(values["tuner/epochs"])))
    return config


def plain(value: Any) -> Any:
    """Returns a fraction with six digits: what travels between machines as 32 bits is the same run on all of them."""
    value = value.item() if hasattr(value, "item") else value
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _of_shape(name: str) -> bool:
    return name in ("model", "input.image_size", "mlp_ratio") or name.startswith("override.")


def _preset(model: str) -> Mapping[str, Any]:
    from vit_keras import get_preset

    return get_preset(model).arguments


def shape_cost(values: Values, base: RunConfig) -> tuple[int, int] | None:
    """Returns about how many parameters and multiplications a shape has; `None` if it cannot be built."""
    shape = {**_preset(values.get("model", base.model)), **base.override}
    shape |= {name.removeprefix("override."): v for name, v in values.items() if name.startswith("override.")}
    size = values.get("input.image_size") or base.input.image_size or shape["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    patch, hidden = shape["patch_size"], shape["hidden_dim"]
    if height % patch or width % patch or hidden % shape["num_heads"]:
        return None
    mlp_dim = round(values["mlp_ratio"] * hidden) if "mlp_ratio" in values else shape["mlp_dim"]
    tokens = (height // patch) * (width // patch) + (shape.get("pooling", "token") == "token")
    block = 4 * hidden * hidden + 2 * hidden * mlp_dim
    parameters = shape["num_layers"] * block + 3 * patch * patch * hidden
    return parameters, tokens * parameters + shape["num_layers"] * 2 * tokens * tokens * hidden
