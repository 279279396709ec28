"""From JPEG files to batches for a trainer: our input pipeline beside other people's, on one machine, taking turns.

    python benchmarks/input_pipeline.py --peers-python PEERS/bin/python --pictures FOLDER --out input_pipeline.json

A batch holds 64 pictures of 224x224x3 in host memory, and their labels. The files, 500x375 if `--pictures` names none,
are in the page cache. Two tasks:

- `crop_flip`: a random crop (area 0.08 to 1, ratio 3/4 to 4/3) resized, and a horizontal flip.
- `rand_augment`: the same, RandAugment (2 of 14 operations, magnitude 9), and MixUp (alpha 0.8) or CutMix (alpha 1),
  one or the other for each batch, with one-hot labels of 1000 classes.

`input_contestants.py` says what each contestant does, and what Keras cannot. The peers live in an
environment of their own:

    python -m venv PEERS && PEERS/bin/pip install torch torchvision albumentations opencv-python-headless grain pillow

Each contestant is one process with its children. All are warmed up, then they compute in turns, A B C, B C A, C A B. A
process stands still (SIGSTOP) while others compute: it would fill its buffers at their cost. In its turn the first
second is not counted, then it hands out batches, as many at a time as there are cores, until `--turn` seconds are over.
A ratio is taken between turns of the same round. No epoch ends in a run: the folder that contestants see holds links,
and enough of them.
"""

import argparse
import json
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from input_contestants import BATCH, CONTESTANTS, CORES, SIDE, TASKS, Batches
from workers import Worker, obey, take_turns

LINKS = 2**16
WARM_UP_SECONDS = 4.0
SETTLING_SECONDS = 1.0

# The worker: one contestant in one task.


def work(name: str, task: str, folder: Path) -> Iterable[dict]:
    """Yields what a batch is, then after each number of seconds on standard input the pictures per second."""
    contestant = CONTESTANTS[name]
    batches = contestant.batches(task, folder)
    images, classes = next(batches)
    if name != "floor" and tuple(images.shape) not in ((BATCH, SIDE, SIDE, 3), (BATCH, 3, SIDE, SIDE)):
        raise ValueError(f"A batch must hold {BATCH} pictures of {SIDE}x{SIDE}x3. Received: shape={images.shape}")
    described = [f"{value.dtype} {tuple(value.shape)}" for value in (images, classes) if value is not None]
    speed(batches, WARM_UP_SECONDS)
    yield {"batch": described, "versions": {library: version(library) for library in contestant.libraries}}
    for line in sys.stdin:
        speed(batches, SETTLING_SECONDS)
        yield {"pictures_per_second": speed(batches, float(line))}


def speed(batches: Batches, seconds: float) -> float:
    """Returns the pictures per second, measured for at least so many seconds."""
    pictures, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        for _ in range(CORES):  # Workers that started together end together: half of them would be no measure.
            pictures += len(next(batches)[0])
    return pictures / elapsed


# The parent: files, turns, tables.


def make_pictures(folder: Path, count: int = 256) -> list[Path]:
    """Writes pictures of 500x375, coarse to fine noise; a file takes about as much as a photograph's."""
    from PIL import Image

    random = np.random.default_rng(0)
    files = [folder / f"{i:03}.jpg" for i in range(count)]
    for file in files:
        pixels = np.zeros((375, 500, 3), "float32")
        for cells, strength in ((4, 90), (16, 60), (64, 30), (250, 15)):
            noise = random.integers(0, 256, (cells * 3 // 4, cells, 3), "uint8")
            grown = Image.fromarray(noise).resize((500, 375), Image.Resampling.BICUBIC)
            pixels += strength / 128 * (np.asarray(grown, "float32") - 128)
        Image.fromarray((pixels + 128).clip(0, 255).astype("uint8")).save(file, quality=92)
    return files


def link_pictures(pictures: Path | None, folder: Path) -> int:
    """Fills a folder with links to the JPEG files of another, over and over, and reads each file once.

    Args:
        pictures: Folder of JPEG files; they are made if `None`.
        folder: Empty folder.

    Returns:
        The number of different files.
    """
    originals, links = folder / "originals", folder / "links"
    originals.mkdir()
    links.mkdir()
    if pictures is None:
        files = make_pictures(originals)
    else:
        files = sorted(f.absolute() for f in pictures.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg"))
    if not files:
        raise ValueError(f"--pictures must hold JPEG files. Received: {pictures}")
    for file in files:
        file.read_bytes()
    for i in range(LINKS):
        (links / f"{i:05}.jpg").symlink_to(files[i % len(files)])
    return len(files)


def measure(task: str, pythons: dict[str, str], folder: Path, rounds: int, turn: float) -> dict[str, dict]:
    """Returns per contestant the pictures per second of every round, or an `"error"`."""
    workers: dict[str, Worker] = {}
    results: dict[str, dict] = {}
    try:
        for name, python in pythons.items():
            job = json.dumps({"name": name, "task": task, "folder": str(folder)})
            environment = {"PYTHONPATH": None} if CONTESTANTS[name].peer else {}
            workers[name] = Worker([python, __file__, "--worker", job], environment, freeze=True)
            results[name] = {"rounds": [], **workers[name].answer()}
        running = {name: worker for name, worker in workers.items() if "error" not in results[name]}
        for name, answer in take_turns(running, rounds, turn):
            if "error" in answer:
                results[name] |= answer
            else:
                results[name]["rounds"].append(answer["pictures_per_second"])
    finally:
        for worker in workers.values():
            worker.stop()
    return results


def ratio(results: dict[str, dict], name: str, base: str) -> str:
    """Returns the median of the ratios of two contestants, round by round."""
    if name == base or any(n not in results or "error" in results[n] for n in (name, base)):
        return "-"
    pairs = zip(results[name]["rounds"], results[base]["rounds"], strict=True)
    return f"{statistics.median(own / other for own, other in pairs):.2f}"


def show(task: str, results: dict[str, dict]) -> None:
    """Prints one task's table, the fastest first, and what went wrong."""
    from rich.console import Console
    from rich.table import Table

    sound = {name: result["rounds"] for name, result in results.items() if "error" not in result}
    table = Table("contestant", "pictures/s", "min-max", "of the floor", "ours/contestant", title=task)
    for name in sorted(sound, key=lambda name: -statistics.median(sound[name])):
        spread = f"{min(sound[name]):.0f}-{max(sound[name]):.0f}"
        ratios = ratio(results, name, "floor"), ratio(results, "ours", name)
        table.add_row(name, f"{statistics.median(sound[name]):.0f}", spread, *ratios)
    console = Console()
    console.print(table)
    for name in results.keys() - sound:
        console.print(f"{name} left out: {results[name]['error']}", markup=False)


def arguments_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="folder of JPEG files; 500x375 noise if not given")
    parser.add_argument("--peers-python", help="Python of the peers' environment; without it they are left out")
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=TASKS)
    parser.add_argument("--only", nargs="*", choices=tuple(CONTESTANTS), default=tuple(CONTESTANTS))
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant, at least 1")
    parser.add_argument("--turn", type=float, default=3.0, help="least seconds that are counted in a turn")
    parser.add_argument("--out", type=Path, help="JSON file to write, with every round")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    arguments = arguments_of()
    if arguments.worker:
        job = json.loads(arguments.worker)
        return obey(work(job["name"], job["task"], Path(job["folder"])))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # Or workers would stand still for ever.
    pythons = {name: arguments.peers_python if CONTESTANTS[name].peer else sys.executable for name in arguments.only}
    chosen = {name: python for name, python in pythons.items() if python}
    for name in pythons.keys() - chosen:
        print(f"{name} left out: no --peers-python", file=sys.stderr)
    with tempfile.TemporaryDirectory() as temporary:
        count = link_pictures(arguments.pictures, Path(temporary))
        report: dict[str, Any] = {"cores": CORES, "files": count, "turn_seconds": arguments.turn, "tasks": {}}
        for task in arguments.tasks:
            able = {name: python for name, python in chosen.items() if task in CONTESTANTS[name].tasks}
            results = measure(task, able, Path(temporary) / "links", arguments.rounds, arguments.turn)
            report["tasks"][task] = results
            show(task, results)
            if arguments.out:
                arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
