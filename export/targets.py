"""The places where files run, as data: which kind suits each, why, and whose rules say what runs there."""

from collections.abc import Iterable
from dataclasses import dataclass

from vit_keras.messages import nearest

from .quantize import KINDS


@dataclass(frozen=True)
class Target:
    """A place where files run.

    Attributes:
        name: What users type after `--for`.
        summary: The hardware and the runtime on it.
        kind: The kind of file that suits it best, a name in `KINDS`.
        because: Why, in one line.
        rules: Names of the rule sets in `device_rules.py` that a file has to meet; one of them is enough.
    """

    name: str
    summary: str
    kind: str
    because: str
    rules: tuple[str, ...]


TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target(
            "cpu",
            "CPUs of phones, boards and servers (XNNPACK)",
            "static_int8",
            "with dot-product instructions XNNPACK multiplies int8 matrices faster than float32 ones; what it would "
            "run slowly in int8 stays float32",
            ("xnnpack",),
        ),
        Target(
            "web",
            "browsers (WebAssembly with XNNPACK)",
            "static_int8",
            "the browser runs the same XNNPACK, and the file to download has a quarter of the size",
            ("xnnpack",),
        ),
        Target(
            "gpu",
            "GPUs of phones (TensorFlow Lite's GPU delegate)",
            "float16",
            "GPUs compute in float16; the file has half the size",
            ("gpu",),
        ),
        Target(
            "edgetpu",
            "Coral Edge TPU",
            "full_int8",
            "the Edge TPU has int8 arithmetic only",
            ("edgetpu",),
        ),
        Target(
            "npu",
            "NPUs and DSPs of phones (NNAPI, Hexagon, QNN)",
            "full_int8",
            "integers are what every NPU computes; which chips take float operators too, no source of the rules says",
            ("nnapi", "qnn"),
        ),
        Target(
            "npu16",
            "NPUs with 16-bit activations (QNN and others)",
            "int16x8",
            "int16 activations keep nearly all of the float accuracy in integers",
            ("qnn",),
        ),
        Target(
            "micro",
            "microcontrollers (TensorFlow Lite Micro)",
            "full_int8",
            "the optimised kernels of microcontrollers are int8, and there is no room for float32 tensors",
            ("micro",),
        ),
    )
}


def chosen_targets(names: Iterable[str]) -> tuple[Target, ...]:
    """Returns targets by name in the table's order, each once; `"all"` stands for every target.

    Raises:
        ValueError: a name that is not in the table, with the nearest one.
    """
    names = list(names)
    for name in names:
        if name not in TARGETS and name != "all":
            known = ", ".join((*TARGETS, "all"))
            raise ValueError(f"Unknown target {name!r}.{nearest(name, [*TARGETS, 'all'])} Known targets: {known}")
    return tuple(target for target in TARGETS.values() if "all" in names or target.name in names)


def kinds_for(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the kinds that suit targets, each once; `"all"` stands for every target.

    Raises:
        ValueError: a name that is not in the table, with the nearest one.
    """
    kinds = {target.kind for target in chosen_targets(names)}
    return tuple(kind for kind in KINDS if kind in kinds)
