"""From an ONNX file to a Graph. Every claim of a file is checked here."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import checker, helper, numpy_helper

from cloister.base.reading import parsing
from cloister.errors import ModelError, UnsupportedError, one_line, printable
from cloister.graph.graph import ML, SAMPLES, Graph, LongList, Node, Subgraph
from cloister.graph.inference import opaque_type, with_types
from cloister.graph.legality import READS_A_FILE, check
from cloister.graph.onnx.batch_sizes import with_batch_sizes
from cloister.graph.onnx.batching import with_dynamic_batch
from cloister.graph.onnx.default_inputs import with_default_inputs
from cloister.graph.onnx.external_data import (
    messages,
    read_external_data,
    require_inside,
    require_stored_truths,
)
from cloister.graph.onnx.local_functions import inlined, require_few_nodes
from cloister.graph.onnx.model_file import MAX_FILE_BYTES, read_model
from cloister.graph.onnx.node_order import sorted_nodes
from cloister.graph.onnx.old_operators import with_standard_operators
from cloister.graph.onnx.opsets import standard_domain, state_opsets
from cloister.graph.onnx.separability import with_separability
from cloister.graph.onnx.symbols import batch_choices, linear_weights, require_free
from cloister.graph.ort_session import ORT_ERRORS, runtime_session
from cloister.graph.passes.padding import with_explicit_padding

MANY = 1 << 12
"""Entries from which on a list is a LongList."""
NO_DIMS: Mapping[str, int] = {}
FLOAT = onnx.TensorProto.FLOAT
MAX_DENSE, MAX_ALL_DENSE = 2**24, 2**28
"""Elements of a sparse constant, with its zeros, and of all of a model's."""
STATED: Mapping[str, Mapping[str, int]] = {"STFT": {"onesided": 1}}
"""Defaults of attributes that ONNX's shape inference takes for others."""


def load(path: str | Path, *, dims: Mapping[str, int] = NO_DIMS) -> Graph:
    """The model in an ONNX file, with a dynamic batch axis wherever that is possible.

    `dims` has numbers for free sizes, by the names that the file gives them.

    Raises ModelError for a file that is unreadable, damaged or no ONNX model, UnsupportedError for
    one that Cloister cannot run as it is.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise ModelError(
                f"{path}: {size} bytes, but an ONNX file holds at most 2 GiB; save the weights as "
                "external data"
            )
        with parsing(f"{path}: not a model that can be read", kind=ModelError):
            file = read_model(path)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelError(f"{path}: cannot be read ({reason}); check the path") from None
    return _import(file.skeleton, file.constants, name=path.stem, folder=path.parent, dims=dims)


def from_model(model: onnx.ModelProto, *, name: str, folder: Path | None = None) -> Graph:
    """The graph of a model in memory; `folder` holds its external data, if it has any.

    Raises ModelError, UnsupportedError as `load` does.
    """
    own = onnx.ModelProto()
    own.CopyFrom(model)
    return _import(own, {}, name=name, folder=folder)


def _import(
    own: onnx.ModelProto,
    constants: dict[int, np.ndarray],
    *,
    name: str,
    folder: Path | None,
    dims: Mapping[str, int] = NO_DIMS,
) -> Graph:
    """The graph of a message that may be changed; `constants` were read from the file already."""
    with parsing(f"{name}: not a model that can be read", kind=ModelError):
        return _import_message(own, constants, name=name, folder=folder, dims=dims)


def _import_message(
    own: onnx.ModelProto,
    constants: dict[int, np.ndarray],
    *,
    name: str,
    folder: Path | None,
    dims: Mapping[str, int],
) -> Graph:
    read_external_data(own, folder=folder, name=name)
    # The invariant that everything behind these lines relies on: nothing else opens a file that a
    # model names, and neither do the libraries that are given parts of it.
    require_inside(own, name=name)
    require_stored_truths(own, name=name)
    if not own.graph.node and not own.graph.output:
        raise ModelError(f"{name}: not an ONNX model, or an empty one; export it again")
    _check_sizes(own, name)
    require_few_nodes(own, name=name)
    optional = own.ir_version >= onnx.IR_VERSION_2019_1_22
    listed = [value.name for value in own.graph.input] if optional else []
    large = _taken_out(own, constants)
    samples = next((entry.value for entry in own.metadata_props if entry.key == SAMPLES), "")
    given = {tensor.name for tensor in own.graph.initializer} | set(large)
    given.update(sparse.values.name for sparse in own.graph.sparse_initializer)
    inputs = [value for value in own.graph.input if value.name not in given]
    _name_free_sizes(inputs)
    _bind_sizes(inputs, dims)
    state_opsets(own, name=name)
    _require_valid(own, name)
    own = inlined(with_standard_operators(own, name=name))
    graph = with_default_inputs(_graph(own, name, large), listed)
    check(graph)
    choices = [
        with_separability(with_batch_sizes(with_dynamic_batch(with_explicit_padding(sized))))
        for sized in map(with_batch_sizes, batch_choices(graph))
    ]
    best = max(choices, key=lambda choice: (linear_weights(choice), choice.separable))
    return replace(best, samples=samples)


def _taken_out(own: onnx.ModelProto, constants: Mapping[int, np.ndarray]) -> dict[str, np.ndarray]:
    """Constants that were read already, by name; in the message, inputs take their place.

    ONNX's tools would miss their data, and would copy them if they had them.
    """
    listed = {value.name for value in own.graph.input}
    taken: dict[str, np.ndarray] = {}
    for i in sorted(constants, reverse=True):
        tensor = own.graph.initializer[i]
        taken[tensor.name] = constants[i]
        if tensor.name not in listed:
            own.graph.input.append(
                helper.make_tensor_value_info(tensor.name, tensor.data_type, tuple(tensor.dims))
            )
        del own.graph.initializer[i]
    return taken


def _require_valid(model: onnx.ModelProto, name: str) -> None:
    """Go on with a model that ONNX's checker or ONNX Runtime takes for one.

    ONNX Runtime runs models that are not as ONNX demands: nodes in any order, a graph without a
    name, operators of its own.

    Raises   ModelError
    """
    # Shapes of inner values and outputs are claims; they are inferred anew, so none is needed.
    del model.graph.value_info[:]
    for value in model.graph.output:
        if value.type.HasField("tensor_type") or not value.type.WhichOneof("value"):
            value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or FLOAT
            value.type.tensor_type.shape.SetInParent()
    # Before the fourth version of the format, constants had to be inputs too.
    if 0 < model.ir_version < onnx.IR_VERSION_2019_1_22:
        model.ir_version = onnx.IR_VERSION_2019_1_22
    try:
        checker.check_model(model)
    except (checker.ValidationError, ValueError, RuntimeError) as error:
        if not _runs(model):
            raise ModelError(f"{name}: not a valid ONNX model: {one_line(error)}") from None


def _runs(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime takes a model, which reads no file."""
    if any(isinstance(m, onnx.NodeProto) and m.op_type in READS_A_FILE for m in messages(model)):
        return False
    own = onnx.ModelProto()
    own.CopyFrom(model)
    # ONNX Runtime's parser may know fields that this one does not, and reads settings of its own
    # from the metadata.
    own.DiscardUnknownFields()
    own.ClearField("metadata_props")
    for value in own.graph.output:
        value.ClearField("type")
    try:
        runtime_session(own.SerializeToString())
    except ORT_ERRORS:
        return False
    return True


def _check_sizes(model: onnx.ModelProto, name: str) -> None:
    """Refuse constants of one name and of absurd shapes, before anything is allocated."""
    seen: set[str] = set()
    for tensor in model.graph.initializer:
        if tensor.name in seen:
            raise ModelError(f"{name}: constant {tensor.name!r} is there twice; export it again")
        seen.add(tensor.name)
        elements = 1
        for size in tensor.dims:
            elements *= size
        if min(tensor.dims, default=0) < 0 or elements > MAX_FILE_BYTES:
            raise ModelError(f"{name}: constant {tensor.name!r} has an absurd shape; export again")
    sparse = (one for one in messages(model) if isinstance(one, onnx.SparseTensorProto))
    total = sum(abs(math.prod(one.dims)) for one in sparse)
    if total > MAX_ALL_DENSE:
        raise UnsupportedError(
            f"{name}: its sparse constants have {total} elements; export the model with dense "
            "weights"
        )


def _graph(model: onnx.ModelProto, name: str, large: Mapping[str, np.ndarray]) -> Graph:
    constants = {**_constants(model.graph), **large}
    inputs = [value for value in model.graph.input if value.name not in constants]
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = versions.pop("")
    graph = Graph(
        name=name,
        nodes=sorted_nodes(tuple(_named(model.graph.node))),
        inputs=tuple(value.name for value in inputs),
        outputs=tuple(value.name for value in model.graph.output),
        constants=constants,
        types={},
        opset=opset,
        opaque={value.name: opaque_type(value.type) for value in inputs},
        domains=versions,
    )
    return with_types(graph)


def _array(tensor: onnx.TensorProto) -> np.ndarray:
    try:
        array = numpy_helper.to_array(tensor)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ModelError(f"constant {tensor.name!r}: damaged ({one_line(error)})") from None
    array = np.array(array)
    array.setflags(write=False)
    return array


def _name_free_sizes(inputs: Sequence[onnx.ValueInfoProto]) -> None:
    """Give every free size a name, and refuse inputs that nothing here can take."""
    for value in inputs:
        proto = value.type.tensor_type
        kind = value.type.WhichOneof("value")
        if kind is None or (kind == "tensor_type" and not proto.elem_type):
            raise ModelError(f"input {value.name!r} has no element type; export the model again")
        if kind == "sparse_tensor_type":
            raise UnsupportedError(
                f"input {value.name!r} is sparse; export the model with a dense input"
            )
        if kind != "tensor_type":
            continue
        for axis, dim in enumerate(proto.shape.dim):
            # Some exporters write -1 for a size they do not know.
            if dim.dim_value < 0 or not (dim.HasField("dim_value") or dim.dim_param):
                dim.dim_param = f"{value.name}[{axis}]"


def _bind_sizes(inputs: Sequence[onnx.ValueInfoProto], dims: Mapping[str, int]) -> None:
    """Write numbers in the place of free sizes.

    Raises   InputError for a size that is not free
    """
    free = [dim for value in inputs for dim in value.type.tensor_type.shape.dim if dim.dim_param]
    require_free(dims, dict.fromkeys(dim.dim_param for dim in free))
    for dim in free:
        if dim.dim_param in dims:
            dim.dim_value = dims[dim.dim_param]


def _named(protos: Iterable[onnx.NodeProto]) -> Iterator[Node]:
    """Nodes with unique, printable names, the same ones every time."""
    protos = list(protos)
    given = [printable(proto.name) for proto in protos]
    taken = set(given)
    seen: set[str] = set()
    for i, (name, proto) in enumerate(zip(given, protos, strict=True)):
        if not name or name in seen:
            base = name or f"{proto.op_type}_{i}"
            name, count = base, 1
            while name in taken or name in seen:
                name, count = f"{base}_{count}", count + 1
        seen.add(name)
        yield _node(proto, name)


def _node(proto: onnx.NodeProto, name: str) -> Node:
    # No pass reads these lists of ai.onnx.ml, and tree ensembles have millions of entries.
    read = _list_or_other if proto.domain == ML else _attribute
    return Node(
        name=name,
        op=proto.op_type,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes={
            **STATED.get(proto.op_type, {}),
            **dict(read(one, name) for one in proto.attribute),
        },
        domain=standard_domain(proto.domain),
    )


def _list_or_other(proto: onnx.AttributeProto, node: str) -> tuple[str, object]:
    """Name and value of an attribute; a long list as such."""
    if max(len(proto.ints), len(proto.floats), len(proto.strings)) < MANY:
        return _attribute(proto, node)
    match proto.type:
        case onnx.AttributeProto.FLOATS:
            return proto.name, LongList(np.array(proto.floats, np.float32))
        case onnx.AttributeProto.INTS:
            return proto.name, LongList(np.array(proto.ints, np.int64))
        case onnx.AttributeProto.STRINGS:
            positions: dict[bytes, int] = {}
            values = [positions.setdefault(one, len(positions)) for one in proto.strings]
            return proto.name, LongList(np.array(values, np.int64), _texts(positions))
    return _attribute(proto, node)


def _attribute(proto: onnx.AttributeProto, node: str) -> tuple[str, object]:
    """Name and value of an attribute; a sparse constant becomes a dense one."""
    match proto.type:
        case onnx.AttributeProto.FLOAT:
            return proto.name, proto.f
        case onnx.AttributeProto.INT:
            return proto.name, proto.i
        case onnx.AttributeProto.STRING:
            return proto.name, _texts([proto.s])[0]
        case onnx.AttributeProto.TENSOR:
            return proto.name, _array(proto.t)
        case onnx.AttributeProto.GRAPH:
            return proto.name, _subgraph(proto.g)
        case onnx.AttributeProto.TYPE_PROTO:
            return proto.name, opaque_type(proto.tp)
        case onnx.AttributeProto.FLOATS:
            return proto.name, tuple(proto.floats)
        case onnx.AttributeProto.INTS:
            return proto.name, tuple(proto.ints)
        case onnx.AttributeProto.STRINGS:
            return proto.name, _texts(proto.strings)
        case onnx.AttributeProto.TENSORS:
            return proto.name, tuple(map(_array, proto.tensors))
        case onnx.AttributeProto.GRAPHS:
            return proto.name, tuple(map(_subgraph, proto.graphs))
        case onnx.AttributeProto.TYPE_PROTOS:
            return proto.name, tuple(map(opaque_type, proto.type_protos))
        case onnx.AttributeProto.SPARSE_TENSOR if proto.name == "sparse_value":
            return "value", _dense(proto.sparse_tensor)
    raise UnsupportedError(
        f"node {node!r}: attribute {proto.name!r} is of a kind that is not read; export the model "
        "with standard operators"
    )


def _texts(values: Iterable[bytes]) -> tuple[str, ...] | tuple[bytes, ...]:
    """Texts, or bytes where one of them is no text."""
    found = tuple(values)
    try:
        return tuple(one.decode() for one in found)
    except UnicodeDecodeError:
        return found


def _subgraph(proto: onnx.GraphProto) -> Subgraph:
    return Subgraph(
        name=proto.name,
        nodes=tuple(_node(node, printable(node.name)) for node in proto.node),
        inputs=tuple((value.name, opaque_type(value.type)) for value in proto.input),
        outputs=tuple((value.name, opaque_type(value.type)) for value in proto.output),
        constants=_constants(proto),
    )


def _constants(graph: onnx.GraphProto) -> dict[str, np.ndarray]:
    """The constants of a graph, sparse ones with their zeros."""
    dense = {tensor.name: _array(tensor) for tensor in graph.initializer}
    return dense | {sparse.values.name: _dense(sparse) for sparse in graph.sparse_initializer}


def _dense(sparse: onnx.SparseTensorProto) -> np.ndarray:
    """A sparse tensor with its zeros."""
    values, indices, shape = _array(sparse.values), _array(sparse.indices), tuple(sparse.dims)
    if math.prod(shape) > MAX_DENSE:
        raise UnsupportedError(
            f"constant {sparse.values.name!r} is sparse and has {math.prod(shape)} elements; "
            "export the model with dense weights"
        )
    array = np.zeros(shape, values.dtype)
    at = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
    if at.min(initial=0) < 0 or at.max(initial=-1) >= array.size or len(at) != len(values):
        raise ModelError(
            f"constant {sparse.values.name!r} is sparse, with values outside of it; export again"
        )
    array.reshape(-1)[at] = values
    array.setflags(write=False)
    return array
