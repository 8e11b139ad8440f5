"""A session: a plan, the workers that serve it and the pads that blind it."""

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

import numpy as np

from cloister.crypto.csprng import Csprng, SystemRandom
from cloister.errors import (
    CloisterError,
    PlanError,
    ProtocolError,
    RangeError,
    VerificationError,
    WorkerTimeout,
    WorkerUnavailable,
)
from cloister.plan.plan import Plan
from cloister.plan.policies import Samples, as_samples
from cloister.plan.protection import ENCLAVE
from cloister.trusted.blinded import InlinePads, PadUse
from cloister.trusted.padstore import PadSource
from cloister.trusted.report import Meter, Report, Result
from cloister.trusted.runtime import Runtime
from cloister.wire.link import WorkerLink
from cloister.wire.rpc import RpcLink
from cloister.wire.shm import start_local_worker
from cloister.wire.transcript import RecordingLink, Transcript

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_BATCH = 8


class Session:
    """Runs inputs through a plan; calls from several threads take turns, forks are refused.

    workers          addresses "HOST:PORT" or links; default: one local worker process, started and
                     stopped by the session. A worker that hangs or dies is replaced by the next one
                     and the batch is repeated under fresh pads; a worker that lies is never used
                     again, and the lie is raised.
    pads             where pads come from; default: made inline, in memory
    threads          threads of the trusted side
    record_payloads  keep a copy of every message in the transcript, not only its size
    """

    def __init__(
        self,
        plan: Plan,
        *,
        workers: Sequence[str | WorkerLink] | None = None,
        pads: PadSource | None = None,
        threads: int = 1,
        worker_threads: int = 1,
        batch: int = DEFAULT_BATCH,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        record_payloads: bool = False,
        rng: Csprng | None = None,
    ) -> None:
        if not isinstance(plan, Plan):
            raise PlanError(
                "Session takes a plan: cloister.policies.slalom(model, calibration=...)"
            )
        self.plan = plan
        self._rng = rng or SystemRandom()
        self._timeout_s = timeout_s
        self._record_payloads = record_payloads
        self._batch = batch
        self._links: list[WorkerLink] = []
        self._loaded: list[WorkerLink] = []
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._redraw_due = False
        self._closed = False
        self._lost: list[str] = []
        self._needs_worker = any(p is not ENCLAVE for p in plan.protections.values())
        self._runtime = Runtime(plan, rng=self._rng, threads=threads)
        self._pads = pads
        if pads is not None and pads.plan_digest != plan.digest:
            raise PlanError(
                f"the pads are for plan {pads.plan_digest.hex()[:8]}, not {plan.digest.hex()[:8]}; "
                "make pads for this plan"
            )
        if plan.hidden_nodes and pads is None:
            self._pads = InlinePads(plan, rng=self._rng, threads=threads)
        try:
            self._links = self._connect(workers, worker_threads)
        except CloisterError:
            self.close()
            raise

    def _connect(
        self, workers: Sequence[str | WorkerLink] | None, worker_threads: int
    ) -> list[WorkerLink]:
        if not self._needs_worker:
            return []
        if workers is None:
            return [start_local_worker(threads=worker_threads)]
        if isinstance(workers, str):
            raise PlanError("workers= takes a list, such as ['host:port']")
        if not workers:
            raise PlanError("the plan sends work to a worker, but workers= is empty")
        links = [
            RpcLink(worker, timeout_s=self._timeout_s) if isinstance(worker, str) else worker
            for worker in workers
        ]
        names = [link.name for link in links]
        if len(set(names)) < len(names):
            raise PlanError("workers= names one worker twice: a liar would get a second chance")
        return links

    def run(
        self,
        inputs: Samples,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Result:
        """Outputs for a batch of inputs of any size.

        `progress(done, total)` is called after every micro-batch. All checks of an input have
        passed before its outputs are returned.

        Raises   VerificationError, ProtocolError, PadError, InputError; then nothing was released
        """
        with self._lock:
            return self._run(inputs, progress)

    def _run(self, inputs: Samples, progress: Callable[[int, int], None] | None) -> Result:
        if os.getpid() != self._process:
            raise PlanError("the session belongs to another process; open one in each process")
        if self._closed:
            raise PlanError("the session is closed; open a new one")
        feeds = as_samples(self.plan.graph, inputs)
        _check_finite(feeds)
        total = len(next(iter(feeds.values())))
        step = self._micro_batch(total)
        meter, transcript = Meter(), Transcript()
        parts: list[dict[str, np.ndarray]] = []
        for start in range(0, total, step):
            part = {name: array[start : start + step] for name, array in feeds.items()}
            parts.append(self._run_batch(part, meter, transcript))
            if progress is not None:
                progress(min(start + step, total), total)
        outputs = {
            name: np.concatenate([part[name] for part in parts]) for name in self.plan.graph.outputs
        }
        return Result(outputs, self._report(meter, total), transcript)

    def _micro_batch(self, total: int) -> int:
        if total == 0:
            raise RangeError("no inputs: the batch is empty")
        graph = self.plan.graph
        return self._batch if graph.batch is None and graph.separable else total

    def _run_batch(
        self, feeds: Mapping[str, np.ndarray], meter: Meter, transcript: Transcript
    ) -> dict[str, np.ndarray]:
        if not self._needs_worker:
            return self._attempt(feeds, None, meter, transcript)
        if not self._links:
            raise WorkerUnavailable(
                "no worker is left: every one lied, died or was closed; open a new session"
            )
        while True:
            link = self._links[0]
            try:
                return self._attempt(feeds, link, meter, transcript)
            except (WorkerTimeout, WorkerUnavailable):
                # Nothing was released and the pads of this attempt are spent: the next worker gets
                # the same inputs under fresh pads.
                self._drop(link)
                if not self._links:
                    raise
            except (VerificationError, ProtocolError):
                self._redraw_due = True
                self._drop(link)
                raise

    def _attempt(
        self,
        feeds: Mapping[str, np.ndarray],
        link: WorkerLink | None,
        meter: Meter,
        transcript: Transcript,
    ) -> dict[str, np.ndarray]:
        if self._redraw_due:
            self._runtime.redraw_checks()
            self._redraw_due = False
        if link is not None and link not in self._loaded:
            self._runtime.load(link)
            self._loaded.append(link)
        pads = None
        if self._pads is not None and self.plan.hidden_nodes:
            count = len(next(iter(feeds.values())))
            started = time.process_time()
            pads = PadUse(self._pads, count)
            spent_ms = 1e3 * (time.process_time() - started)
            meter.pads_used += count
            # Unsealing stored pads is part of the request; making pads is not.
            if self._pads.kind == InlinePads.kind:
                meter.offline_ms += spent_ms
            else:
                meter.trusted_ms += spent_ms
        if link is not None:
            link = RecordingLink(link, transcript, payloads=self._record_payloads)
        return self._runtime.run(
            feeds, link=link, pads=pads, meter=meter, timeout_s=self._timeout_s
        )

    def _drop(self, link: WorkerLink) -> None:
        self._links.remove(link)
        self._lost.append(link.name)
        self._loaded = [other for other in self._loaded if other is not link]
        self._runtime.forget(link)
        link.close()

    def _report(self, meter: Meter, inputs: int) -> Report:
        bits = [row.soundness_bits for row in meter.rows.values() if row.soundness_bits is not None]
        return Report(
            policy=self.plan.policy,
            inputs=inputs,
            soundness_bits=min(bits) if bits else None,
            hardware_rooted=False,
            trusted_ms=meter.trusted_ms,
            worker_ms=meter.total("worker_ms"),
            offline_ms=meter.offline_ms,
            bytes_to_worker=int(meter.total("bytes_to_worker")),
            bytes_from_worker=int(meter.total("bytes_from_worker")),
            pads_used=meter.pads_used,
            pads_from=self._pads.kind if self._pads is not None else "none",
            workers=tuple(link.name for link in self._links),
            workers_lost=tuple(self._lost),
            layers=tuple(meter.rows.values()),
        )

    def close(self) -> None:
        """Stop local workers and close links."""
        self._closed = True
        if os.getpid() != self._process:
            return  # a fork's copy: the workers are the parent's
        with self._lock:
            links, self._links = self._links, []
            for link in links:
                self._runtime.forget(link)
                link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _check_finite(feeds: Mapping[str, np.ndarray]) -> None:
    for name, array in feeds.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            flat = np.isfinite(array.reshape(len(array), -1)).all(axis=1)
            first = int(np.flatnonzero(~flat)[0])
            raise RangeError(f"input {name!r}: sample {first} contains NaN or infinity")
