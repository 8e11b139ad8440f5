"""Functions that a model defines itself, in place of the nodes that call them."""

import onnx
from onnx import NodeProto, inliner

from cloister.graph.onnx.external_data import messages


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, which may be changed, without functions."""
    if not model.functions:
        return model
    functions = {(one.domain, one.name, one.overload): one for one in model.functions}
    for node in [one for one in messages(model) if isinstance(one, NodeProto)]:
        called = functions.get((node.domain, node.op_type, node.overload))
        if called is not None:
            _give_defaults(node, called)
    return inliner.inline_local_functions(model, convert_version=True)


def _give_defaults(node: NodeProto, called: onnx.FunctionProto) -> None:
    """State attributes that a call leaves to the function; the inliner would leave them out."""
    given = {attribute.name for attribute in node.attribute}
    node.attribute.extend(one for one in called.attribute_proto if one.name not in given)
