"""A compiled module tried in its engine: how far from float64, and how long a call takes."""

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloister.base.rng import Csprng
from cloister.bundle.compiled_module import CompiledModule
from cloister.codegen.compile_module import one_sample
from cloister.codegen.float64_check import Float64Check, check_module
from cloister.graph.graph import Graph
from cloister.trusted.engines.module_engine import EngineKind, start_engine

SAMPLES, CALLS = 2, 9
LARGEST = 2.0
"""Random inputs are between its negative and itself."""
NEUTRAL = ("Cast", "Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze")
"""What may lie between an input and the table that it chooses rows of."""


@dataclass(frozen=True)
class ModuleMeasure:
    """What was measured with random inputs.

    call_ms   median time of a call inside the engine
    """

    engine: EngineKind
    check: Float64Check
    call_ms: float


def measure_module(
    module: CompiledModule, hidden: Graph, *, kind: EngineKind, rng: Csprng
) -> ModuleMeasure:
    """Run a module on random inputs and compare it with its graph.

    Raises   VerificationError when it is too far from float64, EngineError when it cannot be run
    """
    graph = one_sample(hidden)
    samples = [random_sample(graph, rng) for _ in range(SAMPLES)]
    with start_engine(module, kind) as engine:
        check = check_module(graph, engine.run, samples=samples, rng=rng)
        times = []
        for _ in range(CALLS):
            engine.run([samples[0][name] for name in graph.inputs])
            times.append(engine.measured.compute_ms)
    return ModuleMeasure(kind, check, statistics.median(times))


def random_sample(graph: Graph, rng: Csprng) -> Mapping[str, np.ndarray]:
    """One sample: numbers that are uniform, and indices of rows that exist."""
    made = {}
    for name in graph.inputs:
        shape = tuple(size or 1 for size in graph.types[name].shape)
        count = math.prod(shape)
        drawn = np.frombuffer(rng.random_bytes(4 * count), np.uint32)
        rows = _table_rows(graph, name)
        values = (
            drawn % np.uint32(rows) * 1.0
            if rows is not None
            else drawn * (2 * LARGEST / 2**32) - LARGEST
        )
        made[name] = values.reshape(shape).astype(graph.types[name].dtype)
    return made


def _table_rows(graph: Graph, name: str) -> int | None:
    """How many rows the smallest table has of which an input chooses some; None: it chooses none.

    An input of integers that chooses none is taken for a choice of two.
    """
    chosen = {name}
    found: list[int] = []
    for node in graph.nodes:
        if node.op in NEUTRAL and node.inputs[0] in chosen:
            chosen.update(node.outputs)
        if node.op == "Gather" and node.inputs[1] in chosen and node.inputs[0] in graph.constants:
            axis = node.attributes.get("axis", 0)
            table = graph.constants[node.inputs[0]]
            found.append(int(table.shape[axis if isinstance(axis, int) else 0]))
    if found:
        return min(found)
    return 2 if graph.types[name].dtype.kind == "i" else None
