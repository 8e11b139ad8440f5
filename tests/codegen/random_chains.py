"""Random chains of operators on odd, non-square shapes, as `draw` decides."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from cloister.graph.onnx.read import from_model

UNARY = {
    "Relu": {}, "LeakyRelu": {"alpha": 0.1}, "Sigmoid": {}, "Tanh": {}, "HardSwish": {},
    "HardSigmoid": {}, "Gelu": {}, "Neg": {}, "Abs": {}, "Erf": {}, "Identity": {},
}  # fmt: skip


class Chain:
    """A model of one input whose nodes follow each other; every method adds some."""

    def __init__(self, draw, name):
        self.pick = lambda values: draw(list(values))
        self.name = name
        self.rng = np.random.default_rng(self.pick(range(1000)))
        self.nodes, self.constants = [], []
        rank = self.pick([2, 3, 4, 4, 4])
        channels = self.pick([1, 2, 3, 5, 8, 17])
        self.shape = (1, channels, *(self.pick([1, 4, 5, 7, 9, 11]) for _ in range(rank - 2)))
        self.input_shape = self.shape
        self.value = f"{name}x"
        self.earlier = []
        self.operators = []

    def node(self, op, shape, *more, **attributes):
        output = f"{self.name}v{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(op, [self.value, *more], [output], name=f"{output}n", **attributes)
        )
        self.earlier.append((self.value, self.shape))
        self.value, self.shape = output, tuple(shape)
        self.operators.append(op)

    def constant(self, array):
        name = f"{self.name}c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def integers(self, *values):
        return self.constant(np.array(values, np.int64))

    def normal(self, *shape, terms=1):
        return self.constant((self.rng.standard_normal(shape) / np.sqrt(terms)).astype(np.float32))

    def positive(self, *shape):
        return self.constant(self.rng.uniform(0.5, 2, shape).astype(np.float32))

    def window(self, ceil=0):
        """(kernel, stride, dilation, pads, output sizes) of a window that fits, for each axis."""
        found = []
        for size in self.shape[2:]:
            dilation = self.pick([1, 1, 2])
            kernel = self.pick([k for k in (1, 2, 3, 5) if (k - 1) * dilation < size])
            reach = (kernel - 1) * dilation + 1
            before, behind = (self.pick(range(min(kernel, 3))) for _ in range(2))
            stride = self.pick([1, 1, 2, 3])
            rest = size + before + behind - reach
            out = rest // stride + 1
            # In ceil mode one more window begins, unless it would begin behind the image.
            out += ceil and rest % stride > 0 and out * stride < size + before
            found.append((kernel, stride, dilation, before, behind, out))
        kernels, strides, dilations, befores, behinds, outs = (
            list(v) for v in zip(*found, strict=True)
        )
        attributes = {"kernel_shape": kernels, "strides": strides, "dilations": dilations}
        attributes |= {"ceil_mode": 1} if ceil else {}
        return attributes | {"pads": [*befores, *behinds]}, outs

    # ---- steps: each returns False where the shape does not fit

    def conv(self):
        if len(self.shape) not in (3, 4):
            return False
        window, outs = self.window()
        channels = self.shape[1]
        kind = self.pick(["plain", "plain", "depthwise", "groups"])
        groups = {"plain": 1, "depthwise": channels, "groups": 2 - channels % 2}[kind]
        out = channels if kind == "depthwise" else groups * self.pick([1, 2, 3, 5, 9, 17])
        terms = channels // groups * int(np.prod(window["kernel_shape"]))
        weights = self.normal(out, channels // groups, *window["kernel_shape"], terms=terms)
        bias = [self.normal(out)] if self.pick([True, False]) else []
        self.node("Conv", (1, out, *outs), weights, *bias, group=groups, **window)
        return True

    def pool(self):
        if len(self.shape) not in (3, 4):
            return False
        window, outs = self.window(ceil=self.pick([0, 0, 1]))
        op = self.pick(["MaxPool", "AveragePool"])
        if op == "AveragePool":
            window["count_include_pad"] = self.pick([0, 1])
        self.node(op, (*self.shape[:2], *outs), **window)
        return True

    def whole(self):
        if len(self.shape) not in (3, 4):
            return False
        op = self.pick(["GlobalMaxPool", "GlobalAveragePool"])
        self.node(op, (*self.shape[:2], *(1 for _ in self.shape[2:])))
        return True

    def normalise(self):
        if len(self.shape) < 3:
            return False
        channels = self.shape[1]
        moments = [self.normal(channels), self.normal(channels), self.normal(channels)]
        self.node("BatchNormalization", self.shape, *moments, self.positive(channels))
        return True

    def layer_norm(self):
        axis = self.pick(range(1, len(self.shape)))
        sizes = self.shape[axis:]
        if int(np.prod(sizes)) == 1:
            return False
        shift = [self.normal(*sizes)] if self.pick([True, False]) else []
        self.node("LayerNormalization", self.shape, self.normal(*sizes), *shift, axis=axis)
        return True

    def dense(self):
        if len(self.shape) != 2:
            self.node("Flatten", (1, int(np.prod(self.shape))))
        inputs, out = self.shape[1], self.pick([1, 3, 7, 16, 33])
        if self.pick([True, False]):
            self.node("MatMul", (1, out), self.normal(inputs, out, terms=inputs))
        else:
            weights, bias = self.normal(out, inputs, terms=inputs), self.normal(out)
            self.node("Gemm", (1, out), weights, bias, transB=1)
        return True

    def multiply_rows(self):
        if len(self.shape) < 3:
            return False
        out = self.pick([2, 5])
        weights = self.normal(self.shape[-1], out, terms=self.shape[-1])
        self.node("MatMul", (*self.shape[:-1], out), weights)
        return True

    def attend(self):
        """x times its own transpose."""
        if len(self.shape) < 3:
            return False
        axes = (*range(len(self.shape) - 2), len(self.shape) - 1, len(self.shape) - 2)
        value, shape = self.value, self.shape
        self.node("Transpose", tuple(shape[a] for a in axes), perm=axes)
        turned = self.value
        self.value, self.shape = value, shape
        self.node("MatMul", (*shape[:-1], shape[-2]), turned)
        return True

    def unary(self):
        op = self.pick(UNARY)
        self.node(op, self.shape, **UNARY[op])
        return True

    def clip(self):
        low, high = (self.constant(np.array(value, np.float32)) for value in (-0.5, 0.75))
        self.node("Clip", self.shape, low, high)
        return True

    def shifted(self):
        shape = tuple(size if self.pick([True, False]) else 1 for size in self.shape)
        shape = shape[self.pick([0, 1]) :]
        op = self.pick(["Add", "Sub", "Mul", "Div", "Max", "Min"])
        constant = self.positive(*shape) if op == "Div" else self.normal(*shape)
        self.node(op, self.shape, constant)
        return True

    def residual(self):
        fitting = [value for value, shape in self.earlier if shape == self.shape]
        if not fitting:
            return False
        self.node(self.pick(["Add", "Mul"]), self.shape, self.pick(fitting))
        return True

    def join(self):
        axis = self.pick(range(1, len(self.shape)))
        fitting = [
            (value, shape)
            for value, shape in self.earlier
            if len(shape) == len(self.shape)
            and all(
                a == b for i, (a, b) in enumerate(zip(shape, self.shape, strict=True)) if i != axis
            )
        ]
        if not fitting:
            return False
        other, shape = self.pick(fitting)
        joined = list(self.shape)
        joined[axis] += shape[axis]
        self.node("Concat", joined, other, axis=axis)
        return True

    def transpose(self):
        if len(self.shape) < 3:
            return False
        rest = list(range(1, len(self.shape)))
        axes = [0]
        while rest:
            axes.append(rest.pop(self.pick(range(len(rest)))))
        self.node("Transpose", [self.shape[axis] for axis in axes], perm=axes)
        return True

    def reshape(self):
        total = int(np.prod(self.shape))
        first = self.pick([k for k in range(1, total + 1) if total % k == 0])
        shape = self.pick([(1, total), (1, first, total // first), (1, 1, first, total // first)])
        self.node("Reshape", shape, self.integers(*shape))
        return True

    def softmax(self):
        axis = self.pick(range(1, len(self.shape)))
        self.node("Softmax", self.shape, axis=axis)
        return True

    def slice(self):
        axis = self.pick(range(1, len(self.shape)))
        size = self.shape[axis]
        start, step = self.pick(range(size)), self.pick([1, 2, -1])
        end = size if step > 0 else -size - 1
        rows = len(range(size)[start::step])
        shape = (*self.shape[:axis], rows, *self.shape[axis + 1 :])
        bounds = [self.integers(value) for value in (start, end, axis, step)]
        self.node("Slice", shape, *bounds)
        return True

    def pad(self):
        mode = self.pick(["constant", "reflect", "edge"])
        begin, end = ([0, *(self.pick([0, 1, 2]) for _ in self.shape[1:])] for _ in range(2))
        if mode == "reflect":
            begin, end = (
                [min(b, size - 1) for b, size in zip(side, self.shape, strict=True)]
                for side in (begin, end)
            )
        shape = [b + size + e for b, size, e in zip(begin, self.shape, end, strict=True)]
        value = [self.constant(np.array(0.5, np.float32))] if mode == "constant" else []
        self.node("Pad", shape, self.integers(*begin, *end), *value, mode=mode)
        return True

    def reduce(self):
        op = self.pick(["ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"])
        axis, keep = self.pick(range(1, len(self.shape))), self.pick([0, 1])
        kept = (1,) * keep if len(self.shape) > 2 or keep else (1,)
        if len(self.shape) == 2:
            keep = 1
        shape = (*self.shape[:axis], *kept, *self.shape[axis + 1 :])
        self.node(op, shape, self.integers(axis), keepdims=keep)
        return True

    def gather(self):
        axis = self.pick(range(1, len(self.shape)))
        rows = [self.pick(range(-self.shape[axis], self.shape[axis])) for _ in range(3)]
        shape = (*self.shape[:axis], 3, *self.shape[axis + 1 :])
        self.node("Gather", shape, self.integers(*rows), axis=axis)
        return True

    STEPS = (
        conv, conv, conv, pool, whole, normalise, layer_norm, dense, multiply_rows, attend, unary,
        unary, clip, shifted, residual, join, transpose, reshape, softmax, slice, pad, reduce,
        gather,
    )  # fmt: skip


LARGEST = 6000


def chain(draw, name, length):
    made = Chain(draw, name)
    tries = 0
    while len(made.operators) < length and tries < 40:
        tries += 1
        made.pick(Chain.STEPS)(made)
        if np.prod(made.shape) > LARGEST:
            break
    if not made.operators:
        made.unary()
    return made


def graph_of(chains):
    """All chains as one graph."""
    floats = helper.make_tensor_value_info
    inputs = [
        floats(f"{one.name}x", TensorProto.FLOAT, ["N", *one.input_shape[1:]]) for one in chains
    ]
    outputs = [floats(one.value, TensorProto.FLOAT, ["N", *one.shape[1:]]) for one in chains]
    nodes = [node for one in chains for node in one.nodes]
    constants = [tensor for one in chains for tensor in one.constants]
    made = helper.make_graph(nodes, "chains", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 20)]
    return from_model(helper.make_model(made, opset_imports=opsets, ir_version=9), name="chains")
