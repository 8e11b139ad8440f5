"""Types of a graph's values: ONNX's shape inference, plus facts about batches that it cannot
prove.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import chain, repeat

import onnx
from onnx import shape_inference

from cloister.errors import ModelError, one_line
from cloister.graph.batch import batch_factor, times_batch
from cloister.graph.captures import every_node
from cloister.graph.element_types import ELEMENT_TYPES
from cloister.graph.graph import (
    BATCH,
    ML,
    MODULE_DOMAIN,
    Graph,
    Node,
    OpaqueType,
    Size,
    TensorType,
)
from cloister.graph.legality import MAX_ELEMENTS, READS_A_FILE
from cloister.graph.ml_operators import ml_types, without_bulk
from cloister.graph.onnx.export import known_type, model_bytes, type_bytes
from cloister.graph.runtime_types import runtime_types

Sizes = tuple[Size, ...]
SMALL = 1024
"""Constants up to this many elements may be shapes; larger ones only matter by their own shape."""

WINDOWED = ("AveragePool", "Conv", "LpPool", "MaxPool")
_UNKNOWN_DOMAIN = "cloister.unknown"
"""Inference passes by an operator of a domain that it does not know."""


def with_types(graph: Graph) -> Graph:
    """The graph with the types of all values inferred anew from its inputs and constants.

    A shape of an inner value that inference does not find stays as the graph has it: a node keeps
    what it computes.

    Raises ModelError when the shapes contradict each other.
    """
    constants = {name: TensorType(a.dtype, a.shape) for name, a in graph.constants.items()}
    large = {name: constants[name] for name, a in graph.constants.items() if a.size > SMALL}
    given = {name: graph.types[name] for name in graph.inputs if name in graph.types}
    open_inputs = {name: graph.opaque[name] for name in graph.inputs if name not in given}
    skeleton = replace(
        graph,
        nodes=tuple(map(without_bulk, graph.nodes)),
        inputs=(*graph.inputs, *large),
        constants={name: a for name, a in graph.constants.items() if name not in large},
        # Of a constant that is an output, inference would believe that nothing is known.
        types={**given, **constants},
        opaque=open_inputs,
        # Inference passes by an operator that it does not know, but not by a domain.
        domains={**graph.domains, MODULE_DOMAIN: 1},
    )
    model = onnx.ModelProto.FromString(model_bytes(skeleton, inferred=True))
    stated: set[tuple[str, bool]] = set()
    asked = False
    while True:
        found = _infer(model)
        proved = _proved(graph, found, stated)
        stated.update((name, known.sizes is not None) for name, known in proved.items())
        if not proved and not asked:
            asked = True
            proved = _computed(graph, found)
        if not proved:
            break
        _state(model, proved)
    known = {name: tensor_type(one) for name, one in found.items()}
    types = {name: one for name, one in known.items() if one is not None}
    for name, one in types.items():
        if math.prod(size or 1 for size in one.shape) > MAX_ELEMENTS:
            raise ModelError(f"value {name!r}: absurd shape {one.shape}; the file is damaged")
    made = (value for node in graph.nodes for value in node.outputs if value)
    opaque = {name: found.get(name, OpaqueType()) for name in made if name not in types}
    opaque.update(open_inputs)
    return replace(graph, types={**types, **constants, **given}, opaque=opaque)


def with_input_sizes(graph: Graph, sizes: Mapping[str, tuple[Size, ...]]) -> Graph:
    """The graph with these sizes of its inputs; the types of all values are inferred anew.

    Raises ModelError when the shapes contradict each other.
    """
    types, opaque = {}, {}
    for name in graph.inputs:
        stated = graph.types.get(name) or graph.opaque[name]
        known = graph.opaque.get(name)
        if name in sizes and graph.sizes(name) is not None:
            known = OpaqueType(stated.dtype, sizes[name])
        typed = graph.types[name] if known is None else tensor_type(known)
        if typed is not None:
            types[name] = typed
        elif known is not None:
            opaque[name] = known
    return with_types(replace(graph, types=types, opaque=opaque))


def _infer(model: onnx.ModelProto) -> dict[str, OpaqueType]:
    _require_room(model)
    try:
        inferred = shape_inference.infer_shapes(model, strict_mode=False, data_prop=True)
    except (shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise ModelError(f"the model's shapes contradict each other: {one_line(error)}") from None
    infos = (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output)
    return {info.name: opaque_type(info.type) for info in infos if info.type.WhichOneof("value")}


def _require_room(model: onnx.ModelProto) -> None:
    """Refuse inputs into which a window does not fit.

    ONNX finds a negative size for its output then, and ends the process where that is sliced. So
    sizes are inferred without slices first, if a model has both.

    Raises   ModelError
    """
    if not {"Slice"} < {node.op_type for node in model.graph.node} & {"Slice", *WINDOWED}:
        return
    without = onnx.ModelProto()
    without.CopyFrom(model)
    for node in without.graph.node:
        if node.op_type == "Slice":
            node.domain = _UNKNOWN_DOMAIN
    without.opset_import.add(domain=_UNKNOWN_DOMAIN, version=1)
    try:
        inferred = shape_inference.infer_shapes(without, strict_mode=False, data_prop=True)
    except (shape_inference.InferenceError, ValueError, RuntimeError):
        return  # the inference that follows says what is wrong
    for info in inferred.graph.value_info:
        if any(dim.dim_value < 0 for dim in info.type.tensor_type.shape.dim):
            raise ModelError(f"value {info.name!r}: a window does not fit into the sizes given")


def _proved(
    graph: Graph, found: Mapping[str, OpaqueType], stated: Collection[tuple[str, bool]]
) -> dict[str, OpaqueType]:
    """Types that inference did not find: by a node's operator, or those that the graph has already.

    `stated` has the values that were stated before, and whether with their sizes.
    """
    proved = {}
    for node in graph.nodes:
        by_operator = chain(_by_operator(graph, node, found), repeat(OpaqueType()))
        for value, follows in zip(node.outputs, by_operator, strict=False):
            known = found.get(value, OpaqueType())
            if not value or known.proto or is_known(known.sizes):
                continue
            before = known_type(graph, value)
            sizes = next((one.sizes for one in (follows, before) if is_known(one.sizes)), None)
            dtype = known.dtype or follows.dtype or before.dtype
            if dtype is None or (sizes is None and known.dtype is not None):
                continue
            if (value, sizes is not None) not in stated:
                proved[value] = OpaqueType(dtype, sizes)
    return proved


def _computed(graph: Graph, found: Mapping[str, OpaqueType]) -> dict[str, OpaqueType]:
    """Types of values that ONNX knows nothing of, as of ONNX Runtime's own operators."""
    if any(node.op in READS_A_FILE for node in every_node(graph.nodes)):
        return {}
    unknown = [
        value
        for node in graph.nodes
        for value in node.outputs
        if value and _is_unknown(node, found.get(value, OpaqueType()))
    ]
    return runtime_types(graph, unknown) if unknown else {}


def _is_unknown(node: Node, found: OpaqueType) -> bool:
    # Of ONNX's own operators ONNX Runtime knows what ONNX does.
    return found == OpaqueType() or (node.domain not in ("", ML) and not is_known(found.sizes))


def _state(model: onnx.ModelProto, proved: Mapping[str, OpaqueType]) -> None:
    """Write types into a model for the next round of inference."""
    infos = {info.name: info for info in (*model.graph.output, *model.graph.value_info)}
    for name, known in proved.items():
        info = infos[name] if name in infos else model.graph.value_info.add()
        info.name = name
        info.type.ParseFromString(type_bytes(known))


def opaque_type(proto: onnx.TypeProto) -> OpaqueType:
    """ONNX's message for a type as this package keeps it."""
    tensor = proto.tensor_type
    if not proto.HasField("tensor_type") or tensor.elem_type not in {0, *ELEMENT_TYPES}:
        return OpaqueType(proto=proto.SerializeToString(deterministic=True))
    sizes: tuple[Size, ...] | None = None
    if tensor.HasField("shape"):
        sizes = tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param
            for dim in tensor.shape.dim
        )
    return OpaqueType(ELEMENT_TYPES.get(tensor.elem_type), sizes)


def tensor_type(known: OpaqueType) -> TensorType | None:
    """A type with its batch as such; None unless at most one axis is free, by the batch."""
    if known.dtype is None or known.sizes is None or known.sizes.count(BATCH) > 1:
        return None
    sizes: list[int | None] = []
    for size in known.sizes:
        if isinstance(size, str) and size != BATCH:
            return None
        sizes.append(size if isinstance(size, int) else None)
    return TensorType(known.dtype, tuple(sizes))


def is_known(sizes: Sequence[Size] | None) -> bool:
    """Whether a shape has nothing but numbers and multiples of the batch."""
    return sizes is not None and all(
        isinstance(size, int) or batch_factor(size) is not None for size in sizes
    )


def _by_operator(
    graph: Graph, node: Node, found: Mapping[str, OpaqueType]
) -> tuple[OpaqueType, ...]:
    """What follows from a node's operator of the types of its outputs, where ONNX has no rule."""
    if node.op == "Reshape":
        return (OpaqueType(sizes=_reshaped(graph, node, found)),)
    if node.domain == ML and node.inputs:
        return ml_types(node, found.get(node.inputs[0], OpaqueType()))
    return ()


def _reshaped(graph: Graph, node: Node, found: Mapping[str, OpaqueType]) -> Sizes | None:
    """The sizes that a Reshape to a constant target gives to a known number of elements."""
    target = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    before = found.get(node.inputs[0], OpaqueType()).sizes
    if target is None or target.ndim != 1 or before is None or not is_known(before):
        return None
    if 0 in target and (node.attributes.get("allowzero", 0) or len(target) > len(before)):
        return None
    sizes = [before[i] if size == 0 else int(size) for i, size in enumerate(target)]
    total, rest = _elements(before), _elements([size for size in sizes if size != -1])
    if total is None or rest is None or sizes.count(-1) != 1:
        return None
    factor, batches = total[0] // rest[0], total[1] - rest[1]
    if factor * rest[0] != total[0] or batches not in (0, 1):
        return None
    open_size = times_batch(factor) if batches else factor
    return tuple(open_size if size == -1 else size for size in sizes)


def _elements(sizes: Sequence[Size]) -> tuple[int, int] | None:
    """(n, p) of known sizes whose product is n * batch**p; None for a size of 0."""
    factors = [size if isinstance(size, int) else batch_factor(size) or 0 for size in sizes]
    n = math.prod(factors)
    return (n, sum(isinstance(size, str) for size in sizes)) if n else None
