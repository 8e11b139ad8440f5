"""A graph as canonical bytes, and back: the fields of a Graph under their names.

Only operators, attributes and the types of values that are no tensors are ONNX's, so that a graph
is read without a library that reads models, and no part of the bytes can name a file.
"""

from collections.abc import Mapping

import numpy as np

from cloister.base.reading import parsing
from cloister.errors import InputError
from cloister.graph import canonical
from cloister.graph.canonical import Reader, Writer, entries, mapping, text, texts, truth, whole
from cloister.graph.element_types import ELEMENT_TYPES, element_number
from cloister.graph.graph import Graph, LongList, Node, OpaqueType, Size, Subgraph, TensorType
from cloister.graph.legality import check

MAGIC, VERSION = b"CLOG", 1
MAX_OPSET = 2**31 - 1


def to_bytes(graph: Graph) -> bytes:
    """The canonical bytes: equal graphs have equal ones, on every machine.

    Raises   InputError for an attribute that no file holds
    """
    return _written(graph).to_bytes()


def from_bytes(data: bytes | memoryview) -> Graph:
    """The graph of canonical bytes; its constants are views of them.

    Raises   InputError
    """
    with parsing("not the bytes of a graph"):
        reader = Reader(canonical.as_array(data), MAGIC, VERSION)
        graph = read_graph(reader.document, reader)
        reader.finish(_written(graph))
        return graph


def _written(graph: Graph) -> Writer:
    writer = Writer(MAGIC, VERSION)
    return writer.finish(graph_document(graph, writer))


def graph_document(
    graph: Graph, writer: Writer, *, name: str | None = None, left_out: frozenset[str] = frozenset()
) -> dict[str, object]:
    """A graph as part of a document, under another name if one is given.

    Of float32 constants that are left out, only the shape is kept.
    """
    return {
        "name": graph.name if name is None else name,
        "opset": graph.opset,
        "domains": dict(graph.domains),
        "inputs": [_input(graph, name, writer) for name in graph.inputs],
        "outputs": list(graph.outputs),
        "nodes": [_node_document(node, writer) for node in graph.nodes],
        "types": {name: _tensor_type(known) for name, known in graph.types.items()},
        "opaque": {name: _opaque_type(known) for name, known in graph.opaque.items()},
        "separable": graph.separable,
        "joins": dict(graph.joins),
        "constants": _constants(graph.constants, writer, left_out),
        # Most models state nothing of their samples, and reports name them by these bytes.
        **({"samples": graph.samples} if graph.samples else {}),
    }


def read_graph(document: object, reader: Reader) -> Graph:
    """The graph of a part of a document.

    Raises   ModelError, and what the parts of a damaged document make Python raise
    """
    stated = ("samples",) if isinstance(document, dict) and document.get("samples") else ()
    (name, opset, domains, inputs, outputs, nodes, types, opaque, separable, joins, constants,
     *samples) = read_fields(
        document, "name", "opset", "domains", "inputs", "outputs", "nodes", "types", "opaque",
        "separable", "joins", "constants", *stated,
    )  # fmt: skip
    given = [_read_input(one, reader) for one in entries(inputs)]
    made = tuple(_read_node(one, reader) for one in entries(nodes))
    known = mapping(types, _read_tensor_type)
    graph = Graph(
        name=text(name),
        nodes=made,
        inputs=tuple(one for one, _ in given),
        outputs=texts(outputs),
        constants={
            one: _absent(known[one]) if described is None else reader.tensor(described)
            for one, described in mapping(constants, lambda described: described).items()
        },
        types=known,
        opset=whole(opset, least=1, most=MAX_OPSET),
        opaque=mapping(opaque, _read_opaque_type),
        domains=mapping(domains, lambda version: whole(version, least=1, most=MAX_OPSET)),
        separable=truth(separable),
        joins=mapping(joins, lambda axis: whole(axis, least=0, most=canonical.MAX_RANK)),
        defaults={one: default for one, default in given if default is not None},
        samples=text(samples[0]) if samples else "",
    )
    check(graph)
    return graph


def _input(graph: Graph, name: str, writer: Writer) -> object:
    """An input's name, with its default if it has one."""
    return [name, writer.tensor(graph.defaults[name])] if name in graph.defaults else name


def _read_input(document: object, reader: Reader) -> tuple[str, np.ndarray | None]:
    if isinstance(document, str):
        return text(document), None
    name, default = entries(document)
    return text(name), reader.tensor(default)


def absent(shape: tuple[int, ...]) -> np.ndarray:
    """An array in the place of a constant that is not needed: it takes no memory."""
    return np.broadcast_to(np.float32(np.nan), shape)


def read_fields(document: object, *names: str) -> list[object]:
    """The values of a part of a document that has these names and no others.

    Raises   ValueError
    """
    if not isinstance(document, dict) or set(document) != set(names):
        raise ValueError(f"a part of it needs the fields {', '.join(names)} alone")
    return [document[name] for name in names]


def _constants(
    constants: Mapping[str, np.ndarray], writer: Writer, left_out: frozenset[str] = frozenset()
) -> dict[str, object]:
    return {
        name: None if name in left_out else writer.tensor(constants[name])
        for name in sorted(constants)
    }


def _absent(known: TensorType) -> np.ndarray:
    if known.dtype != np.float32 or None in known.shape:
        raise ValueError("a constant that is left out is no float32 tensor")
    return absent(tuple(size for size in known.shape if size is not None))


# ---- nodes


def _node_document(node: Node, writer: Writer) -> dict[str, object]:
    return {
        "name": node.name,
        "op": node.op,
        "domain": node.domain,
        "inputs": list(node.inputs),
        "outputs": list(node.outputs),
        "attributes": {
            name: _attribute(node, name, node.attributes[name], writer)
            for name in sorted(node.attributes)
        },
    }


def _read_node(document: object, reader: Reader) -> Node:
    name, op, domain, inputs, outputs, attributes = read_fields(
        document, "name", "op", "domain", "inputs", "outputs", "attributes"
    )
    return Node(
        name=text(name),
        op=text(op),
        inputs=texts(inputs),
        outputs=texts(outputs),
        attributes=mapping(attributes, lambda value: _read_attribute(value, reader)),
        domain=text(domain),
    )


def _attribute(node: Node, name: str, value: object, writer: Writer) -> object:
    """A number or text as it is, a tuple as a list, anything else under the name of its kind."""
    match value:
        case int():
            return int(value)
        case float() | str():
            return value
        case tuple() if not any(isinstance(one, tuple) for one in value):
            return [_attribute(node, name, one, writer) for one in value]
        case bytes():
            return {"bytes": value.hex()}
        case np.ndarray():
            return {"tensor": writer.tensor(value)}
        case LongList():
            return {"entries": writer.tensor(value.values), "texts": _texts(value)}
        case OpaqueType():
            return {"type": _opaque_type(value)}
        case Subgraph():
            return {
                "graph": {
                    "name": value.name,
                    "nodes": [_node_document(one, writer) for one in value.nodes],
                    "inputs": [[one, _opaque_type(known)] for one, known in value.inputs],
                    "outputs": [[one, _opaque_type(known)] for one, known in value.outputs],
                    "constants": _constants(value.constants, writer),
                }
            }
    raise InputError(f"node {node.name!r}: attribute {name!r} has no value that a file holds")


def _read_attribute(value: object, reader: Reader) -> object:
    match value:
        case bool() | None:
            raise ValueError("an attribute is true, false or nothing")
        case int():
            return whole(value)
        case float():
            return value
        case str():
            return text(value)
        case list() if not any(isinstance(one, list) for one in value):
            return tuple(_read_attribute(one, reader) for one in value)
        case {"bytes": data, **rest} if not rest:
            return bytes.fromhex(text(data))
        case {"tensor": described, **rest} if not rest:
            return reader.tensor(described)
        case {"entries": described, "texts": listed, **rest} if not rest:
            return _read_list(reader.tensor(described), listed)
        case {"type": known, **rest} if not rest:
            return _read_opaque_type(known)
        case {"graph": body, **rest} if not rest:
            return _read_subgraph(body, reader)
    raise ValueError("an attribute is of no known kind")


def _texts(value: LongList) -> list[object]:
    return [{"bytes": one.hex()} if isinstance(one, bytes) else one for one in value.texts]


def _read_list(values: np.ndarray, listed: object) -> LongList:
    texts = tuple(
        text(one) if isinstance(one, str) else bytes.fromhex(text(*read_fields(one, "bytes")))
        for one in entries(listed)
    )
    kinds = (np.int64,) if texts else (np.int64, np.float32)
    if values.ndim != 1 or values.dtype not in kinds or len(set(texts)) != len(texts):
        raise ValueError("a list is none of numbers or texts")
    if texts and not 0 <= values.min(initial=0) <= values.max(initial=0) < len(texts):
        raise ValueError("a list names a text that is not there")
    return LongList(values, texts)


def _read_subgraph(document: object, reader: Reader) -> Subgraph:
    name, nodes, inputs, outputs, constants = read_fields(
        document, "name", "nodes", "inputs", "outputs", "constants"
    )
    return Subgraph(
        name=text(name),
        nodes=tuple(_read_node(one, reader) for one in entries(nodes)),
        inputs=_read_values(inputs),
        outputs=_read_values(outputs),
        constants=mapping(constants, reader.tensor),
    )


def _read_values(document: object) -> tuple[tuple[str, OpaqueType], ...]:
    pairs = (entries(pair) for pair in entries(document))
    return tuple((text(name), _read_opaque_type(known)) for name, known in pairs)


# ---- types


def _tensor_type(known: TensorType) -> list[object]:
    return [element_number(known.dtype), list(known.shape)]


def _read_tensor_type(document: object) -> TensorType:
    number, shape = entries(document)
    sizes = tuple(None if one is None else canonical.size(one) for one in entries(shape))
    if len(sizes) > canonical.MAX_RANK:
        raise ValueError(f"a value has {len(sizes)} axes")
    return TensorType(ELEMENT_TYPES[whole(number)], sizes)


def _opaque_type(known: OpaqueType) -> list[object]:
    number = None if known.dtype is None else element_number(known.dtype)
    return [number, None if known.sizes is None else list(known.sizes), known.proto.hex()]


def _read_opaque_type(document: object) -> OpaqueType:
    number, shape, proto = entries(document)
    sizes: tuple[Size, ...] | None = None
    if shape is not None:
        sizes = tuple(
            text(one) if isinstance(one, str) else canonical.size(one) for one in entries(shape)
        )
    dtype = None if number is None else ELEMENT_TYPES[whole(number)]
    known = OpaqueType(dtype, sizes, bytes.fromhex(text(proto)))
    if known.proto and known != OpaqueType(proto=known.proto):
        raise ValueError("a type is a tensor's and something else's")
    return known
