"""The pass that evaluates every node that does not depend on the inputs' values.

An If of a known condition becomes the branch it takes. Shapes are followed symbolically: a model
exported for any batch computes its Reshape targets and Pad widths from shapes of which only the
first entry, the batch, is unknown.
"""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import checker, helper, shape_inference

from cloister.errors import ModelError
from cloister.graph.captures import captured_values, every_node
from cloister.graph.graph import Graph, Node, Subgraph, TensorType
from cloister.graph.inference import is_known, opaque_type, tensor_type
from cloister.graph.interpreter import evaluate
from cloister.graph.onnx.export import known_type, node_bytes, tensor_bytes, type_bytes
from cloister.graph.ops.linear_nodes import integer
from cloister.graph.ops.table import Kind, find
from cloister.graph.part import reads
from cloister.graph.passes.branches import inlined
from cloister.graph.passes.rewrite import Rewrite

Entry = int | None
Entries = tuple[Entry, ...]

RANDOM = (
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli",
    "Multinomial",
)  # fmt: skip
GROWING = (
    "Expand", "OneHot", "Pad", "Range", "Resize", "SequenceAt", "SplitToSequence", "Tile",
    "Upsample",
)  # fmt: skip
"""Operators that may make a large value of a small one."""
SHAPING = ("Cast", "Expand", "Flatten", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that change nothing where they keep the type."""
MAX_GROWTH = 2**20
"""A node may turn small constants into one of up to this many elements."""
SMALL = 1024


def fold_constants(graph: Graph) -> Graph:
    """Constant subgraphs and known shapes evaluated; nodes that change nothing removed."""
    rewrite = Rewrite(graph)
    folder = _Folder(rewrite)
    for node in graph.nodes:
        folder.visit(node)
    # Only the finished graph knows all types, and with them which nodes keep theirs.
    return remove_identities(rewrite.finish())


def remove_identities(graph: Graph) -> Graph:
    """The graph without nodes that change nothing."""
    rewrite = Rewrite(graph)
    for i in range(len(rewrite.nodes)):
        node = rewrite.nodes[i]
        if not _is_identity(rewrite, node) or node.outputs[0] in rewrite.constants:
            continue
        source, result = node.inputs[0], node.outputs[0]
        # The name of an output, or of a value a subgraph reads, has to stay.
        if result not in graph.outputs and result not in rewrite.captured:
            rewrite.rename_input(result, source)
    return rewrite.finish()


def folded_types(graph: Graph) -> dict[str, TensorType]:
    """Types of values; more of them than inference finds, since it evaluates no shapes."""
    folder = _Folder(Rewrite(graph))
    for node in graph.nodes:
        folder.visit(node)
    return folder.types


class _Folder:
    """One pass in topological order; `entries` holds shape vectors of which a part is known."""

    def __init__(self, rewrite: Rewrite) -> None:
        self._rewrite = rewrite
        self._graph = rewrite.graph
        self.types = dict(rewrite.graph.types)
        self._entries: dict[str, Entries | Entry] = {}

    def visit(self, node: Node) -> None:
        """Fold one node if everything it reads is known."""
        if node.domain not in ("", "ai.onnx"):
            return
        branch = self._branch(node)
        if branch is not None:
            self._inline(node, branch)
            return
        self._learn_type(node)
        found = self._symbolic(node)
        output = node.outputs[0]
        if found is not None:
            self._entries[output] = found
            known = found if isinstance(found, tuple) else (found,)
            if None not in known and self._is_int64(output):
                shape = (len(known),) if isinstance(found, tuple) else ()
                self._fix(output, np.array(known, np.int64).reshape(shape))
        elif node.op == "Constant":
            self._constant(node)
        elif node.op == "Reshape":
            self._free_batch(node)
        if output not in self._rewrite.constants and self._is_foldable(node):
            self._evaluate(node)

    def _branch(self, node: Node) -> Subgraph | None:
        """The branch that an If takes whatever the inputs are."""
        condition = self._rewrite.constants.get(node.inputs[0]) if node.op == "If" else None
        if condition is None or condition.size != 1:
            return None
        branch = node.attributes.get("then_branch" if condition.all() else "else_branch")
        return branch if isinstance(branch, Subgraph) else None

    def _inline(self, node: Node, branch: Subgraph) -> None:
        nodes = inlined(self._rewrite, node, branch)
        self._rewrite.swap([node], nodes)
        for one in nodes:
            for value in one.inputs:
                constant = self._rewrite.constants.get(value)
                if constant is not None:
                    self.types[value] = TensorType(constant.dtype, constant.shape)
            self.visit(one)

    def _is_int64(self, value: str) -> bool:
        known = self.types.get(value)
        return known is None or known.dtype == np.int64

    def _fix(self, value: str, array: np.ndarray) -> None:
        self._rewrite.set_constant(value, array)
        self.types[value] = TensorType(array.dtype, array.shape)

    def _constant(self, node: Node) -> None:
        value = node.attributes.get("value")
        if isinstance(value, np.ndarray):
            self._fix(node.outputs[0], value)
        else:
            self._evaluate(node)

    def _is_foldable(self, node: Node) -> bool:
        constants = self._rewrite.constants
        read = reads(node)
        if not read or node.op in RANDOM or any(value not in constants for value in read):
            return False
        if any(one.op == "Loop" for one in every_node((node,))):
            return False  # it may never end
        sizes = [self.types[v].shape for v in node.outputs if v in self.types]
        if node.op in GROWING and any(None in shape for shape in sizes or [(None,)]):
            return False
        largest = max((math.prod(s or 1 for s in shape) for shape in sizes), default=0)
        return largest <= MAX_GROWTH + sum(constants[value].size for value in read)

    def _evaluate(self, node: Node) -> None:
        constants = self._rewrite.constants
        try:
            found = _evaluate_wide(self._graph, node, constants)
        except ModelError:
            return  # the run of the node reports why it cannot be computed
        if all(isinstance(array, np.ndarray) for array in found.values()):
            for value, array in found.items():
                self._fix(value, array)

    def _learn_type(self, node: Node) -> None:
        """Infer a node's output type now that more of its inputs are constants."""
        read = [value for value in node.inputs if value]
        grows = node.op in GROWING and all(value in self._rewrite.constants for value in read)
        if not grows and all(value in self.types for value in node.outputs if value):
            return
        if captured_values(node) or any(value not in self.types for value in read):
            return
        typed = replace(self._graph, types=self.types)
        try:
            schema = onnx.defs.get_schema(node.op, self._graph.opset, "")
            found = shape_inference.infer_node_outputs(
                schema,
                onnx.NodeProto.FromString(node_bytes(node)),
                {value: _type_proto(typed, value) for value in read},
                self._small_constants(read),
                opset_imports=[helper.make_opsetid("", self._graph.opset)],
            )
        except (
            # ONNX calls an operator deprecated that ONNX Runtime runs: GroupNormalization of 18.
            checker.ValidationError,
            onnx.defs.SchemaError,
            shape_inference.InferenceError,
            ValueError,
            RuntimeError,
        ):
            return
        for value, proto in found.items():
            known = tensor_type(opaque_type(proto))
            if known is not None and (grows or value not in self.types):
                self.types[value] = known

    def _small_constants(self, read: list[str]) -> dict[str, onnx.TensorProto]:
        constants = self._rewrite.constants
        return {
            value: onnx.TensorProto.FromString(tensor_bytes(constants[value], value))
            for value in read
            if value in constants and constants[value].size <= SMALL
        }

    # ---- shapes

    def _symbolic(self, node: Node) -> Entries | Entry | None:
        """A shape vector or one of its entries that a node computes; None if it computes none."""
        if node.op == "Shape":
            known = self.types.get(node.inputs[0])
            if known is None:
                return None
            return known.shape[integer(node, "start", 0) : integer(node, "end", len(known.shape))]
        if node.op == "Size":
            known = self.types.get(node.inputs[0])
            sizes = [None] if known is None else known.shape
            return None if None in sizes else math.prod(size or 0 for size in sizes)
        if node.op not in ("Gather", "Slice", "Concat", "Squeeze", "Unsqueeze", "Cast"):
            return None
        if not any(value in self._entries for value in node.inputs):
            return None
        if node.op == "Concat":
            return self._joined(node)
        source = self._entries.get(node.inputs[0])
        if isinstance(source, tuple):
            return self._of_vector(node, source)
        # A scalar None in `entries` is an unknown batch, so only membership tells it is there.
        if node.op == "Unsqueeze" and node.inputs[0] in self._entries:
            return (source,)
        return None

    def _of_vector(self, node: Node, source: Entries) -> Entries | Entry | None:
        if node.op == "Cast":
            return source if node.attributes.get("to") == onnx.TensorProto.INT64 else None
        rest = [self._integers(value) for value in node.inputs[1:] if value]
        ends = [values[0] for values in rest if values]
        if not rest or len(ends) != len(rest):
            return None
        if node.op == "Slice" and len(ends) == len(node.inputs) - 1:
            step = ends[3] if len(ends) > 3 else 1
            return source[ends[0] : ends[1] : step] if step > 0 else None
        if node.op != "Gather":
            return None
        picks = self._rewrite.constants[node.inputs[1]]
        if picks.ndim > 1 or any(not -len(source) <= int(i) < len(source) for i in picks.flat):
            return None
        if picks.ndim == 1:
            return tuple(source[int(i)] for i in picks)
        entry = source[int(picks)]
        if entry is None:
            self._entries[node.outputs[0]] = None
        return entry

    def _joined(self, node: Node) -> Entries | None:
        parts: list[Entry] = []
        for value in node.inputs:
            entries = self._entries.get(value)
            if isinstance(entries, tuple):
                parts += entries
                continue
            known = self._integers(value)
            if known is None or self._rewrite.constants[value].ndim != 1:
                return None
            parts += known
        return tuple(parts)

    def _integers(self, value: str) -> list[int] | None:
        array = self._rewrite.constants.get(value)
        if array is None or array.dtype.kind not in "iu" or array.size > SMALL:
            return None
        return [int(entry) for entry in array.reshape(-1)]

    def _free_batch(self, node: Node) -> None:
        """Reshape to sizes that are known but for the batch as one to a constant target."""
        target = self._freed_target(node)
        if target is None:
            return
        constant = self._rewrite.constant(f"{node.name}_target", np.array(target, np.int64))
        freed = replace(node, inputs=(node.inputs[0], constant))
        self._rewrite.swap([node], [freed])
        self.types[constant] = TensorType(np.dtype(np.int64), (len(target),))
        self._learn_type(freed)

    def _freed_target(self, node: Node) -> list[int] | None:
        """In a Reshape target 0 means: as in the input, and -1 what is left of the elements."""
        target = self._entries.get(node.inputs[1])
        known = self.types.get(node.inputs[0])
        if known is not None and known.shape[:1] == (None,) and isinstance(target, tuple):
            rest = [size for size in target[1:] if size is not None]
            if target[:1] == (None,) and len(rest) == len(target) - 1:
                return None if node.attributes.get("allowzero", 0) else [0, *rest]
        sizes = self._graph.sizes(node.outputs[0])
        if sizes is None or not is_known(sizes) or 0 in sizes:
            return None
        if node.inputs[1] in self._rewrite.constants or sum(isinstance(s, str) for s in sizes) > 1:
            return None
        return [size if isinstance(size, int) else -1 for size in sizes]


def _evaluate_wide(
    graph: Graph, node: Node, constants: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """One node of constants; float32 arithmetic is done in float64 and rounded once.

    Folded constants become integer weights. In float32 the last place of sums and of functions
    such as exp depends on the machine's kernels; an error of float64 hardly ever reaches it.
    """
    read = {value: constants[value] for value in reads(node)}
    wide = {
        value: array.astype(np.float64)
        for value, array in read.items()
        if array.dtype == np.float32
    }
    spec = find(node)
    moves = spec is not None and spec.kind is Kind.SHAPE
    if wide and not moves and not any(array.dtype == np.float64 for array in read.values()):
        constants_wide = {**read, **wide}
        try:
            # Its outputs are of another type than the graph says.
            found = evaluate(
                replace(graph, types={}, constants=constants_wide), node, constants_wide
            )
        except ModelError:
            pass  # no kernel for float64
        else:
            with np.errstate(over="ignore"):  # a result beyond float32 is infinite, as inside
                return {
                    value: array.astype(np.float32) if array.dtype == np.float64 else array
                    for value, array in found.items()
                }
    return evaluate(replace(graph, constants=constants), node, constants)


def _is_identity(rewrite: Rewrite, node: Node) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op == "Identity":
        return True
    if node.op in SHAPING:
        before, after = (rewrite.graph.types.get(v) for v in (node.inputs[0], node.outputs[0]))
        return before is not None and before == after
    if node.op != "Dropout" or any(node.outputs[1:]):
        return False
    training = node.inputs[2] if len(node.inputs) > 2 else ""
    constant = rewrite.constants.get(training)
    return not training or (constant is not None and not constant.any())


def _type_proto(graph: Graph, value: str) -> onnx.TypeProto:
    return onnx.TypeProto.FromString(type_bytes(known_type(graph, value)))
