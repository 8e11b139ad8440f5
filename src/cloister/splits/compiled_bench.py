"""The real engines, and the same hidden parts in this process."""

import ctypes
import time
from collections.abc import Sequence

import numpy as np

from cloister.base.rng import SystemRandom
from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import Manifest, offsets
from cloister.codegen.compile_module import compile_module
from cloister.errors import EngineError
from cloister.graph.graph import Graph
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ort_session import runtime_session
from cloister.splits.engine_bench import EngineBench, PlainRun
from cloister.trusted.engines.engine_messages import EngineSettings
from cloister.trusted.engines.module_engine import EngineKind, start_engine
from cloister.trusted.engines.native_module import NativeModule
from cloister.trusted.engines.processor import best_build

BUILDS: dict[EngineKind, tuple[str, ...]] = {
    "native": ("native",),
    "wasm": ("native", "wasm"),
    "onnxruntime": ("onnx",),
}
"""What is compiled for an engine: WebAssembly is compared with machine code."""
SALT_BYTES = 32


def engine_bench(kind: EngineKind) -> EngineBench:
    """The bench of an engine; the plain run of `wasm` is machine code, of ONNX Runtime its own."""
    return EngineBench(
        kind,
        compile=lambda hidden: compile_module(
            hidden, builds=BUILDS[kind], salt=SystemRandom().random_bytes(SALT_BYTES)
        ),
        start=lambda module: start_engine(module, kind),
        plain=_plain_runtime if kind == "onnxruntime" else _plain_native,
    )


def _plain_runtime(hidden: Graph, _: CompiledModule) -> PlainRun:
    session = runtime_session(model_bytes(hidden), threads=1, optimised=True)

    def run(inputs: Sequence[np.ndarray]) -> float:
        begun = time.perf_counter()
        session.run(None, dict(zip(hidden.inputs, inputs, strict=True)))
        return 1e3 * (time.perf_counter() - begun)

    return run


def _plain_native(_: Graph, compiled: CompiledModule) -> PlainRun:
    manifest = compiled.manifest
    code = compiled.builds[best_build(manifest.builds, name=manifest.name)]
    module = NativeModule(_plain_settings(manifest, len(code)), memoryview(code))
    module.weights[:] = compiled.weights
    module.complete()
    memory = np.ctypeslib.as_array(
        (ctypes.c_uint8 * manifest.input_bytes).from_address(module.inputs)
    )

    def run(inputs: Sequence[np.ndarray]) -> float:
        taken = 0.0
        for row in range(len(inputs[0])):
            for at, one, array in zip(
                offsets(manifest.inputs), manifest.inputs, inputs, strict=True
            ):
                memory[at : at + one.nbytes] = np.frombuffer(array[row].tobytes(), np.uint8)
            begun = time.perf_counter()
            status = module.run()
            taken += time.perf_counter() - begun
            if status:
                raise EngineError(f"module {manifest.name!r}: ended with status {status}")
        return 1e3 * taken

    return run


def _plain_settings(manifest: Manifest, code_bytes: int) -> EngineSettings:
    return EngineSettings(
        kind="native",
        sizes=(
            manifest.abi, manifest.weights_bytes, manifest.input_bytes, manifest.output_bytes,
            manifest.arena_bytes,
        ),
        code_bytes=code_bytes,
        rows=1,
        memory_bytes=0,
        padding_bytes=0,
        grid_ns=1,
        threads=1,
        fuel=False,
        inputs=tuple((one.dtype, one.shape) for one in manifest.inputs),
        outputs=tuple((one.dtype, one.shape) for one in manifest.outputs),
    )  # fmt: skip
