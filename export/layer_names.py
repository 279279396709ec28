"""Which Keras layer an operator came from, read off the names that the converter gives to tensors."""

import re
from collections import Counter
from collections.abc import Iterator

from .flatbuffer import FileInfo, OperatorInfo

_PRODUCTS = {"BATCH_MATMUL", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"}
_PRODUCT_WORDS = re.compile(r"MatMul|Tensordot|convolution|Conv2D|depthwise|dot_general|einsum", re.IGNORECASE)
_INNER = {"BatchNorm", "Gelu", "Softmax", "Tensordot", "einsum"}
"""Scopes that TensorFlow's functions open inside a layer."""


_NAME, _PARTS = 4096, 64
"""Characters of a name that are looked at, and fused operators in it: no converter writes more, a hostile file may."""


class LayerNames:
    """Layer names of one file.

    The converter joins the names of fused operators with `;`, and a name is the path of the scopes around an operation:
    `vit_1/block_0_1/attention_1/out_1/Tensordot/MatMul`. Keras opens a layer's scope a second time when it exports, so
    that TensorFlow adds the same `_1` to the name of the model and of all its layers.
    """

    def __init__(self, info: FileInfo) -> None:
        self._tensors = info.tensors
        self._known: dict[str, list[list[str]]] = {}
        roots = [part[0] for operator in info.operators for part in self._parts(operator.outputs)]
        [(root, _)] = Counter(roots).most_common(1) or [("", 0)]
        suffix = re.search(r"_\d+$", root)
        self._suffix = suffix[0] if suffix else ""

    def of(self, operator: OperatorInfo) -> str:
        """Returns the layer's path below the model, `block_0/attention/out`; empty where the file does not tell."""
        inputs = [i for i in operator.inputs if i >= 0]
        constants = [i for i in inputs if self._tensors[i].constant]
        for numbers in (operator.outputs, constants, inputs):
            parts = list(self._parts(numbers))
            if operator.name in _PRODUCTS:
                parts.sort(key=lambda part: not _PRODUCT_WORDS.search("/".join(part)))
            if parts:
                return self._layer(parts[0])
        return ""

    def _parts(self, numbers: tuple[int, ...] | list[int]) -> Iterator[list[str]]:
        for number in numbers:
            name = self._tensors[number].name[:_NAME] if number >= 0 else ""
            if name not in self._known:
                self._known[name] = [part.split("/") for part in name.split(";")[:_PARTS] if "/" in part]
            yield from self._known[name]

    def _layer(self, path: list[str]) -> str:
        scopes = []
        for scope in path[:-1]:
            if scope in _INNER or not scope.endswith(self._suffix):
                break
            scopes.append(scope.removesuffix(self._suffix) if self._suffix else scope)
        return "/".join(scopes[1:] or scopes)
