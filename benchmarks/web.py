"""The web page in a real browser beside the native interpreter: bytes, time to load, milliseconds per picture.

    make web
    python benchmarks/web.py --photos PHOTOS --rounds 20 --out web.md

Needs Playwright and a Chromium (Debian: `apt-get install chromium`). Files are made of `--model` with fresh weights:
they cost what trained ones cost. `--photos` is a folder of pictures to calibrate and to time with; without it they are
noise. A load begins with an empty cache and ends when the page can take a picture; its bytes are those of all answers,
plain and as a host that compresses with gzip would send them. In every round each contestant classifies all pictures
once, A B C, B C A, C A B, and the median of its pictures counts; a cell holds the median of the rounds and, for ratios
to the native interpreter with one thread, ratios within a round. What the browser does before the model runs (reading,
cutting and resizing the picture) is a column of its own.
"""

import argparse
import base64
import gzip
import io
import shutil
import statistics
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from workers import table

KINDS = ("float32", "static_int8")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ONE_THREAD = "Object.defineProperty(globalThis, 'crossOriginIsolated', {value: false});"
PAGES = {"page, 1 thread": ONE_THREAD, "page, threads": ""}
NATIVE = "native, 1 thread"
RUN = """async (contents) => {
  const times = [];
  for (const content of contents) {
    const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
    const start = performance.now();
    const {milliseconds} = await vitKeras.classify(new Blob([bytes]));
    times.push([milliseconds, performance.now() - start - milliseconds]);
  }
  return times;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="vit_tiny_patch16_224", help="preset")
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--photos", type=Path, help="folder of pictures")
    parser.add_argument("--pictures", type=int, default=8, help="pictures of a round")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--loads", type=int, default=5)
    parser.add_argument("--out", type=Path, help="Markdown file")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files, pictures = prepare(Path(folder), arguments)
        text = measure(files, pictures, arguments.rounds, arguments.loads)
    print(text)
    if arguments.out:
        arguments.out.write_text(text)


def prepare(folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, Path], np.ndarray]:
    """Returns a file of every kind, and pictures of the model's size, uint8."""
    from vit_keras import create_model
    from vit_keras.export import to_tflite_files

    model = create_model(arguments.model, arguments.classes)
    size = model.input_shape[1:3]
    pictures = np.stack(list(read_pictures(arguments.photos, arguments.pictures, size)))
    files = {kind: folder / f"{arguments.model}.{kind}.tflite" for kind in KINDS}
    to_tflite_files(model, files, calibration=[pictures.astype("float32")])
    return files, pictures


def read_pictures(photos: Path | None, count: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Yields the middle of photographs, or noise."""
    if photos is None:
        yield from np.random.default_rng(0).integers(0, 256, (count, *size, 3), dtype="uint8")
        return
    found = sorted(path for path in photos.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if len(found) < count:
        raise ValueError(f"--photos must hold at least {count} pictures. Received: {len(found)} in {photos}")
    for path in found[:count]:
        yield np.asarray(ImageOps.fit(Image.open(path).convert("RGB"), size[::-1]))


def measure(files: dict[str, Path], pictures: np.ndarray, rounds: int, loads: int) -> str:
    """Returns the table of all kinds and contestants."""
    from playwright.sync_api import sync_playwright

    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        raise FileNotFoundError(f"A browser must be installed, one of {', '.join(BROWSERS)}. Received: none")
    head = ["file", "where", "first load MB", "with gzip MB", "load ms", "model ms", "of native", "picture ms"]
    lines = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program)
        for kind, file in files.items():
            with ExitStack() as stack:
                url = stack.enter_context(serving(file))
                first = {name: first_loads(browser, url, script, loads) for name, script in PAGES.items()}
                contestants = {NATIVE: native(file, pictures)}
                for name, script in PAGES.items():
                    contestants[name] = in_page(stack.enter_context(loaded(browser, url, script)), pictures)
                lines += rows(kind, first, take_rounds(contestants, rounds))
        text = table(head, *lines) + f"\nChromium {browser.version}, {len(pictures)} pictures, {rounds} rounds.\n"
        browser.close()
    return text


@contextmanager
def serving(file: Path) -> Iterator[str]:
    """Gives the address of a file's page."""
    from vit_keras.export import page_url
    from vit_keras.pipelines.webpage import serve_page

    with serve_page(file, port=0) as (_, server):
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield page_url(server)
        server.shutdown()
        thread.join()


@contextmanager
def loaded(browser: Any, url: str, script: str) -> Iterator[Any]:
    """Gives a tab with an empty cache of its own, in which the page is ready."""
    tab = browser.new_page()
    tab.set_default_timeout(300_000)
    tab.asked = []
    tab.on("response", lambda answer: tab.asked.append(answer.url))
    tab.add_init_script(script)
    tab.goto(url, wait_until="commit")
    tab.wait_for_load_state("domcontentloaded")
    tab.evaluate("vitKeras.ready")
    yield tab
    tab.close()


def first_loads(browser: Any, url: str, script: str, loads: int) -> dict[str, float]:
    """Returns megabytes, plain and compressed, and the median of the milliseconds until the page was ready."""
    times, asked = [], []
    for _ in range(loads):
        start = time.perf_counter()
        with loaded(browser, url, script) as tab:
            times.append(1000 * (time.perf_counter() - start))
            asked = [address for address in tab.asked if address.startswith(url)]
    contents = []
    for address in asked:  # Of large answers the browser keeps no content.
        with urllib.request.urlopen(address) as answer:  # noqa: S310 - the page's own server.
            contents.append(answer.read())
    return {
        "plain": sum(map(len, contents)) / 1e6,
        "gzip": sum(len(gzip.compress(content)) for content in contents) / 1e6,
        "ms": statistics.median(times),
    }


Turn = Callable[[], tuple[float, float]]
"""Classifies all pictures; returns the medians of the milliseconds of the model and of what comes before it."""


def native(file: Path, pictures: np.ndarray) -> Turn:
    from vit_keras.export import Classifier

    classifier = Classifier(file)

    def turn() -> tuple[float, float]:
        times = []
        for picture in pictures:
            pixels = picture[None].astype("float32")
            start = time.perf_counter()
            classifier.logits(pixels)
            times.append(1000 * (time.perf_counter() - start))
        return statistics.median(times), 0.0

    return turn


def in_page(tab: Any, pictures: np.ndarray) -> Turn:
    contents = []
    for picture in pictures:
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "PNG")
        contents.append(base64.b64encode(stream.getvalue()).decode())

    def turn() -> tuple[float, float]:
        model, before = zip(*tab.evaluate(RUN, contents), strict=True)
        return statistics.median(model), statistics.median(before)

    return turn


def take_rounds(contestants: dict[str, Turn], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Lets everybody run in turn, after a round that does not count."""
    names = list(contestants)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for turn in contestants.values():
        turn()
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            times[name].append(contestants[name]())
    return times


def rows(kind: str, first: dict[str, dict[str, float]], times: dict[str, list[tuple[float, float]]]) -> list[list[str]]:
    """Returns a line for every contestant."""
    lines = []
    for name, found in times.items():
        load = first.get(name)
        ratios = [ours[0] / theirs[0] for ours, theirs in zip(found, times[NATIVE], strict=True)]
        model, before = (statistics.median(column) for column in zip(*found, strict=True))
        loading = [f"{load['plain']:.1f}", f"{load['gzip']:.1f}", f"{load['ms']:.0f}"] if load else ["-"] * 3
        ratio = [f"{statistics.median(ratios):.2f}"]
        lines.append([kind, name, *loading, f"{model:.1f}", *ratio, f"{before:.1f}" if load else "-"])
    return lines


if __name__ == "__main__":
    main()
