"""Will a file run on a target? Each operator is held against the rules of the software that runs there."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .device_conditions import CONDITIONS, Node
from .device_rules import RULE_SETS, Rule, RuleSet
from .flatbuffer import FileInfo, OperatorInfo, TensorInfo
from .inspection import inspect_file
from .layer_names import LayerNames
from .targets import Target, chosen_targets


@dataclass(frozen=True)
class Refusal:
    """An operator that is refused.

    Attributes:
        index: Its number in the file.
        operator: Its name.
        layer: The Keras layer that it came from, such as `"block_3/attention"`; empty where the file does not tell.
        reason: Why it is refused.
    """

    index: int
    operator: str
    layer: str
    reason: str


@dataclass(frozen=True)
class RulesCheck:
    """A file held against one set of rules.

    Attributes:
        rules: The rules, with their sources and what could not be verified.
        operators: Number of operators in the file.
        refused: Those that are refused, in the file's order.
        partitions: Into how many parts that are taken the refused operators cut the graph; 1 is best, 0 is none.
    """

    rules: RuleSet
    operators: int
    refused: tuple[Refusal, ...]
    partitions: int


@dataclass(frozen=True)
class DeviceCheck:
    """A file held against a target.

    Attributes:
        target: The target.
        checks: One per set of rules of the target; one that takes all is enough.
    """

    target: Target
    checks: tuple[RulesCheck, ...]

    @property
    def fits(self) -> bool:
        """Whether one of the target's sets of rules takes every operator."""
        return not self.best.refused

    @property
    def best(self) -> RulesCheck:
        """The set of rules that refuses the fewest operators."""
        return min(self.checks, key=lambda check: len(check.refused))


def check_devices(path: str | Path, targets: Iterable[str] = ("all",)) -> tuple[DeviceCheck, ...]:
    """Predicts which operators of a file the software of some targets will take.

    The file is read in a child process and not run.

    Args:
        path: A TensorFlow Lite file.
        targets: Names in `vit_keras.export.targets.TARGETS`, or `"all"`.

    Returns:
        One check per target, in the table's order.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or a target is unknown.
    """
    chosen = chosen_targets(targets)
    if not chosen:
        raise ValueError("targets must name at least one target. Received: targets=()")
    info = inspect_file(path)
    names = {name for target in chosen for name in target.rules}
    layers = LayerNames(info)
    done = {name: check_rules(info, RULE_SETS[name], layers) for name in names}
    return tuple(DeviceCheck(target, tuple(done[name] for name in target.rules)) for target in chosen)


def check_rules(info: FileInfo, rules: RuleSet, layers: LayerNames | None = None) -> RulesCheck:
    """Holds every operator of a file against one set of rules."""
    layers = layers or LayerNames(info)
    tensors, unpacked = _unpack_constants(info, rules)
    batch = next((tensors[i].shape[0] for i in info.inputs if i >= 0 and tensors[i].shape), 1)
    refused = []
    for index, operator in enumerate(info.operators):
        if index in unpacked:
            continue
        reason = _refusal(_node(operator, tensors), rules, batch)
        if reason:
            refused.append(Refusal(index, operator.name, layers.of(operator), reason))
    taken = [True] * len(info.operators)
    for refusal in refused:
        taken[refusal.index] = False
    return RulesCheck(rules, len(info.operators), tuple(refused), len(partition(info.operators, taken)))


def _node(operator: OperatorInfo, tensors: Sequence[TensorInfo]) -> Node:
    inputs = tuple(tensors[i] if i >= 0 else None for i in operator.inputs)
    return Node(operator, inputs, tuple(tensors[i] for i in operator.outputs if i >= 0))


def _unpack_constants(info: FileInfo, rules: RuleSet) -> tuple[list[TensorInfo], set[int]]:
    """Returns the tensors, with those that DEQUANTIZE makes of constants as constants, and these operators' numbers."""
    tensors, unpacked = list(info.tensors), set()
    for index, operator in enumerate(info.operators):
        if operator.name != "DEQUANTIZE" or len(operator.inputs) != 1 or len(operator.outputs) != 1:
            continue
        source, made = operator.inputs[0], operator.outputs[0]
        if min(source, made) >= 0 and tensors[source].constant and tensors[source].dtype in rules.unpacks:
            unpacked.add(index)
            tensors[made] = replace(tensors[made], constant=True)
    return tensors, unpacked


def _refusal(node: Node, rules: RuleSet, batch: int) -> str | None:
    operator = node.operator
    rule = None if operator.custom else rules.operators.get(operator.name)
    if rule is None:
        if operator.name.startswith("Flex"):
            return "a TensorFlow operator (Select TF); no delegate takes it"
        return "a custom operator" if operator.custom else "not among the operators that are taken"
    if not node.outputs:
        return "without an output"
    return _shape_refusal(node, rules) or _rule_refusal(node, rule) or _batch_refusal(node, rules, batch)


def _shape_refusal(node: Node, rules: RuleSet) -> str | None:
    given = [tensor for tensor in (*node.inputs, *node.outputs) if tensor is not None]
    if not rules.dynamic and any(tensor.dynamic for tensor in given):
        return "of unknown size: the batch or another size is not fixed"
    rank = max(len(tensor.shape) for tensor in given)
    if rank > rules.max_rank:
        return f"of rank {rank} (up to {rules.max_rank} is taken)"
    for tensor in (*node.runtime_inputs, *node.outputs):
        if rules.inner_dims and math.prod(tensor.shape[: -rules.inner_dims]) > 1:
            return f"of shape {tensor.shape}: only the last {rules.inner_dims} sizes may exceed 1"
    return None


def _batch_refusal(node: Node, rules: RuleSet, batch: int) -> str | None:
    for tensor in (*node.runtime_inputs, *node.outputs):
        if rules.one_batch and len(tensor.shape) > 1 and tensor.shape[0] != batch:
            return f"of batch {tensor.shape[0]} in a graph of batch {batch}"
    return None


def _rule_refusal(node: Node, rule: Rule) -> str | None:
    for number in rule.constants:
        tensor = node.input(number)
        if tensor is not None and not tensor.constant:
            return f"whose input {number} is computed when the file runs (a constant is taken)"
    inputs = node.runtime_inputs or node.activations  # DEQUANTIZE may read a constant.
    for tensors, dtypes in ((inputs, rule.dtypes), (node.outputs, rule.outputs or rule.dtypes)):
        for tensor in tensors:
            if tensor.dtype not in dtypes:
                return f"of {tensor.dtype} ({', '.join(dtypes)} are taken)"
    least, most = rule.ranks
    first = node.runtime_inputs[:1] or list(node.outputs[:1])
    rank = len(first[0].shape)
    if not least <= rank <= most or any(len(t.shape) > most for t in (*node.runtime_inputs, *node.outputs)):
        return f"of rank {max(len(t.shape) for t in (*first, *node.outputs))} ({least} to {most} are taken)"
    if rule.version and node.operator.version > rule.version:
        return f"of version {node.operator.version} (up to {rule.version} is taken)"
    return next((reason for name in rule.needs if (reason := CONDITIONS[name](node))), None)


def partition(operators: Sequence[OperatorInfo], taken: Sequence[bool]) -> list[list[int]]:
    """Returns the parts that a delegate takes, found as TensorFlow Lite does: as large as the order of data allows.

    Args:
        operators: The operators of a graph.
        taken: Whether each is taken.

    Returns:
        Per part the numbers of its operators.
    """
    produced = {i for operator in operators for i in operator.outputs if i >= 0}
    missing = [{i for i in operator.inputs if i in produced} for operator in operators]
    readers: dict[int, list[int]] = {}
    for number, tensors in enumerate(missing):
        for tensor in tensors:
            readers.setdefault(tensor, []).append(number)
    ready: dict[bool, list[int]] = {True: [], False: []}
    for number, tensors in enumerate(missing):
        if not tensors:
            ready[taken[number]].append(number)
    parts = []
    kind = min((numbers[0], kind) for kind, numbers in ready.items() if numbers)[1] if any(ready.values()) else False
    while any(ready.values()):  # What is in a cycle, as in no sound file, never gets ready.
        part = []
        while ready[kind]:
            number = ready[kind].pop()
            part.append(number)
            for tensor in operators[number].outputs:
                for reader in readers.pop(tensor, ()):
                    missing[reader].discard(tensor)
                    if not missing[reader]:
                        ready[taken[reader]].append(reader)
        if kind:
            parts.append(sorted(part))
        kind = not kind
    return parts
