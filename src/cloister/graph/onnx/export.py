"""A graph, or a part of it, as an ONNX model."""

from collections.abc import Iterable, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cloister.errors import ModelError, UnsupportedError
from cloister.graph.captures import captured_values
from cloister.graph.graph import BATCH, Graph, Node

MAX_BYTES = 2**31 - 1
IR_VERSION = 8
# Operator sets from 20 on have types that came with IR version 9, from 21 on with 10.
IR_OF_OPSET = ((20, 9), (21, 10))


def to_model(
    graph: Graph,
    *,
    nodes: Sequence[Node] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """The nodes (default: all) as a valid model with the constants they need; free batch kept.

    Raises ModelError for a value of unknown type at the border, UnsupportedError beyond 2 GiB.
    """
    nodes = graph.nodes if nodes is None else nodes
    inputs = graph.inputs if inputs is None else inputs
    outputs = graph.outputs if outputs is None else outputs
    needed = _needed_constants(graph, nodes, inputs, outputs)
    if sum(graph.constants[name].nbytes for name in needed) > MAX_BYTES:
        raise UnsupportedError(
            f"model {graph.name!r}: its weights exceed ONNX's 2 GiB limit; use a smaller model"
        )
    body = helper.make_graph(
        [to_node(node) for node in nodes],
        graph.name,
        [_input_info(graph, name) for name in inputs],
        [onnx.ValueInfoProto(name=name, type=type_proto(graph, name)) for name in outputs],
        [to_tensor(graph.constants[name], name) for name in needed],
    )
    opsets = [helper.make_opsetid("", graph.opset)]
    opsets += [helper.make_opsetid(name, version) for name, version in graph.domains.items()]
    ir_version = max([IR_VERSION, *(ir for opset, ir in IR_OF_OPSET if graph.opset >= opset)])
    return helper.make_model(
        body, opset_imports=opsets, ir_version=ir_version, producer_name="cloister"
    )


def to_node(node: Node) -> onnx.NodeProto:
    """A node as ONNX writes it."""
    proto = onnx.NodeProto(
        name=node.name, op_type=node.op, domain=node.domain, input=node.inputs, output=node.outputs
    )
    for name, value in node.attributes.items():
        if isinstance(value, onnx.AttributeProto):
            proto.attribute.append(value)
        elif isinstance(value, np.ndarray):
            proto.attribute.append(helper.make_attribute(name, to_tensor(value, name)))
        elif value == ():
            # No operator of ONNX has an empty list of anything but integers as a meaningful value.
            ints = onnx.AttributeProto.INTS
            proto.attribute.append(helper.make_attribute(name, [], attr_type=ints))
        else:
            proto.attribute.append(helper.make_attribute(name, value))
    return proto


def to_tensor(array: np.ndarray, name: str) -> onnx.TensorProto:
    """A constant as ONNX writes it."""
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def type_proto(graph: Graph, name: str) -> onnx.TypeProto:
    """The type of a value as ONNX writes it; empty when nothing is known."""
    known = graph.types.get(name)
    if known is None:
        return graph.opaque.get(name, onnx.TypeProto())
    shape = [BATCH if size is None else size for size in known.shape]
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(known.dtype), shape)


def _input_info(graph: Graph, name: str) -> onnx.ValueInfoProto:
    proto = type_proto(graph, name)
    if proto.WhichOneof("value") is None:
        raise ModelError(f"value {name!r}: its type is not known, so no model can start with it")
    return onnx.ValueInfoProto(name=name, type=proto)


def _needed_constants(
    graph: Graph, nodes: Iterable[Node], inputs: Iterable[str], outputs: Iterable[str]
) -> list[str]:
    read = dict.fromkeys(
        name for node in nodes for name in (*node.inputs, *sorted(captured_values(node)))
    )
    given = set(inputs)
    return [name for name in {**read, **dict.fromkeys(outputs)}
            if name in graph.constants and name not in given]  # fmt: skip
