"""Lanes: several micro-batches of one call on their way at once.

A lane is an executor of its own (check vectors, native steps, memory) with a connection of its own
to a worker. Lanes share the plan and the source of pads, nothing else: while a worker computes for
one lane, the trusted steps of another run. With one lane, or one micro-batch, everything happens
in the caller's thread; otherwise every lane has a thread for the time of the call.

The lanes cut all connections of a worker that lies, hangs or dies, at once. Lanes of other workers
finish their micro-batch; after a lie its outputs are dropped.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from cloister.errors import (
    EngineError,
    ProtocolError,
    VerificationError,
    WorkerTimeout,
    WorkerUnavailable,
)
from cloister.graph.batch import row_count
from cloister.plan.plan import Plan
from cloister.trusted.executor import Executor
from cloister.trusted.pads.maker import InlinePads, PadUse
from cloister.trusted.report import Meter
from cloister.trusted.sized_plans import SizedPlan
from cloister.wire.link import WorkerLink
from cloister.wire.transcript import RecordingLink, Transcript

_log = logging.getLogger("cloister.session")
_GONE = (WorkerTimeout, WorkerUnavailable)
_GRACE_S = 2.0
"""How long an interrupted call lets its lanes finish before it cuts them off."""


def _is_lie(error: BaseException) -> bool:
    """Whether a worker answered what it may not; the engine of a module is no worker."""
    lies = (VerificationError, ProtocolError)
    return isinstance(error, lies) and not isinstance(error, EngineError)


@dataclass(eq=False)
class Worker:
    """An untrusted worker and every connection to it."""

    name: str
    links: list[WorkerLink]


@dataclass(eq=False)
class MicroBatch:
    """A micro-batch and its plan; `outputs` is there once all of its checks have passed."""

    feeds: Mapping[str, np.ndarray]
    size: int
    sized: SizedPlan
    meter: Meter = field(default_factory=Meter)
    transcript: Transcript = field(default_factory=Transcript)
    outputs: dict[str, Any] = field(default_factory=dict)


class Lane:
    """An executor for each plan, made when first needed, and the connection that it uses now.

    make               makes the executor of a plan
    record_payloads    keep a copy of every message in the transcript
    clock              CPU seconds of what works for this lane
    """

    def __init__(
        self,
        make: Callable[[Plan], Executor],
        *,
        timeout_s: float,
        record_payloads: bool,
        clock: Callable[[], float],
    ) -> None:
        self._make = make
        self._timeout_s = timeout_s
        self._record_payloads = record_payloads
        self._clock = clock
        self._loaded: tuple[WorkerLink, Executor] | None = None
        self._used: Executor | None = None
        self.made: dict[SizedPlan, Executor] = {}
        self.worker: Worker | None = None
        self.link: WorkerLink | None = None
        self.busy = False

    def executor(self, sized: SizedPlan) -> Executor:
        """The lane's own executor of a plan."""
        if sized not in self.made:
            self.made[sized] = self._make(sized.plan)
        return self.made[sized]

    def keep(self, plans: Collection[SizedPlan]) -> None:
        """Close the executors of all other plans."""
        for sized in [one for one in self.made if one not in plans]:
            gone = self.made.pop(sized)
            gone.close()
            if self._loaded is not None and self._loaded[1] is gone:
                self._loaded = None

    def compute(self, job: MicroBatch) -> dict[str, Any]:
        """The outputs of a micro-batch, under fresh pads; in the lane's thread."""
        link, executor = self.link, self._next_executor(job.sized)
        self._load(executor)
        pads, source = None, job.sized.pads
        if source is not None:
            rows = row_count(executor.plan.graph, job.feeds)
            # Unsealing stored pads is part of the request; making pads is not.
            made = isinstance(source, InlinePads)
            started = self._clock() if made else 0.0
            pads = PadUse(source, rows)
            if made:
                job.meter.offline_ms += 1e3 * (self._clock() - started)
            job.meter.pads_used += rows
        if link is not None:
            link = RecordingLink(link, job.transcript, payloads=self._record_payloads)
        return executor.run(
            job.feeds, link=link, pads=pads, meter=job.meter, timeout_s=self._timeout_s
        )

    def prepare(self, sized: SizedPlan, rows: int | None) -> None:
        """Do what the first micro-batch would wait for: load the worker, lay out memory for rows.

        The worker sees what it is loaded with, and nothing else.
        """
        executor = self.executor(sized)
        self._load(executor)
        if rows is not None:
            executor.prepare(self.link, rows)

    def _load(self, executor: Executor) -> None:
        """Give the lane's worker the weights of a plan, unless it has them."""
        link = self.link
        if link is not None and self._loaded != (link, executor):
            # Half loaded, the worker would apply maps of another plan.
            self._loaded = None
            executor.load(link)
            self._loaded = link, executor

    def _next_executor(self, sized: SizedPlan) -> Executor:
        """The executor of a plan, which goes on with the request ids of the one before."""
        executor, before = self.executor(sized), self._used
        if before is not None and before is not executor:
            executor.next_request_id = before.next_request_id
        self._used = executor
        return executor

    def disconnect(self) -> None:
        """Close the connection and keep nothing of it."""
        if self.link is not None:
            for executor in self.made.values():
                executor.forget(self.link)
            self.link.close()
        self.worker = self.link = self._loaded = None


class Lanes:
    """Hands micro-batches to lanes.

    workers   empty when the plan sends nothing out: then lanes need no connection
    """

    def __init__(self, lanes: Sequence[Lane], workers: Sequence[Worker]) -> None:
        self.lost: list[str] = []
        self.lied = False
        self._lanes = list(lanes)
        self._workers = list(workers)
        self._alone = not workers
        self._changed = threading.Condition()
        self._queue: deque[MicroBatch] = deque()
        self._done: list[MicroBatch] = []
        self._wanted = 0
        self._serving = 0
        self._threads: list[threading.Thread] = []
        self._failure: BaseException | None = None
        self._last: Exception | None = None
        for i, lane in enumerate(self._lanes):
            turn = i % max(len(self._workers), 1)
            self._bind(lane, self._workers[turn:] + self._workers[:turn])

    @property
    def workers(self) -> tuple[str, ...]:
        """Names of the workers that are left."""
        return tuple(worker.name for worker in self._workers)

    def require_idle(self) -> None:
        """Make sure that no lane still computes for a call that was interrupted.

        Raises   WorkerUnavailable: an executor serves one thread at a time
        """
        if any(thread.is_alive() for thread in self._threads):
            raise WorkerUnavailable(
                "lanes of an interrupted call still run; wait, or open a new session"
            )

    def run(self, jobs: Sequence[MicroBatch], done: Callable[[MicroBatch], None]) -> None:
        """Compute all micro-batches; `done` is called for each in the caller's thread.

        Raises   whatever made a lane fail, a lie first; WorkerUnavailable or WorkerTimeout when no
                 worker is left
        """
        self._queue, self._done, self._wanted = deque(jobs), [], len(jobs)
        ready = [lane for lane in self._lanes if self._usable(lane)]
        try:
            if len(jobs) == 1 or len(ready) < 2:
                for lane in ready:
                    self._serve(lane, done)
            else:
                plans = list(dict.fromkeys(job.sized for job in jobs))
                self._run_threads(ready, plans, self._serve, done)
        except BaseException:
            # It may have arrived between a lie and its record.
            self.lied = True
            self._failure = self._last = None
            raise
        # Nothing of this call is kept, least of all an error with the frames it passed through.
        failure, last = self._failure, self._last
        missing = len(self._done) < self._wanted
        self._failure, self._last, self._done = None, None, []
        self._queue.clear()
        if failure is not None:
            raise failure
        if missing:
            raise last or WorkerUnavailable(
                "no worker is left: every one lied, died or was closed; open a new session"
            )

    def prepare(self, sized: SizedPlan, rows: int | None) -> None:
        """Prepare every lane for micro-batches of so many rows; None: load the workers alone.

        A worker that lies, hangs or dies meanwhile is not used again, and a lie is raised by the
        next `run`, like that of a request.

        Raises   whatever else made a lane fail
        """
        ready = [lane for lane in self._lanes if self._usable(lane)]
        work = partial(self._prepare, sized=sized, rows=rows)
        self._done, self._wanted = [], 0
        if len(ready) < 2:
            for lane in ready:
                work(lane)
        else:
            self._run_threads(ready, [sized], work)
        failure = self._failure
        if failure is not None and not _is_lie(failure):
            self._failure = None
            raise failure

    def close(self) -> None:
        """Close every connection."""
        with self._changed:
            workers, self._workers = self._workers, []
            for worker in workers:
                self._disconnect(worker)

    # ---- a lane's thread

    def _serve(self, lane: Lane, done: Callable[[MicroBatch], None] | None = None) -> None:
        """Work until nothing is left to do, or the lane has lost its worker."""
        while (job := self._next(lane)) is not None:
            error: BaseException | None = None
            try:
                job.outputs = lane.compute(job)
            # An interrupt must stop all lanes too; `run` raises it.
            except BaseException as caught:  # noqa: BLE001
                error = caught
            with self._changed:
                lane.busy = False
                self._finish(lane, job, error)
                self._changed.notify_all()
            if error is None and done is not None:
                done(job)

    def _prepare(self, lane: Lane, *, sized: SizedPlan, rows: int | None) -> None:
        """Prepare a lane, with another worker if it loses this one."""
        ready = False
        while not ready and self._failure is None and self._usable(lane):
            error: BaseException | None = None
            lane.busy = True
            try:
                lane.prepare(sized, rows)
            # An interrupt must stop all lanes too; `prepare` raises it.
            except BaseException as caught:  # noqa: BLE001
                error = caught
            with self._changed:
                lane.busy = False
                self._settle(lane, error)
            ready = error is None

    def _next(self, lane: Lane) -> MicroBatch | None:
        with self._changed:
            while not self._queue:
                if self._over(lane):
                    return None
                # Another lane may fail, and its micro-batch come back.
                self._changed.wait()
            if self._over(lane):
                return None
            lane.busy = True
            return self._queue.popleft()

    def _over(self, lane: Lane) -> bool:
        finished = len(self._done) == self._wanted
        return finished or self._failure is not None or not self._usable(lane)

    def _finish(self, lane: Lane, job: MicroBatch, error: BaseException | None) -> None:
        """Settle an attempt; the lock is held."""
        if error is None:
            self._done.append(job)
        elif isinstance(error, _GONE):
            # Nothing was released and the pads of this attempt are spent: the next lane gets the
            # same inputs under fresh pads.
            self._queue.appendleft(job)
        self._settle(lane, error)

    def _settle(self, lane: Lane, error: BaseException | None) -> None:
        """Drop a worker that failed, and take another one; the lock is held."""
        if isinstance(error, _GONE):
            if lane.worker in self._workers:
                self._last = error
            self._drop(lane.worker)
        elif error is not None:
            lie = _is_lie(error)
            if self._failure is None or (lie and not _is_lie(self._failure)):
                self._failure = error
            # An interrupt may have arrived in place of a lie: the coefficients are redrawn too.
            self.lied = self.lied or lie or not isinstance(error, Exception)
            if lie:
                self._drop(lane.worker)
        if lane.worker is not None and lane.worker not in self._workers:
            self._unbind(lane)

    # ---- the caller's thread, when lanes have their own

    def _run_threads(
        self,
        ready: Sequence[Lane],
        plans: Sequence[SizedPlan],
        work: Callable[[Lane], None],
        done: Callable[[MicroBatch], None] | None = None,
    ) -> None:
        """Do a lane's work in a thread of its own, for every lane that is ready."""
        for lane in ready:
            for sized in plans:
                # Made here, one after the other: they draw from one generator.
                lane.executor(sized)
        threads = [
            threading.Thread(target=self._thread, args=(lane, work), name=f"lane {i}", daemon=True)
            for i, lane in enumerate(ready)
        ]
        self._threads, self._serving = threads, 0
        try:
            for thread in threads:
                self._start(thread)
            self._watch(done)
        except BaseException as error:
            self._halt(error)
            raise
        finally:
            for thread in threads:
                if thread.ident is not None:
                    thread.join()

    def _start(self, thread: threading.Thread) -> None:
        with self._changed:
            self._serving += 1
        try:
            thread.start()
        except RuntimeError:  # the system has no thread to give
            with self._changed:
                self._serving -= 1
            raise

    def _thread(self, lane: Lane, work: Callable[[Lane], None]) -> None:
        try:
            work(lane)
        # The error of a thread is raised by `run`.
        except BaseException as error:  # noqa: BLE001
            with self._changed:
                self._failure = self._failure or error
        finally:
            with self._changed:
                self._serving -= 1
                self._changed.notify_all()

    def _watch(self, done: Callable[[MicroBatch], None] | None) -> None:
        reported = 0
        while True:
            with self._changed:
                while self._serving and len(self._done) == reported:
                    self._changed.wait()
                fresh, serving = self._done[reported:], self._serving
            if done is not None:
                for job in fresh:
                    done(job)
            reported += len(fresh)
            if not serving:
                return

    def _halt(self, error: BaseException) -> None:
        """Stop all lanes: soon, or else by cutting them off from workers that do not answer."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: not self._serving, _GRACE_S):
                for lane in self._lanes:
                    if lane.busy:
                        self._drop(lane.worker)

    # ---- workers and connections; the lock is held

    def _usable(self, lane: Lane) -> bool:
        return self._alone or lane.link is not None

    def _bind(self, lane: Lane, workers: Sequence[Worker]) -> None:
        """Give a lane a connection that no other lane uses, if there is one."""
        used = [other.link for other in self._lanes]
        for worker in workers:
            for link in worker.links:
                if not any(link is other for other in used):
                    lane.worker, lane.link = worker, link
                    return

    def _unbind(self, lane: Lane) -> None:
        """Close the connection of a worker that was dropped, and take another worker's."""
        lane.disconnect()
        self._bind(lane, self._workers)

    def _drop(self, worker: Worker | None) -> None:
        """Never use a worker again."""
        if worker is None or worker not in self._workers:
            return
        self._workers.remove(worker)
        self.lost.append(worker.name)
        _log.info("worker %s hung, died or lied, and is not used again", worker.name)
        self._disconnect(worker)

    def _disconnect(self, worker: Worker) -> None:
        """Close all connections but those in use, which are cut and closed by who uses them."""
        using = {id(lane.link): lane for lane in self._lanes if lane.worker is worker}
        for link in worker.links:
            lane = using.get(id(link))
            if lane is None:
                link.close()
            elif lane.busy:
                link.cut()
            else:
                self._unbind(lane)
