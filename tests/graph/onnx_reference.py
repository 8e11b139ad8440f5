"""The export as ONNX's own library makes it: what the encoder is held against."""

import numpy as np
import onnx
from onnx import helper, numpy_helper

from cloister.graph.captures import captured_values
from cloister.graph.graph import BATCH, Graph, Node, OpaqueType, Subgraph


def to_model(graph: Graph) -> onnx.ModelProto:
    """The whole graph."""
    read = dict.fromkeys(
        name for node in graph.nodes for name in (*node.inputs, *sorted(captured_values(node)))
    )
    needed = [
        name
        for name in {**read, **dict.fromkeys(graph.outputs)}
        if name in graph.constants and name not in graph.inputs
    ]
    body = helper.make_graph(
        [to_node(node) for node in graph.nodes],
        graph.name,
        [onnx.ValueInfoProto(name=name, type=_known(graph, name)) for name in graph.inputs],
        [onnx.ValueInfoProto(name=name, type=_known(graph, name)) for name in graph.outputs],
        [to_tensor(graph.constants[name], name) for name in needed],
    )
    opsets = [helper.make_opsetid("", graph.opset)]
    opsets += [helper.make_opsetid(name, version) for name, version in graph.domains.items()]
    ir_version = max([8, *(ir for opset, ir in ((20, 9), (21, 10)) if graph.opset >= opset)])
    return helper.make_model(
        body, opset_imports=opsets, ir_version=ir_version, producer_name="cloister"
    )


def to_node(node: Node) -> onnx.NodeProto:
    proto = onnx.NodeProto(
        name=node.name, op_type=node.op, domain=node.domain, input=node.inputs, output=node.outputs
    )
    for name, value in node.attributes.items():
        if isinstance(value, tuple) and not value:
            ints = onnx.AttributeProto.INTS
            proto.attribute.append(helper.make_attribute(name, [], attr_type=ints))
        else:
            proto.attribute.append(helper.make_attribute(name, _value(value, name)))
    return proto


def to_tensor(array: np.ndarray, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)


def type_proto(known: OpaqueType) -> onnx.TypeProto:
    if known.proto or known == OpaqueType():
        return onnx.TypeProto.FromString(known.proto)
    kind = 0 if known.dtype is None else helper.np_dtype_to_tensor_dtype(known.dtype)
    sizes = None if known.sizes is None else [None if size == "" else size for size in known.sizes]
    return helper.make_tensor_type_proto(kind, sizes)


def _known(graph: Graph, name: str) -> onnx.TypeProto:
    known = graph.types.get(name)
    if known is None:
        return type_proto(graph.opaque.get(name, OpaqueType()))
    sizes = [BATCH if size is None else size for size in known.shape]
    return helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(known.dtype), sizes)


def _value(value: object, name: str) -> object:
    if isinstance(value, tuple):
        return [_value(one, name) for one in value]
    if isinstance(value, np.ndarray):
        return to_tensor(value, name)
    if isinstance(value, OpaqueType):
        return type_proto(value)
    if isinstance(value, Subgraph):
        return helper.make_graph(
            [to_node(node) for node in value.nodes],
            value.name,
            [onnx.ValueInfoProto(name=n, type=type_proto(t)) for n, t in value.inputs],
            [onnx.ValueInfoProto(name=n, type=type_proto(t)) for n, t in value.outputs],
            [to_tensor(array, n) for n, array in value.constants.items()],
        )
    return value
