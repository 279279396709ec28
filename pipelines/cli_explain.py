"""`vit-keras explain`: thin functions over `vit_keras.pipelines.explanation`. Imports no TensorFlow at the top."""

import logging
from typing import Any

from .cli_parts import add_overwrite, asked, quiet_tensorflow
from .parsing import Parser


def add_explain(parser: Parser) -> None:
    """Adds the arguments of `vit-keras explain`."""
    parser.add_argument("path", metavar="RUN_OR_FILE", help="A run's folder, or a .keras or .tflite file.")
    parser.add_argument("pictures", metavar="PICTURE", nargs="*", help="JPEG, PNG, BMP or GIF files.")
    parser.add_argument(
        "--method",
        action="append",
        type=str,
        help="A method or figure, such as rollout, saliency, occlusion or heads, several with commas, or all; the "
        "usual ones that the model can be explained by if not given.",
    )
    parser.add_argument(
        "--class",
        dest="label",
        type=str,
        help="Name or number of the class to explain; the predicted one if not given.",
    )
    parser.add_argument(
        "--compare", metavar="FILE", type=str, help="A .tflite file: its maps beside the run's, on test pictures."
    )
    parser.add_argument("--count", type=int, default=100, help="With --compare: number of test pictures.")
    parser.add_argument("--out", type=str, help="The folder to write; `explain` in the run if not given.")
    add_overwrite(parser)


def explain(options: Any) -> None:
    """Runs `vit-keras explain`."""
    overwrite, methods = options.get("overwrite", False), asked(options.method)
    if bool(options.compare) == bool(options.pictures) or (options.compare and (options.label or len(methods) > 1)):
        raise ValueError(
            "explain takes pictures, or --compare FILE with one --method at most. "
            f"Received: {len(options.pictures)} pictures, --compare {options.compare}, --method {','.join(methods)}"
        )
    quiet_tensorflow()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # It warns of functions traced for batches of other sizes.
    from . import display
    from .explanation import comparing, explaining

    with display.counting("pictures") as progress:
        if options.compare:
            method = methods[0] if methods else None
            found = comparing.compare_maps(
                options.path, options.compare, method, options.count, options.out, overwrite, progress
            )
        else:
            found = explaining.explain(
                options.path, options.pictures, methods, options.label, options.out, overwrite, progress
            )
    display.explained(found)


def add_probe(parser: Parser) -> None:
    """Adds the arguments of `vit-keras probe`."""
    parser.add_argument(
        "paths",
        metavar="RUN_OR_FILE",
        nargs="+",
        help="Runs' folders, .keras or .tflite files for pictures of one size.",
    )
    parser.add_argument(
        "--probe",
        action="append",
        type=str,
        help="drop, shuffle, translation, corruptions, a part of these, fourier, hessian, embedding or similarity, "
        "several with commas; all that change pictures if not given.",
    )
    parser.add_argument("--data", type=str, help="The test pictures, as for run; the first run's own if not given.")
    parser.add_argument("--count", type=int, default=200, help="Number of test pictures.")
    parser.add_argument("--out", type=str, default="probes", help="The folder to write.")
    add_overwrite(parser)


def probe(options: Any) -> None:
    """Runs `vit-keras probe`."""
    quiet_tensorflow()
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    from . import display
    from .explanation import probing

    with display.counting("levels") as progress:
        found = probing.probe(
            options.paths,
            asked(options.probe),
            options.data,
            options.count,
            options.out,
            options.get("overwrite", False),
            progress,
        )
    display.probed(found)
