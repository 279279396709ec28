"""What the commands print."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vit_keras.export.flatbuffer import printable

from .report import attention_cells, proof_cells, sensitivity_rows
from .run_folder import RunFolder

if TYPE_CHECKING:
    from vit_keras.export import Benchmark, DeviceCheck, GoldenCheck, Refusal

    from .checking import DataCheck, FoundPicture
    from .evaluation import Evaluation
    from .explanation.comparing import Comparison
    from .explanation.explaining import Explanation
    from .explanation.probing import Probing
    from .prediction import Prediction


def progress() -> int:
    """Returns the `verbose` of `model.fit` that suits the output: a bar on a terminal, else a line per epoch."""
    return 1 if sys.stdout.isatty() else 2


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """Shows a bar while things are counted: gives a function of their number and of all; `None` off a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def data_check(check: "DataCheck") -> None:
    """Prints counts per class, then what is wrong with a set of pictures, by name."""
    splits = list(check.counts)
    rows = [
        {"class": label, **{split: f"{check.counts[split][label]:,}" for split in splits}}
        for label in check.counts[splits[0]]
    ]
    rows.append({"class": "all", **{split: f"{sum(check.counts[split].values()):,}" for split in splits}})
    _print_table(check.name, rows)
    for picture in check.bad:
        _print(f"bad: {picture.picture}: {picture.fault}")
    for kind, groups in (("duplicate", check.duplicates), ("leak", check.leaks)):
        for group in groups:
            _print(f"{kind}: {' = '.join(_place(picture, group) for picture in group)}")
    print(
        f"{len(check.bad):,} bad pictures, {len(check.duplicates):,} groups of duplicates, "
        f"{len(check.leaks):,} groups in more than one split"
    )


def _place(picture: "FoundPicture", group: Sequence["FoundPicture"]) -> str:
    """Names a picture, and its split and class where those in its group differ."""
    splits, labels = ({getattr(other, name) for other in group} for name in ("split", "label"))
    added = [picture.split] * (len(splits) > 1) + [picture.label] * (len(labels) > 1)
    return f"{picture.picture} ({', '.join(added)})" if added else picture.picture


def proof(report: dict[str, Any], folder: str | Path) -> None:
    """Prints the proof table of a report."""
    keras_model, data = report["keras"], report["data"]
    image_size = report["model"]["image_size"]
    rows = [proof_cells(artefact, image_size) for artefact in report["artefacts"]]
    title = f"Keras model: {keras_model['accuracy']:.2%} on {data['test']:,} test pictures of {data['name']}"
    _print_table(title, rows)
    _print_table(None, [attention_cells(row) for row in report["attention"]])
    _print_table("Relative errors of each layer, quantised", sensitivity_rows(report["sensitivity"]))
    own = [artefact for artefact in report["artefacts"] if artefact["image_size"] == image_size]
    for artefact in own:
        if artefact["relaxation"]:
            print(f"{artefact['kind']}: {_relaxation(artefact['relaxation'])}")
    within = [a for a in own if a["relaxation"] and a["relaxation"]["within"]]
    if len(within) > 1:
        print(f"Fastest within the limit, here: {min(within, key=lambda a: a['latency_ms']['p50'])['kind']}")
    page = Path(folder) / "report.html"
    if report["sensitivity"]:
        print(f"Sensitivity: {RunFolder(folder).sensitivity_plot}")
    print(f"Report: {page if page.exists() else page.with_suffix('.json')}")


def bundles(platforms: Sequence[str], folder: str | Path) -> None:
    """Prints where the folders for apps are."""
    for platform in platforms:
        print(f"For an app on {platform}: {RunFolder(folder).bundle(platform)}")


def targets(names: Sequence[str], folder: str | Path) -> None:
    """Says of files that were made for targets where those would not take all of them."""
    from vit_keras.export import check_devices
    from vit_keras.export.targets import chosen_targets

    for target in chosen_targets(names):
        file = RunFolder(folder).tflite_file(target.kind)
        if not file.exists():
            continue
        (check,) = check_devices(file, [target.name])
        if not check.fits:
            refused = ", ".join(dict.fromkeys(refusal.operator for refusal in check.best.refused))
            _print(
                f"{target.name}: {check.best.rules.title} would not take all of {file}: {refused}; "
                f"`vit-keras devices {file} --for {target.name}` says why"
            )


def _relaxation(found: dict[str, Any]) -> str:
    """Says what was done to keep a file within its limit."""
    layers = found["layers"]
    text = f"{found['drop']:.2f} points lost on the validation pictures"
    if layers:
        shown = ", ".join(layers[:6]) + (f" and {len(layers) - 6} more" if len(layers) > 6 else "")
        text += f" ({found['first_drop']:.2f} before these were computed more finely: {shown})"
    return text if found["within"] else f"{text}, more than allowed"


def evaluation(result: "Evaluation") -> None:
    """Prints accuracy with its interval, and loss."""
    low, high = result.accuracy_interval
    print(
        f"accuracy {result.accuracy:.2%} (95 % interval {100 * low:.1f}-{100 * high:.1f} %), "
        f"loss {result.loss:.4f}, {len(result.labels):,} test pictures"
    )


def predictions(results: Sequence["Prediction"]) -> None:
    """Prints a line per picture: class, probability, file."""
    for result in results:
        _print(result.label, f"{result.probability:.4f}", result.picture)


def explained(result: "Explanation | Comparison") -> None:
    """Prints what was explained, or compared, and where the page is."""
    from .explanation.comparing import Comparison

    if isinstance(result, Comparison):
        print(
            f"{result.method}: rank correlation {result.mean:.4f} on average, {result.least:.4f} at least, on "
            f"{len(result.pictures):,} test pictures; the same class for {result.agreement:.1%}"
        )
    else:
        for picture in result.pictures:
            _print(picture.label, f"{picture.probability:.4f}", picture.picture)
            for method, reason in picture.refused.items():
                print(f"{method}: {reason}")
    print(f"Page: {result.page}")


def probed(result: "Probing") -> None:
    """Prints accuracies along every probe, and where the page is."""
    from .explanation.probing import curve_rows

    for name in dict.fromkeys(curve.probe for curve in result.curves):
        _print_table(None, curve_rows([curve for curve in result.curves if curve.probe == name]))
    for name, spectrum in result.fourier.items():
        first, last = spectrum.amplitudes[0, -1], spectrum.amplitudes[-1, -1]
        print(f"fourier: {name}: log amplitude of the highest frequency {first:.2f} first, {last:.2f} last")
    for name, values in result.hessian.items():
        print(
            f"hessian: {name}: largest eigenvalue {sum(values) / len(values):.3g} on average, {max(values):.3g} at most"
        )
    for name, found in result.embeddings.items():
        print(f"embedding: {name}: the nearest other picture is of the same class for {found[0].neighbours:.1%}")
    for pair in result.similarities:
        nearest = [pair.other_layers[row.argmax()] for row in pair.cka]
        best = ", ".join(f"{one} {other}" for one, other in zip(pair.layers, nearest, strict=True))
        print(f"similarity: {pair.subject} and {pair.other}: most alike are {best}")
    print(f"Page: {result.page}")


def presets(pattern: str) -> None:
    """Prints the presets whose names match a shell-style pattern.

    Raises:
        ValueError: no preset matches.
    """
    from vit_keras import get_preset, list_models

    names = list_models(pattern)
    if not names:
        raise ValueError(f"pattern must match a preset; `vit-keras list` shows all. Received: pattern={pattern}")
    _print_table(None, [{"model": name, **_facts(get_preset(name))} for name in names])


def recipes(pattern: str) -> None:
    """Prints a line per recipe whose name matches a shell-style pattern.

    Raises:
        ValueError: no recipe matches.
    """
    import fnmatch

    from .recipe import list_recipes

    found = {name: text for name, text in list_recipes().items() if fnmatch.fnmatch(name, pattern)}
    if not found:
        raise ValueError(f"pattern must match a recipe; `vit-keras list --recipes` shows all. Received: {pattern=}")
    _print_table(None, [{"recipe": name, "what": text} for name, text in found.items()], wide=("what",))


def devices(checks: Sequence["DeviceCheck"], path: str | Path) -> None:
    """Prints where a file runs: a line per target and set of rules, then what is refused, why, and in which layers."""
    rows = [
        {
            "target": check.target.name,
            "held against": result.rules.title,
            "runs whole": "no" if result.refused else "yes",
            "operators": str(result.operators),
            "refused": str(len(result.refused)),
            "parts": str(result.partitions),
        }
        for check in checks
        for result in check.checks
    ]
    _print_table(str(path), rows, wide=("held against",))
    for result in {result.rules.name: result for check in checks for result in check.checks}.values():
        if result.refused:
            print()
            title = f"{result.rules.title}: {len(result.refused)} refused; {result.rules.falls_back}"
            _print_table(title, _refusals(result.refused), wide=("reason", "layers"))
            for source in result.rules.sources:
                print(f"Source: {source.url} ({source.state})")
        elif result.rules.caveats:
            print(f"\n{result.rules.title}: nothing refused")
        for caveat in result.rules.caveats:
            print(f"Note: {caveat}")


def _refusals(refused: Sequence["Refusal"]) -> list[dict[str, str]]:
    groups: dict[tuple[str, str], list[Refusal]] = {}
    for refusal in refused:
        groups.setdefault((refusal.operator, refusal.reason), []).append(refusal)
    rows = []
    for (operator, reason), group in groups.items():
        layers = list(dict.fromkeys(refusal.layer or "?" for refusal in group))
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        rows.append(
            {"operator": operator, "times": str(len(group)), "reason": reason, "layers": ", ".join(layers[:3]) + more}
        )
    return rows


def benchmarks(results: Sequence["Benchmark"]) -> None:
    """Prints time, size and memory of files."""
    rows = [
        {
            "file": str(result.file),
            "p50 ms": f"{result.latency.p50:.3g}",
            "p90 ms": f"{result.latency.p90:.3g}",
            "bytes": f"{result.bytes:,}",
            "peak memory MB": f"{result.memory / 1e6:.1f}",
            "threads": str(result.latency.threads),
        }
        for result in results
    ]
    _print_table(None, rows, wide=("file",))


def golden(checks: Sequence["GoldenCheck"]) -> None:
    """Prints what files made of their golden sets, then the pictures that they take for something else."""
    rows = [
        {
            "file": str(check.file),
            "held against": check.against + ("" if check.same_file else " (another file)"),
            "pictures": str(check.pictures),
            "top-1": f"{check.top1:.1%}",
            "top-5": f"{check.top5:.1%}",
            "max error": f"{check.max_abs_logit_error:.2g}",
            "passed": "yes" if check.passed else "no",
        }
        for check in checks
    ]
    _print_table(None, rows, wide=("file", "held against"))
    for check in checks:
        if check.different:
            _print(f"{check.file}: another class for {', '.join(check.different)}")


def _facts(preset: Any) -> dict[str, str]:
    arguments = preset.arguments
    return {
        "input": "x".join(str(n) for n in preset.image_size),
        "patch": str(arguments["patch_size"]),
        "width": str(arguments["hidden_dim"]),
        "blocks": str(arguments["num_layers"]),
        "heads": str(arguments["num_heads"]),
        "parameters (1000 classes)": f"{preset.parameters:,}" if preset.parameters else "",
        "source": preset.source,
    }


def _print(*parts: str) -> None:
    """Prints a line of parts with tabs between them; names of files and classes may hold what steers a terminal."""
    print(*map(printable, parts), sep="\t")


def _print_table(title: str | None, rows: Sequence[dict[str, str]], wide: Sequence[str] = ("source",)) -> None:
    if not rows:
        return
    table = Table(title=Text(printable(title)) if title else None, title_justify="left")
    for i, name in enumerate(rows[0]):
        left = i == 0 or name in wide
        table.add_column(name, justify="left" if left else "right", no_wrap=name not in wide, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(value)) for value in row.values()))
    console = Console()
    console.print(table) if console.is_terminal else Console(width=150).print(table)
