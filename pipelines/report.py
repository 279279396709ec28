"""The report of a run: plots, `report.json` for programs, and one self-contained page for people."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from vit_keras.export.files import replacing

_BLUE, _ORANGE, _GRAY = "#2563eb", "#ea580c", "#64748b"


def plot_history(rows: Sequence[dict[str, float]], path: str | Path | None = None) -> Figure:
    """Plots loss and accuracy per epoch for training and validation pictures; writes a PNG if `path` is given."""
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    epochs = [row["epoch"] + 1 for row in rows]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        axes.plot(epochs, [row[name] for row in rows], color=_GRAY, label="training (augmented)")
        axes.plot(epochs, [row[f"val_{name}"] for row in rows], color=_BLUE, label="validation")
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    best = min(range(len(rows)), key=lambda i: rows[i]["val_loss"])
    axes.plot(epochs[best], rows[best]["val_accuracy"], "o", color=_ORANGE)
    write_figure(figure, path)
    return figure


def plot_confusion(matrix: np.ndarray, classes: Sequence[str], path: str | Path | None = None) -> Figure:
    """Plots a confusion matrix, `(num_classes, num_classes)`, rows being the true classes."""
    count = len(classes)
    side = min(12.0, 2.5 + 0.38 * count)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if count <= 40:
        axes.set_xticks(range(count), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
        axes.set_yticks(range(count), classes)
    if count <= 20:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            dark = shares[row, column] > 0.5
            axes.text(column, row, matrix[row, column], ha="center", va="center", color="white" if dark else "black")
    write_figure(figure, path)
    return figure


def plot_sensitivity(errors: Mapping[str, Sequence[Mapping[str, Any]]], path: str | Path | None = None) -> Figure:
    """Plots what quantising does to each layer, a column per kind.

    Args:
        errors: Kind to the entries of `sensitivity.json`: `layer`, `own` and `alone`.
        path: The PNG to write, if any.
    """
    most = max(len(found) for found in errors.values())
    figure = Figure(figsize=(1.5 + 4.5 * len(errors), 1.2 + 0.21 * most), layout="constrained")
    for axes, (kind, found) in zip(figure.subplots(1, len(errors), squeeze=False)[0], errors.items(), strict=True):
        rows = range(len(found))
        axes.plot([error["own"] for error in found], rows, "o", color=_GRAY, label="its results, all quantised")
        axes.plot([error["alone"] for error in found], rows, "o", color=_BLUE, label="the logits, it alone quantised")
        axes.set_yticks(rows, [error["layer"] for error in found], fontsize=7)
        axes.set(xscale="log", xlabel="relative error", title=kind)
        axes.invert_yaxis()
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=2)
    write_figure(figure, path)
    return figure


def plot_pictures(
    images: np.ndarray, maps: np.ndarray, truths: Sequence[str], guesses: Sequence[str], chances: Sequence[float]
) -> Figure:
    """Plots pictures beside what the model attends to in them.

    Args:
        images: `(n, H, W, 3)`, pixels 0 to 255.
        maps: Attention over the patches, `(n, h, w)`.
        truths: True class names.
        guesses: Predicted class names.
        chances: Predicted probabilities.
    """
    columns = 4
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(2.6 * columns, 1.75 * rows), layout="constrained")
    grid = figure.subplots(rows, 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    height, width = images.shape[1:3]
    for i, (image, weights) in enumerate(zip(images, maps, strict=True)):
        left, right = grid[i // columns, 2 * (i % columns)], grid[i // columns, 2 * (i % columns) + 1]
        left.imshow(image.astype("uint8"))
        right.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
        right.imshow(weights, cmap="inferno", alpha=0.65, extent=(-0.5, width - 0.5, height - 0.5, -0.5))
        wrong = truths[i] != guesses[i]
        title = f"{guesses[i]} ({chances[i]:.0%})" + (f", is {truths[i]}" if wrong else "")
        left.set_title(title, fontsize=9, loc="left", color=_ORANGE if wrong else "black")
    return figure


def write_html(
    path: str | Path,
    report: dict[str, Any],
    config_yaml: str,
    history: Figure,
    confusion: Figure,
    pictures: Figure,
    sensitivity: Figure | None = None,
) -> None:
    """Writes the page: proof table, curves, confusion matrix, pictures; everything inside the one file.

    Args:
        path: The file to write.
        report: The content of `report.json`.
        config_yaml: The run's configuration as text.
        history: Of `plot_history`.
        confusion: Of `plot_confusion`.
        pictures: Of `plot_pictures`.
        sensitivity: Of `plot_sensitivity`, if it was measured.
    """
    model, data, keras_model = report["model"], report["data"], report["keras"]
    facts = [
        ("Model", f"{model['name']}, {model['parameters']:,} parameters"),
        ("Input", "x".join(str(n) for n in model["image_size"]) + f" pixels, {len(model['classes'])} classes"),
        (
            "Data",
            f"{data['name']}: {data['train']:,} training, {data['validation']:,} validation, {data['test']:,} test",
        ),
        ("Keras model on the test pictures", f"{keras_model['accuracy']:.2%} accuracy, loss {keras_model['loss']:.4f}"),
    ]
    rows = "".join(f"<tr><th>{html.escape(a)}</th><td>{html.escape(b)}</td></tr>" for a, b in facts)
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(data["name"])}: {html.escape(model["name"])}</title><style>{STYLE}</style></head><body><main>
<h1>{html.escape(model["name"])} on {html.escape(data["name"])}</h1>
<table class="facts">{rows}</table>
<h2>The proof</h2>
<p>Every exported file was run over all {data["test"]:,} test pictures in LiteRT's interpreter.</p>
<div class="wide">{_proof_table(report)}</div>
<p class="note">Agreement: share of the test pictures on which the file names the same class as the Keras model.
Points lost: accuracy of the Keras model less that of the file. Intervals are 95 %: Wilson's for an accuracy, the paired
one of Agresti and Min for points lost. Operators count as float where they touch a float tensor, QUANTIZE and
DEQUANTIZE too. Max error: of a logit. Parts: of the graph that the CPU delegate (XNNPACK) takes. Times are per picture
on the machine that made this report; compare them with each other, not with other machines.</p>
{_attention(report["attention"])}{_sensitivity(report["sensitivity"], sensitivity)}<h2>Training</h2>
{image_tag(history, "Loss and accuracy per epoch")}
<h2>Confusion on the test pictures</h2>{image_tag(confusion, "Confusion matrix")}
<h2>What the model looks at</h2>
<p>Test pictures, the prediction with its probability, and the attention rollout over the patches: bright patches went
into the decision most. Wrong predictions come first.</p>{image_tag(pictures, "Test pictures with attention maps")}
<h2>Configuration</h2><pre>{html.escape(config_yaml)}</pre>
</main></body></html>
"""
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def attention_cells(row: dict[str, Any]) -> dict[str, str]:
    """Returns one row of the table of files that give their attention, column name to text.

    Args:
        row: An entry of the report's `attention`.
    """
    latency, without = row["latency_ms"]["p50"], row["latency_ms_without"]["p50"]
    return {
        "with attention": row["kind"],
        "rank correlation": f"{row['rollout_correlation']:.4f}",
        "bytes more": f"{row['bytes'] - row['bytes_without']:,}",
        "p50 ms": f"{latency:.3g}",
        "without": f"{without:.3g}",
        "ratio": f"{latency / without:.2f}",
        "logits differ by": f"{row['max_abs_logit_difference']:.2g}",
    }


def _attention(rows: Sequence[dict[str, Any]]) -> str:
    if not rows:
        return ""
    return f"""<h2>Attention as a second output</h2>
<div class="wide">{html_table([attention_cells(row) for row in rows])}</div>
<p class="note">Rank correlation: Spearman's, of the attention rollout from the file and from the Keras model over the
patches of a picture; the mean over {rows[0]["pictures"]:,} test pictures. Without: the same kind of file without that
output, measured in turn with it.</p>
"""


def sensitivity_rows(errors: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, str]]:
    """Returns the table of layers that are quantised, column name to text for each layer.

    Args:
        errors: The report's `sensitivity`: kind to layers in their order, with their errors.
    """
    rows: dict[str, dict[str, str]] = {}
    blank = {f"{kind}, {what}": "" for kind in errors for what in ("results", "logits")}
    for kind, found in sorted(errors.items(), key=lambda item: -len(item[1])):  # The one with most layers has all.
        for error in found:
            row = rows.setdefault(error["layer"], {"layer": error["layer"], **blank})
            row |= {f"{kind}, results": f"{error['own']:.2g}", f"{kind}, logits": f"{error['alone']:.2g}"}
    return list(rows.values())


def _sensitivity(errors: Mapping[str, Sequence[Mapping[str, Any]]], figure: Figure | None) -> str:
    if figure is None:
        return ""
    return f"""<h2>What quantising does to each layer</h2>
<p>Gray: error of a layer's results in the quantised file, its own and what it was given. Blue: error of the logits when
this layer is the only one quantised. Both as root mean square over that of the float32 values.</p>
{image_tag(figure, "Relative errors per layer")}
<details><summary>As a table</summary><div class="wide">{html_table(sensitivity_rows(errors))}</div></details>
"""


def proof_cells(artefact: dict[str, Any], image_size: Sequence[int]) -> dict[str, str]:
    """Returns one row of the proof table, column name to text.

    Args:
        artefact: An entry of the report's `artefacts`.
        image_size: Height and width that the model has itself: others are named in the row.
    """
    size = "" if artefact["image_size"] == list(image_size) else " {}x{}".format(*artefact["image_size"])
    low, high = artefact["accuracy_interval"]
    lost, (least, most) = artefact["points_lost"], artefact["points_lost_interval"]
    operators, latency = artefact["operators"], artefact["latency_ms"]
    return {
        "kind": artefact["kind"] + size,
        "accuracy": f"{artefact['accuracy']:.2%}",
        "95 % interval": f"{100 * low:.1f}-{100 * high:.1f} %",
        "points lost": f"{lost:.2f} ({least:.2f} to {most:.2f})",
        "agreement": f"{artefact['agreement']:.2%}",
        "max error": f"{artefact['max_abs_logit_error']:.2g}",
        "bytes": f"{artefact['bytes']:,}",
        "p50 ms": f"{latency['p50']:.3g}",
        "p90 ms": f"{latency['p90']:.3g}",
        "ops": f"{operators['total']}",
        "float": f"{operators['float']}",
        "parts": f"{operators['delegate_partitions']}",
    }


def _proof_table(report: dict[str, Any]) -> str:
    rows = [proof_cells(artefact, report["model"]["image_size"]) for artefact in report["artefacts"]]
    return html_table(rows) if rows else "<p>No file was exported.</p>"


def html_table(rows: Sequence[dict[str, str]]) -> str:
    """Returns rows, column name to text, as a table of HTML."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in rows[0])
    body = "".join("<tr>" + "".join(f"<td>{html.escape(v)}</td>" for v in row.values()) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def image_tag(figure: Figure, text: str) -> str:
    """Returns a figure, and a text for those who cannot see it, as a picture inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{data}">'


def write_figure(figure: Figure, path: str | Path | None) -> None:
    if path is not None:
        with replacing(path) as temporary, matplotlib.rc_context():
            figure.savefig(temporary, format="png", dpi=130)


STYLE = """
:root { color-scheme: light dark; --line: #cbd5e1; --soft: #f1f5f9; --ink: #0f172a; --paper: #fff; --faint: #475569; }
@media (prefers-color-scheme: dark) {
  :root { --line: #334155; --soft: #1e293b; --ink: #e2e8f0; --paper: #0f172a; --faint: #94a3b8; }
}
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .55rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } thead th { background: var(--soft); font-weight: 600; }
thead th { white-space: normal; vertical-align: bottom; }
.facts th { font-weight: 600; white-space: normal; } .facts td { text-align: left; white-space: normal; }
.wide { overflow-x: auto; } .wide table { font-size: .9rem; } .note { color: var(--faint); font-size: .85rem; }
img { max-width: 100%; height: auto; background: #ffffff; border-radius: 6px; }
pre { background: var(--soft); padding: 1rem; border-radius: 6px; overflow-x: auto; font-size: .85rem; }
"""
