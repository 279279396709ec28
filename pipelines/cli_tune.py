"""The command `vit-keras tune`: its flags, and the call of `tuning.search`. Imports no TensorFlow before it runs."""

import dataclasses
from typing import Any

from .cli_parts import add_overwrite, quiet_tensorflow
from .config import RunConfig
from .parsing import ConfigFile, Parser
from .tune_config import TUNERS, TuneConfig

_FLAGS: dict[str, tuple[Any, str]] = {
    "space": (str | None, "Name of a ready space (small, regularisation, finetune, edge), or a YAML file; small."),
    "tuner": (str, f"{', '.join(TUNERS)}: keras-tuner's own oracles."),
    "trials": (int, "Trials to train; shapes that are rejected before are counted apart, at most ten times as many."),
    "objective": (
        str,
        "val_accuracy, latency, bytes or memory, or weights as val_accuracy=1,latency=0.02: what a whole of accuracy, "
        "a millisecond, a million bytes count.",
    ),
    "max_latency_ms": (float | None, "Most milliseconds that the exported file may take for a picture."),
    "max_bytes": (str | None, "Most bytes that it may have, as 2M or 500k."),
    "max_memory": (str | None, "Most bytes of memory that it may take while it runs, likewise."),
    "kind": (str, "Kind of TensorFlow Lite file that is measured."),
    "measurements": (str | None, "CSV or JSON file with what your device takes for each shape; else measured here."),
    "threads": (int, "Threads of the interpreter while latency is measured."),
    "time_budget": (str | None, "Time for all trials of this call, as 90s, 30m or 2h."),
    "seeds": (int, "Further trainings of the best trial, with other seeds."),
    "seed": (int, "Seed of what is tried."),
}


def add_tune(parser: Parser) -> None:
    """Adds the flags of `tune`: those of a search, and those of `train` for what all trials share."""
    for name, (kind, text) in _FLAGS.items():
        default = getattr(TuneConfig, name)
        parser.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, default=default, help=text)
    parser.add_argument("--role", type=str, default="alone", help="chief or worker of a search on several machines.")
    parser.add_argument("--oracle", type=str | None, default=None, metavar="HOST:PORT", help="Where the chief listens.")
    parser.add_argument(
        "--config", action=ConfigFile, help="YAML file with settings that all trials share, or the name of a recipe."
    )
    parser.add_class_arguments(RunConfig)
    parser.set_defaults({"export.kinds": ()})
    add_overwrite(parser)


def tune(options: Any) -> None:
    """Searches and prints what was found."""
    values = options.clone().as_dict()
    overwrite = values.pop("overwrite", False)
    values.pop("config", None)
    role, oracle = values.pop("role"), values.pop("oracle")
    search = TuneConfig(**{field.name: values.pop(field.name) for field in dataclasses.fields(TuneConfig)})
    config = RunConfig.from_dict(values)
    quiet_tensorflow()
    from . import display_tuning, tuning

    with display_tuning.trials() as on_progress:
        result = tuning.search(config, search, overwrite, role=role, oracle=oracle, on_progress=on_progress)
    if result:
        display_tuning.found(result)
