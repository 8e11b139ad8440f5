"""An engine of which every time is known: it computes the hidden part with ONNX Runtime."""

import hashlib
import os
from dataclasses import replace

from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import Build, Manifest, ModuleTensor
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ort_session import runtime_session
from cloister.splits.engine_bench import EngineBench
from cloister.trusted.engines.module_engine import EngineTimes

SETUP_MS, LOAD_MS, TRANSITION_MS, PLAIN_MS, SLOWER = 100.0, 20.0, 0.5, 2.0, 3.0
WEIGHTS_BYTES, ARENA_BYTES = 640, 128


class FakeEngine:
    """Computes, and says that it took SLOWER times as long as the plain run."""

    pid = os.getpid()

    def __init__(self, bench, module):
        self._session = runtime_session(module.builds["onnx"])
        self._names = [one.name for one in module.manifest.inputs]
        self.measured = EngineTimes(SETUP_MS, LOAD_MS)
        self.closed = False
        self.outputs = []
        bench.started.append(self)

    def run(self, inputs):
        self.measured = replace(
            self.measured, transition_ms=TRANSITION_MS, compute_ms=SLOWER * PLAIN_MS
        )
        made = self._session.run(None, dict(zip(self._names, inputs, strict=True)))
        self.outputs.append(made)
        return tuple(made)

    def close(self):
        self.closed = True


class FakeEngines:
    """Remembers what was compiled and started."""

    def __init__(self):
        self.compiled, self.started = [], []

    def bench(self):
        return EngineBench("fake", self._compile, lambda m: FakeEngine(self, m), self._plain)

    def _compile(self, hidden):
        self.compiled.append(hidden)
        model = model_bytes(hidden)
        sha256 = hashlib.sha256(model).hexdigest()
        manifest = Manifest(
            name="module",
            inputs=tuple(_tensor(hidden, name) for name in hidden.inputs),
            outputs=tuple(_tensor(hidden, name) for name in hidden.outputs),
            arena_bytes=ARENA_BYTES,
            weights_bytes=WEIGHTS_BYTES,
            weights_sha256=hashlib.sha256(bytes(WEIGHTS_BYTES)).hexdigest(),
            source_sha256="",
            builds={"onnx": Build("onnx", (), sha256, len(model))},
            contraction="off",
            operators=(),
            salt="0" * 64,
        )
        return CompiledModule(manifest, {"onnx": model}, bytes(WEIGHTS_BYTES))

    def _plain(self, hidden, module):
        return lambda inputs: PLAIN_MS


def _tensor(hidden, name):
    known = hidden.types[name]
    return ModuleTensor(name, known.dtype.name, tuple(known.shape[1:]))
