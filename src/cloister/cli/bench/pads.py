"""`cloister bench pads`: what making one-time pads costs, against one plain float32 inference.

Pads are made by the trusted runtime itself and by two worker processes, by turns with the float32
engines. Two workers on one machine hide nothing from its owner: this measures, it does not protect.
CPU time is that of processes, whoever started them.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from typing import Annotated

import numpy as np
import typer

from cloister.base.rng import KEY_BYTES, SystemRandom
from cloister.cli import options
from cloister.cli.bench.baselines import Timing, interleaved
from cloister.cli.bench.environment import environment
from cloister.cli.bench.inference import baselines, open_model
from cloister.cli.bench.peak import random_input
from cloister.cli.console import emit_json, human_bytes, out, table
from cloister.errors import PlanError
from cloister.graph.onnx.read import from_model
from cloister.graph.passes.normalise import prepare
from cloister.plan import policies
from cloister.trusted.pads.factory import Maker, WorkerMaker
from cloister.trusted.pads.maker import PadMaker
from cloister.trusted.pads.pad_file import file_bytes
from cloister.wire.shm.shm_link import start_local_worker

WORKERS = 2
LOCAL, SHARED = "trusted runtime", "workers"


def pads(
    model: Annotated[
        str, typer.Option("--model", help="vgg16, resnet50, ... or FILE.onnx.")
    ] = "vgg16",
    policy: options.PolicyName = None,
    threads: options.Threads = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed runs of each.")] = 5,
    json: options.Json = False,
) -> None:
    """Measure the offline phase: pads made alone, and by two worker processes."""
    proto = open_model(model)
    graph = prepare(from_model(proto, name=model))
    feeds = random_input(graph, 1)
    plan = policies.make(policy or "slalom", graph, calibration=feeds)
    if not plan.hidden_nodes:
        raise PlanError(f"policy {plan.policy!r} blinds nothing, so it needs no pads")
    engines = dict(baselines(proto, graph, feeds, threads))
    local = _Making(PadMaker(plan, threads=threads))
    with ExitStack() as stack:
        links = [stack.enter_context(closing(start_local_worker())) for _ in range(WORKERS)]
        made_by = WorkerMaker(plan, links, rng=SystemRandom(), insecure_one_party=True)
        maker = stack.enter_context(closing(made_by))
        started = time.process_time()
        maker.prepare()
        setup_ms = 1e3 * (time.process_time() - started)
        shared = _Making(maker, pids=[link.pid for link in links])
        runs: dict[str, Callable[[], object]] = {**engines, LOCAL: local, SHARED: shared}
        for run in runs.values():  # warm-up
            run()
        shared.workers_ms.clear()
        traffic = sum(link.bytes_sent + link.bytes_received for link in links)
        timings = interleaved(runs, repeats=repeats)
        traffic = sum(link.bytes_sent + link.bytes_received for link in links) - traffic
    layout = tuple((index, array.shape) for index, array in local.memory.items())
    found = {
        "model": model,
        "policy": plan.policy,
        "threads": threads,
        "repeats": repeats,
        **_figures(timings, list(engines), shared.workers_ms),
        "workers": WORKERS,
        "setup_ms": setup_ms,
        "traffic_bytes": traffic // repeats,
        "storage_bytes": file_bytes(layout),
        **environment(),
    }
    if json:
        emit_json(found)
    else:
        _show(found)


class _Making:
    """Makes the next pad set into the memory of the last; keeps what it cost other processes."""

    def __init__(self, maker: Maker, *, pids: list[int] | None = None) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.workers_ms: list[float] = []
        self._maker = maker
        self._pids = pids or []
        self._key = SystemRandom().random_bytes(KEY_BYTES)
        self._next_id = 0

    def __call__(self) -> None:
        before = sum(map(_process_s, self._pids))
        pad_id, self._next_id = self._next_id, self._next_id + 1
        self.memory = self._maker.make(self._key, pad_id, into=self.memory)
        self.workers_ms.append(1e3 * (sum(map(_process_s, self._pids)) - before))


def _process_s(pid: int) -> float:
    """CPU time of another process: Linux numbers these clocks by process id."""
    return time.clock_gettime((~pid << 3) | 2)


def _figures(
    timings: Mapping[str, Timing], engines: list[str], workers_ms: list[float]
) -> dict[str, object]:
    """Medians of CPU milliseconds per inference."""
    fastest = min(engines, key=lambda name: timings[name].cpu_s)
    baseline_ms = 1e3 * timings[fastest].cpu_s
    local_ms, trusted_ms = (1e3 * timings[name].cpu_s for name in (LOCAL, SHARED))
    worker_ms = statistics.median(workers_ms)
    return {
        "baseline_engine": fastest,
        "baseline_ms": baseline_ms,
        "local_ms": local_ms,
        "local_ratio": local_ms / baseline_ms,
        "shared_trusted_ms": trusted_ms,
        "shared_worker_ms": worker_ms,
        "shared_total_ms": trusted_ms + worker_ms,
        "shared_trusted_share": trusted_ms / (trusted_ms + worker_ms),
        "shared_trusted_ratio": trusted_ms / baseline_ms,
        "shared_gain": local_ms / trusted_ms,
        "shared_wall_ms": 1e3 * timings[SHARED].wall_s,
    }


def _show(found: Mapping[str, object]) -> None:
    console = out()
    console.print(f"{found['model']}, policy {found['policy']}, {found['repeats']} repeats")
    console.print(f"{found['cpu']}, {found['isa']}")
    rows = [
        (f"float32, {found['baseline_engine']}", found["baseline_ms"]),
        ("pads by the trusted runtime", found["local_ms"]),
        ("pads by two workers, trusted side", found["shared_trusted_ms"]),
        ("pads by two workers, workers", found["shared_worker_ms"]),
    ]
    console.print(table(("CPU ms per inference", "median"), rows))
    console.print(f"alone: {found['local_ratio']:.3g} of the float32 inference")
    console.print(
        f"with workers: {found['shared_trusted_share']:.1%} of all CPU time is the trusted side's; "
        f"alone it would spend {found['shared_gain']:.3g} times as much"
    )
    stored, traffic = (found[key] for key in ("storage_bytes", "traffic_bytes"))
    if isinstance(stored, int) and isinstance(traffic, int):
        console.print(f"storage {human_bytes(stored)}, traffic {human_bytes(traffic)}")
