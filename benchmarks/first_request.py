"""The first request of a session against those that follow it, and what opening it costs.

    python -m benchmarks.first_request FILE.plan [--batch N] [--threads N] [--repeats N]

The process that is measured is one of its own: it reads a plan that was made elsewhere, opens a
session with a local worker and pads made before each request, and answers requests. `first_ms` and
`steady_ms` are its CPU time for a call, as `bench inference` counts it, the latter as the median of
the calls from the third on; `_wall_ms` is the time until the answer.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from benchmarks import networks, options, python
from benchmarks.environment import environment
from cloister.cli.speed import PreparedPads, random_input
from cloister.errors import CloisterError
from cloister.graph.onnx.load import load
from cloister.plan.plan import Plan
from cloister.plan.policies import make
from cloister.trusted.session import Session
from cloister.wire.process import run
from cloister.wire.shm.shm_link import start_local_worker

CHILD_TIMEOUT_S = 600.0
WARM = 2
"""Requests before the steady state."""


def measure(
    model: options.Model = "vgg16",
    policy: options.Policy = "slalom",
    threads: options.Threads = 1,
    batch: options.Batch = 1,
    repeats: options.Repeats = 5,
) -> dict[str, object]:
    """Milliseconds of a call and page faults, first and steady."""
    with TemporaryDirectory() as folder:
        file, saved = Path(folder) / "model.onnx", Path(folder) / "model.plan"
        onnx.save(networks.build(model), file)
        graph = load(file)
        make(policy, graph, calibration=random_input(graph, 1)).save(saved)
        found = measure_plan(saved, threads=threads, batch=batch, repeats=repeats)
    return {"model": model, "policy": policy, **found, **environment()}


def measure_plan(
    plan: Path, *, threads: int = 1, batch: int = 1, repeats: int = 1
) -> dict[str, object]:
    """Run this module as a child and return what it found.

    private_bytes, shared_bytes   resident memory after the requests, alone and in shared memory
    worker_bytes                  the worker's, alone

    Raises   CloisterError with the child's own message
    """
    setting = {"threads": threads, "batch": batch, "repeats": repeats}
    given = [word for name, value in setting.items() for word in (f"--{name}", str(value))]
    command = [*python("first_request"), str(plan.resolve()), *given]
    ran = run(command, timeout_s=CHILD_TIMEOUT_S)
    if ran.returncode:
        lines = ran.stderr.decode(errors="replace").strip().splitlines()
        raise CloisterError(f"the first request: {lines[-1] if lines else 'the process died'}")
    return {**setting, **json.loads(ran.stdout)}


class _Cost:
    """What a step of this process costs: CPU, the clock, page faults, and those of a worker."""

    def __init__(self, worker: int | None) -> None:
        self._worker = worker
        self._before = self._now()

    def spent(self) -> tuple[float, float, int, int]:
        """CPU and wall milliseconds, page faults here and in the worker, since this was made."""
        cpu, wall, faults, others = (
            now - before for now, before in zip(self._now(), self._before, strict=True)
        )
        return 1e3 * cpu, 1e3 * wall, int(faults), int(others)

    def _now(self) -> tuple[float, float, int, int]:
        others = 0
        if self._worker is not None:
            status = Path(f"/proc/{self._worker}/stat").read_text(encoding="ascii")
            others = int(status.rpartition(")")[2].split()[7])
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        return time.process_time(), time.perf_counter(), faults, others


def _resident(process: int | str) -> tuple[int, int]:
    """Resident memory of a process, alone and in shared memory."""
    status = Path(f"/proc/{process}/status").read_text(encoding="ascii")
    found = {
        name: 1024 * int(rest.split()[0])
        for name, _, rest in (line.partition(":") for line in status.splitlines())
        if name.startswith("Rss")
    }
    return found["RssAnon"] + found["RssFile"], found["RssShmem"]


def _measure(given: argparse.Namespace) -> dict[str, object]:
    plan = Plan.load(given.plan).without_float_weights()
    feeds = random_input(plan.graph, given.batch)
    pads = PreparedPads(plan) if plan.hidden_nodes else None
    link = start_local_worker()
    opening = _Cost(link.pid)
    session = Session(plan, workers=[link], threads=given.threads, batch=given.batch, pads=pads)
    made = opening.spent()
    calls = []
    with session:
        entered = opening.spent()
        for _ in range(1 + WARM + given.repeats):
            if pads is not None:
                pads.fill(given.batch)
            call = _Cost(link.pid)
            session.run(feeds)
            calls.append(call.spent())
        private, shared = _resident("self")
        worker, _ = _resident(link.pid)
    first = calls[0]
    cpu, wall, faults, others = map(statistics.median, zip(*calls[1 + WARM :], strict=True))
    return {
        "first_ms": first[0],
        "steady_ms": cpu,
        "ratio": first[0] / cpu,
        "first_wall_ms": first[1],
        "steady_wall_ms": wall,
        "wall_ratio": first[1] / wall,
        "page_faults_first": first[2],
        "page_faults_steady": faults,
        "worker_page_faults_first": first[3],
        "worker_page_faults_steady": others,
        "made_ms": made[0],
        "entered_ms": entered[0] - made[0],
        "entered_wall_ms": entered[1] - made[1],
        "page_faults_entering": entered[2] - made[2],
        "private_bytes": private,
        "shared_bytes": shared,
        "worker_bytes": worker,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The process that is measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_request")
    parser.add_argument("plan", type=Path)
    for name in ("--batch", "--threads", "--repeats"):
        parser.add_argument(name, type=int, default=1)
    try:
        found = _measure(parser.parse_args(arguments))
    except CloisterError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
