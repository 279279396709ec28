"""What a child process of a search does: measures shapes, and trains one trial. `python -m vit_keras.pipelines.trial`.

Jobs come as lines of JSON on standard input, and answers go to standard output. A child ends with the training of a
trial, so that its memory goes back; where its parent dies, it dies too, and leaves a run that goes on.
"""

import dataclasses
import functools
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .children import Child
from .config import RunConfig

Say = Callable[[dict[str, Any]], None]


class _RejectedError(ValueError):
    """A shape that cannot be built or exported, or that nobody measured."""


def main() -> None:
    """Obeys until the parent is gone, or a trial was trained."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # What libraries print is no answer.
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=pipe, flush=True)

    _warm_up()
    while True:
        job = jobs.get()
        answer = perform(job, say)
        say({"answer": answer})
        if answer.get("ends"):
            os._exit(0)  # Freeing everything in good order takes a second that nobody needs.


def _listen(jobs: queue.Queue[dict[str, Any]]) -> None:
    for line in sys.stdin:
        jobs.put(json.loads(line))
    os._exit(3)


def _warm_up() -> None:
    """Imports what every job needs, while another child still trains."""
    from . import running  # noqa: F401


def perform(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Does a job and returns its answer; what goes wrong in it is an answer too."""
    tasks = {"resolve": _resolve, "discover": _discover, "measure": _measure_only, "trial": _trial, "seed": _seed}
    try:
        return tasks[job["task"]](job, say)
    except _RejectedError as error:
        return {"status": "rejected", "message": _sentence(error)}
    except Exception as error:
        return {"status": "failed", "message": f"{type(error).__name__}: {_sentence(error)}", "ends": True}


def _sentence(error: BaseException) -> str:
    return " ".join(str(error).split())[:1000]


# Tasks


def _resolve(job: dict[str, Any], _: Say) -> dict[str, Any]:
    """Loads the data and says what they decide: preset, epochs, number of pictures."""
    from .resolving import resolve

    config = RunConfig.from_dict(job["config"])
    data = _data(job["config"]["data"], json.dumps(job["config"]["input"]))
    resolved = resolve(config, data)
    return {"status": "done", "model": resolved.model, "epochs": resolved.fit.epochs, "classes": len(data.classes)}


def _discover(job: dict[str, Any], _: Say) -> dict[str, Any]:
    """Calls the user's function once, with default values, to see which hyperparameters it asks for."""
    import keras_tuner

    hp = keras_tuner.HyperParameters.from_config(job["hp"])
    message = None
    try:
        _builder(job)(hp)
    except Exception as error:  # Defaults that cannot be built end no search.
        message = f"{type(error).__name__}: {_sentence(error)}"
    return {"status": "done", "hp": _space_of(hp), "message": message}


def _measure_only(job: dict[str, Any], _: Say) -> dict[str, Any]:
    return {**_measured(job), "status": "done"}


def _trial(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Measures a shape, rejects it if it is over a limit, and else trains it into its run folder."""
    found = _measured(job)
    if found["over"]:
        return {**found, "status": "rejected", "message": found["over"]}
    _close_exporter()
    say({"stage": "training", **found})
    return {**found, **_train(job), "ends": True}


def _seed(job: dict[str, Any], say: Say) -> dict[str, Any]:
    """Trains a run again with another seed, and evaluates it on the test pictures."""
    say({"stage": "training"})
    answer = _train(job)
    from . import running

    return {**answer, "test_accuracy": running.evaluate(job["config"]["out"]).accuracy, "ends": True}


def _train(job: dict[str, Any]) -> dict[str, Any]:
    from . import running

    start = time.monotonic()
    hp, build = _build(job)
    folder = running.train_folder(RunConfig.from_dict(job["config"]), build)
    rows = folder.read_metrics()
    best = min(rows, key=lambda row: row["val_loss"])
    seconds = time.monotonic() - start
    accuracy, epochs = best["val_accuracy"], len(rows)
    return {"status": "trained", "val_accuracy": accuracy, "epochs": epochs, "training": seconds, "hp": _space_of(hp)}


def _measured(job: dict[str, Any]) -> dict[str, Any]:
    """Returns what the exported file of a shape takes, and the seconds that measuring it took.

    Raises:
        _RejectedError: a shape that cannot be built or exported, or is not in the measurement file.
    """
    import keras

    if keras.backend.backend() != "tensorflow" and job["measuring"]["rows"] is None:
        return _measured_elsewhere(job)
    from .measuring import cached, look_up, measure_model, shape_key
    from .resolving import resolve

    start = time.monotonic()
    options = job["measuring"]
    config = RunConfig.from_dict(job["config"])
    data = _data(job["config"]["data"], json.dumps(job["config"]["input"]))
    resolved = resolve(config, data)
    hp, build = _build(job)
    try:
        model = build(resolved, len(data.classes), None)
        _check_model(model, len(data.classes))
    except Exception as error:
        raise _RejectedError(f"cannot be built: {_sentence(error)}") from error
    key = shape_key(resolved, len(data.classes), options["kind"], options["threads"])
    if job["build"]:
        key["layers"] = json.loads(model.to_json())["config"]
    if options["rows"] is None:
        labels = tuple(data.classes)
        try:
            found, _ = cached(
                Path(options["cache"]), key, lambda: measure_model(model, options["kind"], options["threads"], labels)
            )
        except (ValueError, ChildProcessError) as error:
            raise _RejectedError(f"cannot be exported: {_sentence(error)}") from error
    else:
        looked_up = look_up(options["rows"], job["values"], resolved)
        if looked_up is None:
            raise _RejectedError("its shape is not in the measurement file")
        found = looked_up
    seconds, over = time.monotonic() - start, found.excess(options["limits"])
    return {"measurement": dataclasses.asdict(found), "over": over, "measuring": seconds, "hp": _space_of(hp)}


def _measured_elsewhere(job: dict[str, Any]) -> dict[str, Any]:
    """Has a shape measured by a child on TensorFlow's backend, which is the one that exports."""
    start = time.monotonic()
    answer = _exporter().answer({**job, "task": "measure"})
    if answer["status"] == "rejected":
        raise _RejectedError(answer["message"])
    if answer["status"] != "done":
        _close_exporter()
        raise RuntimeError(answer["message"])
    return {**answer, "measuring": time.monotonic() - start}


@functools.cache
def _exporter() -> Child:
    return Child("tensorflow")


def _close_exporter() -> None:
    """Ends the child that exports, if there is one, so that its memory is the training's."""
    if _exporter.cache_info().currsize:
        _exporter().stop()
        _exporter.cache_clear()


def _check_model(model: Any, num_classes: int) -> None:
    shapes = model.input_shape, model.output_shape
    if len(shapes[0]) != 4 or shapes[0][-1] != 3 or shapes[1][1:] != (num_classes,):
        raise ValueError(f"it must be from pictures (B, H, W, 3) to {num_classes} scores. Received: shapes={shapes}")


# The model


def _build(job: dict[str, Any]) -> tuple[Any, Callable[..., Any]]:
    """Returns the trial's hyperparameters, for a user's function, and what builds the model as `build_model` does."""
    from .fitting import build_model

    if not job["build"]:
        return None, build_model
    import keras
    import keras_tuner

    hp = keras_tuner.HyperParameters.from_config(job["hp"])

    def build(config: RunConfig, *_: Any) -> Any:
        keras.utils.clear_session(free_memory=False)  # Names of layers count from one again.
        keras.utils.set_random_seed(config.fit.seed)
        return _builder(job)(hp)

    return hp, build


def _builder(job: dict[str, Any]) -> Callable[[Any], Any]:
    import cloudpickle

    return cloudpickle.loads(Path(job["build"]).read_bytes())


def _space_of(hp: Any) -> dict[str, Any] | None:
    return None if hp is None else hp.get_config()


@functools.lru_cache(maxsize=2)
def _data(name: str, given: str) -> Any:
    """Loads the pictures, once for all shapes that a child measures."""
    from .config import InputConfig
    from .datasets import load_data

    config = InputConfig(**json.loads(given))
    return load_data(name, config.dir, config.split_seed, config.skip_bad).framed(config.framing)


if __name__ == "__main__":
    main()
