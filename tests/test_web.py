"""The web page: its folder, its server, the command; in a real browser what it makes of pictures and of mistakes."""

import base64
import hashlib
import io
import json
import shutil
import socket
import subprocess
import tarfile
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from email.message import Message
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

from vit_keras import load_model
from vit_keras.export import Classifier, Framing, build_page, page, page_server, page_url, to_tflite, vendoring
from vit_keras.export.attention import read_grids, rollout
from vit_keras.export.saved_model import decode_picture
from vit_keras.pipelines.cli import main
from vit_keras.pipelines.correlation import rank_correlations
from vit_keras.pipelines.webpage import serve_page, web_page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PICTURES = 50
AGREEMENT = {"float32": 1.0, "static_int8": 0.98, "full_int8": 0.98, "int16x8": 0.98}
WINDOWS = {"phone": (390, 844), "desktop": (1280, 800)}


@pytest.fixture
def vendored(tmp_path_factory, monkeypatch) -> Path:
    """Files that stand for LiteRT.js, so that tests without a browser need no npm."""
    folder = tmp_path_factory.mktemp("fetched") / "vendor"
    folder.mkdir()
    for name in vendoring.vendored_files():
        (folder / name).write_text(name)
    monkeypatch.setattr(vendoring, "VENDORED", folder)
    monkeypatch.setattr(page, "VENDORED", folder)
    return folder


@pytest.fixture
def file(float32, tmp_path) -> Path:
    """A small float32 file without class names."""
    path = tmp_path / "small.tflite"
    path.write_bytes(float32)
    return path


def get(url: str) -> tuple[bytes, Message]:
    """Returns an answer's content and headers."""
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.read(), answer.headers


@contextmanager
def running(server: ThreadingHTTPServer):
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield page_url(server)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# Fetching


def package(content: dict[str, bytes], integrity: str | None = None) -> tuple[vendoring.Package, bytes]:
    """A package of npm that holds files, and its archive."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name, value in content.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(value)
            tar.addfile(member, io.BytesIO(value))
    digest = base64.b64encode(hashlib.sha512(stream.getvalue()).digest()).decode()
    wanted = {"dist/index.js": "a.js", "a.wasm": "b.wasm"}
    return vendoring.Package("@a/b", "1.0.0", integrity or f"sha512-{digest}", wanted), stream.getvalue()


FILES = {
    "dist/index.js": b'import {x} from "@litertjs/wasm-utils";\n//# sourceMappingURL=index.js.map',
    "a.wasm": b"\0asm",
}


def test_only_what_is_needed_is_unpacked():
    found = vendoring.unpacked(*package({**FILES, "more.js": b""}))
    assert found == {"a.js": b'import {x} from "./wasm_utils.js";\n', "b.wasm": b"\0asm"}


def test_another_package_than_was_pinned_is_refused():
    with pytest.raises(ValueError, match=r"@a/b@1\.0\.0 must have the checksum sha512-other\. Received: sha512-"):
        vendoring.unpacked(*package(FILES, "sha512-other"))
    with pytest.raises(ValueError, match=r"@a/b@1\.0\.0 must hold dist/index\.js"):
        vendoring.unpacked(*package({"a.wasm": b""}))


def test_what_npm_lacks_is_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(FileNotFoundError, match="npm must be installed"):
        vendoring.vendor(tmp_path / "vendor")
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/npm")
    failed = subprocess.CompletedProcess([], 1, b"", b"npm error code E404\nnpm error 404 Not Found")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(OSError, match=r"npm must fetch @litertjs/core@.* exit code 1: npm error code E404"):
        vendoring.vendor(tmp_path / "vendor")
    assert list(tmp_path.iterdir()) == []
    assert vendoring.main() == 2
    assert "E404" in capsys.readouterr().err


def test_what_is_fetched_is_written_whole(monkeypatch, tmp_path):
    made, archive = package(FILES)
    monkeypatch.setattr(vendoring, "PACKAGES", (made,))
    monkeypatch.setattr(vendoring, "npm_pack", lambda package: archive)
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "old.js").write_text("")
    folder = vendoring.vendor(tmp_path / "vendor")
    assert (
        sorted(path.name for path in folder.iterdir())
        == sorted(vendoring.vendored_files())
        == sorted(["NOTICE.txt", "a.js", "b.wasm"])
    )
    assert "@a/b 1.0.0" in (folder / "NOTICE.txt").read_text()


# The folder


def test_a_page_holds_all_it_needs(vendored, file, tmp_path):
    folder = build_page(file, tmp_path / "page", ("a", "b", "c", "d"), Framing("bicubic", 0.9), "Mine")
    described = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    assert described == {
        "name": "Mine",
        "file": "small.tflite",
        "labels": ["a", "b", "c", "d"],
        "interpolation": "bicubic",
        "crop_fraction": 0.9,
    }
    assert (folder / "small.tflite").read_bytes() == file.read_bytes()
    html = (folder / "index.html").read_text(encoding="utf-8")
    for name in ("page.css", "page.js", "icon.svg", "vendor/litert.js"):
        assert f'"{name}"' in html and (folder / name).is_file()
    assert "Apache License" in (folder / "LICENSE.txt").read_text(encoding="utf-8")
    assert sorted(path.name for path in (folder / "vendor").iterdir()) == sorted(vendoring.vendored_files())


def test_nothing_comes_from_elsewhere_and_nothing_is_inline():
    for path in page.WEB.glob("*.*"):
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".html", ".css", ".js"):
            assert "https://" not in text.replace("from https:// or", "") and "http://" not in text, path
    html = (page.WEB / "index.html").read_text(encoding="utf-8")
    assert "style=" not in html and "onclick" not in html and "<style" not in html
    assert html.count("<script") == html.count('<script type="module" src=')


def test_class_names_come_from_the_file(vendored, float32, tmp_path, model):
    file = to_tflite(model, tmp_path / "named.tflite", labels=["ant", "bee", "cat", "dog"])
    for content, expected in ((file.read_bytes(), ["ant", "bee", "cat", "dog"]), (float32, None)):
        file.write_bytes(content)
        folder = build_page(file, tmp_path / "page", overwrite=True)
        described = json.loads((folder / "model.json").read_text())
        assert (described["labels"], described["name"]) == (expected, "named")


def test_a_page_is_replaced_only_when_asked_and_nothing_else_is(vendored, file, tmp_path):
    folder = build_page(file, tmp_path / "page")
    (folder / "old.txt").write_text("old")
    with pytest.raises(FileExistsError, match="overwrite"):
        build_page(file, folder)
    assert (folder / "old.txt").exists()
    build_page(file, folder, overwrite=True)
    assert not (folder / "old.txt").exists()
    (tmp_path / "mine").mkdir()
    build_page(file, tmp_path / "mine")  # It was empty.
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="is no page"):
            build_page(file, tmp_path / "thesis", overwrite=overwrite)
        with pytest.raises(FileExistsError, match="is no page"):
            build_page(file, tmp_path / "thesis" / "thesis.txt", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["thesis.txt"]


def test_what_is_no_classifier_gets_no_page(vendored, file, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.tflite"):
        build_page(tmp_path / "none.tflite", tmp_path / "page")
    with pytest.raises(ValueError, match="labels must name 4 classes"):
        build_page(file, tmp_path / "page", ("a", "b"))
    for content in (b"", b"just words", file.read_bytes()[:500]):
        (tmp_path / "bad.tflite").write_bytes(content)
        with pytest.raises(ValueError, match=r"bad\.tflite"):
            build_page(tmp_path / "bad.tflite", tmp_path / "page")
    (tmp_path / "sum.tflite").write_bytes(no_classifier())
    with pytest.raises(ValueError, match=r"sum\.tflite must take pictures.*Received: shapes=\[\(1, 5\), \(1, 5\)\]"):
        build_page(tmp_path / "sum.tflite", tmp_path / "page")
    assert not (tmp_path / "page").exists()


def no_classifier() -> bytes:
    function = tf.function(lambda x: x + 1.0, input_signature=[tf.TensorSpec((1, 5), tf.float32)])
    return tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()]).convert()


def test_without_litert_js_the_page_says_how_to_get_it(vendored, file, tmp_path, capsys):
    (vendored / "litert.js").unlink()
    with pytest.raises(FileNotFoundError, match=r"`make web`.*python -m vit_keras\.export\.vendoring.*litert\.js"):
        build_page(file, tmp_path / "page")
    assert main(["web", str(file)]) == 2
    assert "`make web`" in capsys.readouterr().err
    assert not (tmp_path / "page").exists()


# The server


def test_the_server_gives_types_isolation_and_only_the_page(vendored, file, tmp_path):
    folder = build_page(file, tmp_path / "page")
    (tmp_path / "secret.txt").write_text("secret")
    with running(page_server(folder, 0)) as url:
        assert url.startswith("http://127.0.0.1:")
        types = {
            "": "text/html; charset=utf-8",
            "page.js": "text/javascript",
            "page.css": "text/css",
            "model.json": "application/json",
            "small.tflite": "application/octet-stream",
            "vendor/litert_wasm_internal.wasm": "application/wasm",
        }
        for name, expected in types.items():
            content, headers = get(url + name)
            assert content and headers["Content-Type"] == expected
            assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        for name in ("vendor/", "../secret.txt", "%2e%2e/secret.txt", "none.js"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(url + name)


def test_ports_that_cannot_be_had_are_refused(vendored, file, tmp_path, capsys):
    folder = build_page(file, tmp_path / "page")
    with pytest.raises(FileNotFoundError, match="No page at"):
        page_server(tmp_path, 0)
    for port in (-1, 65536):
        with pytest.raises(ValueError, match=f"Received: port={port}"):
            page_server(folder, port)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port must be a port that is not in use.*Received: port={port}"):
            page_server(folder, port)
        assert main(["web", str(file), "--port", str(port)]) == 2
        assert capsys.readouterr().err.endswith(f"or 0 for any free one. Received: port={port}\n")


# The command


def test_a_run_s_page_has_the_file_that_suits_browsers(vendored, run_copy, tmp_path):
    export = run_copy / "export"
    assert web_page(run_copy, tmp_path / "a").file == export / "model.static_int8.tflite"
    described = json.loads((tmp_path / "a" / "model.json").read_text())
    assert (described["name"], described["labels"]) == ("run", [str(i) for i in range(10)])
    assert web_page(run_copy, tmp_path / "b", "full_int8").file == export / "model.full_int8.tflite"
    (export / "model.static_int8.tflite").unlink()
    assert web_page(run_copy, tmp_path / "c").file == export / "model.float32.tflite"
    (export / "model.float32.tflite").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.static_int8\.tflite or model\.float32\.tflite.*--kinds"):
        web_page(run_copy, tmp_path / "d")


def test_a_run_s_page_cuts_pictures_as_the_run_does(vendored, run_copy, tmp_path):
    config = run_copy / "config.yaml"
    text = config.read_text()
    assert "crop_fraction: 1.0" in text and "interpolation: bilinear" in text
    text = text.replace("crop_fraction: 1.0", "crop_fraction: 0.875").replace("bilinear", "bicubic")
    config.write_text(text)
    for i, path in enumerate((run_copy, run_copy / "export" / "model.float32.tflite")):
        folder = web_page(path, tmp_path / str(i)).folder
        described = json.loads((folder / "model.json").read_text())
        assert (described["interpolation"], described["crop_fraction"]) == ("bicubic", 0.875)


def test_the_command_builds_and_refuses(vendored, finished_run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["web", str(finished_run), "--out", "page", "--kind", "float32"]
    assert main(command) == 0
    captured = capsys.readouterr()
    assert captured.out == f"Page of {finished_run / 'export' / 'model.float32.tflite'}: page\n"
    assert main(command) == 2
    assert "overwrite" in capsys.readouterr().err
    assert main([*command, "--overwrite"]) == 0
    assert main(["web", str(finished_run), "--kind", "int4"]) == 2
    assert "model.int4.tflite" in capsys.readouterr().err
    file = finished_run / "export" / "model.float32.tflite"
    assert main(["web", str(file), "--kind", "float32"]) == 2
    assert "kind belongs to a run's folder" in capsys.readouterr().err
    assert main(["web", "nothing"]) == 2
    assert "No run at nothing" in capsys.readouterr().err


def test_the_command_serves_until_it_is_interrupted(vendored, finished_run, capsys, monkeypatch):
    def interrupted(server):
        served.append(server.RequestHandlerClass.keywords["directory"])
        assert get_while_serving(server)
        raise KeyboardInterrupt

    def get_while_serving(server):
        with_one = threading.Thread(target=server.handle_request)
        with_one.start()
        content, _ = get(page_url(server))
        with_one.join()
        return content

    served = []
    monkeypatch.setattr(ThreadingHTTPServer, "serve_forever", interrupted)
    assert main(["web", str(finished_run), "--port", "0"]) == 0
    assert "http://127.0.0.1:" in capsys.readouterr().out
    assert not Path(served[0]).exists()


# In a browser


@pytest.fixture(scope="module")
def chromium():
    """A real browser, if there is one, and LiteRT.js."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make test` does it")
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium is installed: `apt-get install chromium` does it")
    if vendoring.missing_files():
        pytest.skip("LiteRT.js was not fetched: `make web` does it")
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=camera)
        yield browser
        browser.close()


@contextmanager
def opened(browser, url: str, script: str = "", **settings):
    """Gives a page that has loaded; nothing may come from elsewhere, be refused by its policy or fail unseen."""
    tab = browser.new_page(**settings)
    tab.set_default_timeout(60_000)
    faults, asked = [], []
    tab.on("pageerror", lambda error: faults.append(str(error)))
    tab.on("console", lambda said: "Content Security Policy" in said.text and faults.append(said.text))
    tab.on("request", lambda request: asked.append(request.url))
    try:
        if script:
            tab.add_init_script(script)
        tab.goto(url)
        tab.locator("#message", has_not_text="Loading…").wait_for(state="attached")
        tab.asked = asked
        yield tab
    finally:
        tab.close()
    assert not faults
    assert all(address.startswith((url, "blob:", "data:")) for address in asked)


@pytest.fixture(scope="module")
def site(chromium, finished_run):
    """The address of the short run's page, float32."""
    with serve_page(finished_run, "float32", 0) as (_, server), running(server) as url:
        yield url


@pytest.fixture
def tab(chromium, site):
    with opened(chromium, site) as tab:
        yield tab


CLASSIFY = """async (content) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const result = await vitKeras.classify(new Blob([bytes]));
  return {...result, pixels: Array.from(result.pixels)};
}"""


def classify(tab, content: bytes) -> dict:
    return tab.evaluate(CLASSIFY, base64.b64encode(content).decode())


def encoded(pixels: np.ndarray, format: str = "PNG", **settings) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **settings)
    return stream.getvalue()


def upload(tab, name: str, content: bytes, field: str = "#picture-file") -> None:
    tab.set_input_files(field, {"name": name, "mimeType": "application/octet-stream", "buffer": content})


def message(tab, part: str) -> str:
    tab.locator("#message", has_text=part).wait_for(state="attached")
    return tab.text_content("#message")


@pytest.fixture(scope="module")
def digits(finished_run) -> np.ndarray:
    """Pictures of the run's test set, uint8."""
    from vit_keras.pipelines.datasets import load_data
    from vit_keras.pipelines.exporting import pixels

    split = load_data("digits").test
    return pixels(split.take(np.arange(PICTURES)), (8, 8)).astype("uint8")


@pytest.mark.parametrize("kind", AGREEMENT)
def test_the_page_agrees_with_the_interpreter(chromium, finished_run, kind, record_property):
    """On the run's golden set: its pictures as they lie there, and the answers that it holds of the interpreter's."""
    golden = finished_run / "export" / "golden"
    index = json.loads((golden / "golden.json").read_text())
    contents = [(golden / picture["file"]).read_bytes() for picture in index["pictures"]]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(content))) for content in contents])
    expected = Classifier(finished_run / "export" / f"model.{kind}.tflite").logits(pixels)
    with serve_page(finished_run, kind, 0) as (_, server), running(server) as url, opened(chromium, url) as tab:
        results = [classify(tab, content) for content in contents]
    for result, picture in zip(results, pixels, strict=True):
        assert result["pixels"] == picture.ravel().tolist()
    scores = np.array([result["scores"] for result in results])
    first = np.array([best[0][0] for best in index["answers"][kind]["top"]])
    agreement = (scores.argmax(1) == first).mean()
    record_property("agreement", float(agreement))
    record_property("largest difference", float(np.abs(scores - expected).max()))
    assert len(scores) == PICTURES and len(set(expected.argmax(1))) > 5
    assert agreement >= AGREEMENT[kind]
    assert np.median(np.abs(scores - expected)) < 0.05 * np.abs(expected).max()
    if kind == "float32":
        np.testing.assert_allclose(scores, expected, atol=1e-4)


RUNTIMES = {
    "threads": ("", True, "litert_wasm_threaded_internal.wasm"),
    "one thread": ("", False, "litert_wasm_internal.wasm"),
    "no relaxed SIMD": (
        "const real = WebAssembly.instantiate;"
        "WebAssembly.instantiate = (code, ...rest) =>"
        "  code.byteLength < 100 ? Promise.reject(new Error('no such instruction')) : real(code, ...rest);",
        True,
        "litert_wasm_compat_internal.wasm",
    ),
}


class Plain(SimpleHTTPRequestHandler):
    """A static host that knows nothing of isolation."""

    def log_message(self, format, *args):
        pass


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_gives_the_same(chromium, finished_run, digits, tmp_path, runtime):
    script, isolated, program = RUNTIMES[runtime]
    folder = web_page(finished_run, tmp_path / "page", "float32").folder
    server = (
        page_server(folder, 0)
        if isolated
        else ThreadingHTTPServer(("127.0.0.1", 0), partial(Plain, directory=str(folder)))
    )
    with running(server) as url, opened(chromium, url, script) as tab:
        assert [name for name in tab.asked if name.endswith(".wasm")] == [f"{url}vendor/{program}"]
        assert ("1 thread" in tab.inner_text("#runtime")) == (runtime != "threads") or (
            tab.evaluate("navigator.hardwareConcurrency") == 1
        )
        scores = [classify(tab, encoded(picture))["scores"] for picture in digits[:5]]
    expected = Classifier(finished_run / "export" / "model.float32.tflite").logits(digits[:5])
    np.testing.assert_allclose(scores, expected, atol=1e-4)


@pytest.mark.parametrize("framing", [Framing(), Framing("bicubic", 0.875)], ids=["bilinear", "bicubic"])
def test_pictures_of_other_sizes_are_cut_as_predict_does(chromium, float32, tmp_path, framing):
    file = tmp_path / "small.tflite"
    file.write_bytes(float32)
    rng = np.random.default_rng(0)
    folder = build_page(file, tmp_path / "page", framing=framing)
    with running(page_server(folder, 0)) as url, opened(chromium, url) as tab:
        for size in ((8, 8), (5, 5), (16, 16), (37, 90), (301, 203)):
            content = encoded(rng.integers(0, 256, (*size, 3), dtype="uint8"))
            ours = np.array(classify(tab, content)["pixels"]).reshape(8, 8, 3)
            difference = np.abs(ours - decode_picture(tf.constant(content), (8, 8), framing).numpy().astype(int))
            assert difference.max() <= 1 and (difference > 0).mean() < 0.02, size


def test_pictures_are_turned_upright_and_keep_their_colours(tab):
    """EXIF is obeyed; gamma is not applied, alpha is dropped, and gray and palettes become RGB, as in `predict`."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 3), dtype="uint8")
    gamma = PngImagePlugin.PngInfo()
    gamma.add(b"gAMA", (20000).to_bytes(4, "big"))
    see_through = np.dstack([pixels, np.full((8, 8), 255, "uint8")])
    see_through[0, :, 3] = 128
    palette = io.BytesIO()
    Image.fromarray(pixels).quantize(16).save(palette, "PNG")
    exact = {
        "gamma": encoded(pixels, pnginfo=gamma),
        "gray": encoded(pixels[..., 0]),
        "palette": palette.getvalue(),
    }
    for name, content in exact.items():
        expected = decode_picture(tf.constant(content), (8, 8)).numpy()
        assert classify(tab, content)["pixels"] == expected.ravel().tolist(), name
    assert np.abs(np.array(classify(tab, encoded(see_through))["pixels"]) - pixels.ravel()).max() <= 2
    turned = Image.Exif()
    turned[0x0112] = 6
    smooth = np.asarray(Image.fromarray(pixels[:4, :6]).resize((48, 32), Image.Resampling.BICUBIC))
    # Without subsampled colours, which the two decoders bring back to full size in different ways.
    content = encoded(smooth, "JPEG", quality=95, subsampling=0, exif=turned)
    expected = decode_picture(tf.constant(content), (8, 8)).numpy().astype(int)
    difference = np.abs(np.array(classify(tab, content)["pixels"]) - expected.ravel())
    assert difference.max() <= 3, (difference.max(), difference.mean())


def test_a_picture_from_the_file_field_is_shown_with_its_five_classes(tab, finished_run, digits):
    logits = Classifier(finished_run / "export" / "model.float32.tflite").logits(digits[:1])[0]
    chances = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    upload(tab, "digit.png", encoded(digits[0]))
    tab.wait_for_selector("#results li")
    rows = [row.inner_text().split("\n") for row in tab.query_selector_all("#results li")]
    best = np.argsort(-chances)[:5]
    assert [row[0] for row in rows] == [str(i) for i in best]
    assert [float(row[1].rstrip(" %")) for row in rows] == pytest.approx(100 * chances[best], abs=0.06)
    assert f"{best[0]}, " in message(tab, "%")
    assert "ms" in tab.inner_text("#model-time")
    assert tab.evaluate("document.querySelector('#preview').naturalWidth") == 8
    width = tab.evaluate("document.querySelector('#results .bar').getBoundingClientRect().width")
    track = tab.evaluate("document.querySelector('#results .track').getBoundingClientRect().width")
    assert width / track == pytest.approx(chances.max(), abs=0.3)  # It may still be growing.


DROP = """async ([name, content]) => {
  const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], name));
  document.querySelector("#stage").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
}"""


def test_a_picture_and_a_file_may_be_dropped(tab, digits, float32, model, tmp_path):
    def drop(name, content):
        tab.evaluate(DROP, [name, base64.b64encode(content).decode()])

    drop("digit.png", encoded(digits[1]))
    tab.wait_for_selector("#results li")
    drop("other.tflite", float32)
    message(tab, "Ready")
    assert tab.inner_text("#name") == "other" and "4 classes" in tab.inner_text("#facts")
    assert classify(tab, encoded(digits[0]))["labels"] == ["0", "1", "2", "3"]
    labels = ["ant", "bee", "cat", "Möwe"]
    drop("named.tflite", to_tflite(model, tmp_path / "named.tflite", labels=labels).read_bytes())
    message(tab, "Ready")
    assert tab.inner_text("#name") == "named"
    assert classify(tab, encoded(digits[0]))["labels"] == labels


@pytest.mark.parametrize("kind", ["float32", "full_int8"])
def test_probabilities_are_shown_as_they_are(tab, digits, finished_run, tmp_path, kind):
    file = tmp_path / "chances.tflite"
    keras_model = load_model(finished_run / "model.keras")
    to_tflite(keras_model, file, kind, calibration=[digits.astype("float32")], output="probabilities")
    upload(tab, file.name, file.read_bytes(), "#model-file")
    message(tab, "Ready")
    result = classify(tab, encoded(digits[0]))
    assert result["chances"] == result["scores"]
    np.testing.assert_allclose(result["chances"], Classifier(file).logits(digits[:1])[0], atol=0.02)


def test_mistakes_are_told_plainly_and_the_page_goes_on(tab, digits, finished_run):
    huge = io.BytesIO()
    Image.new("1", (10_000, 9_000)).save(huge, "PNG")
    good = (finished_run / "export" / "model.static_int8.tflite").read_bytes()
    for name, content, part in (
        ("notes.txt", b"just words", "no picture that the browser can read"),
        ("empty.png", b"", "no picture that the browser can read"),
        ("cut.png", encoded(digits[0])[:60], "no picture that the browser can read"),
        ("huge.png", huge.getvalue(), "90 million pixels; at most 67 million"),
    ):
        upload(tab, name, content)
        assert part in message(tab, part)
        assert tab.evaluate("document.querySelector('#message').classList.contains('error')")
    for name, content, part in (
        ("words.tflite", b"just words", "words.tflite: This is no TensorFlow Lite file."),
        ("empty.tflite", b"", "empty.tflite: This is no TensorFlow Lite file."),
        ("sum.tflite", no_classifier(), "sum.tflite: The file must take pictures"),
        ("cut.tflite", good[: len(good) // 2], "cut.tflite: "),
        ("head.tflite", good[:100], "head.tflite: This TensorFlow Lite file is damaged."),
        ("noise.tflite", good[:8] + bytes(range(256)) * 9, "noise.tflite: "),
    ):
        upload(tab, name, content, "#model-file")
        assert part in message(tab, part)
    upload(tab, "digit.png", encoded(digits[0]))
    tab.wait_for_selector("#results li")
    assert not tab.evaluate("document.querySelector('#message').classList.contains('error')")


@pytest.mark.parametrize(
    ("script", "part"),
    [
        ("delete globalThis.WebAssembly;", "no WebAssembly"),
        ("CanvasRenderingContext2D.prototype.getImageData = () => new ImageData(16, 16);", "changes the pixels"),
    ],
    ids=["WebAssembly", "exact pixels"],
)
def test_what_the_browser_lacks_is_said(chromium, site, script, part):
    with opened(chromium, site, script) as tab:
        assert part in message(tab, part)


def test_without_a_camera_the_page_says_so(chromium, site):
    gone = "Object.defineProperty(Navigator.prototype, 'mediaDevices', {value: undefined});"
    with opened(chromium, site, gone) as tab:
        assert tab.is_disabled("#camera") and tab.inner_text("#camera") == "No camera here"
    refused = "MediaDevices.prototype.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError'));"
    with opened(chromium, site, refused) as tab:
        tab.click("#camera")
        assert "not allowed" in message(tab, "camera")
        assert tab.inner_text("#camera") == "Use camera"


def test_the_camera_is_classified_until_it_is_stopped(tab):
    tab.click("#camera")
    tab.wait_for_selector("#results li")
    assert tab.is_visible("#video") and tab.get_attribute("#camera", "aria-pressed") == "true"
    tab.click("#camera")
    message(tab, "The camera is off.")
    assert tab.is_hidden("#video") and tab.get_attribute("#camera", "aria-pressed") == "false"


@pytest.mark.parametrize("kind", ["float32", "full_int8"])
def test_attention_lies_over_the_picture(chromium, finished_run, digits, tmp_path, kind):
    """The page follows attention as Python does, and draws it where the model looked: of a wide picture, the middle."""
    file = tmp_path / f"{kind}.tflite"
    keras_model = load_model(finished_run / "model.keras")
    to_tflite(keras_model, file, kind, calibration=[digits.astype("float32")], with_attention=True)
    _, rows = Classifier(file).logits_and_attention(digits)
    expected = rollout(rows, *read_grids(file.read_bytes()))
    folder = build_page(file, tmp_path / "page")
    with running(page_server(folder, 0)) as url, opened(chromium, url) as tab:
        maps = [classify(tab, encoded(picture))["map"] for picture in digits]
        maps = np.array(maps).reshape(expected.shape)
        if kind == "float32":
            np.testing.assert_allclose(maps, expected, atol=1e-5)
        assert rank_correlations(maps, expected).mean() > 0.98
        wide = np.pad(digits[0].repeat(32, 0).repeat(32, 1), ((0, 0), (128, 128), (0, 0)))
        upload(tab, "wide.png", encoded(wide))
        tab.wait_for_selector("#attention:not([hidden])")
        size, drawn = tab.evaluate(DRAWN)
        assert size == [512, 256]
        drawn = np.array(drawn)
        assert drawn[:120].max() == 0 == drawn[-120:].max() and drawn[136:-136].min() > 0
        tab.screenshot(path=tmp_path / "attention.png", full_page=True)  # To be looked at.
        tab.click("#show-attention")
        assert tab.is_hidden("#attention") and tab.get_attribute("#show-attention", "aria-pressed") == "false"
        tab.click("#show-attention")
        assert tab.is_visible("#attention")
        plain = (finished_run / "export" / "model.float32.tflite").read_bytes()
        upload(tab, "plain.tflite", plain, "#model-file")
        message(tab, "Ready")
        upload(tab, "digit.png", encoded(digits[0]))
        tab.wait_for_selector("#results li")
        assert tab.is_hidden("#attention") and tab.is_hidden("#show-attention")


DRAWN = """() => {
  const {width, height} = document.querySelector("#attention");
  const {data} = document.querySelector("#attention").getContext("2d").getImageData(0, height / 2, width, 1);
  return [[width, height], Array.from({length: width}, (_, x) => data[4 * x + 3])];
}"""
"""Size of the attention's canvas, and how opaque its middle row is."""


def test_the_keyboard_is_enough(tab):
    reached = []
    for _ in range(3):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.id"))
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert reached == ["choose", "camera", "choose-model"]
    for button, field in (("choose", "picture-file"), ("choose-model", "model-file")):
        # The browser's own window is not waited for: of headless ones it comes late or never.
        tab.evaluate(
            """id => document.getElementById(id).addEventListener("click", event => {
                event.preventDefault();
                window.asked = navigator.userActivation.isActive && id;
            })""",
            field,
        )
        tab.focus(f"#{button}")
        tab.keyboard.press("Enter")
        assert tab.wait_for_function("window.asked").json_value() == field
        tab.evaluate("window.asked = null")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", WINDOWS)
def test_the_page_fits_the_window(chromium, site, digits, tmp_path, window, scheme):
    width, height = WINDOWS[window]
    with opened(chromium, site, viewport={"width": width, "height": height}, color_scheme=scheme) as tab:
        upload(tab, "digit.png", encoded(digits[0]))
        tab.wait_for_selector("#results li")
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        back, text = (tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("backgroundColor", "color"))
        assert (brightness(back) > brightness(text)) == (scheme == "light")
        tab.screenshot(path=tmp_path / f"{window}_{scheme}.png", full_page=True)  # To be looked at.


def brightness(colour: str) -> int:
    return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))
