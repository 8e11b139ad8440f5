"""How much longer a call takes than its worker computes, by lanes and workers.

The worker's own time is that of its linear maps alone, on messages of the same size, in the same
run and by turns with the calls; nothing is faster with this worker. A call is measured from the
input array to the released outputs, with pads that were made before it, outside of the time. With
several lanes the trusted side works while the worker does; with several workers they work at once,
and the machine needs a core for each and one for the trusted side.
"""

import os
import statistics
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import typer

from benchmarks import networks, options
from benchmarks.environment import environment
from cloister.base.rng import InsecureSeededRandom
from cloister.cli.speed import PreparedPads
from cloister.cli.timing import interleaved
from cloister.plan.plan import Plan
from cloister.ring.ring_map import RingMap
from cloister.trusted.report import Report
from cloister.trusted.session import Session
from cloister.wire.link import WorkerLink
from cloister.wire.shm.shm_link import connect_local_worker

MESSAGE_SEED = 7


def measure(
    model: options.Model = "vgg16",
    policy: options.Policy = "slalom",
    batch: options.Batch = 4,
    lanes: Annotated[
        int, typer.Option("--lanes", min=1, help="Lanes of the call; 1 is measured beside it.")
    ] = 2,
    workers: Annotated[
        int, typer.Option("--workers", min=1, help="Local workers; 1 is measured beside them.")
    ] = 2,
    worker_threads: options.WorkerThreads = 1,
    repeats: options.Repeats = 5,
) -> dict[str, object]:
    """Whole calls against the worker's own computing time."""
    plan, feeds = networks.planned(model, policy, batch)
    settings = [(1, 1), (lanes, 1), (max(lanes, workers), workers)]
    rows = [
        _calls(plan, feeds, lanes=one, workers=several, threads=worker_threads, repeats=repeats)
        for one, several in dict.fromkeys(settings)
    ]
    return {
        "model": model,
        "policy": plan.policy,
        "batch": batch,
        "worker_threads": worker_threads,
        "repeats": repeats,
        "cores": os.cpu_count(),
        "calls": rows,
        **environment(),
    }


def _calls(
    plan: Plan, feeds: np.ndarray, *, lanes: int, workers: int, threads: int, repeats: int
) -> dict[str, object]:
    """Medians of one arrangement, by turns with the worker's maps alone."""
    micro_batch = -(-len(feeds) // lanes)
    alone = WorkerAlone(plan, micro_batch, len(feeds), threads=threads)
    pads = PreparedPads(plan)
    reports: list[Report] = []
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
        timings = interleaved(
            {"alone": alone, "call": lambda: reports.append(session.run(feeds).report)},
            repeats=repeats,
            before={"call": lambda: pads.fill(len(feeds))},
        )
    call, alone_s, reports = timings["call"], timings["alone"].wall_s, reports[-repeats:]
    return {
        "lanes": lanes,
        "workers": workers,
        "micro_batch": micro_batch,
        "call_ms": 1e3 * call.wall_s,
        "call_min_ms": 1e3 * min(call.walls_s),
        "call_max_ms": 1e3 * max(call.walls_s),
        "worker_alone_ms": 1e3 * alone_s,
        "ratio": call.wall_s / alone_s,
        "images_per_s": len(feeds) / call.wall_s,
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
