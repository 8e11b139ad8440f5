"""The operators Cloister itself understands; ONNX Runtime runs all others, inside.

LINEAR   a linear map if its weights are constants: may be sent to a worker
LOCAL    computed inside the trusted runtime
SHAPE    describes or moves values; usually gone after constant folding
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from cloister.graph.graph import Node
from cloister.graph.ops import elementwise_ops as element
from cloister.graph.ops import linear_ops as linear
from cloister.graph.ops import pool_ops as pool
from cloister.graph.ops import tensor_ops as tensor
from cloister.graph.ops.call import Call
from cloister.graph.ops.linear_nodes import STANDARD_DOMAINS

Evaluate = Callable[[Call], np.ndarray]


class Kind(Enum):
    """How Cloister treats an operator."""

    LINEAR = "linear"
    LOCAL = "local"
    SHAPE = "shape"


@dataclass(frozen=True)
class OpSpec:
    """An operator's kind and its meaning: one output in plain NumPy."""

    kind: Kind
    evaluate: Evaluate


TABLE: dict[Kind, dict[str, Evaluate]] = {
    Kind.LINEAR: {
        "Conv": linear.conv,
        "ConvTranspose": linear.conv_transpose,
        "Gemm": linear.gemm,
        "MatMul": linear.matmul,
    },
    Kind.LOCAL: {
        "Relu": element.unary(element.relu),
        "LeakyRelu": element.leaky_relu,
        "Clip": element.clip,
        "Sigmoid": element.unary(element.sigmoid),
        "Tanh": element.unary(np.tanh),
        "HardSwish": element.unary(element.hard_swish),
        "HardSigmoid": element.hard_sigmoid,
        "Erf": element.unary(element.erf),
        "Exp": element.unary(np.exp),
        "Abs": element.unary(np.abs),
        "Gelu": element.gelu,
        "Softmax": element.softmax,
        "BatchNormalization": element.batch_normalization,
        "LayerNormalization": element.layer_normalization,
        "MaxPool": pool.max_pool,
        "AveragePool": pool.average_pool,
        "GlobalMaxPool": pool.global_max_pool,
        "GlobalAveragePool": pool.global_average_pool,
        "ReduceMean": pool.reduce_mean,
        "Add": element.binary(np.add),
        "Sub": element.binary(np.subtract),
        "Mul": element.binary(np.multiply),
        "Div": element.binary(element.divide),
        "Min": element.variadic(np.minimum),
        "Max": element.variadic(np.maximum),
        "Neg": element.unary(np.negative),
        "Sqrt": element.unary(np.sqrt),
        "Floor": element.unary(np.floor),
        "Ceil": element.unary(np.ceil),
    },
    Kind.SHAPE: {
        "Constant": tensor.constant,
        "ConstantOfShape": tensor.constant_of_shape,
        "Identity": tensor.identity,
        "Dropout": tensor.identity,
        "Reshape": tensor.reshape,
        "Flatten": tensor.flatten,
        "Transpose": tensor.transpose,
        "Squeeze": tensor.squeeze,
        "Unsqueeze": tensor.unsqueeze,
        "Concat": tensor.concat,
        "Slice": tensor.slice_,
        "Gather": tensor.gather,
        "Pad": tensor.pad,
        "Expand": tensor.expand,
        "Shape": tensor.shape_of,
        "Cast": tensor.cast,
        "Range": tensor.range_,
        "Where": element.where,
        "Equal": element.binary(operator.eq),
        "Greater": element.binary(operator.gt),
        "Less": element.binary(operator.lt),
        "And": element.binary(np.logical_and),
        "Or": element.binary(np.logical_or),
        "Not": element.unary(np.logical_not),
    },
}
OPS: dict[str, OpSpec] = {
    name: OpSpec(kind, evaluate) for kind, row in TABLE.items() for name, evaluate in row.items()
}


def find(node: Node) -> OpSpec | None:
    """The table's entry for a node; None when only ONNX Runtime knows it."""
    return OPS.get(node.op) if node.domain in STANDARD_DOMAINS else None
