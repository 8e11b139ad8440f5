"""Compiled modules of hidden parts, and an engine in the place of the real ones."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

import nets
from cloister.bundle.compiled_module import CompiledModule
from cloister.bundle.manifest import Build, Manifest, ModuleTensor
from cloister.codegen.compile_module import one_sample
from cloister.graph.graph import Graph
from cloister.graph.hidden import hide
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ort_session import runtime_session
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.protection import hiding
from graph.test_hidden import graph_of


def onnx_module(hidden: Graph, *, salt: bytes = bytes(32)) -> CompiledModule:
    """A hidden part as a module for ONNX Runtime."""
    data = model_bytes(one_sample(hidden))
    sides = [
        tuple(ModuleTensor(v, hidden.types[v].dtype.name, hidden.types[v].shape[1:]) for v in side)
        for side in (hidden.inputs, hidden.outputs)
    ]
    manifest = Manifest(
        name="module", inputs=sides[0], outputs=sides[1], arena_bytes=0, weights_bytes=0,
        weights_sha256=hashlib.sha256(b"").hexdigest(),
        source_sha256=hashlib.sha256(b"").hexdigest(),
        builds={"onnx": Build("onnx", (), hashlib.sha256(data).hexdigest(), len(data))},
        contraction="off", operators=(), salt=salt.hex(),
    )  # fmt: skip
    return CompiledModule(manifest, {"onnx": data}, b"")


class InProcessEngine:
    """Computes each sample alone, as engines do."""

    def __init__(self, module: CompiledModule, *, optimised: bool = False) -> None:
        self._session = runtime_session(module.builds["onnx"], optimised=optimised)
        self.calls: list[int] = []
        self.closed = False

    def run(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        self.calls.append(len(inputs[0]))
        names = [one.name for one in self._session.get_inputs()]
        rows = [
            self._session.run(None, {n: x[i : i + 1] for n, x in zip(names, inputs, strict=True)})
            for i in range(len(inputs[0]))
        ]
        return tuple(np.concatenate(parts) for parts in zip(*rows, strict=True))

    def close(self) -> None:
        self.closed = True


@dataclass
class Started:
    """In the place of `start_engine`: keeps what it has started."""

    engines: list[InProcessEngine] = field(default_factory=list)

    def __call__(self, module: CompiledModule, kind: str, **_: object) -> InProcessEngine:
        self.engines.append(InProcessEngine(module))
        return self.engines[-1]

    @property
    def calls(self) -> list[int]:
        """The rows of every call of every engine."""
        return [rows for engine in self.engines for rows in engine.calls]


@dataclass(frozen=True)
class Planned:
    """A plan with a hidden end, its module, and what a session takes."""

    plan: Plan
    module: CompiledModule
    hidden: Graph
    whole: Graph

    @property
    def modules(self) -> dict[str, CompiledModule]:
        return {self.plan.modules[0].node: self.module}

    def function(
        self, inputs: Sequence[np.ndarray], *, optimised: bool = False
    ) -> tuple[np.ndarray, ...]:
        """What the module computes for a batch."""
        return InProcessEngine(self.module, optimised=optimised).run(inputs)


def planned_end(
    model: onnx.ModelProto,
    outer: str = "slalom",
    *,
    last: int = 1,
    queries: int | None = None,
) -> Planned:
    """The plan of a model whose last layers are hidden."""
    whole = graph_of(model)
    split = hide(whole, last=last)
    module = onnx_module(split.hidden)
    named = split.named(module.manifest.digest, queries=queries)
    plan = policies.make(hiding(outer), named, calibration=nets.samples(model, 6))
    return Planned(plan, module, split.hidden, whole)
