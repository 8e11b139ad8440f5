"""Random ONNX models, grown node by node.

A node is proposed with attributes that may be invalid, and run in ONNX Runtime alone, for two
choices of the free sizes: a node that it refuses is dropped. So no shape is computed here, and any
operator can be proposed (random_nodes.py). Hypothesis draws a seed and the number of nodes, so that
a failing model shrinks to its first nodes.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import helper, numpy_helper

Arrays = tuple[object, object]
"""A value for both choices of the free sizes."""
SIZES: tuple[Mapping[str, int], Mapping[str, int]] = (
    {"N": 2, "T": 3, "H": 6, "D": 4}, {"N": 5, "T": 4, "H": 9, "D": 7},
)  # fmt: skip
"""N: samples, T: time, H: height, D: rows of a table."""
MOST_ELEMENTS, LARGEST, MOST_PROPOSALS = 20_000, 1e4, 60
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})
JUMPS = frozenset(
    {
        "Floor", "Ceil", "Round", "Sign", "Cast", "CastLike", "Equal", "Greater", "Less", "ArgMax",
        "ArgMin", "TopK", "Hardmax", "QuantizeLinear", "DynamicQuantizeLinear", "NonZero", "Mod",
        "GreaterOrEqual", "LessOrEqual", "Where", "OneHot", "If", "Loop", "Unique", "Shrink",
        "ThresholdedRelu", "Not", "And", "Or", "Xor", "IsNaN", "IsInf", "Compress", "MaxUnpool",
        "CumSum",
    }
)  # fmt: skip
"""Operators whose outputs may change much where their inputs change little."""


def runtime(model: onnx.ModelProto) -> ort.InferenceSession:
    """ONNX Runtime's kernels as they are."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options)


@dataclass
class Scope:
    """A graph or a body that grows; a body reads the values around it too."""

    choices: random.Random
    opset: int
    rng: np.random.Generator
    values: dict[str, Arrays] = field(default_factory=dict)
    constants: dict[str, np.ndarray] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    counter: list[int] = field(default_factory=lambda: [0])
    around: "Scope | None" = None

    # ---- drawing

    def pick(self, values: Iterable) -> object:
        return self.choices.choice(list(values))

    def some(self, values: Iterable, least: int, most: int) -> list:
        """Some of the values, in any order."""
        found = list(values)
        return self.choices.sample(found, self.choices.randint(least, min(most, len(found))))

    def chance(self, of: int = 2) -> bool:
        return self.pick(range(of)) == 0

    def value(self, fits: Callable[[np.ndarray], bool] = lambda _: True) -> str | None:
        """A value that fits, mostly one of the latest; constants and inputs too."""
        found = [
            name
            for name, (one, other) in self.visible().items()
            if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and fits(one)
        ]
        if not found:
            return None
        return self.pick(found[-3:] if self.pick(range(4)) else found)

    def floats(self, fits: Callable[[np.ndarray], bool] = lambda _: True) -> str | None:
        return self.value(lambda array: array.dtype == np.float32 and fits(array))

    def visible(self) -> dict[str, Arrays]:
        outer = self.around.visible() if self.around is not None else {}
        return {**outer, **self.values}

    def known(self, name: str) -> np.ndarray:
        return self.visible()[name][0]

    # ---- growing

    def fresh(self, what: str = "v") -> str:
        self.counter[0] += 1
        return f"{what}{self.counter[0]}"

    def constant(self, array: object) -> str:
        """A constant, as an initializer or, at times, as a node."""
        name, array = self.fresh("c"), np.asarray(array)
        if self.chance(5):
            self.nodes.append(
                helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array))
            )
        else:
            self.constants[name] = array
        self.values[name] = (array, array)
        return name

    def weights(self, *shape: int, terms: int = 4) -> str:
        scale = 1 / np.sqrt(max(terms, 1))
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes) -> str | None:
        """The first output of a node, or None where ONNX Runtime refuses it."""
        names = [self.fresh() for _ in range(outputs)]
        node = helper.make_node(op, list(inputs), names, name=self.fresh("n"), **attributes)
        found = self._tried(node)
        if found is None:
            return None
        self.nodes.append(node)
        self.values.update(zip(names, zip(*found, strict=True), strict=True))
        return names[0]

    def _tried(self, node: onnx.NodeProto) -> list[list[object]] | None:
        """The node's outputs for both choices of sizes; None where it cannot be used."""
        scope = self.visible()
        if any(name and name not in scope for name in node.input):
            return None
        read = [name for name in scope if name in reads(node)]
        fixed = self.all_constants()
        infos = [info(name, scope[name][0]) for name in read if name not in fixed]
        if any(one is None for one in infos):
            return None
        graph = helper.make_graph(
            [node], "one", infos,
            [onnx.ValueInfoProto(name=name) for name in node.output if name],
            [numpy_helper.from_array(fixed[name], name) for name in read if name in fixed],
        )  # fmt: skip
        try:
            session = runtime(stamped(graph, self.opset))
            return [
                checked(session.run(None, {n: scope[n][i] for n in read if n not in fixed}))
                for i in range(len(SIZES))
            ]
        except Exception:  # noqa: BLE001  (ONNX Runtime raises errors of many classes)
            return None

    def all_constants(self) -> dict[str, np.ndarray]:
        outer = self.around.all_constants() if self.around is not None else {}
        return {**outer, **self.constants}

    # ---- bodies

    def body(self) -> "Scope":
        return Scope(self.choices, self.opset, self.rng, counter=self.counter, around=self)

    def as_graph(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[str]
    ) -> onnx.GraphProto:
        return helper.make_graph(
            self.nodes, self.fresh("body"), list(inputs),
            [info(name, self.visible()[name][0]) for name in outputs],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )  # fmt: skip


class Unusable(Exception):  # noqa: N818  (a node's result, not an error)
    """A value is too large to go on with, or not finite."""


def checked(found: list[object]) -> list[object]:
    """Values that later nodes can use.

    Raises   Unusable
    """
    for value in found:
        for array in value if isinstance(value, list) else [value]:
            if not isinstance(array, np.ndarray) or array.size > MOST_ELEMENTS:
                raise Unusable
            if array.dtype.kind == "f" and not (np.abs(array) <= LARGEST).all():
                raise Unusable
    return found


def reads(node: onnx.NodeProto) -> set[str]:
    """The names that a node reads, by its bodies too."""
    found = set(node.input)
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            for inner in attribute.g.node:
                found |= reads(inner)
            found |= {value.name for value in attribute.g.output}
    return found - {""}


def every_node(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes and those of their bodies."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from every_node(attribute.g.node)


def info(name: str, value: object) -> onnx.ValueInfoProto | None:
    """A value's type, of any shape of its rank."""
    if isinstance(value, list):
        if not value:
            return None
        kind = helper.np_dtype_to_tensor_dtype(value[0].dtype)
        return helper.make_tensor_sequence_value_info(name, kind, None)
    kind = helper.np_dtype_to_tensor_dtype(value.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * value.ndim)


def stamped(graph: onnx.GraphProto, opset: int) -> onnx.ModelProto:
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


@dataclass
class RandomGraph:
    """A model, the shapes of its inputs by symbols, and what the choices of sizes make of them."""

    model: onnx.ModelProto
    inputs: dict[str, tuple[tuple[int | str, ...], np.dtype]]
    rng: np.random.Generator
    linear: bool
    """Whether a linear node has constant weights and reads what is computed from an input."""
    rough: frozenset[str]
    """Outputs that follow from a linear node."""
    jumping: frozenset[str]
    """Of these, those that a small change may change much."""
    half: frozenset[str]
    """Outputs that follow from a value in float16, whose kernels round differently."""
    half_jumping: frozenset[str]

    def __str__(self) -> str:
        return onnx.printer.to_text(self.model)

    def feeds(self, sizes: Mapping[str, int], scale: float = 1) -> dict[str, np.ndarray]:
        return {
            name: sample(self.rng, [sizes.get(size, size) for size in shape], dtype, scale)
            for name, (shape, dtype) in self.inputs.items()
        }


def sample(
    rng: np.random.Generator, shape: Sequence[int], dtype: np.dtype, scale: float = 1
) -> np.ndarray:
    if dtype.kind == "f":
        return np.asarray(scale * rng.standard_normal(shape), dtype)
    return np.asarray(rng.integers(0, 2 if dtype.kind == "b" else 3, shape), dtype)


def follows(nodes: Sequence[onnx.NodeProto], starts: Callable[[onnx.NodeProto], bool]) -> set[str]:
    """What the nodes make that `starts` accepts, and all that follows from that."""
    found: set[str] = set()
    for node in nodes:
        if starts(node) or not found.isdisjoint(reads(node)):
            found.update(node.output)
    return found


def finished(scope: Scope, inputs, written, outputs: Sequence[str]) -> RandomGraph:
    """The model of a scope; `inputs` have their shapes, `written` what its file says of them."""
    used = set(outputs).union(*map(reads, scope.nodes))
    graph = helper.make_graph(
        scope.nodes, "random",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(dtype), list(written[name])
            )
            for name, (_, dtype) in inputs.items()
        ],
        [info(name, scope.values[name][0]) for name in outputs],
        [numpy_helper.from_array(a, n) for n, a in scope.constants.items() if n in used],
    )  # fmt: skip
    linear = linear_nodes(scope, inputs)
    halves = {n for n, value in scope.values.items() if element_type(value[0]) == np.float16}
    kept = frozenset(outputs)
    starts = [
        holds_linear,
        lambda node: not halves.isdisjoint((*reads(node), *node.output)),
    ]
    followed = []
    for start in starts:
        rough = follows(scope.nodes, start)
        followed += [kept & rough, kept & follows(scope.nodes, _jumps(rough))]
    return RandomGraph(stamped(graph, scope.opset), inputs, scope.rng, bool(linear), *followed)


def holds_linear(node: onnx.NodeProto) -> bool:
    """Whether a node or one in its bodies is linear: a body may become a part of the graph."""
    bodies = (a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH)
    return node.op_type in LINEAR or any(holds_linear(one) for body in bodies for one in body.node)


def _jumps(rough: set[str]) -> Callable[[onnx.NodeProto], bool]:
    return lambda node: node.op_type in JUMPS and not rough.isdisjoint(reads(node))


def element_type(value: object) -> np.dtype | None:
    return value.dtype if isinstance(value, np.ndarray) else None


def linear_nodes(scope: Scope, inputs: Iterable[str]) -> set[str]:
    """Names of linear nodes with one constant operand and one that follows from an input."""
    constant = set(scope.constants) | {n.output[0] for n in scope.nodes if n.op_type == "Constant"}
    given = {*inputs, *follows(scope.nodes, lambda node: not reads(node).isdisjoint(inputs))}
    found = set()
    for node in scope.nodes:
        x, weights = (*node.input, "", "")[:2]
        pairs = [(x, weights)] if node.op_type.startswith("Conv") else [(x, weights), (weights, x)]
        if node.op_type in LINEAR and any(a in given and b in constant for a, b in pairs):
            found.add(node.name)
    return found


FLOAT, INDEX, TRUTH = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.bool_)
RESTS = [
    (4,), (7,), (3, 6), (1, 5), (2, 5, 6), (1, 6, 5), (3, 7, 3), (2, 3, 4), (2, 2, 4, 3), (1,),
    ("T", 4), (3, "T"), (2, "H", 5), (2, "H", "H"),
]  # fmt: skip
OPSETS = (11, 13, 17, 18, 20, 22)
MORE: dict[str, Callable] = {
    "twin": lambda rest: (("N", *rest), FLOAT),
    "gain": lambda _: ((), FLOAT),
    "mask": lambda rest: ((1, *rest), FLOAT),
    "table": lambda rest: (("D", rest[-1]), FLOAT),
    "fixed": lambda rest: ((5, rest[-1]), FLOAT),
    "state": lambda rest: ((2, 1, rest[-1]), FLOAT),
    "behind": lambda rest: ((2, "N", rest[-1]), FLOAT),
    "tokens": lambda _: (("N", "T"), INDEX),
    "flags": lambda rest: (("N", *rest), TRUTH),
    "switch": lambda _: ((), TRUTH),
    "count": lambda _: ((), INDEX),
}


@st.composite
def graphs(draw) -> RandomGraph:
    """A model with one or several inputs, with and without the batch, in any order."""
    from conformance.random_nodes import PROPOSALS

    seed = draw(st.integers(0, 2**32 - 1))
    size = draw(st.integers(1, 12))
    scope = Scope(random.Random(seed), 17, np.random.default_rng(seed))
    scope.opset = scope.pick(OPSETS)
    rest = scope.pick(RESTS)
    wanted = {"x": (("N", *rest), FLOAT)}
    chosen = scope.some(sorted(MORE), 0, 3)
    if chosen and scope.chance(10):
        wanted = {}
    wanted |= {name: MORE[name](rest) for name in chosen}
    style = scope.pick(["name", "name", "names", "none", "minus", "fixed"])
    inputs, written = {}, {}
    for i, name in enumerate(scope.some(wanted, len(wanted), len(wanted))):
        shape, dtype = wanted[name]
        if style == "fixed":
            shape = tuple(SIZES[0].get(size, size) for size in shape)
        inputs[name] = (shape, dtype)
        free = {"names": f"n{i}", "none": None, "minus": -1}
        written[name] = [
            free.get(style, size) if size == "N" and axis == 0 else size
            for axis, size in enumerate(shape)
        ]
        scope.values[name] = tuple(
            sample(scope.rng, [sizes.get(size, size) for size in shape], dtype) for sizes in SIZES
        )
    linear = [one for one in PROPOSALS if one.__name__.startswith("linear_")]
    if scope.pick(range(4)):
        scope.pick(linear)(scope)
    for _ in range(MOST_PROPOSALS):
        if sum(node.op_type != "Constant" for node in scope.nodes) >= size:
            break
        scope.pick(PROPOSALS)(scope)
    read = set().union(*map(reads, scope.nodes))
    leaves = [out for node in scope.nodes for out in node.output if out and out not in read]
    others = scope.some(scope.values, 0, 2)
    names = list(dict.fromkeys([*leaves, *others])) or [scope.pick(scope.values)]
    return finished(scope, inputs, written, [n for n in names if info(n, scope.values[n][0])])
