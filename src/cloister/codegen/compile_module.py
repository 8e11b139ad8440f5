"""The compiler: a hidden graph of one sample becomes a module that engines run."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import BUILDS, Build, Manifest, ModuleTensor
from cloister.codegen import (
    lower_elementwise,
    lower_largest,
    lower_linear,
    lower_pool,
    lower_reduce,
    lower_tensor,
)
from cloister.codegen.buffer_places import BufferPlaces, place
from cloister.codegen.c_source import ModuleParts, c_source
from cloister.codegen.counted_pads import with_counted_pads
from cloister.codegen.lowering import Lowering
from cloister.codegen.toolchain import LEVELS, compile_c, described, find_compiler
from cloister.codegen.views import C_TYPES, Buffer, dense
from cloister.errors import InputError, UnsupportedError
from cloister.graph.graph import Graph, Node, TensorType
from cloister.graph.inference import with_types
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ops.linear_nodes import STANDARD_DOMAINS
from cloister.graph.passes.normalise import prepare

OPERATORS: dict[str, Callable[[Lowering, Node], None]] = {
    **lower_linear.TABLE,
    **lower_pool.TABLE,
    **lower_elementwise.TABLE,
    **lower_tensor.TABLE,
    **lower_reduce.TABLE,
    **lower_largest.TABLE,
}
"""What can be compiled."""
INPUT_TYPES, OUTPUT_TYPES = ("float32", "int32", "int64"), ("float32", "int32", "int64")
BUILD_GROUPS: dict[str, tuple[str, ...]] = {"native": tuple(LEVELS)} | {n: (n,) for n in BUILDS}
CONTRACTIONS = ("fma", "off")


def compile_module(
    hidden: Graph,
    *,
    salt: bytes,
    builds: Sequence[str] = ("native",),
    contraction: str = "fma",
    compiler: str = "zig",
) -> CompiledModule:
    """Compile a graph for one sample: all layers, the weights, and the binaries asked for.

    salt          32 random bytes, which keep the module's digest from confirming a guess at it
    builds        names of builds, or native for three instruction sets; none: the C file and the
                  weights alone
    contraction   of native builds: fma rounds a product and its sum once, off rounds twice, which
                  makes native and wasm builds give the same bits
    compiler      zig or gcc

    Raises   UnsupportedError naming every node that cannot be compiled, InputError for an option
             that does not exist and for a missing compiler
    """
    _check_options(builds, contraction, salt)
    graph = with_counted_pads(prepare(one_sample(hidden)))
    parts, weights = _lowered(graph)
    text = c_source(parts)
    binaries: dict[str, bytes] = {}
    entries: dict[str, Build] = {}
    for build in dict.fromkeys(name for group in builds for name in BUILD_GROUPS[group]):
        if build == "onnx":
            binaries[build] = model_bytes(one_sample(hidden))
            sha256 = hashlib.sha256(binaries[build]).hexdigest()
            entries[build] = Build("onnx", (), sha256, len(binaries[build]))
            continue
        used = find_compiler(compiler)
        binaries[build] = compile_c(text, build, compiler=used, contraction=contraction)
        entries[build] = described(binaries[build], build, compiler=used, contraction=contraction)
    manifest = Manifest(
        name="module",
        inputs=tuple(parts.inputs.values()),
        outputs=tuple(parts.outputs.values()),
        arena_bytes=parts.places.arena_bytes,
        weights_bytes=len(weights),
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        source_sha256=hashlib.sha256(text.encode()).hexdigest(),
        builds=entries,
        contraction=contraction,
        operators=tuple(parts.operators),
        salt=salt.hex(),
    )
    return CompiledModule(manifest, binaries, weights, text)


def one_sample(graph: Graph) -> Graph:
    """The graph for a batch of one.

    Raises   UnsupportedError for an input whose other sizes are not fixed
    """
    if any(name in graph.opaque for name in graph.inputs):
        name = next(name for name in graph.inputs if name in graph.opaque)
        raise UnsupportedError(
            f"input {name!r}: its sizes are not fixed; export the model with fixed sizes"
        )
    types = dict(graph.types)
    for name in graph.inputs:
        shape = tuple(1 if size is None else size for size in types[name].shape)
        types[name] = TensorType(types[name].dtype, shape)
    if all(types[name] == graph.types[name] for name in graph.inputs):
        return graph
    return with_types(replace(graph, types=types))


def _check_options(builds: Sequence[str], contraction: str, salt: bytes) -> None:
    unknown = [name for name in builds if name not in BUILD_GROUPS]
    if unknown:
        raise InputError(f"build {unknown[0]!r}: choose {', '.join(BUILD_GROUPS)}")
    if contraction not in CONTRACTIONS:
        raise InputError(f"contraction {contraction!r}: choose {' or '.join(CONTRACTIONS)}")
    if len(salt) != 32:
        raise InputError(f"salt: has {len(salt)} bytes; 32 are needed")


def _lowered(graph: Graph) -> tuple[ModuleParts, bytes]:
    """The layers of a graph, every buffer's place, and the packed weights."""
    _refuse_unsupported(graph)
    low = Lowering(graph)
    inputs: dict[Buffer, ModuleTensor] = {}
    for name in graph.inputs:
        view = dense(low.dtype(name), low.shape(name))
        low.define(name, view)
        inputs[view.buffer] = _tensor(low, name, INPUT_TYPES)
    _lower_nodes(low)
    outputs: dict[Buffer, ModuleTensor] = {}
    for name in graph.outputs:
        buffer = _output_buffer(low, name, taken={*inputs, *outputs, *low.weights})
        outputs[buffer] = _tensor(low, name, OUTPUT_TYPES)
    places = place(low.layers, low.weights, (*inputs, *outputs))
    operators = tuple(dict.fromkeys(node.op for node in graph.nodes))
    parts = ModuleParts(operators, low.layers, inputs, outputs, places)
    return parts, _packed(places, low.weights)


def _refuse_unsupported(graph: Graph) -> None:
    """Raise for operators outside the table, all at once, then for values without fixed sizes."""
    unknown = [
        f"{node.name!r} ({node.op})"
        for node in graph.nodes
        if node.domain not in STANDARD_DOMAINS or node.op not in OPERATORS
    ]
    if unknown:
        raise UnsupportedError(
            f"cannot be compiled: {', '.join(unknown)}; leave them outside of the hidden part, or "
            "replace them"
        )
    open_shapes = [node for node in graph.nodes if not all(map(graph.types.get, _made(node)))]
    if open_shapes:
        named = ", ".join(f"{node.name!r} ({node.op})" for node in open_shapes)
        raise UnsupportedError(
            f"shapes depend on data: of what {named} make; only fixed shapes are compiled"
        )
    for node in graph.nodes:
        for known in (graph.types[value] for value in _made(node)):
            if 0 in known.shape or known.dtype.name not in C_TYPES:
                raise UnsupportedError(
                    f"node {node.name!r} ({node.op}): its output is {known.dtype.name} of shape "
                    f"{known.shape}; only float32 and integers with elements are compiled"
                )


def _lower_nodes(low: Lowering) -> None:
    """Add the layers of all nodes.

    Raises   UnsupportedError with the reasons of all nodes that have one
    """
    problems = []
    for node in low.graph.nodes:
        try:
            if not low.is_absorbed(node):
                OPERATORS[node.op](low, node)
        except UnsupportedError as error:
            problems.append(str(error))
        if problems:
            # What cannot be made is there for later nodes, so that they are looked at too.
            for value in (one for one in _made(node) if not low.has(one)):
                low.new(value)
    if problems:
        raise UnsupportedError("; ".join(problems))


def _made(node: Node) -> list[str]:
    return [value for value in node.outputs if value]


def _tensor(low: Lowering, name: str, types: Sequence[str]) -> ModuleTensor:
    dtype = low.dtype(name)
    if dtype.name not in types:
        raise UnsupportedError(
            f"value {name!r}: is {dtype.name} at the border of the module, where only "
            f"{', '.join(types)} can be; convert it"
        )
    shape = low.shape(name)
    if shape[:1] != (1,) or 0 in shape:
        raise UnsupportedError(
            f"value {name!r}: has shape {shape} at the border of the module, whose first axis has "
            "to be the batch, and the others not empty"
        )
    return ModuleTensor(name, dtype.name, shape[1:])


def _output_buffer(low: Lowering, name: str, taken: set[Buffer]) -> Buffer:
    """The buffer of an output: its own, unless another value lies there too or in another order."""
    view = low.view(name)
    whole = view.start == 0 and view.elements == view.buffer.elements
    if whole and view.is_dense() and view.buffer not in taken:
        return view.buffer
    made = dense(view.buffer.dtype, view.shape)
    low.copy(view, made, f"output {name}")
    return made.buffer


def _packed(places: BufferPlaces, weights: Mapping[Buffer, np.ndarray]) -> bytes:
    data = bytearray(places.weights_bytes)
    for buffer, offset in places.weights.items():
        data[offset : offset + buffer.nbytes] = weights[buffer].tobytes()
    return bytes(data)
