"""What making one-time pads costs, against one plain float32 inference.

Pads are made by the trusted runtime itself and by two worker processes, by turns with the float32
engines. Two workers on one machine hide nothing from its owner: this measures, it does not protect.
CPU time is that of processes, whoever started them.
"""

import statistics
import time
from contextlib import ExitStack, closing

import numpy as np

from benchmarks import networks, options
from benchmarks.engines import float_engines
from benchmarks.environment import environment
from cloister.base.rng import KEY_BYTES, SystemRandom
from cloister.cli.timing import interleaved
from cloister.errors import PlanError
from cloister.trusted.pads.factory import WorkerMaker
from cloister.trusted.pads.maker import Maker, PadMaker
from cloister.trusted.pads.pad_file import file_bytes
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.wire.shm.shm_link import start_local_worker

WORKERS = 2
LOCAL, SHARED = "trusted runtime", "workers"


def measure(
    model: options.Model = "vgg16",
    policy: options.Policy = "slalom",
    threads: options.Threads = 1,
    repeats: options.Repeats = 5,
) -> dict[str, object]:
    """Medians of CPU milliseconds per inference: pads made alone, and by two worker processes."""
    plan, feeds = networks.planned(model, policy)
    if not plan.hidden_nodes:
        raise PlanError(f"policy {plan.policy!r} blinds nothing, so it needs no pads")
    engines = float_engines(networks.build(model), plan.graph, feeds, threads)
    local = _Making(PadMaker(plan, threads=threads))
    with ExitStack() as stack:
        links = [stack.enter_context(closing(start_local_worker())) for _ in range(WORKERS)]
        made_by = WorkerMaker(plan, links, rng=SystemRandom(), insecure_one_party=True)
        maker = stack.enter_context(closing(made_by))
        started = time.process_time()
        maker.prepare()
        setup_ms = 1e3 * (time.process_time() - started)
        shared = _Making(maker, pids=[link.pid for link in links])
        before = sum(link.bytes_sent + link.bytes_received for link in links)
        timings = interleaved({**engines, LOCAL: local, SHARED: shared}, repeats=repeats)
        traffic = sum(link.bytes_sent + link.bytes_received for link in links) - before
    fastest = min(engines, key=lambda name: timings[name].cpu_s)
    baseline_ms, local_ms, trusted_ms = (
        1e3 * timings[name].cpu_s for name in (fastest, LOCAL, SHARED)
    )
    worker_ms = statistics.median(shared.workers_ms[-repeats:])
    return {
        "model": model,
        "policy": plan.policy,
        "threads": threads,
        "repeats": repeats,
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
        "workers": WORKERS,
        "setup_ms": setup_ms,
        "traffic_bytes": traffic // (1 + repeats),
        "storage_bytes": file_bytes(tuple(PadLayout.of(plan).shapes.items())),
        **environment(),
    }


class _Making:
    """Makes the next pad set into the memory of the last; keeps what it cost other processes."""

    def __init__(self, maker: Maker, *, pids: list[int] | None = None) -> None:
        self.workers_ms: list[float] = []
        self._maker = maker
        self._rows = np.zeros((1, maker.layout.words), np.uint32)
        self._pids = pids or []
        self._key = SystemRandom().random_bytes(KEY_BYTES)
        self._next_id = 0

    def __call__(self) -> None:
        before = sum(map(_process_s, self._pids))
        pad_id, self._next_id = self._next_id, self._next_id + 1
        self._maker.make(self._key, pad_id, into=self._rows)
        self.workers_ms.append(1e3 * (sum(map(_process_s, self._pids)) - before))


def _process_s(pid: int) -> float:
    """CPU time of another process: Linux numbers these clocks by process id."""
    return time.clock_gettime((~pid << 3) | 2)
