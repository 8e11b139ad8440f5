"""`cloister bench roundtrip`: how much longer a call takes than its worker computes.

The worker's own time is that of its linear maps alone, on messages of the same size, in the same
run and by turns with the calls; nothing is faster with this worker. A call is measured from the
input array to the released outputs, with pads that were made before it, outside of the time. With
several lanes the trusted side works while the worker does; with several workers they work at once,
and the machine needs a core for each and one for the trusted side.
"""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

from cloister.base.rng import InsecureSeededRandom
from cloister.cli import options
from cloister.cli.bench.baselines import interleaved
from cloister.cli.bench.environment import environment
from cloister.cli.bench.inference import open_model
from cloister.cli.bench.peak import random_input
from cloister.cli.bench.prepared import PadsAhead
from cloister.cli.console import emit_json, out, table
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.plan.plan import Plan
from cloister.plan.quantise import Precision
from cloister.plan.recipe import measure
from cloister.ring.ring_map import RingMap
from cloister.trusted.report import Report
from cloister.trusted.session import Session
from cloister.wire.link import WorkerLink
from cloister.wire.shm.shm_link import connect_local_worker

COLUMNS = (
    "lanes", "workers", "micro_batch", "call_ms", "worker_alone_ms", "ratio", "images_per_s",
    "trusted_ms", "wait_ms",
)  # fmt: skip
MESSAGE_SEED = 7


def roundtrip(
    model: Annotated[
        str, typer.Option("--model", metavar="NAME|FILE.onnx", help="A built network or a file.")
    ] = "vgg16",
    policy: options.PolicyName = "slalom",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Inputs per call.")] = 4,
    lanes: Annotated[
        int, typer.Option("--lanes", min=1, help="Lanes of the call; 1 is measured beside it.")
    ] = 2,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Local workers; 1 is measured beside them.")
    ] = 2,
    worker_threads: Annotated[
        int, typer.Option("--worker-threads", min=1, help="Threads of each worker's process.")
    ] = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed calls of each.")] = 5,
    json: options.Json = False,
) -> None:
    """Measure whole calls, by lanes and workers, against the worker's own computing time."""
    graph = prepare(from_model(open_model(model), name=model))
    feeds = random_input(graph, batch)
    recipe = measure(graph, policy=policy or "slalom", samples=feeds, precision=Precision())
    plan = recipe.plan(graph)
    settings = [(1, 1), (lanes, 1), (max(lanes, workers), workers)]
    rows = [
        measure_calls(
            plan, feeds, lanes=one, workers=several, threads=worker_threads, repeats=repeats
        )
        for one, several in dict.fromkeys(settings)
    ]
    found = {
        "model": model,
        "policy": plan.policy,
        "batch": batch,
        "worker_threads": worker_threads,
        "repeats": repeats,
        "cores": os.cpu_count(),
        "calls": rows,
        **environment(),
    }
    if json:
        emit_json(found)
        return
    console = out()
    console.print(
        f"{model}, policy {plan.policy}, {batch} inputs per call, {repeats} repeats, pads made "
        "beforehand"
    )
    console.print(f"{found['cpu']}, {found['isa']}, {found['cores']} cores")
    console.print(table(COLUMNS, [[row[column] for column in COLUMNS] for row in rows]))


def measure_calls(
    plan: Plan, feeds: np.ndarray, *, lanes: int, workers: int, threads: int, repeats: int
) -> dict[str, object]:
    """Medians of one arrangement, by turns with the worker's maps alone."""
    micro_batch = -(-len(feeds) // lanes)
    alone = WorkerAlone(plan, micro_batch, len(feeds), threads=threads)
    pads = PadsAhead(plan)
    reports: list[Report] = []
    walls: list[float] = []
    links: list[WorkerLink] = []
    for i in range(workers):
        links += connect_local_worker(-(-(lanes - i) // workers), threads=threads)
    with Session(
        plan,
        workers=links,
        lanes=lanes,
        batch=micro_batch,
        pads=pads if plan.hidden_nodes else None,
    ) as session:

        def call() -> None:
            pads.fill(len(feeds))
            started = time.perf_counter()
            reports.append(session.run(feeds).report)
            walls.append(time.perf_counter() - started)

        runs: dict[str, Callable[[], object]] = {"alone": alone, "call": call}
        for run in runs.values():  # warm-up
            run()
        reports.clear()
        walls.clear()
        timings = interleaved(runs, repeats=repeats)
    call_s, alone_s = statistics.median(walls), timings["alone"].wall_s
    return {
        "lanes": lanes,
        "workers": workers,
        "micro_batch": micro_batch,
        "call_ms": 1e3 * call_s,
        "call_min_ms": 1e3 * min(walls),
        "call_max_ms": 1e3 * max(walls),
        "worker_alone_ms": 1e3 * alone_s,
        "ratio": call_s / alone_s,
        "images_per_s": len(feeds) / call_s,
        "trusted_ms": statistics.median(report.trusted_ms for report in reports),
        "wait_ms": statistics.median(report.worker_ms for report in reports),
    }


@dataclass(frozen=True)
class _Layer:
    ring: RingMap
    message: np.ndarray
    answer: np.ndarray


class WorkerAlone:
    """A worker's linear maps for one call: the time that no pipeline can go below."""

    def __init__(self, plan: Plan, micro_batch: int, inputs: int, *, threads: int) -> None:
        rng = InsecureSeededRandom(MESSAGE_SEED)
        self._sizes = [min(micro_batch, inputs - start) for start in range(0, inputs, micro_batch)]
        self._threads = threads
        self._layers = []
        for node in plan.linear_nodes:
            geometry = node.linear.geometry
            count = micro_batch * geometry.in_elements
            shape = (micro_batch, *geometry.in_shape)
            words = np.frombuffer(rng.random_bytes(4 * count), np.uint32)
            # Messages in the clear are int16 of about twelve bits.
            message: np.ndarray = words
            if not plan.protection_of(node).hidden:
                message = (words >> 21).astype(np.int16) - np.int16(1024)
            message = message.reshape(shape)
            answer = np.empty((micro_batch, *geometry.out_shape), np.uint32)
            self._layers.append(_Layer(RingMap(node.linear), message, answer))

    def __call__(self) -> None:
        """Apply all maps to one call's micro-batches."""
        for size in self._sizes:
            for layer in self._layers:
                layer.ring.apply(
                    layer.message[:size], out=layer.answer[:size], threads=self._threads
                )
