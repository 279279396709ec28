"""Speed and memory of our ViT beside other people's, on one machine, taking turns.

    python benchmarks/speed.py --peers-python PEERS/bin/python --out speed.md

Contenders: ours, KerasHub's, the PyPI package `vit-keras`, kecam (keras-cv-attention-models) and timm. All build the
same network (parameter counts are compared), train with AdamW on softmax cross entropy and take pixels from memory.
`vit-keras` has our module's name and kecam needs Keras 2, so these two live in an environment of their own:

    python -m venv MAIN && MAIN/bin/pip install -e . keras-hub timm torch
    python -m venv PEERS && PEERS/bin/pip install "tensorflow==2.21.*" "keras==3.15.*" "tf-keras==2.21.*" \
        vit-keras keras-cv-attention-models opencv-python-headless

A step is what users get. Keras: training, the function that `fit` calls on each batch, here on an iterator of one
repeated batch; predicting, the model in a `tf.function`. timm: eager where Keras runs without `jit_compile`,
`torch.compile` where it runs with it. Every contender of a row is one process; all are warmed up, then they compute in
turns, A B C, B C A, C A B, while the others wait. A ratio is our time over the peer's in the same round: below 1 we
are faster. `ours again` is our own network in a second process: its ratio says what the machine's noise alone does.
Peak memory is the process's largest resident set, libraries and compilation included. `create` and
`import` start a fresh process each round; `import` is `vit_keras.models` beyond `import keras`.
"""

import argparse
import fnmatch
import importlib
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from workers import Worker, memory_mb, obey, table, take_turns

OURS = "ours"
AGAIN = "ours again"
OTHER_ENVIRONMENT = ("vit-keras", "kecam")


@dataclass(frozen=True)
class Row:
    """One line of the table: a network, a batch size and what is timed."""

    network: str
    step: str  # "train", "predict", "create" or "import"
    jit: bool = False
    batch: int = 0
    image_size: int = 224
    patch_size: int = 16
    hidden_dim: int = 192
    num_layers: int = 12
    num_classes: int = 1000

    @property
    def num_heads(self) -> int:
        return self.hidden_dim // 64

    @property
    def title(self) -> str:
        return f"{self.network}/{self.step}" + ("/jit" if self.jit else "")


NETWORKS = {
    "tiny_224": {"batch": 8},
    "small_224": {"batch": 4, "hidden_dim": 384},
    "tiny_32": {"batch": 64, "image_size": 32, "patch_size": 4, "num_layers": 6, "num_classes": 10},
}
ROWS = [Row(n, step, jit, **NETWORKS[n]) for n in NETWORKS for step in ("train", "predict") for jit in (False, True)]
ROWS += [Row("base_224", "create", hidden_dim=768), Row("vit_keras.models", "import")]


# Contenders: each imports its library and returns the call that builds its classifier.


def ours(row: Row) -> Callable[[], Any]:
    from vit_keras import create_model

    size = {name: getattr(row, name) for name in ("num_classes", "image_size", "patch_size", "hidden_dim")}
    size |= {"num_layers": row.num_layers, "num_heads": row.num_heads, "mlp_dim": 4 * row.hidden_dim}
    return lambda: create_model("vit_base_patch16_224", include_preprocessing=False, **size)


def keras_hub(row: Row) -> Callable[[], Any]:
    from keras_hub.models import ViTBackbone, ViTImageClassifier

    shape = (row.image_size, row.image_size, 3)
    size = (row.patch_size, row.num_layers, row.num_heads, row.hidden_dim, 4 * row.hidden_dim)
    return lambda: ViTImageClassifier(ViTBackbone(shape, *size), row.num_classes)


def vit_keras_of_pypi(row: Row) -> Callable[[], Any]:
    from vit_keras.vit import build_model

    size = {"patch_size": row.patch_size, "num_layers": row.num_layers, "hidden_size": row.hidden_dim}
    size |= {"num_heads": row.num_heads, "mlp_dim": 4 * row.hidden_dim, "classes": row.num_classes}
    return lambda: build_model(row.image_size, dropout=0.0, name="vit", **size)


def kecam(row: Row) -> Callable[[], Any]:
    from keras_cv_attention_models.beit import ViT

    size = {"patch_size": row.patch_size, "depth": row.num_layers, "embed_dim": row.hidden_dim}
    size |= {"num_heads": row.num_heads, "num_classes": row.num_classes}
    shape = (row.image_size, row.image_size, 3)
    return lambda: ViT(input_shape=shape, classifier_activation=None, pretrained=None, **size)


def timm(row: Row) -> Callable[[], Any]:
    from torchvision_stand_in import torchvision_stand_in

    with torchvision_stand_in():
        from timm.models.vision_transformer import VisionTransformer

    size = {"img_size": row.image_size, "patch_size": row.patch_size, "depth": row.num_layers}
    size |= {"embed_dim": row.hidden_dim, "num_heads": row.num_heads, "num_classes": row.num_classes}
    return lambda: VisionTransformer(**size)


CONTENDERS = {
    OURS: ours,
    AGAIN: ours,
    "keras-hub": keras_hub,
    "vit-keras": vit_keras_of_pypi,
    "kecam": kecam,
    "timm": timm,
}


# The worker: one contender in one row. It reports lines of JSON and is told how many steps to compute.


def keras_step(model: Any, row: Row, images: Any, labels: Any) -> Callable[[], Any]:
    """Returns one step of `fit`, or one compiled call of the model, under Keras 3 or 2."""
    import tensorflow as tf

    if row.step == "predict":
        pixels = tf.constant(images)
        predict = tf.function(lambda x: model(x, training=False), jit_compile=row.jit)
        return lambda: predict(pixels).numpy()
    keras = tf.keras  # Keras 3, or Keras 2 for kecam.
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.AdamW(1e-4), loss, jit_compile=row.jit)
    dataset = tf.data.Dataset.from_tensors((images, labels))
    model.fit(dataset, verbose=0)
    batches = iter(dataset.repeat())
    return lambda: tf.nest.map_structure(lambda x: x.numpy(), model.train_function(batches))


def torch_step(model: Any, row: Row, images: Any, labels: Any) -> Callable[[], Any]:
    """Returns one training step or one prediction of a PyTorch module."""
    import torch

    pictures, classes = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), torch.from_numpy(labels).long()
    model.train(row.step == "train")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    forward = torch.compile(model) if row.jit else model

    def train() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(forward(pictures), classes)
        loss.backward()
        optimizer.step()
        return loss.item()

    return train if row.step == "train" else torch.inference_mode()(lambda: forward(pictures))


def work(name: str, row: Row) -> Iterable[dict]:
    """Yields what creating the model cost, then after each number of steps on standard input the seconds per step."""
    if row.step == "import":
        importlib.import_module("keras")
        start = time.perf_counter()
        importlib.import_module("vit_keras.models")
        yield {"seconds": time.perf_counter() - start}
        return
    build = CONTENDERS[name](row)
    start = time.perf_counter()
    model = build()
    seconds = time.perf_counter() - start
    parameters = model.parameters() if name == "timm" else model.trainable_variables
    report = {"seconds": seconds, "parameters": sum(math.prod(p.shape) for p in parameters)}
    if row.step == "create":
        yield report
        return
    import numpy as np

    random = np.random.default_rng(0)
    images = random.standard_normal((row.batch, row.image_size, row.image_size, 3), dtype="float32")
    labels = random.integers(row.num_classes, size=row.batch, dtype="int32")
    step = (torch_step if name == "timm" else keras_step)(model, row, images, labels)
    for _ in range(2):
        step()
    yield report
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step()
        seconds = (time.perf_counter() - start) / int(line)
        yield {"seconds": seconds, "peak_mb": memory_mb()}


# The parent: starts workers, gives them turns, writes the tables.


def start(name: str, row: Row, python: str) -> Worker:
    """Starts a contender's process."""
    environment: dict[str, str | None] = {"PYTHONPATH": None} if name in OTHER_ENVIRONMENT else {}
    if name == "kecam":
        environment["TF_USE_LEGACY_KERAS"] = "1"
    return Worker([python, __file__, "--worker", json.dumps({"name": name, "row": asdict(row)})], environment)


def measure(row: Row, pythons: dict[str, str], rounds: int, turn: float) -> dict[str, dict]:
    """Returns per contender the seconds of every round, the peak memory and the parameters, or an `"error"`."""
    results: dict[str, dict] = {name: {"rounds": []} for name in pythons}
    workers = {name: start(name, row, python) for name, python in pythons.items()}
    for name, worker in workers.items():
        results[name] |= worker.answer()
    running = [name for name in workers if "error" not in results[name]]
    steps = math.ceil(turn / min((workers[name].answer(1)["seconds"] for name in running), default=turn))
    for name, answer in take_turns({name: workers[name] for name in running}, rounds, steps):
        results[name] |= answer
        results[name]["rounds"].append(answer["seconds"])
    for worker in workers.values():
        worker.stop()
    return results


def measure_starts(row: Row, pythons: dict[str, str], rounds: int) -> dict[str, dict]:
    """Like `measure`, for what happens once per process."""
    contenders = {OURS: pythons[OURS]} if row.step == "import" else pythons
    results: dict[str, dict] = {name: {"rounds": []} for name in contenders}
    for name, python in list(contenders.items()) * rounds:
        worker = start(name, row, python)
        results[name] |= worker.answer()
        results[name]["rounds"].append(results[name].get("seconds"))
        worker.stop()
    return results


def cell(results: dict[str, dict], name: str) -> str:
    """Returns milliseconds per step and the ratio ours/peer with its quartiles, as one cell of the table."""
    if name not in results or "error" in results[name]:
        return "-"
    text = f"{1000 * statistics.median(results[name]['rounds']):.4g} ms"
    if name == OURS or "error" in results[OURS]:
        return text
    ratios = [own / peer for own, peer in zip(results[OURS]["rounds"], results[name]["rounds"], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{text}, **{median:.2f}** ({low:.2f}-{high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers-python", help="Python of the environment of vit-keras and kecam")
    parser.add_argument("--rows", default="*", help="shell-style pattern, such as 'tiny_*/train*'")
    parser.add_argument("--peers", nargs="*", default=[name for name in CONTENDERS if name != OURS])
    parser.add_argument("--rounds", type=int, default=12, help="at least 2")
    parser.add_argument("--turn", type=float, default=0.3, help="least seconds that a contender computes per turn")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        task = json.loads(arguments.worker)
        return obey(work(task["name"], Row(**task["row"])))

    pythons = {
        n: arguments.peers_python if n in OTHER_ENVIRONMENT else sys.executable for n in (OURS, *arguments.peers)
    }
    notes = [f"{name} left out: no --peers-python" for name, python in pythons.items() if not python]
    pythons = {name: python for name, python in pythons.items() if python}
    speeds, memory = [["ms, **ours/peer** (quartiles)", "batch", *pythons]], [["peak memory, MB", *pythons]]
    for row in ROWS:
        if not fnmatch.fnmatch(row.title, arguments.rows):
            continue
        if row.batch:
            results = measure(row, pythons, arguments.rounds, arguments.turn)
            memory.append([row.title, *(str(results[name].get("peak_mb", "-")) for name in pythons)])
        else:
            results = measure_starts(row, pythons, arguments.rounds)
        notes += [f"{row.title}, {name} left out: {r['error']}" for name, r in results.items() if "error" in r]
        sizes = {name: r["parameters"] for name, r in results.items() if "parameters" in r}
        if len(set(sizes.values())) > 1:
            notes.append(f"{row.title}: not the same network, parameters {sizes}")
        speeds.append([row.title, str(row.batch or "-"), *(cell(results, name) for name in pythons)])
        print(" | ".join(speeds[-1]), file=sys.stderr, flush=True)
    text = "\n".join([table(*speeds), table(*memory), *(f"{note}\n" for note in notes)])
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
