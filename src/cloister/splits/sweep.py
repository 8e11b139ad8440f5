"""Measures every split of a model: nothing hidden, the last layer, ... all layers.

For each split, `starts` times: start the engine and compute one sample, which is the cold cost.
Then `repeats` times, by turns: the part outside, the engine, and the hidden part without an engine.
A first warm turn is not counted.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import cycle, islice

import numpy as np

from cloister.bundle.compiled_module import CompiledModule
from cloister.errors import InputError, UnsupportedError
from cloister.graph.batch import Feeds, cut
from cloister.graph.graph import Graph, Node
from cloister.graph.hidden import HiddenSplit, hide, layers
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ort_session import runtime_session
from cloister.plan.cost import PlanCost, estimate
from cloister.plan.protection import ENCLAVE
from cloister.splits.engine_bench import EngineBench, PlainRun, StartedEngine, resident_bytes
from cloister.splits.median_interval import ZERO, median_interval
from cloister.splits.split_cost import (
    ColdPhases,
    HiddenPart,
    Phases,
    SplitCost,
    TrustedMemory,
)
from cloister.splits.tee_model import TEES, ModelledOverhead, overhead

OpenRun = Callable[[Feeds], list[np.ndarray]]
"""Computes what is outside: the values that enter the hidden part."""
Progress = Callable[[int, int], None]
Gain = Callable[[int], float | None]
"""A thief's gain by the number of hidden layers; None: not measured."""


def sweep(
    graph: Graph,
    inputs: Feeds,
    bench: EngineBench,
    *,
    repeats: int,
    starts: int,
    gain: Gain = lambda _: None,
    progress: Progress = lambda _, __: None,
) -> tuple[tuple[SplitCost, ...], str | None]:
    """The cost of every split, from nothing hidden to all of it, and why deeper ones are missing.

    A node that cannot be compiled ends the sweep: every deeper split hides it too.

    inputs     some samples, which are computed one at a time
    progress   called with the splits that are done and all of them

    Raises   UnsupportedError for a model of which no end can be hidden, InputError, EngineError
    """
    samples = list(cut(graph, inputs, 1))
    deepest = len(layers(graph))
    if not deepest:
        raise InputError(f"model {graph.name!r}: has no layer with weights that could be hidden")
    found = [_nothing_hidden(graph, samples, repeats, gain(0))]
    for hidden_layers in range(1, deepest + 1):
        progress(hidden_layers, deepest + 1)
        try:
            split = hide(graph, last=hidden_layers)
            compiled = _SplitBench(graph, split, bench)
        except UnsupportedError as error:
            if hidden_layers == 1:
                raise
            return tuple(found), f"{hidden_layers} and more layers cannot be hidden: {error}"
        measured = compiled.measure(samples, repeats, starts)
        first = layers(graph)[-hidden_layers]
        found.append(_cost(split, first, measured, gain(hidden_layers)))
    progress(deepest + 1, deepest + 1)
    return tuple(found), None


def work(graph: Graph) -> PlanCost:
    """Parameters and operations of all nodes."""
    return estimate(graph, {node.name: ENCLAVE for node in graph.nodes})


def _nothing_hidden(
    graph: Graph, samples: Sequence[Feeds], repeats: int, gain: float | None
) -> SplitCost:
    run = _runtime(model_bytes(graph), graph.outputs)
    walls = [_timed(run, feeds) for feeds in _turns(samples, repeats)][1:]
    whole = median_interval(walls)
    return SplitCost(Phases(whole, ZERO, ZERO, ZERO, whole), gain=gain)


class _Measured:
    """Milliseconds of every warm turn and of every start."""

    def __init__(self, module: CompiledModule) -> None:
        self.module = module
        self.open: list[float] = []
        self.transition: list[float] = []
        self.compute: list[float] = []
        self.engine: list[float] = []
        self.setup: list[float] = []
        self.load: list[float] = []
        self.first: list[float] = []
        self.resident: int | None = None

    def phases(self) -> Phases:
        by_turn = zip(self.open, self.transition, self.engine, strict=True)
        pairs = zip(self.engine, self.compute, strict=True)
        return Phases(
            open=median_interval(self.open),
            transition=median_interval(self.transition),
            compute=median_interval(self.compute),
            overhead=median_interval([engine - plain for engine, plain in pairs]),
            total=median_interval([sum(turn) for turn in by_turn]),
        )

    def cold(self) -> ColdPhases:
        by_start = zip(self.setup, self.load, self.first, strict=True)
        return ColdPhases(
            setup=median_interval(self.setup),
            load=median_interval(self.load),
            first=median_interval(self.first),
            total=median_interval([sum(start) for start in by_start]),
        )


class _SplitBench:
    """One split, compiled."""

    def __init__(self, graph: Graph, split: HiddenSplit, bench: EngineBench) -> None:
        self._bench = bench
        self._split = split
        self._module = bench.compile(split.hidden)
        self._open = _open_part(graph, split)

    def measure(self, samples: Sequence[Feeds], repeats: int, starts: int) -> _Measured:
        found = _Measured(self._module)
        for _ in range(starts - 1):
            with closing(self._bench.start(self._module)) as engine:
                self._first(engine, samples[0], found)
        plain = self._bench.plain(self._split.hidden, self._module)
        with closing(self._bench.start(self._module)) as engine:
            self._first(engine, samples[0], found)
            for feeds in _turns(samples, repeats):
                self._turn(engine, plain, feeds, found)
            found.resident = resident_bytes(engine.pid)
        for warm in (found.open, found.transition, found.compute, found.engine):
            del warm[0]
        return found

    def _first(self, engine: StartedEngine, feeds: Feeds, found: _Measured) -> None:
        found.setup.append(engine.measured.start_ms)
        found.load.append(engine.measured.load_ms)
        begun = time.perf_counter()
        engine.run(self._open(feeds))
        found.first.append(1e3 * (time.perf_counter() - begun))

    def _turn(self, engine: StartedEngine, plain: PlainRun, feeds: Feeds, found: _Measured) -> None:
        begun = time.perf_counter()
        entering = self._open(feeds)
        found.open.append(1e3 * (time.perf_counter() - begun))
        engine.run(entering)
        found.transition.append(engine.measured.transition_ms)
        found.engine.append(engine.measured.compute_ms)
        found.compute.append(plain(entering))


def _turns(samples: Sequence[Feeds], repeats: int) -> Iterator[Feeds]:
    """One turn to warm up, and those that count."""
    return islice(cycle(samples), repeats + 1)


def _timed(run: OpenRun, feeds: Feeds) -> float:
    begun = time.perf_counter()
    run(feeds)
    return 1e3 * (time.perf_counter() - begun)


def _open_part(graph: Graph, split: HiddenSplit) -> OpenRun:
    """Computes the values that enter the module, and the outputs that do not leave it."""
    *outside, module = split.outer.nodes
    if not outside:
        return lambda feeds: [feeds[name] for name in module.inputs]
    made = {value for node in outside for value in node.outputs}
    wanted = [v for v in (*module.inputs, *graph.outputs) if v in made]
    run = _runtime(_part_bytes(split.outer, outside, wanted), wanted)

    def entering(feeds: Feeds) -> list[np.ndarray]:
        values = {**feeds, **dict(zip(wanted, run(feeds), strict=True))}
        return [values[name] for name in module.inputs]

    return entering


def _part_bytes(outer: Graph, outside: Sequence[Node], wanted: Sequence[str]) -> bytes:
    return model_bytes(outer, nodes=outside, outputs=wanted)


def _runtime(model: bytes, outputs: Sequence[str]) -> OpenRun:
    session = runtime_session(model, threads=1, optimised=True)
    taken = {one.name for one in session.get_inputs()}
    return lambda feeds: session.run(
        list(outputs), {name: array for name, array in feeds.items() if name in taken}
    )


def _cost(split: HiddenSplit, first: Node, found: _Measured, gain: float | None) -> SplitCost:
    manifest, phases, hidden = found.module.manifest, found.phases(), split.hidden
    costs = work(hidden)
    memory = TrustedMemory(
        manifest.weights_bytes,
        manifest.arena_bytes,
        manifest.input_bytes + manifest.output_bytes,
        found.resident,
    )
    part = HiddenPart(
        layers=len(layers(hidden)),
        first=first.name,
        parameters=costs.total("parameters"),
        flops=costs.total("flops"),
        entering=sum(one.nbytes for one in manifest.inputs),
    )
    modelled = _modelled(phases.compute.median, memory)
    return SplitCost(phases, part, found.cold(), memory, modelled, gain)


def _modelled(compute_ms: float, memory: TrustedMemory) -> dict[str, ModelledOverhead]:
    return {
        name: overhead(
            tee,
            compute_ms=compute_ms,
            memory_bytes=memory.module,
            weights_bytes=memory.weights,
        )
        for name, tee in TEES.items()
    }
