"""The real engines, and the same hidden parts in this process."""

import ctypes
import time
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8

from cloister.base.rng import SystemRandom
from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import ALIGNMENT, offsets
from cloister.codegen.compile_module import compile_module
from cloister.errors import EngineError
from cloister.graph.graph import Graph
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ort_session import runtime_session
from cloister.splits.engine_bench import EngineBench, PlainRun
from cloister.trusted.engines.module_engine import EngineKind, start_engine
from cloister.trusted.engines.native_image import NativeImage
from cloister.trusted.engines.processor import best_build

BUILDS: dict[EngineKind, tuple[str, ...]] = {
    "native": ("native",),
    "wasm": ("native", "wasm"),
    "onnxruntime": ("onnx",),
}
"""What is compiled for an engine: WebAssembly is compared with machine code."""
SALT_BYTES = 32
ENTRY = "cloister_module_run"
ENTRY_TYPE = ctypes.CFUNCTYPE(ctypes.c_int32, *[ctypes.c_void_p, ctypes.c_uint64] * 4)


def engine_bench(kind: EngineKind) -> EngineBench:
    """The bench of an engine; the plain run of `wasm` is machine code, of ONNX Runtime its own."""
    return EngineBench(
        kind,
        compile=lambda hidden: compile_module(
            hidden, builds=BUILDS[kind], salt=SystemRandom().random_bytes(SALT_BYTES)
        ),
        start=lambda module: start_engine(module, kind),
        plain=_plain_runtime if kind == "onnxruntime" else _PlainModule,
    )


def _plain_runtime(hidden: Graph, _: CompiledModule) -> PlainRun:
    session = runtime_session(model_bytes(hidden), threads=1, optimised=True)

    def run(inputs: Sequence[np.ndarray]) -> float:
        begun = time.perf_counter()
        session.run(None, dict(zip(hidden.inputs, inputs, strict=True)))
        return 1e3 * (time.perf_counter() - begun)

    return run


class _PlainModule:
    """A module's machine code in this process: without sandbox, guards or a second copy."""

    def __init__(self, _: Graph, compiled: CompiledModule) -> None:
        self._manifest = manifest = compiled.manifest
        code = compiled.builds[best_build(manifest.builds, name=manifest.name)]
        self._image = NativeImage(memoryview(code), (ENTRY,))
        self._run = ENTRY_TYPE(self._image.functions[ENTRY])
        sizes = (
            manifest.weights_bytes, manifest.input_bytes, manifest.output_bytes,
            manifest.arena_bytes,
        )  # fmt: skip
        self._memory = [_aligned(nbytes) for nbytes in sizes]
        self._memory[0][:] = np.frombuffer(compiled.weights, np.uint8)

    def __call__(self, samples: Sequence[np.ndarray]) -> float:
        inputs, tensors = self._memory[1], self._manifest.inputs
        words = [word for one in self._memory for word in (one.ctypes.data, one.nbytes)]
        taken = 0.0
        for row in range(len(samples[0])):
            for at, one, array in zip(offsets(tensors), tensors, samples, strict=True):
                inputs[at : at + one.nbytes] = np.frombuffer(array[row].tobytes(), np.uint8)
            begun = time.perf_counter()
            status = self._run(*words)
            taken += time.perf_counter() - begun
            if status:
                raise EngineError(f"module {self._manifest.name!r}: ended with status {status}")
        return 1e3 * taken


def _aligned(nbytes: int) -> UInt8[np.ndarray, " n"]:
    """Memory as a module wants it."""
    raw = np.zeros(nbytes + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    return raw[first : first + nbytes]
