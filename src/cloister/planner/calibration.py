"""Measures the costs of a model's plans on this machine: sessions of stand-ins, step by step.

Stand-ins (stand_in.py) of a few plans run in real sessions, each with a local worker. Together they
contain the steps of almost every plan that the search may visit:

    inside        the whole model in ONNX Runtime
    a protection  all linear nodes on the worker under it, and where depthwise layers may stay
                  inside, both ways
    alternating   linear nodes blinded and in the clear by turns: steps at the border of a split
    segment       an open segment after the first and after the last split, or everything in one
"""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cloister.graph.batch import sample_count
from cloister.graph.graph import Graph
from cloister.graph.ops.linear_nodes import is_linear
from cloister.plan.plan import Plan
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.policies import assign
from cloister.plan.protection import (
    BLINDED_VERIFIED,
    ENCLAVE,
    OUTSOURCED,
    VERIFIED,
    Protection,
)
from cloister.planner.cost_table import CostTable, FloatCost, SegmentCost, segment_bytes
from cloister.planner.local_times import MeasuredLocals
from cloister.planner.stand_in import StandInPads, stand_in, typical_feeds, zero_maps
from cloister.planner.step_shape import StepShape, fitted_rates, step_shape
from cloister.ring.linear import Geometry
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.steps import Exchange, Fused, Local, Program, Segment
from cloister.trusted.session import Session

Progress = Callable[[int, int], None]

DEFAULT_REPEATS = 5
STEP_MS = 0.004
"""Python's time for a step, where the measured plans have too few steps to tell."""
ALTERNATING = "alternating"
"""Policy of stand-ins that no policy of Cloister's makes."""
SEGMENT = SegmentCost(0.15, 1e-6)
"""Where no segment is measured."""


@dataclass(frozen=True)
class StepTime:
    """Of one row of a report, for one input: processor time, and time waited."""

    trusted_ms: float
    worker_ms: float


@dataclass(frozen=True)
class MeasuredProgram:
    """A stand-in's program, the medians of its rows by name, and of the whole call."""

    program: Program
    rows: Mapping[str, StepTime]
    total_ms: float

    @property
    def request_ms(self) -> float:
        """What no row has: Python's work for the request."""
        return max(self.total_ms - sum(row.trusted_ms for row in self.rows.values()), 0.0)


def calibrate(
    graph: Graph,
    protections: Sequence[Protection],
    *,
    splits: Sequence[PlannedSplit] = (),
    segments: bool = False,
    batch: int = 1,
    module_ms: float = 0.0,
    workers: Sequence[str] | None = None,
    repeats: int = DEFAULT_REPEATS,
    progress: Progress | None = None,
) -> CostTable:
    """Measure what plans cost whose linear nodes are on the worker under these protections.

    splits     where such plans may be split
    segments   whether plans have open segments
    module_ms  of the hidden end, which `graph` does not have
    workers    addresses of the workers to measure with; None: a local process

    Raises   UnsupportedError for a model whose inputs have open sizes
    """
    plans = list(_stand_ins(graph, protections, splits, segments=segments))
    feeds = typical_feeds(graph, batch)
    found = []
    for i, plan in enumerate(plans):
        if progress is not None:
            progress(i, len(plans))
        found.append(measure_program(plan, feeds, workers=workers, repeats=repeats))
    if progress is not None:
        progress(len(plans), len(plans))
    return cost_table(graph, found, batch=batch, module_ms=module_ms)


def _stand_ins(
    graph: Graph,
    protections: Sequence[Protection],
    splits: Sequence[PlannedSplit],
    *,
    segments: bool,
) -> Iterator[Plan]:
    yield Plan(graph, "enclave", assign(graph, "enclave"), {})
    maps = zero_maps(graph)
    for policy, outside in OUTSOURCED.items():
        if outside in protections and maps:
            usual, all_outside = assign(graph, policy), assign(graph, policy, inside=())
            yield stand_in(graph, policy, usual, maps)
            if usual != all_outside:
                yield stand_in(graph, policy, all_outside, maps)
    if splits and {BLINDED_VERIFIED, VERIFIED} <= set(protections):
        for parity in (0, 1):
            yield stand_in(graph, ALTERNATING, _alternating(graph, parity), maps)
    if segments and not splits:
        yield Plan(graph, "open", assign(graph, "open"), {})
    if splits and segments:
        for split in dict.fromkeys((splits[0], splits[-1])):
            given = assign(graph, "origami-prefix", split=split)
            yield stand_in(graph, "origami-prefix", given, maps, split=split)


def _alternating(graph: Graph, parity: int) -> dict[str, Protection]:
    """Blinded and in the clear by turns; nodes that read one value are protected alike."""
    given: dict[str, Protection] = {}
    turns: dict[str, int] = {}
    for node in graph.nodes:
        given[node.name] = ENCLAVE
        if is_linear(graph, node):
            turn = turns.setdefault(node.inputs[0], len(turns))
            given[node.name] = BLINDED_VERIFIED if turn % 2 == parity else VERIFIED
    return given


def measure_program(
    plan: Plan,
    feeds: Mapping[str, np.ndarray],
    *,
    workers: Sequence[str] | None = None,
    repeats: int = DEFAULT_REPEATS,
) -> MeasuredProgram:
    """Medians over the runs of a session; the first run warms up."""
    inputs = sample_count(plan.graph, feeds)
    pads = StandInPads(plan) if plan.hidden_nodes else None
    totals: list[float] = []
    reports = []
    used = workers if any(p.on_worker for p in plan.protections.values()) else None
    with Session(plan, workers=used, pads=pads, batch=inputs, on_clip="ignore") as session:
        for _ in range(1 + repeats):
            started = time.process_time()
            report = session.run(feeds).report
            totals.append(1e3 * (time.process_time() - started) / inputs)
            reports.append(report)
    rows = {
        row.name: StepTime(
            statistics.median(r.layers[i].trusted_ms for r in reports[1:]) / inputs,
            statistics.median(r.layers[i].worker_ms for r in reports[1:]) / inputs,
        )
        for i, row in enumerate(reports[0].layers)
    }
    return MeasuredProgram(compile_plan(plan), rows, statistics.median(totals[1:]))


def cost_table(
    graph: Graph, found: Sequence[MeasuredProgram], *, batch: int, module_ms: float = 0.0
) -> CostTable:
    """The costs that measured programs tell; the first one ran the whole model inside."""
    steps: dict[StepShape, list[float]] = {}
    exchanges: dict[tuple[Geometry, bool], list[float]] = {}
    local = MeasuredLocals(graph, batch)
    for one in found:
        _enter(one, steps, exchanges, local)
    floats = FloatCost.of(graph, found[0].total_ms)
    request_ms, step_ms = _python_ms(found)
    times = {shape: statistics.median(ms) for shape, ms in steps.items()}
    return CostTable(
        batch=batch,
        steps=times,
        rates=fitted_rates(times),
        exchanges={key: statistics.median(ms) for key, ms in exchanges.items()},
        local=local,
        floats=floats,
        segment=_segment_cost(graph, found, floats),
        request_ms=request_ms,
        step_ms=step_ms,
        module_ms=module_ms,
    )


def _enter(
    one: MeasuredProgram,
    steps: dict[StepShape, list[float]],
    exchanges: dict[tuple[Geometry, bool], list[float]],
    local: MeasuredLocals,
) -> None:
    plan, stored = one.program.plan, set[tuple[str, bool]]()
    for step in one.program.steps:
        if isinstance(step, Fused):
            # An exchange and the step that reads its answer share a row.
            shape = step_shape(plan, step, stored)
            steps.setdefault(shape, []).append(one.rows[step.name].trusted_ms)
            if step.stored:
                part = one.program.slices.get(step.epilogue.value)
                stored.add((part.whole if part else step.epilogue.value, step.channels_first))
        elif isinstance(step, Exchange):
            linear = plan.linear_nodes[step.node]
            key = linear.linear.geometry, step.protection.hidden
            exchanges.setdefault(key, []).append(one.rows[linear.node].worker_ms)
        elif isinstance(step, Local):
            names = tuple(node.name for node in step.nodes)
            local.known.setdefault(names, one.rows[step.name].trusted_ms)


def _python_ms(found: Sequence[MeasuredProgram]) -> tuple[float, float]:
    """Python's time for a request and for each step: a line through what programs took."""
    counts = np.array([len(one.program.steps) for one in found], float)
    times = np.array([one.request_ms for one in found])
    spread = counts - counts.mean()
    step_ms = STEP_MS
    if counts.max() > 2 * counts.min() + 4:
        step_ms = max(float(spread @ times / (spread @ spread)), 0.0)
    return max(float(np.median(times - step_ms * counts)), 0.0), step_ms


def _segment_cost(graph: Graph, found: Sequence[MeasuredProgram], floats: FloatCost) -> SegmentCost:
    points = [
        (segment_bytes(graph, step), one.rows[step.name], floats.ms(graph, step.nodes))
        for one in found
        for step in one.program.steps
        if isinstance(step, Segment)
    ]
    if not points:
        return SEGMENT
    nbytes = np.array([size for size, _, _ in points], float)
    times = np.array([row.trusted_ms for _, row, _ in points])
    byte_ms, spread = SEGMENT.byte_ms, nbytes - nbytes.mean()
    if np.ptp(nbytes) > nbytes.min():
        byte_ms = max(float(spread @ times / (spread @ spread)), 0.0)
    modelled = sum(ms for _, _, ms in points)
    waited = sum(row.worker_ms for _, row, _ in points)
    message_ms = max(float(np.median(times - byte_ms * nbytes)), 0.0)
    return SegmentCost(message_ms, byte_ms, waited / modelled if modelled else 1.0)
