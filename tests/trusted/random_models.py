"""Small random models, and what ONNX Runtime computes for them.

Values are tracked by name and shape. A shape has numbers and symbols: "N" for samples, "D" for the
rows of a table. Magnitudes stay near one, so that one tolerance fits all.
"""

import itertools
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cloister.graph.ort_session import ORT_ERRORS

Shape = tuple[int | str, ...]
UNARY = ("Relu", "Tanh", "Sigmoid", "Neg", "Identity")
POOLS = ("MaxPool", "AveragePool")


def runtime(model: onnx.ModelProto) -> ort.InferenceSession:
    """Its kernels as they are: shapes that it infers beforehand are wrong for some windows."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model.SerializeToString(), options)


class RandomModel:
    """Grows node by node, as `draw` decides."""

    def __init__(self, draw: Callable) -> None:
        self.draw = draw
        self.opset = self.pick([13, 17, 22])
        self.rng = np.random.default_rng(self.pick(range(1000)))
        self.inputs: dict[str, Shape] = {}
        self.names: dict[str, list[int | str | None]] = {}
        self.shapes: dict[str, Shape] = {}
        self.kinds: dict[str, int] = {}
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.outputs: list[str] = []

    def __str__(self) -> str:
        return onnx.printer.to_text(self.model())

    def pick(self, values):
        return self.draw(st.sampled_from(list(values)))

    def value(self, fits) -> str | None:
        """One of the values that fit, mostly one of the latest that have the batch first."""
        found = [v for v in self.shapes if self.kinds.get(v, 1) == 1 and fits(self.shapes[v])]
        if not found:
            return None
        batched = [v for v in found if self.shapes[v][:1] == ("N",)]
        return self.pick(batched[-2:] if batched and self.pick(range(4)) else found)

    def chance(self) -> bool:
        return self.draw(st.booleans())

    # ---- parts

    def input(self, name: str, shape: Shape, written: list[int | str | None] | None = None) -> str:
        self.inputs[name] = self.shapes[name] = shape
        self.names[name] = list(shape) if written is None else written
        return name

    def constant(self, array: np.ndarray) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = array
        return name

    def weights(self, *shape: int, terms: int) -> str:
        scale = 1 / np.sqrt(max(terms, 1))
        return self.constant((self.rng.standard_normal(shape) * scale).astype(np.float32))

    def node(self, op: str, inputs: list[str], shape: Shape, **attributes) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{name}", **attributes))
        self.shapes[name] = shape
        return name

    def windowed(self, op: str, inputs: list[str], channels: int, **attributes) -> str | None:
        """A node on an image, with the size ONNX Runtime gives it; None if it takes no such."""
        image = self.shapes[inputs[0]]
        node = helper.make_node(op, ["x", *inputs[1:]], ["y"], **attributes)
        one = self._model(
            [node], [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, *image[1:]])], ["y"]
        )
        try:
            (y,) = runtime(one).run(None, {"x": np.zeros((1, *image[1:]), np.float32)})
        except ORT_ERRORS:
            return None
        if not y.size:
            return None
        assert y.shape[1] == channels
        return self.node(op, inputs, (image[0], *y.shape[1:]), **attributes)

    def model(self) -> onnx.ModelProto:
        infos = [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, self.names[name])
            for name in self.inputs
        ]
        return self._model(self.nodes, infos, self.outputs)

    def _model(self, nodes, infos, outputs) -> onnx.ModelProto:
        read = {name for node in nodes for name in node.input} | set(outputs)
        graph = helper.make_graph(
            nodes,
            "random",
            infos,
            [self._info(name) for name in outputs],
            [numpy_helper.from_array(a, n) for n, a in self.constants.items() if n in read],
        )
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def _info(self, name: str) -> onnx.ValueInfoProto:
        kind = self.kinds.get(name, TensorProto.FLOAT)
        return helper.make_tensor_value_info(name, kind, None)

    def feeds(self, **symbols: int) -> dict[str, np.ndarray]:
        return {
            name: self.rng.standard_normal([symbols.get(size, size) for size in shape]).astype(
                np.float32
            )
            for name, shape in self.inputs.items()
        }

    @property
    def has_linear_node(self) -> bool:
        """Whether a worker could be sent something: constant weights, and a row per sample."""
        return any(
            node.op_type in ("Conv", "ConvTranspose", "Gemm", "MatMul")
            and self.shapes.get(node.input[0], ())[:1] == ("N",)
            and is_fixed(self.shapes[node.input[0]][1:])
            and node.input[1] in self.constants
            for node in self.nodes
        )

    # ---- attributes

    def window(self, axes: int, op: str) -> dict[str, object]:
        """Kernel, strides and padding of every kind ONNX knows, valid or not."""
        several = lambda values: [self.pick(values) for _ in range(axes)]  # noqa: E731
        attributes = {"kernel_shape": several(range(1, 4)), "strides": several(range(1, 4))}
        if op != "AveragePool" or self.opset >= 19:
            attributes["dilations"] = several([1, 1, 2])
        mode = self.pick(["NOTSET", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"])
        if mode != "NOTSET":
            attributes["auto_pad"] = mode
        elif self.chance():
            attributes["pads"] = [self.pick(range(3)) for _ in range(2 * axes)]
        if op in POOLS:
            attributes["ceil_mode"] = self.pick([0, 1])
        if op == "AveragePool":
            attributes["count_include_pad"] = self.pick([0, 1])
        if op == "ConvTranspose" and self.chance():
            attributes["output_padding"] = several(range(2))
        if op == "ConvTranspose" and mode != "VALID" and self.pick(range(4)) == 0:
            attributes.pop("pads", None)
            attributes["output_shape"] = several(range(4, 12))
        return attributes


def is_image(shape: Shape) -> bool:
    return len(shape) in (3, 4) and is_fixed(shape[1:])


def is_fixed(shape: Shape) -> bool:
    return all(isinstance(size, int) for size in shape)


def add_convolution(net: RandomModel) -> str | None:
    x = net.value(is_image)
    if x is None:
        return None
    channels, axes = net.shapes[x][1], len(net.shapes[x]) - 2
    op = net.pick(["Conv", "Conv", "ConvTranspose"])
    attributes = net.window(axes, op)
    groups = net.pick([g for g in (1, 1, channels) if channels % g == 0])
    out = groups * net.pick([1, 2, 3])
    kernel = attributes["kernel_shape"]
    if op == "Conv":
        shape = (out, channels // groups, *kernel)
    else:
        shape = (channels, out // groups, *kernel)
    inputs = [x, net.weights(*shape, terms=channels // groups * int(np.prod(kernel)))]
    if net.chance():
        inputs.append(net.weights(out, terms=4))
    return net.windowed(op, inputs, out, group=groups, **attributes)


def add_pool(net: RandomModel) -> str | None:
    x = net.value(is_image)
    if x is None:
        return None
    channels, axes = net.shapes[x][1], len(net.shapes[x]) - 2
    if net.chance():
        op = net.pick(["GlobalAveragePool", "GlobalMaxPool"])
        return net.windowed(op, [x], channels)
    op = net.pick(POOLS)
    return net.windowed(op, [x], channels, **net.window(axes, op))


def add_product(net: RandomModel) -> str | None:
    x = net.value(lambda shape: len(shape) >= 2 and isinstance(shape[-1], int))
    if x is None:
        return None
    shape, terms, out = net.shapes[x], net.shapes[x][-1], net.pick(range(1, 5))
    if len(shape) == 2 and net.chance():
        flip = net.pick([0, 1])
        inputs = [x, net.weights(*((out, terms) if flip else (terms, out)), terms=terms)]
        if net.chance():
            inputs.append(net.weights(*net.pick([(), (1,), (out,), (1, out)]), terms=4))
        numbers = {"alpha": net.pick([1.0, 0.5]), "beta": net.pick([1.0, -0.5])}
        return net.node("Gemm", inputs, (shape[0], out), transB=flip, **numbers)
    return net.node("MatMul", [x, net.weights(terms, out, terms=terms)], (*shape[:-1], out))


def add_other_product(net: RandomModel) -> str | None:
    """A constant on the left, a vector, one matrix for each head, and the same in Einsum."""
    x = net.value(lambda shape: len(shape) >= 2 and is_fixed(shape[1:]))
    if x is None:
        return None
    shape, out = net.shapes[x], net.pick(range(1, 4))
    *axes, terms = shape[1:]
    choice = net.pick(["left", "vector", "heads", "einsum"])
    if choice == "vector":
        return net.node("MatMul", [x, net.weights(terms, terms=terms)], shape[:-1])
    if choice == "left" and axes:
        left = net.weights(out, axes[-1], terms=axes[-1])
        return net.node("MatMul", [left, x], (*shape[:-2], out, terms))
    if choice == "heads" and len(axes) == 2:
        heads = net.weights(axes[0], terms, out, terms=terms)
        return net.node("MatMul", [x, heads], (*shape[:-1], out))
    names = "abc"[: len(axes)]
    equation = f"n{names}t,to->no{names}"
    matrix = net.weights(terms, out, terms=terms)
    return net.node("Einsum", [x, matrix], (shape[0], out, *axes), equation=equation)


def add_rows(net: RandomModel) -> str | None:
    """A layer on every row of the second axis: samples and rows share one axis before it."""
    x = net.value(lambda shape: len(shape) >= 3 and is_fixed(shape[1:]))
    if x is None:
        return None
    first, each, *rest = net.shapes[x]
    merged = net.node("Reshape", [x, net.constant(np.array([-1, *rest]))], ("rows", *rest))
    out = net.pick([1, 2, 3])
    if len(rest) == 1:
        weights = net.weights(rest[0], out, terms=rest[0])
        inputs = [merged, weights, *([net.weights(out, terms=4)] if net.chance() else [])]
        made, sizes = net.node("MatMul" if len(inputs) == 2 else "Gemm", inputs, ("rows", out)), []
    else:
        kernel = [1] * (len(rest) - 2) + [net.pick([1, min(2, rest[-1])])]
        weights = net.weights(out, rest[0], *kernel, terms=rest[0])
        sizes = [*rest[1:-1], rest[-1] - kernel[-1] + 1]
        made = net.node("Conv", [merged, weights], ("rows", out, *sizes))
    if net.chance():
        made = net.node("Relu", [made], ("rows", out, *sizes))
    back = net.constant(np.array([-1, each, out, *sizes]))
    return net.node("Reshape", [made, back], (first, each, out, *sizes))


def add_volume(net: RandomModel) -> str | None:
    """A convolution over three axes, of which the first is new."""
    x = net.value(lambda shape: len(shape) == 4 and is_fixed(shape[1:]))
    if x is None:
        return None
    channels, *image = net.shapes[x][1:]
    new = net.constant(np.array([0, channels, 1, *image]))
    volume = net.node("Reshape", [x, new], (net.shapes[x][0], channels, 1, *image))
    out, kernel = net.pick([1, 2]), [1, net.pick([1, 2]), net.pick([1, 2])]
    weights = net.weights(out, channels, *kernel, terms=channels)
    return net.windowed("Conv", [volume, weights], out, pads=[net.pick([0, 1])] * 6)


def add_pairwise(net: RandomModel) -> str | None:
    """Two values of one shape, or one that is broadcast to the other."""
    values = list(net.shapes)
    pairs = [
        (a, b)
        for a, b in itertools.product(values, values)
        if net.kinds.get(a, 1) == net.kinds.get(b, 1) == 1
        and len(net.shapes[a]) >= len(net.shapes[b])
        and all(q in (1, p) for p, q in zip(net.shapes[a][::-1], net.shapes[b][::-1], strict=False))
    ]
    a, b = net.pick(pairs)
    inputs = [a, b] if net.chance() else [b, a]
    return net.node(net.pick(["Add", "Sub", "Mul"]), inputs, net.shapes[a])


def add_scores(net: RandomModel) -> str | None:
    """Every sample against every row of a table."""
    pairs = [
        (a, b)
        for a, b in itertools.product(net.shapes, net.shapes)
        if len(net.shapes[a]) == len(net.shapes[b]) == 2
        and net.shapes[a][1] == net.shapes[b][1]
        and isinstance(net.shapes[a][1], int)
        and net.shapes[a][0] != net.shapes[b][0]
    ]
    if not pairs:
        return None
    a, b = net.pick(pairs)
    turned = net.node("Transpose", [b], net.shapes[b][::-1], perm=[1, 0])
    return net.node("MatMul", [a, turned], (net.shapes[a][0], net.shapes[b][0]))


def add_shaping(net: RandomModel) -> str | None:
    x = net.value(lambda shape: True) or ""
    shape = net.shapes[x]
    choice = net.pick(["flatten", "reshape", "transpose", "unsqueeze", "concat", "shape"])
    if choice == "shape" and shape:
        name = net.node("Shape", [x], (len(shape),))
        net.kinds[name] = TensorProto.INT64
        return name
    if choice == "concat" and len(shape) >= 2 and isinstance(shape[1], int):
        return net.node("Concat", [x, x], (shape[0], 2 * shape[1], *shape[2:]), axis=1)
    if choice == "unsqueeze":
        axes = net.constant(np.array([net.pick([0, len(shape)])]))
        at = int(net.constants[axes][0])
        return net.node("Unsqueeze", [x, axes], (*shape[:at], 1, *shape[at:]))
    if choice == "transpose" and len(shape) >= 2:
        order = net.draw(st.permutations(range(len(shape))))
        return net.node("Transpose", [x], tuple(shape[axis] for axis in order), perm=order)
    if len(shape) >= 2 and is_fixed(shape[1:]):
        size = int(np.prod(shape[1:]))
        if choice == "flatten":
            return net.node("Flatten", [x], (shape[0], size), axis=1)
        target = net.constant(np.array([net.pick([0, -1]), size]))
        return net.node("Reshape", [x, target], (shape[0], size))
    return None


def add_reduction(net: RandomModel) -> str | None:
    x = net.value(bool)
    if x is None:
        return None
    shape = net.shapes[x]
    if net.chance():
        return net.node("Softmax", [x], shape, axis=net.pick(range(len(shape))))
    keep = net.pick([0, 1])
    axes = net.draw(st.sets(st.sampled_from(range(len(shape))), min_size=1))
    kept = tuple(1 if i in axes else size for i, size in enumerate(shape) if keep or i not in axes)
    op = net.pick(["ReduceMean", "ReduceMax"])
    if net.opset < 18:
        return net.node(op, [x], kept, axes=sorted(axes), keepdims=keep)
    return net.node(op, [x, net.constant(np.array(sorted(axes)))], kept, keepdims=keep)


def add_unary(net: RandomModel) -> str | None:
    x = net.value(lambda shape: True) or ""
    return net.node(net.pick(UNARY), [x], net.shapes[x])


GROW = (
    add_convolution, add_convolution, add_pool, add_product, add_product, add_other_product,
    add_rows, add_volume, add_pairwise, add_pairwise, add_scores, add_shaping, add_reduction,
    add_unary,
)  # fmt: skip


@st.composite
def models(draw) -> RandomModel:
    """A model with inputs that carry the batch, beside others, in any order."""
    net = RandomModel(draw)
    rest = net.pick([(4,), (3, 6), (2, 5, 6), (1, 6, 5), (2, 3, 4)])
    wanted = {"x": ("N", *rest)}
    more = {
        "twin": ("N", *rest), "gain": (), "mask": (1, *rest), "table": ("D", rest[-1]),
        "fixed": (5, rest[-1]), "state": (2, 1, rest[-1]), "behind": (2, "N", rest[-1]),
    }  # fmt: skip
    chosen = net.draw(st.lists(st.sampled_from(sorted(more)), unique=True, max_size=3))
    if net.pick(range(8)) == 0 and chosen:
        wanted = {}
    wanted |= {name: more[name] for name in chosen}
    style = net.pick(["name", "names", "none", "minus"])
    if "behind" in wanted or (style != "name" and "x" not in wanted):
        style = "name"
    for i, name in enumerate(net.draw(st.permutations(sorted(wanted)))):
        written: list[int | str | None] = list(wanted[name])
        if written[:1] in (["N"], ["D"]):
            free = {"name": written[0], "names": f"n{i}", "none": None, "minus": -1}
            written[0] = free[style]
        if "x" not in wanted and "twin" not in wanted and "N" in written:
            continue  # a batch needs an input that has it first
        net.input(name, wanted[name], written)
    for array in (net.rng.standard_normal((5, rest[-1])), net.rng.standard_normal((1, *rest))):
        name = net.constant(array.astype(np.float32))
        net.shapes = {name: array.shape, **net.shapes}
    if net.pick(range(4)):
        net.pick([add_product, add_convolution])(net)
    for _ in range(net.pick(range(1, 6))):
        net.pick(GROW)(net)
    read = {name for node in net.nodes for name in node.input}
    leaves = [node.output[0] for node in net.nodes if node.output[0] not in read]
    others = net.draw(st.lists(st.sampled_from(sorted(net.shapes)), unique=True, max_size=2))
    net.outputs = list(dict.fromkeys([*leaves, *others])) or [net.pick(net.shapes)]
    return net
