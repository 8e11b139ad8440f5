"""A graph, or a part of it, as the bytes of an ONNX model.

The encoder knows only the parts of protobuf that it writes: numbers of varying length, 32-bit
numbers and fields of stated length (https://protobuf.dev/programming-guides/encoding), by the field
numbers of onnx.proto. Fields stand in the order of their numbers, as protobuf itself writes them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cloister.errors import ModelError, UnsupportedError
from cloister.graph.captures import captured_values, every_node
from cloister.graph.element_types import TEXT, element_number, raw_bytes
from cloister.graph.graph import BATCH, Graph, LongList, Node, OpaqueType, Subgraph

MAX_BYTES = 2**31 - 1
IR_VERSION = 8
# Operator sets from 20 on have types that came with IR version 9, from 21 on with 10.
IR_OF_OPSET = ((20, 9), (21, 10))
VARINT, BYTES, FIXED32 = 0, 2, 5
# Attribute kinds of onnx.proto: the field that holds the value, and the kind's number.
FLOAT, INT, STRING, TENSOR, GRAPH, TYPE = (2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (14, 13)
FLOATS, INTS, STRINGS, TENSORS, GRAPHS, TYPES = (7, 6), (8, 7), (9, 8), (10, 9), (11, 10), (15, 14)


class _Message:
    """A message being written; large fields are joined once, with the whole model."""

    def __init__(self) -> None:
        self.parts: list[bytes | memoryview] = []
        self.size = 0

    def _add(self, part: bytes | memoryview) -> None:
        self.parts.append(part)
        self.size += len(part)

    def integer(self, number: int, value: int) -> None:
        """An int64; a negative one is stored as its two's complement."""
        self._add(varint(number << 3 | VARINT) + varint(value % 2**64))

    def real(self, number: int, value: float) -> None:
        """A float32."""
        with np.errstate(over="ignore"):
            self._add(varint(number << 3 | FIXED32) + np.array(value, "<f4").tobytes())

    def integers(self, number: int, values: Sequence[int] | np.ndarray) -> None:
        """Each as `integer` writes it: a tree ensemble has millions."""
        key = np.frombuffer(varint(number << 3 | VARINT), np.uint8)
        left = np.array(values, np.int64).view(np.uint64)
        sizes = np.ones(len(left), np.int64)
        for place in range(1, 10):
            sizes += left >> np.uint64(7 * place) > 0
        ends = np.cumsum(sizes + len(key))
        starts = ends - sizes
        written = np.empty(ends[-1] if len(ends) else 0, np.uint8)
        for place, byte in enumerate(key.tolist()):
            written[starts - len(key) + place] = byte
        for place in range(int(sizes.max(initial=0))):
            here = sizes > place
            low = (left[here] >> np.uint64(7 * place)).astype(np.uint8) & 0x7F
            written[starts[here] + place] = low | np.where(sizes[here] > place + 1, 0x80, 0)
        self._add(written.tobytes())

    def reals(self, number: int, values: Sequence[float] | np.ndarray) -> None:
        """Each as `real` writes it."""
        key = np.frombuffer(varint(number << 3 | FIXED32), np.uint8)
        written = np.empty((len(values), len(key) + 4), np.uint8)
        written[:, : len(key)] = key
        with np.errstate(over="ignore"):
            data = np.array(values, "<f4").reshape(-1, 1)
        written[:, len(key) :] = data.view(np.uint8)
        self._add(written.tobytes())

    def texts(self, number: int, values: LongList) -> None:
        """Each as `data` writes it."""
        written = []
        for text in values.texts:
            one = _Message()
            one.data(number, text.encode() if isinstance(text, str) else text)
            written.append(one.to_bytes())
        self._add(b"".join(map(written.__getitem__, values.values.tolist())))

    def data(self, number: int, data: bytes | memoryview) -> None:
        """Bytes."""
        self._add(varint(number << 3 | BYTES) + varint(len(data)))
        self._add(data)

    def text(self, number: int, text: str) -> None:
        """Text."""
        self.data(number, text.encode())

    def message(self, number: int, inner: "_Message") -> None:
        """A message inside this one."""
        self._add(varint(number << 3 | BYTES) + varint(inner.size))
        self.parts += inner.parts
        self.size += inner.size

    def to_bytes(self) -> bytes:
        """The whole message."""
        return b"".join(self.parts)


def model_bytes(
    graph: Graph,
    *,
    nodes: Sequence[Node] | None = None,
    inputs: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    inferred: bool = False,
) -> bytes:
    """The nodes (default: all) as a valid model with the constants they need; free batch kept.

    inferred   types are inferred from the model. Otherwise it runs, and an If of it gets no sizes:
               ONNX Runtime refuses sizes that contradict a branch, taken or not

    Raises ModelError for a value of unknown type at the border, UnsupportedError beyond 2 GiB.
    """
    nodes = graph.nodes if nodes is None else nodes
    inputs = graph.inputs if inputs is None else inputs
    outputs = graph.outputs if outputs is None else outputs
    constants = {n: graph.constants[n] for n in _needed_constants(graph, nodes, inputs, outputs)}
    if sum(array.nbytes for array in constants.values()) > MAX_BYTES:
        raise UnsupportedError(
            f"model {graph.name!r}: its weights exceed ONNX's 2 GiB limit; use a smaller model"
        )
    unsized = not inferred and any(node.op == "If" for node in every_node(nodes))

    def stated(known: OpaqueType) -> OpaqueType:
        return replace(known, sizes=None) if unsized and known.dtype is not None else known

    model = _Message()
    model.integer(1, max([IR_VERSION, *(ir for opset, ir in IR_OF_OPSET if graph.opset >= opset)]))
    model.text(2, "cloister")
    model.message(
        7,
        _graph(
            graph.name,
            nodes,
            [(name, stated(_input_type(graph, name))) for name in inputs],
            [(name, stated(known_type(graph, name))) for name in outputs],
            constants,
        ),
    )
    for domain, version in {"": graph.opset, **graph.domains}.items():
        opset = _Message()
        opset.text(1, domain)
        opset.integer(2, version)
        model.message(8, opset)
    return model.to_bytes()


def node_bytes(node: Node) -> bytes:
    """A node as ONNX's message."""
    return _node(node).to_bytes()


def tensor_bytes(array: np.ndarray, name: str) -> bytes:
    """A constant as ONNX's message."""
    return _tensor(array, name).to_bytes()


def type_bytes(known: OpaqueType) -> bytes:
    """A type as ONNX's message; empty when nothing is known."""
    if known.proto or (known.dtype is None and known.sizes is None):
        return known.proto
    tensor = _Message()
    if known.dtype is not None:
        tensor.integer(1, element_number(known.dtype))
    if known.sizes is not None:
        shape = _Message()
        for size in known.sizes:
            dim = _Message()
            if isinstance(size, int):
                dim.integer(1, size)
            elif size:
                dim.text(2, size)
            shape.message(1, dim)
        tensor.message(2, shape)
    found = _Message()
    found.message(1, tensor)
    return found.to_bytes()


def known_type(graph: Graph, name: str) -> OpaqueType:
    """The known part of a value's type."""
    known = graph.types.get(name)
    if known is None:
        return graph.opaque.get(name, OpaqueType())
    return OpaqueType(known.dtype, tuple(BATCH if size is None else size for size in known.shape))


def _graph(
    name: str,
    nodes: Iterable[Node],
    inputs: Iterable[tuple[str, OpaqueType]],
    outputs: Iterable[tuple[str, OpaqueType]],
    constants: Mapping[str, np.ndarray],
) -> _Message:
    graph = _Message()
    for node in nodes:
        graph.message(1, _node(node))
    graph.text(2, name)
    for constant, array in constants.items():
        graph.message(5, _tensor(array, constant))
    for number, values in ((11, inputs), (12, outputs)):
        for value, known in values:
            info = _Message()
            info.text(1, value)
            info.data(2, type_bytes(known))
            graph.message(number, info)
    return graph


def _node(node: Node) -> _Message:
    message = _Message()
    for number, values in ((1, node.inputs), (2, node.outputs)):
        for used in values:
            message.text(number, used)
    message.text(3, node.name)
    message.text(4, node.op)
    for name, value in node.attributes.items():
        message.message(5, _attribute(node, name, value))
    message.text(7, node.domain)
    return message


def _attribute(node: Node, name: str, value: object) -> _Message:
    attribute = _Message()
    attribute.text(1, name)
    match value:
        case int():
            kind = INT
        case float():
            kind = FLOAT
        case str() | bytes():
            kind = STRING
        case np.ndarray():
            kind = TENSOR
        case Subgraph():
            kind = GRAPH
        case OpaqueType():
            kind = TYPE
        case tuple():
            kind = _kind_of_all(node, name, value)
        case LongList():
            kind = _kind_of_list(value)
        case _:
            raise _unwritable(node, name)
    entries = value.values if isinstance(value, LongList) else value
    if isinstance(value, LongList) and value.texts:
        attribute.texts(kind[0], value)
    elif isinstance(entries, tuple | np.ndarray) and kind == INTS:
        attribute.integers(kind[0], entries)
    elif isinstance(entries, tuple | np.ndarray) and kind == FLOATS:
        attribute.reals(kind[0], entries)
    else:
        for one in value if isinstance(value, tuple) else (value,):
            _add_value(attribute, kind[0], one, name)
    attribute.integer(20, kind[1])
    return attribute


def _kind_of_all(node: Node, name: str, values: tuple[object, ...]) -> tuple[int, int]:
    # No operator of ONNX has an empty list of anything but integers as a meaningful value.
    for kind, types in (
        (INTS, int), (FLOATS, int | float), (STRINGS, str | bytes), (TENSORS, np.ndarray),
        (GRAPHS, Subgraph), (TYPES, OpaqueType),
    ):  # fmt: skip
        if all(isinstance(value, types) for value in values):
            return kind
    raise _unwritable(node, name)


def _kind_of_list(value: LongList) -> tuple[int, int]:
    if value.texts:
        return STRINGS
    return FLOATS if value.values.dtype.kind == "f" else INTS


def _unwritable(node: Node, name: str) -> ModelError:
    return ModelError(f"node {node.name!r}: attribute {name!r} has no value that ONNX knows")


def _add_value(attribute: _Message, field: int, value: object, name: str) -> None:
    match value:
        case int() | float() if field in (FLOAT[0], FLOATS[0]):
            attribute.real(field, value)
        case int():
            attribute.integer(field, value)
        case str():
            attribute.text(field, value)
        case bytes():
            attribute.data(field, value)
        case np.ndarray():
            attribute.message(field, _tensor(value, name))
        case Subgraph():
            attribute.message(
                field, _graph(value.name, value.nodes, value.inputs, value.outputs, value.constants)
            )
        case OpaqueType():
            attribute.data(field, type_bytes(value))


def _tensor(array: np.ndarray, name: str) -> _Message:
    tensor = _Message()
    for size in array.shape:
        tensor.integer(1, size)
    number = element_number(array.dtype)
    tensor.integer(2, number)
    if number == TEXT:
        for text in array.reshape(-1).tolist():
            tensor.data(6, text if isinstance(text, bytes) else text.encode())
    if name:
        tensor.text(8, name)
    if number != TEXT:
        tensor.data(9, raw_bytes(array))
    return tensor


def _input_type(graph: Graph, name: str) -> OpaqueType:
    known = known_type(graph, name)
    if known == OpaqueType():
        raise ModelError(f"value {name!r}: its type is not known, so no model can start with it")
    return known


def _needed_constants(
    graph: Graph, nodes: Iterable[Node], inputs: Iterable[str], outputs: Iterable[str]
) -> list[str]:
    read = dict.fromkeys(
        name for node in nodes for name in (*node.inputs, *sorted(captured_values(node)))
    )
    given = set(inputs)
    return [name for name in {**read, **dict.fromkeys(outputs)}
            if name in graph.constants and name not in given]  # fmt: skip


def varint(value: int) -> bytes:
    """A number of 0 or more, in as many bytes as it needs."""
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])
