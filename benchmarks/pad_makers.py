"""What pads by a maker cost the trusted side: one process over shared memory, one over TLS.

Both are on this machine, which hides nothing from its owner: this measures, it does not protect.
"""

import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import networks
from cloister.base.identity import CERTIFICATE_FILE
from cloister.base.rng import SystemRandom
from cloister.base.tls_identity import load_certificate
from cloister.errors import InputError
from cloister.plan.plan import Plan
from cloister.trusted.pads.makers import MakerPads, Makers
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.wire.grpc.connect import connect
from cloister.wire.link import WorkerLink
from cloister.wire.process import python, start
from cloister.wire.shm.shm_link import start_local_worker

ROWS = 4
"""Pad sets that a request asks for."""
TIMEOUT_S = 300.0


def measure(model: str, policy: str, repeats: int) -> dict[str, object]:
    """Medians of CPU milliseconds per pad set, of the trusted side and of the maker."""
    plan, _ = networks.planned(model, policy)
    found: dict[str, object] = {"rows": ROWS, "pad_bytes": 4 * PadLayout.of(plan).words}
    link = start_local_worker()
    found |= _making(plan, link, link.pid, repeats, "")
    with _served_by_tls() as (link, pid):
        found |= _making(plan, link, pid, repeats, "_tls")
    return found


def _making(plan: Plan, link: WorkerLink, pid: int, repeats: int, ending: str) -> dict[str, object]:
    makers = Makers([link], timeout_s=TIMEOUT_S)
    source = MakerPads(plan, makers, rng=SystemRandom())
    trusted_ms, maker_ms, wall_ms = [], [], []
    for _ in range(1 + repeats):
        ours, theirs, started = time.process_time(), process_s(pid), time.perf_counter()
        source.recycle(source.take(ROWS))
        wall_ms.append(1e3 * (time.perf_counter() - started) / ROWS)
        maker_ms.append(1e3 * (process_s(pid) - theirs) / ROWS)
        trusted_ms.append(1e3 * (time.process_time() - ours) / ROWS)
    makers.close()
    # The first one gives the maker the weights.
    trusted, maker, wall = (statistics.median(one[1:]) for one in (trusted_ms, maker_ms, wall_ms))
    return {
        f"trusted_ms{ending}": trusted,
        f"maker_ms{ending}": maker,
        f"wall_ms{ending}": wall,
        f"trusted_share{ending}": trusted / (trusted + maker),
    }


@contextmanager
def _served_by_tls() -> Iterator[tuple[WorkerLink, int]]:
    """A maker in a process of its own that serves by TLS, and its process id."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "maker"
        words = ("worker", "serve", "--listen", "127.0.0.1:0", "--tls", str(folder))
        with start(python("-m", "cloister", *words), stdout=subprocess.PIPE) as process:
            try:
                said = process.stdout.readline().decode() if process.stdout else ""
                address = said.removeprefix("worker: serving on ").partition(",")[0].strip()
                if not address:
                    raise InputError("the maker did not start")
                certificate = load_certificate(folder / CERTIFICATE_FILE)
                yield connect(address, timeout_s=60.0, certificate=certificate), process.pid
            finally:
                process.kill()


def process_s(pid: int) -> float:
    """CPU time of another process: Linux numbers these clocks by process id."""
    return time.clock_gettime((~pid << 3) | 2)
