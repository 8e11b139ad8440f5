"""Functions that a model defines itself, in place of the nodes that call them."""

from collections import Counter

import onnx
from google.protobuf.message import Message
from onnx import NodeProto, inliner

from cloister.errors import ModelError
from cloister.graph.onnx.external_data import messages

MOST_NODES = 1 << 20
"""Of a model without functions."""
Name = tuple[str, str, str]


def require_few_nodes(model: onnx.ModelProto, *, name: str) -> None:
    """Refuse functions that call themselves, or each other so often that no memory holds them.

    Raises   ModelError
    """
    calls = {_key(one): _calls(one) for one in model.functions}
    counts: dict[Name, int] = {}
    while len(counts) < len(calls):
        ready = [
            (one, called)
            for one, called in calls.items()
            if one not in counts and all(key in counts or key not in calls for key in called)
        ]
        if not ready:
            raise ModelError(f"{name}: a function calls itself; export the model again")
        counts.update((one, _nodes(called, counts)) for one, called in ready)
        most = max((_nodes(_calls(model.graph), counts), *counts.values()))
        if most > MOST_NODES:
            raise ModelError(
                f"{name}: its functions stand for {most} nodes; export a model of {MOST_NODES} "
                "nodes at most"
            )


def _key(function: onnx.FunctionProto) -> Name:
    return function.domain, function.name, function.overload


def _calls(body: Message) -> Counter[Name]:
    """How often a graph or function has which node, its bodies included."""
    nodes = (one for one in messages(body) if isinstance(one, NodeProto))
    return Counter((node.domain, node.op_type, node.overload) for node in nodes)


def _nodes(called: Counter[Name], counts: dict[Name, int]) -> int:
    return sum(often * (1 + counts.get(key, 0)) for key, often in called.items())


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, which may be changed, without functions."""
    if not model.functions:
        return model
    functions = {_key(one): one for one in model.functions}
    for node in [one for one in messages(model) if isinstance(one, NodeProto)]:
        called = functions.get((node.domain, node.op_type, node.overload))
        if called is not None:
            _give_defaults(node, called)
    return inliner.inline_local_functions(model, convert_version=True)


def _give_defaults(node: NodeProto, called: onnx.FunctionProto) -> None:
    """State attributes that a call leaves to the function; the inliner would leave them out."""
    given = {attribute.name for attribute in node.attribute}
    node.attribute.extend(one for one in called.attribute_proto if one.name not in given)
