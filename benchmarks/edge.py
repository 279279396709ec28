"""Our TensorFlow Lite files beside other people's ways to put the same network on a CPU: speed, memory, bytes.

    python benchmarks/edge.py --prepare FILES --peers-python PEERS/bin/python --photos PHOTOS
    python benchmarks/edge.py --time FILES --peers-python PEERS/bin/python --out edge.md
    python benchmarks/edge.py --conversion FILES --out conversion.md

Contestants: ours in every kind, with a quarter of the patches merged (which no other does, and which costs accuracy of
its own), and as float32 without the exact rewrites of the graph; timm's model through
litert-torch, and through onnxruntime; KerasHub's model through Keras's own export, with a static batch.
`edge_files.py` says how each file is made. The others' tools live in an environment of their own:

    python -m venv PEERS
    PEERS/bin/pip install litert-torch onnx onnxruntime onnxscript keras-hub "tensorflow==2.21.*" "keras==3.15.*"
    PEERS/bin/pip install --no-deps timm

`--prepare` writes each file in a child process; a JSON file beside it holds peak memory and the seconds it took while
that was watched, `.log` what was printed. What is there already stays, unless `--overwrite`. `--photos` is a folder of
pictures to calibrate with; without it they are noise. `--time` gives each contestant a process, which runs one picture
over and over when it is its turn, A B C, B C A, C A B, while the others wait; the first call of a turn is not counted.
A ratio is taken between turns of the same round. All TensorFlow Lite files run in LiteRT's interpreter of our
environment, with its default delegate, XNNPACK. `--conversion` measures our conversion of ViT-B/16: each kind alone,
all at once, and ten times in one program; seconds and peak memory in runs of their own.
"""

import argparse
import fnmatch
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from edge_files import CONTESTANTS, KINDS, PLAIN, SIZES, channels_first, normalised, pictures
from workers import Worker, memory_mb, obey, table, take_turns, watched_memory

TEST_PICTURES = 8
TITLES = {"tiny": "ViT-Ti/16", "small": "ViT-S/16", "base": "ViT-B/16"}
REPEATED = "static_int8"
RIVAL = "onnxruntime dynamic_int8"  # The fastest other when we began; it keeps its column if another overtakes it.


# Preparing: every file in a child process.


def write_pictures(folder: Path, photos: Path | None, count: int) -> None:
    """Writes `calibration.npy`, `(count, 224, 224, 3)`, and `test.npy`, of other photographs; noise without any."""
    shape = (count + TEST_PICTURES, 224, 224, 3)
    if photos is None:
        chosen = np.random.default_rng(0).integers(0, 256, shape).astype("float32")
    else:
        from PIL import Image, ImageOps

        files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if len(files) < shape[0]:
            raise ValueError(f"--photos must hold at least {shape[0]} pictures. Received: {len(files)} in {photos}")
        framed = (ImageOps.fit(Image.open(file).convert("RGB"), shape[1:3]) for file in files[: shape[0]])
        chosen = np.stack([np.asarray(picture, "float32") for picture in framed])
    np.save(folder / "calibration.npy", chosen[:count])
    np.save(folder / "test.npy", chosen[count:])


def child(python: str, log: Path, *task: Any, watched: bool = True) -> list[dict]:
    """Runs a task of `edge_files.py`; returns its reports, if watched with the peak memory of process and children.

    Watching takes a third of a core: what is watched is slower.
    """
    command = [python, str(Path(__file__).with_name("edge_files.py")), *map(str, task)]
    worker = Worker(command, log=log)
    with watched_memory(worker.process.pid) if watched else nullcontext([0]) as peak:
        reports = [json.loads(line) for line in worker.process.stdout]
    worker.stop()
    if worker.process.returncode and not any("error" in report for report in reports):
        reports.append({"error": f"the process ended with code {worker.process.returncode}"})
    return [{**report, "peak_mb": peak[0]} for report in reports] if watched else reports


def prepare(folder: Path, pythons: dict[bool, Any], names: Iterable[str], overwrite: bool) -> bool:
    """Writes the files of one size that are not there; returns whether all went well."""
    logits, test = folder / "logits.npy", folder.parent / "test.npy"
    if pythons[False] and not (logits.exists() and logits.stat().st_mtime > test.stat().st_mtime):
        say(folder, "timm's weights", report := child(pythons[False], folder / "timm.log", "reference", folder)[-1])
        if "error" in report:
            return False
    good = True
    for name in names:
        contestant = CONTESTANTS[name]
        file = folder / f"{name}{contestant.suffix}"
        if file.exists() and file.with_suffix(".json").exists() and not overwrite:
            continue
        report = child(pythons[contestant.ours], file.with_suffix(".log"), "contestant", folder, name)[-1]
        if "error" not in report:
            report["bytes"] = file.stat().st_size
            file.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
        good &= "error" not in report
        say(folder, name, report)
    return good


def say(folder: Path, name: str, report: dict) -> None:
    facts = {key: value for key, value in report.items() if key != "versions"}
    print(f"{folder.name} | {name} | {facts}", file=sys.stderr, flush=True)


# Timing, the worker: one file in one runtime.


class OnnxClassifier:
    """What `vit_keras.export.Classifier` is for TensorFlow Lite files, for onnxruntime."""

    def __init__(self, path: Path, num_threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = num_threads, 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def set_input(self, images: np.ndarray) -> None:
        self._feed = {self._input: channels_first(images)}

    def invoke(self) -> None:
        self._output = self._session.run(None, self._feed)[0]

    def logits(self, images: np.ndarray) -> np.ndarray:
        scores = []
        for image in images:
            self.set_input(image[None])
            self.invoke()
            scores.append(self._output)
        return np.concatenate(scores)


def load(file: Path, threads: int) -> tuple[int, Any]:
    """Returns what the process holds in MB before the file is opened, and the open file."""
    if file.suffix == ".onnx":
        __import__("onnxruntime")
        return memory_mb(), OnnxClassifier(file, threads)
    from ai_edge_litert import interpreter  # noqa: F401

    from vit_keras.export import Classifier

    return memory_mb(), Classifier(file, threads)


def work(file: Path, threads: int) -> Iterable[dict]:
    """Yields how near the logits are to timm's, then after each line on standard input the milliseconds of a turn."""
    contestant = CONTESTANTS[file.stem]
    libraries_mb, classifier = load(file, threads)
    test = pictures(file.parent, "test") if contestant.ours else normalised(pictures(file.parent, "test"))
    logits = classifier.logits(test).astype("float64")
    if not np.isfinite(logits).all():
        raise ValueError(f"logits must be finite. Received: {np.isfinite(logits).mean():.0%} of them are")
    cosine, reference = None, file.parent / "logits.npy"
    if contestant.timm and reference.exists():
        expected = np.load(reference).astype("float64")
        norms = np.linalg.norm(logits, axis=1) * np.linalg.norm(expected, axis=1)
        cosine = float(((logits * expected).sum(1) / norms).min())
    classifier.set_input(test[:1])
    yield {"cosine": cosine, "libraries_mb": libraries_mb}
    for line in sys.stdin:
        yield {"ms": turn(classifier.invoke, float(line)), "peak_mb": memory_mb()}


def turn(invoke: Callable[[], None], seconds: float) -> list[float]:
    """Returns the milliseconds of every call but the first, which finds the caches full of others' data."""
    invoke()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        invoke()
        times.append(round(1e3 * (time.perf_counter() - start), 3))
    return times


# Timing, the parent.


def measure(files: dict[str, Path], pythons: dict[bool, Any], threads: int, rounds: int, turn: float) -> dict:
    """Returns per contestant the median milliseconds of every turn, memory and bytes, or an `"error"`."""
    workers, results = {}, {}
    for name, file in files.items():
        task = json.dumps({"file": str(file), "threads": threads})
        python = pythons[file.suffix == ".tflite"]
        workers[name] = Worker([python, __file__, "--worker", task], log=file.with_suffix(".run.log"))
        results[name] = {"bytes": file.stat().st_size, "rounds": [], **workers[name].answer()}
    running = {name: worker for name, worker in workers.items() if "error" not in results[name]}
    for name, answer in take_turns(running, rounds, turn):
        results[name] |= {key: value for key, value in answer.items() if key != "ms"}
        if "ms" in answer:
            results[name]["rounds"].append(statistics.median(answer["ms"]))
    for worker in workers.values():
        worker.stop()
    return results


def quartiles(values: Sequence[float], digits: int) -> str:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"**{median:.{digits}f}** ({low:.{digits}f}-{high:.{digits}f})"


def ratio(results: dict, name: str, other: str) -> str:
    if name == other:
        return "-"
    pairs = zip(results[name]["rounds"], results[other]["rounds"], strict=True)
    return quartiles([own / base for own, base in pairs], 3)


def fastest(results: dict, names: Iterable[str]) -> str | None:
    return min(names, key=lambda name: statistics.median(results[name]["rounds"]), default=None)


def page(title: str, results: dict) -> str:
    """Returns the table of one size and number of threads; ratios are to ours, plain, and the fastest others."""
    sound = {name: result for name, result in results.items() if "error" not in result}
    others = [name for name in sound if not CONTESTANTS[name].ours]
    float32 = fastest(sound, [name for name in others if CONTESTANTS[name].float32])
    bases = [base for base in dict.fromkeys([PLAIN, RIVAL, fastest(sound, others), float32]) if base in sound]
    memory = "memory, MB (of it libraries)"
    lines = [[title, "ms", *(f"over {base}" for base in bases), memory, "file, MB", "cosine to timm"]]
    for name, result in sound.items():
        cosine = "-" if result["cosine"] is None else f"{result['cosine']:.5f}"
        memory = f"{result['peak_mb']} ({result['libraries_mb']})"
        ratios = [ratio(sound, name, base) for base in bases]
        lines.append([name, quartiles(result["rounds"], 2), *ratios, memory, f"{result['bytes'] / 1e6:.1f}", cosine])
    notes = [f"\n{name} left out: {result['error']}\n" for name, result in results.items() if "error" in result]
    return table(*lines) + "".join(notes)


def conversion(folder: Path, kinds: Sequence[str], times: int) -> str:
    """Returns the tables of what our conversion costs."""

    def convert(kinds: str, times: int, watched: bool) -> list[dict]:
        task = "conversion", folder, kinds, times
        reports = child(sys.executable, folder / "conversion.log", *task, watched=watched)
        say(folder, kinds, reports[-1])
        return reports

    once, repeated = [[f"{TITLES[folder.name]}, to", "seconds", "peak memory, MB"]], [["time", "seconds", "memory, MB"]]
    together = {"all at once": ",".join(kinds)} if len(kinds) > 1 else {}
    for title, joined in {**{kind: kind for kind in kinds}, **together}.items():
        timed, watched = (convert(joined, 1, watched)[-1] for watched in (False, True))
        figures = timed.get("seconds", timed.get("error")), watched.get("peak_mb", watched.get("error"))
        once.append([title, *map(str, figures)])
    for number, report in enumerate(convert(REPEATED, times, watched=False), 1):
        repeated.append([str(number), *(str(report.get(key, report.get("error"))) for key in ("seconds", "rss_mb"))])
    count = len(pictures(folder, "calibration"))
    note = f"Peak: the program and its children together, model included. {count} calibration pictures.\n"
    return "\n".join([table(*once), note, f"`{REPEATED}` in one program, its memory afterwards:\n", table(*repeated)])


def arguments_of(line: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stage = parser.add_mutually_exclusive_group(required=True)
    stage.add_argument("--prepare", type=Path, metavar="FILES", help="folder to write the files to")
    stage.add_argument("--time", type=Path, metavar="FILES", help="folder that was prepared")
    stage.add_argument("--conversion", type=Path, metavar="FILES", help="folder that was prepared")
    stage.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--peers-python", help="Python of the others' environment; without it ours run alone")
    parser.add_argument("--sizes", nargs="*", choices=SIZES, help="all; for --conversion base")
    parser.add_argument("--contestants", nargs="*", default=["*"], help="shell-style patterns, such as 'ours *int8'")
    parser.add_argument("--photos", type=Path, help="folder of pictures to calibrate with")
    parser.add_argument("--calibration", type=int, default=32, help="number of pictures to calibrate with")
    parser.add_argument("--overwrite", action="store_true", help="prepare what is there already")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20, help="at least 2")
    parser.add_argument("--turn", type=float, default=0.5, help="seconds that a contestant computes per turn")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="for --conversion")
    parser.add_argument("--repeat", type=int, default=10, help="conversions in one program")
    parser.add_argument("--out", type=Path, help="Markdown file to write; --time writes all rounds beside it, as JSON")
    return parser.parse_args(line)


def main() -> None:
    arguments = arguments_of()
    if arguments.worker:
        task = json.loads(arguments.worker)
        return obey(work(Path(task["file"]), task["threads"]))
    pythons = {True: sys.executable, False: arguments.peers_python}
    names = [name for name in CONTESTANTS if any(fnmatch.fnmatch(name, p) for p in arguments.contestants)]
    names = [name for name in names if pythons[CONTESTANTS[name].ours]]
    root = (arguments.prepare or arguments.time or arguments.conversion).absolute()
    folders = [root / size for size in arguments.sizes or (["base"] if arguments.conversion else SIZES)]
    if arguments.time:
        return publish(time_all(folders, names, pythons, arguments), arguments.out)
    root.mkdir(parents=True, exist_ok=True)
    if arguments.overwrite or not (root / "test.npy").exists():
        write_pictures(root, arguments.photos, arguments.calibration)
    for folder in folders:
        folder.mkdir(exist_ok=True)
    if arguments.conversion:
        pages = [conversion(folder, arguments.kinds, arguments.repeat) for folder in folders]
        return publish(pages, arguments.out)
    good = [prepare(folder, pythons, names, arguments.overwrite) for folder in folders]
    sys.exit(None if all(good) else "Not all files could be written; their .log files say why.")


def time_all(folders: list[Path], names: list[str], pythons: dict, arguments: argparse.Namespace) -> list[str]:
    """Returns a table for every size and number of threads; writes all rounds beside `--out`, as JSON."""
    pages, rounds = [], {}
    for folder in folders:
        files = {name: folder / f"{name}{CONTESTANTS[name].suffix}" for name in names}
        files = {name: file for name, file in files.items() if file.exists()}
        for threads in arguments.threads:
            title = f"{TITLES[folder.name]}, {threads} thread{'s' * (threads > 1)}"
            rounds[title] = measure(files, pythons, threads, arguments.rounds, arguments.turn)
            pages.append(page(title, rounds[title]))
            print(pages[-1], file=sys.stderr, flush=True)
            if arguments.out:
                arguments.out.with_suffix(".json").write_text(json.dumps(rounds, indent=1) + "\n")
    return pages


def publish(pages: list[str], out: Path | None) -> None:
    text = "\n".join(pages)
    print(text)
    if out:
        out.write_text(text)


if __name__ == "__main__":
    main()
