"""The command line, `vit-keras`: each command is one thin function over a public Python call.

Imports no TensorFlow before a command runs, so that `--help` answers at once.
"""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import jsonargparse

import vit_keras
from vit_keras.export.flatbuffer import printable
from vit_keras.export.platforms import PLATFORMS
from vit_keras.export.targets import TARGETS, chosen_targets

from .cli_explain import add_explain, add_probe, explain, probe
from .cli_parts import add_overwrite, asked, ended_as_by_hand, quiet_tensorflow
from .cli_tune import add_tune, tune
from .config import AugmentConfig, ExportConfig, InputConfig, RunConfig
from .parsing import ConfigFile, Parser
from .run_folder import recover_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code: 0, 2 after one sentence about what was wrong, or the command's own."""
    replaces = False
    try:
        parser, commands = build_parser()
        words = sorted(sys.argv[1:] if arguments is None else arguments, key=lambda word: word != "--verbose")
        options = parser.parse_args(words).clone(with_meta=False)  # Of every command: it may stand behind it too.
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        logging.basicConfig(format="%(message)s", level=logging.WARNING)
        logging.getLogger("vit_keras").setLevel(logging.INFO if options.verbose else logging.WARNING)
        replaces = options.command == "export" and bool(options.export.get("overwrite"))
        with ended_as_by_hand():
            return commands[options.command](options[options.command]) or 0
    except KeyboardInterrupt:
        on = "the same command without --overwrite goes on where it was"
        again = "the files are whole, either the old ones or the new; the same command makes them anew"
        print(f"vit-keras: interrupted; {again if replaces else on}", file=sys.stderr)
        return 130
    except (ValueError, OSError, ArithmeticError, ImportError, jsonargparse.ArgumentError) as error:
        if os.environ.get("VIT_KERAS_TRACEBACK"):
            raise
        print(f"vit-keras: error: {_sentence(error)}", file=sys.stderr)
        return 2


Command = Callable[[Any], int | None]
Commands = dict[str, tuple[Command, Callable[[Parser], None], str]]
"""Of each command its function, what adds its arguments to a parser, and a sentence."""


def build_parser() -> tuple[Parser, dict[str, Command]]:
    """Returns the parser, and the function of each command."""
    parser = Parser(
        prog="vit-keras", description="From a folder of pictures to a Vision Transformer, proven on the device."
    )
    parser.add_argument("--version", action="version", version=f"vit-keras {vit_keras.__version__}")
    parser.add_argument("--verbose", default=False, action="store_true", help="Say what is being done.")
    return parser, _add_commands(parser, _COMMANDS)


def _add_commands(parser: Parser, table: Commands) -> dict[str, Command]:
    """Adds commands to a parser, and returns the function of each."""
    subcommands = parser.add_subcommands(dest="command", metavar="COMMAND", required=True)
    for name, (_, add_arguments, text) in table.items():
        sub = Parser(prog=f"{parser.prog} {name}", description=text)
        subcommands.add_subcommand(name, sub, help=text)
        add_arguments(sub)
        sub.let_flags_stand_alone()
    return {name: function for name, (function, _, _) in table.items()}


def _sentence(error: BaseException) -> str:
    """Returns an error's message in one line; of a system error, what happened and to which file."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return printable(f"{error.strerror}: {error.filename}")
    return printable(" ".join(str(error).split())) or type(error).__name__


# Commands

_TARGETS = f"{', '.join(TARGETS)} or all"


def _add_run(parser: Parser) -> None:
    parser.add_argument(
        "--config",
        action=ConfigFile,
        help="YAML file with settings, such as a run's config.yaml, or the name of a recipe (list --recipes).",
    )
    parser.add_class_arguments(RunConfig)
    parser.set_defaults({"export.kinds": ()})  # `ExportConfig` says which: others where targets are given.
    add_overwrite(parser)


def _run_config(options: Any) -> RunConfig:
    values = options.clone().as_dict()
    for key in ("config", "overwrite"):
        values.pop(key, None)
    return RunConfig.from_dict(values)


def _run(options: Any) -> None:
    config = _run_config(options)
    quiet_tensorflow()
    from . import display, running

    report = running.run(config, options.get("overwrite", False), verbose=display.progress())
    display.proof(report, running.folder_of(config))


def _train(options: Any) -> None:
    config = _run_config(options)
    quiet_tensorflow()
    from . import display, running

    display.evaluation(running.train(config, options.get("overwrite", False), verbose=display.progress()))


def _add_evaluate(parser: Parser) -> None:
    parser.add_argument("path", metavar="RUN_OR_FILE", help="A run's folder, or a .tflite file of a run.")


def _evaluate(options: Any) -> None:
    quiet_tensorflow()
    from . import display, running

    display.evaluation(running.evaluate(options.path))


def _add_export(parser: Parser) -> None:
    parser.add_argument("path", metavar="RUN_OR_MODEL", help="A run's folder, or a .keras file.")
    parser.add_argument(
        "--for",
        action="append",
        type=str,
        metavar="TARGET",
        help=f"{_TARGETS} makes the kind of file that suits it; may be given several times.",
    )
    parser.add_argument(
        "--max-drop",
        dest="max_drop",
        type=float | None,
        help="Points of accuracy that a file may lose "
        "on the validation pictures, what merged patches lose included: layers are computed more finely until it "
        "does not.",
    )
    parser.add_argument(
        "--integer-only",
        dest="integer_only",
        default=False,
        action="store_true",
        help="Make only kinds without any float operator.",
    )
    parser.add_argument(
        "--bundle",
        action="append",
        type=str,
        metavar="PLATFORM",
        help=f"{' or '.join(PLATFORMS)} writes export/PLATFORM, a folder for an app: static_int8 if that is made, else "
        "the first kind, with its class names, the code that runs it, and a README; may be given several times.",
    )
    parser.add_argument(
        "--with-attention",
        dest="with_attention",
        default=False,
        action="store_true",
        help="Write each file also with its attention as a second output, model.KIND.attention.tflite: the web page "
        "draws it over the picture. What it costs is in the report.",
    )
    parser.add_class_arguments(ExportConfig, skip={"targets", "max_drop", "integer_only", "bundles", "with_attention"})
    parser.add_argument(
        "--data", type=str, help="Of a .keras file: the data to calibrate and to prove with, as for run."
    )
    parser.add_argument(
        "--out", type=str, help="Of a .keras file: the folder to write; one named as the file if not given."
    )
    parser.add_class_arguments(InputConfig, "input", skip={"image_size", "balance"})
    add_overwrite(parser)


def _export(options: Any) -> None:
    values = options.clone().as_dict()
    path, data, out = (values.pop(name) for name in ("path", "data", "out"))
    overwrite = values.pop("overwrite", False)
    given = InputConfig(**values.pop("input"))
    targets, bundles = (asked(values.pop(flag)) for flag in ("for", "bundle"))
    config = ExportConfig(targets=targets, bundles=bundles, **values)
    of_model = path.endswith(".keras")
    if bool(data) != of_model or (not of_model and (out or given != InputConfig())):
        raise ValueError(
            f"--data, --out and --input belong to a .keras file, which needs --data. Received: path={path}"
        )
    for target in chosen_targets(targets):
        if target.kind in config.kinds:
            print(f"{target.name}: {target.kind}, because {target.because}.")
    quiet_tensorflow()
    from . import display, running

    if of_model:
        folder = out or path.removesuffix(".keras")
        run_config = RunConfig(data=data, out=folder, input=given, export=config)
        display.proof(running.export_model(path, run_config, overwrite), folder)
    else:
        folder = path
        display.proof(running.export(path, config, overwrite), folder)
    display.targets(targets, folder)
    display.bundles(config.bundles, folder)


def _add_predict(parser: Parser) -> None:
    parser.add_argument("path", metavar="RUN_OR_FILE", help="A run's folder, or a .tflite file.")
    parser.add_argument("pictures", metavar="PICTURE", nargs="+", help="JPEG, PNG, BMP or GIF files.")


def _predict(options: Any) -> None:
    quiet_tensorflow()
    from . import display, prediction

    display.predictions(prediction.predict(options.path, options.pictures))


def _add_list(parser: Parser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="Shell-style pattern, such as 'vit_b*'.")
    parser.add_argument("--recipes", default=False, action="store_true", help="List the recipes instead.")


def _list(options: Any) -> None:
    if options.recipes:
        from . import display

        return display.recipes(options.pattern)
    quiet_tensorflow()
    from . import display

    display.presets(options.pattern)


def _add_devices(parser: Parser) -> None:
    parser.add_argument("path", metavar="FILE", help="A .tflite file.")
    parser.add_argument(
        "--for",
        action="append",
        type=str,
        metavar="TARGET",
        help=f"{_TARGETS}; may be given several times. The exit code is 1 where "
        "one of them would not run the whole file. Without it all are shown, and the exit code is 0.",
    )


def _devices(options: Any) -> int:
    from vit_keras.export import check_devices

    from . import display

    recover_file(options.path)
    targets = asked(options["for"])
    checks = check_devices(options.path, targets or ("all",))
    display.devices(checks, options.path)
    return int(bool(targets) and not all(check.fits for check in checks))


def _add_benchmark(parser: Parser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help=".tflite files from pictures to class scores.")
    parser.add_argument("--threads", type=int, default=1, help="Threads of the interpreter.")


def _benchmark(options: Any) -> None:
    from vit_keras.export import benchmark

    from . import display

    for file in options.files:
        recover_file(file)
    display.benchmarks(benchmark(options.files, options.threads))


def _add_verify(parser: Parser) -> None:
    parser.add_argument("files", metavar="FILE", nargs="+", help=".tflite files, such as those in a run's export/.")
    parser.add_argument(
        "--golden",
        nargs="?",
        type=str,
        metavar="FOLDER",
        help="The golden set; golden/ beside each file if not given, which is where a run has it.",
    )


def _verify(options: Any) -> int:
    from vit_keras.export import verify_golden

    from . import display

    for file in options.files:
        recover_file(file)
    checks = [verify_golden(file, options.golden) for file in options.files]
    display.golden(checks)
    return int(not all(check.passed for check in checks))


def _add_web(parser: Parser) -> None:
    parser.add_argument("path", metavar="RUN_OR_FILE", help="A run's folder, or a .tflite file.")
    parser.add_argument(
        "--kind", type=str, help="Of a run, the kind of file; the one that suits browsers if not given, else float32."
    )
    parser.add_argument("--out", type=str, help="Build the page in this folder, and serve nothing.")
    parser.add_argument("--port", type=int, default=8000, help="Port on this machine; 0 takes any free one.")
    add_overwrite(parser)


def _web(options: Any) -> None:
    from vit_keras.export import page_url

    from .webpage import serve_page, web_page

    overwrite = options.get("overwrite", False)
    if options.out:
        page = web_page(options.path, options.out, options.kind, overwrite)
        print(f"Page of {page.file}: {page.folder}")
        return
    if overwrite:
        raise ValueError("--overwrite belongs to --out. Received: no --out")
    with serve_page(options.path, options.kind, options.port) as (page, server):
        print(f"Page of {page.file}: {page_url(server)} (Ctrl+C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


def _add_data(parser: Parser) -> None:
    _add_commands(parser, _DATA_COMMANDS)


def _data(options: Any) -> int | None:
    return _DATA_COMMANDS[options.command][0](options[options.command])


def _add_data_check(parser: Parser) -> None:
    parser.add_argument("data", metavar="DATA", help="A folder, a .csv or .npz file, or a name, as --data of run.")
    parser.add_argument("--dir", type=str, help="Folder in which a TFDS dataset is prepared.")


def _data_check(options: Any) -> int:
    quiet_tensorflow()
    from . import checking, display

    with display.counting("pictures") as progress:
        check = checking.check_data(options.data, options.dir, progress)
    display.data_check(check)
    return int(not check.clean)


def _add_data_show(parser: Parser) -> None:
    parser.add_argument("data", metavar="DATA", help="A folder, a .csv or .npz file, or a name, as --data of run.")
    parser.add_argument("--out", type=str, default="pictures.png", help="The PNG file to write.")
    parser.add_argument("--model", type=str, default="auto", help="Preset whose picture size is shown.")
    parser.add_argument("--rows", type=int, default=5, help="Rows of pictures.")
    parser.add_argument("--columns", type=int, default=8, help="Columns of pictures.")
    parser.add_class_arguments(InputConfig, "input")
    parser.add_class_arguments(AugmentConfig, "augment")
    add_overwrite(parser)


def _data_show(options: Any) -> None:
    values = options.clone().as_dict()
    config = RunConfig.from_dict({name: values[name] for name in ("data", "model", "input", "augment")})
    quiet_tensorflow()
    from . import running

    running.show_data(config, options.out, options.rows, options.columns, options.get("overwrite", False))
    print(f"Pictures as a model is fed them: {options.out}")


_DATA_COMMANDS: Commands = {
    "check": (_data_check, _add_data_check, "Find bad, duplicate and leaking pictures; the exit code is 1 if any."),
    "show": (_data_show, _add_data_show, "Draw a sheet of training pictures as a model is fed them."),
}

_COMMANDS: Commands = {
    "run": (_run, _add_run, "Train, export, prove and report."),
    "train": (_train, _add_run, "Train only; `run` with the same settings goes on from there."),
    "tune": (tune, add_tune, "Search for hyperparameters, within what a device can do."),
    "evaluate": (_evaluate, _add_evaluate, "Evaluate a run or one of its files on its test pictures."),
    "export": (_export, _add_export, "Export a run's model and prove the files."),
    "predict": (_predict, _add_predict, "Name what pictures show."),
    "explain": (explain, add_explain, "Show what a model sees in pictures, or whether a file sees the same."),
    "probe": (probe, add_probe, "Hold models against pictures that are changed more and more."),
    "list": (_list, _add_list, "List the presets, or the recipes."),
    "data": (_data, _add_data, "Look through pictures before they are used."),
    "devices": (_devices, _add_devices, "Predict where a file runs, operator by operator."),
    "verify": (_verify, _add_verify, "Replay a run's golden set on files, here; the exit code is 1 where one differs."),
    "benchmark": (_benchmark, _add_benchmark, "Measure time, size and memory of files."),
    "web": (_web, _add_web, "Run a file in the browser: a page of its own, served on this machine or in a folder."),
}

if __name__ == "__main__":
    sys.exit(main())
