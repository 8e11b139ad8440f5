"""Running compiled modules in tests: native builds by ctypes, wasm builds by wasmtime."""

import ctypes
import functools
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import wasmtime

from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import ALIGNMENT, offsets, span
from cloister.codegen.compile_module import compile_module
from cloister.graph.graph import Graph, Subgraph

SALT = bytes(32)
PAGE = 65536


def compiled(graph, **options):
    return compile_module(graph, salt=SALT, **options)


def packed_inputs(module, arrays):
    buffer = bytearray(span(module.manifest.inputs))
    for tensor, at, array in zip(
        module.manifest.inputs, offsets(module.manifest.inputs), arrays, strict=True
    ):
        data = np.ascontiguousarray(array, tensor.dtype)
        assert data.shape == (1, *tensor.shape), (tensor, data.shape)
        buffer[at : at + data.nbytes] = data.tobytes()
    return bytes(buffer)


def unpacked_outputs(module, buffer):
    tensors = module.manifest.outputs
    return tuple(
        np.frombuffer(buffer, tensor.dtype, int(np.prod(tensor.shape)), at).reshape(
            1, *tensor.shape
        )
        for tensor, at in zip(tensors, offsets(tensors), strict=True)
    )


def aligned(size):
    """Zeroed bytes at a multiple of 64; the array keeps the memory alive."""
    raw = np.full(size + ALIGNMENT, 0xA5, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + size]


class Native:
    """One native build in this process."""

    def __init__(self, module: CompiledModule, build: str = "native-x86-64-v3"):
        self.module = module
        with tempfile.NamedTemporaryFile(suffix=".so") as file:
            file.write(module.builds[build])
            file.flush()
            self.library = ctypes.CDLL(file.name)
        self.library.cloister_module_size.restype = ctypes.c_uint64
        self.weights = aligned(len(module.weights))
        self.weights[:] = np.frombuffer(module.weights, np.uint8)

    def size(self, which):
        return self.library.cloister_module_size(ctypes.c_int32(which))

    def call(self, inputs, outputs, *, lengths=None):
        """The status of one call; `lengths` lie about the four buffers."""
        arena = aligned(self.module.manifest.arena_bytes)
        buffers = (self.weights, inputs, outputs, arena)
        lengths = lengths or tuple(len(one) for one in buffers)
        arguments = []
        for one, length in zip(buffers, lengths, strict=True):
            arguments += [ctypes.c_void_p(one.ctypes.data), ctypes.c_uint64(length)]
        return self.library.cloister_module_run(*arguments)

    def run(self, *arrays):
        inputs = aligned(self.module.manifest.input_bytes)
        inputs[:] = np.frombuffer(packed_inputs(self.module, arrays), np.uint8)
        before = inputs.tobytes()
        outputs = aligned(self.module.manifest.output_bytes)
        assert self.call(inputs, outputs) == 0
        assert inputs.tobytes() == before, "the module changed its caller's inputs"
        return unpacked_outputs(self.module, outputs.tobytes())


@functools.cache
def wasm_engine():
    config = wasmtime.Config()
    config.consume_fuel = True
    return wasmtime.Engine(config)


@dataclass
class WasmRun:
    outputs: tuple
    fuel: int


class Wasm:
    """The wasm build in wasmtime, which counts the fuel of each call."""

    FUEL = 10**12

    def __init__(self, module: CompiledModule):
        self.module = module
        self.code = wasmtime.Module(wasm_engine(), module.builds["wasm"])
        assert list(self.code.imports) == []

    def run(self, *arrays, weights=None):
        store = wasmtime.Store(wasm_engine())
        store.set_fuel(self.FUEL)
        instance = wasmtime.Instance(store, self.code, [])
        exports = instance.exports(store)
        manifest = self.module.manifest
        memory, base = exports["memory"], exports["__heap_base"].value(store)
        sizes = (
            manifest.weights_bytes,
            manifest.input_bytes,
            manifest.output_bytes,
            manifest.arena_bytes,
        )
        at, places = -(-base // ALIGNMENT) * ALIGNMENT, []
        for size in sizes:
            places.append(at)
            at += -(-size // ALIGNMENT) * ALIGNMENT
        missing = at - memory.data_len(store)
        if missing > 0:
            memory.grow(store, -(-missing // PAGE))
        memory.write(store, self.module.weights if weights is None else weights, places[0])
        memory.write(store, packed_inputs(self.module, arrays), places[1])
        flat = [value for pair in zip(places, sizes, strict=True) for value in pair]
        before = store.get_fuel()
        assert exports["cloister_module_run"](store, *flat) == 0
        fuel = before - store.get_fuel()
        data = bytes(memory.read(store, places[2], places[2] + sizes[2]))
        return WasmRun(unpacked_outputs(self.module, data), fuel)


def saved(module, folder: Path):
    module.save(folder)
    return CompiledModule.load(folder)


def joined(parts):
    """One graph of several, whose values and nodes begin with their numbers."""

    def renamed(at, name):
        return f"{at}_{name}" if name else ""

    nodes, constants, types, opaque = [], {}, {}, {}
    for at, graph in enumerate(parts):
        for node in graph.nodes:
            assert not any(isinstance(value, Subgraph) for value in node.attributes.values())
            nodes.append(
                replace(
                    node,
                    name=renamed(at, node.name),
                    inputs=tuple(renamed(at, name) for name in node.inputs),
                    outputs=tuple(renamed(at, name) for name in node.outputs),
                )
            )
        for target, source in (
            (constants, graph.constants),
            (types, graph.types),
            (opaque, graph.opaque),
        ):
            target.update({renamed(at, name): value for name, value in source.items()})
    return Graph(
        name="joined",
        nodes=tuple(nodes),
        inputs=tuple(renamed(at, name) for at, g in enumerate(parts) for name in g.inputs),
        outputs=tuple(renamed(at, name) for at, g in enumerate(parts) for name in g.outputs),
        constants=constants,
        types=types,
        opset=parts[0].opset,
        opaque=opaque,
    )
