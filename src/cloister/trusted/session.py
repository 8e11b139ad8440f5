"""A session: a plan, the workers that serve it and the pads that blind it."""

import importlib
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import groupby
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np

from cloister.base.process_identity import this_process
from cloister.base.rng import Csprng, SystemRandom
from cloister.errors import ClipError, ClipWarning, PlanError, RangeError
from cloister.graph.batch import (
    cut,
    joined,
    rows_of,
    sample_count,
    sizes_remedy,
    where_not_finite,
)
from cloister.plan.plan import Plan
from cloister.plan.samples import Samples, sample_groups
from cloister.trusted.clips import OnClip, clip_text
from cloister.trusted.empty_batch import empty_outputs
from cloister.trusted.executor import Executor
from cloister.trusted.lanes import Lane, Lanes, MicroBatch, Worker
from cloister.trusted.layer_row import LayerRow
from cloister.trusted.pads.maker import InlinePads
from cloister.trusted.pads.source import KnownTo, PadSource
from cloister.trusted.report import Meter, Report, Result
from cloister.trusted.sized_plans import SizedPlans
from cloister.trusted.step_costs import StepCosts
from cloister.trusted.tuning import settle
from cloister.wire.grpc.connect import connect
from cloister.wire.grpc.places import endpoints
from cloister.wire.link import WorkerLink
from cloister.wire.shm.shm_link import connect_local_worker
from cloister.wire.transcript import Transcript

if TYPE_CHECKING:
    from cloister.attest.appraisal import Appraisal
    from cloister.attest.appraiser import Appraiser
    from cloister.attest.policy import Policy
    from cloister.attest.runtime_manifest import RuntimeManifest
    from cloister.bundle.compiled_module import CompiledModule
    from cloister.plan.claims import Claims
    from cloister.trusted.engines.padding_profile import PaddingProfile
    from cloister.trusted.module_engines import ModuleEngines
    from cloister.trusted.pads.makers import MakerAddress, Makers
    from cloister.trusted.query_counter import QueryCounter
    from cloister.trusted.remote_session import RemoteSession

DEFAULT_TIMEOUT_S = 60.0
DEFAULT_BATCH = 8
_LANE_ID_BITS = 40
_MAKERS = "cloister.trusted.pads.makers"
"""Loaded for sessions that use pads of makers only."""
_POLL_US = 2000
"""Longer than most fused steps, which run between an answer and the next request."""


class Session:
    """Runs inputs through a plan; calls from several threads take turns, forks are refused.

    workers          addresses "HOST:PORT" or links; default: one local worker process, which the
                     session starts and stops. That process busy-polls for up to 2 ms before it
                     blocks, if no other thread needs its cores. The session replaces a worker that
                     hangs or dies by another one and repeats the micro-batch under fresh pads. It
                     never uses a worker again that lied, and raises the lie.
    pads             where pads come from; default: made inline, in memory. Pads are for the sizes
                     of the plan's inputs; without them, a plan that was made from a model with
                     free sizes takes inputs of all sizes (sized_plans.py)
    makers           who makes the pads, each when a request needs it: MakerAddress or links of
                     other parties than the workers (pads/makers.py), for plans that check all
                     blinded nodes. A maker that hangs or dies is followed by the next one. Where a
                     check fails, the worker or a maker lied: neither is used again
    insecure_one_party, insecure_plaintext
                     for tests: allow a maker on the machine of a worker, and without encryption
    threads          threads of the trusted side, within one lane
    batch            inputs per micro-batch; a lane computes one micro-batch at a time
    lanes            micro-batches that are computed at once (lanes.py), spread over the workers;
                     more than one needs threads=1. Default: one for each worker, one with
                     threads > 1
    record_payloads  keep a copy of every message in the transcript, not only its size
    on_clip          what to do about inputs outside the calibrated range (clips.py): "warn" with a
                     ClipWarning, "raise" a ClipError, "ignore" them. The report counts clipped
                     values in any case. The request runs to its end first, and never again
    modules          the compiled modules of the plan's hidden parts, by their nodes' names
    engine           what runs them, each in a locked process of its own: "native" (default),
                     "wasm" or "onnxruntime"
    counter          where their queries are counted, if the plan limits them. A module runs, and
                     is charged for, once all checks of what it reads have passed
    padding          what their engines show of sizes and times, in place of the modules' own
    trusted          https://HOST:PORT of a machine on which all of this runs (`cloister trusted
                     serve`); its operator decides how. It gets the plan and inputs once it has
                     proved itself, and proves itself again every ten minutes
    appraisal        what that machine has to prove: the file of a policy, a policy, or an
                     appraiser with collateral
    """

    def __init__(
        self,
        plan: Plan,
        *,
        workers: Sequence[str | WorkerLink] | None = None,
        pads: PadSource | None = None,
        makers: "Sequence[str | MakerAddress | WorkerLink] | None" = None,
        insecure_one_party: bool = False,
        insecure_plaintext: bool = False,
        threads: int = 1,
        worker_threads: int = 1,
        batch: int = DEFAULT_BATCH,
        lanes: int | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        record_payloads: bool = False,
        on_clip: str = OnClip.WARN,
        modules: Mapping[str, "CompiledModule"] | None = None,
        engine: str | None = None,
        counter: "QueryCounter | None" = None,
        padding: "PaddingProfile | None" = None,
        trusted: str | None = None,
        appraisal: "Appraiser | Policy | str | os.PathLike[str] | None" = None,
        rng: Csprng | None = None,
    ) -> None:
        if not isinstance(plan, Plan):
            raise PlanError(
                "Session takes a plan: cloister.policies.slalom(model, calibration=...)"
            )
        if on_clip not in tuple(OnClip):
            raise PlanError(f"on_clip= takes {', '.join(OnClip)}, not {on_clip!r}")
        if pads is not None and trusted is None:
            _check_pads(plan, pads)
        if pads is not None and makers is not None:
            raise PlanError("pads= and makers= are two sources of pads; give one of them")
        self.plan = plan
        self._on_clip = OnClip(on_clip)
        self._rng = rng or SystemRandom()
        self._timeout_s = timeout_s
        self._batch = batch
        self._process = this_process()
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._closed = False
        self._known_to: Sequence[KnownTo] = ()
        self._remote: RemoteSession | None = None
        if trusted is not None or appraisal is not None:
            local = {
                "workers": (workers, None), "pads": (pads, None), "makers": (makers, None),
                "insecure_one_party": (insecure_one_party, False),
                "insecure_plaintext": (insecure_plaintext, False), "threads": (threads, 1),
                "worker_threads": (worker_threads, 1), "batch": (batch, DEFAULT_BATCH),
                "lanes": (lanes, None), "timeout_s": (timeout_s, DEFAULT_TIMEOUT_S),
                "record_payloads": (record_payloads, False), "modules": (modules, None),
                "engine": (engine, None), "counter": (counter, None), "padding": (padding, None),
            }  # fmt: skip
            self._open_remote(trusted, appraisal, local)
            return
        self._needs_worker = any(p.on_worker for p in plan.protections.values())
        if self._needs_worker:
            settle()
        count = _lane_count(lanes, workers if self._needs_worker else (), threads=threads)
        self._makers = _makers(
            plan, makers, timeout_s=timeout_s, insecure_plaintext=insecure_plaintext
        )
        if self._makers is not None:
            self._known_to = self._makers.known_to
        elif pads is not None:
            self._known_to = pads.known_to
        self._one_party = False
        if self._known_to:
            self._one_party = importlib.import_module(_MAKERS).is_one_party(
                self._known_to, workers, insecure_one_party=insecure_one_party
            )
        self._plans = SizedPlans(
            plan,
            lambda one: self._made_pads(one, threads) if pads is None else pads,
            alone=None if pads is None else "the pads are for those of",
        )
        self._engines = _engines(plan, modules, engine, counter, padding, threads=threads)
        try:
            self._open(workers, count, threads, worker_threads, record_payloads)
        except BaseException:
            if self._engines is not None:
                self._engines.close()
            if self._makers is not None:
                self._makers.close()
            raise

    def _open_remote(
        self,
        url: str | None,
        appraisal: "Appraiser | Policy | str | os.PathLike[str] | None",
        local: Mapping[str, tuple[object, object]],
    ) -> None:
        """Have another machine run the plan; what talks to it is loaded for such sessions only.

        Raises   PlanError, AttestationError, ServiceUnavailable, see `connected`
        """
        loaded = importlib.import_module("cloister.trusted.remote_session")
        remote: RemoteSession = loaded.connected(self.plan, url, appraisal, local, rng=self._rng)
        self._plans = SizedPlans(self.plan, lambda _: None, alone=None)
        self._remote, self._group = remote, remote.group

    def _open(
        self,
        workers: Sequence[str | WorkerLink] | None,
        count: int,
        threads: int,
        worker_threads: int,
        record_payloads: bool,
    ) -> None:
        self._made = [
            Lane(
                partial(self._make_executor, i, threads),
                timeout_s=self._timeout_s,
                record_payloads=record_payloads,
                # With several lanes a thread's own clock tells its work from that of the others.
                clock=time.thread_time if count > 1 else time.process_time,
            )
            for i in range(count)
        ]
        self._group = self._batch * count
        self._executor = self._made[0].executor(self._plans.own)
        found = self._connect(workers, count, threads=threads, worker_threads=worker_threads)
        self._lanes = Lanes(self._made, found)

    def _made_pads(self, plan: Plan, threads: int) -> PadSource | None:
        """Pads made when they are needed, if the plan blinds anything."""
        if self._makers is not None:
            return self._makers.pads_of(plan, rng=self._rng)
        return InlinePads(plan, rng=self._rng, threads=threads) if plan.hidden_nodes else None

    def _make_executor(self, lane: int, threads: int, plan: Plan) -> Executor:
        # Ids of different lanes never meet in a transcript.
        first = 1 + (lane << _LANE_ID_BITS)
        return Executor(
            plan,
            rng=self._rng,
            threads=threads,
            first_request_id=first,
            modules=self._engines,
        )

    def _connect(
        self,
        workers: Sequence[str | WorkerLink] | None,
        lanes: int,
        *,
        threads: int,
        worker_threads: int,
    ) -> list[Worker]:
        if not self._needs_worker:
            return []
        if workers is None:
            poll_us = _poll_us(lanes, cores=threads + worker_threads)
            local = connect_local_worker(lanes, threads=worker_threads, poll_us=poll_us)
            return [Worker(local[0].name, list(local))]
        if isinstance(workers, str):
            raise PlanError("workers= takes a list, such as ['host:port']")
        if not workers:
            raise PlanError("the plan sends work to a worker, but workers= is empty")
        found: dict[str, Worker] = {}
        places: dict[object, Worker] = {}
        for i, worker in enumerate(workers):
            links: list[WorkerLink] = []
            if isinstance(worker, str):
                # Lanes go round the workers, so the first ones may get one more.
                count = max(1, -(-(lanes - i) // len(workers)))
                links += [connect(worker, timeout_s=self._timeout_s) for _ in range(count)]
                name = worker
            else:
                links.append(worker)
                name = worker.name
            known = found.setdefault(name, Worker(name, []))
            there = _places(links[0]) if len(workers) > 1 else frozenset()
            if any(places.get(place, known) is not known for place in there) or (
                known.links and not _one_process(known.links[0], links[0])
            ):
                raise PlanError(
                    f"workers= names one worker twice, the second time as {name}: a liar would get "
                    "a second chance"
                )
            places.update(dict.fromkeys(there, known))
            known.links += links
        connections = sum(len(worker.links) for worker in found.values())
        if connections < lanes:
            raise PlanError(
                f"lanes={lanes} needs as many connections, and workers= has {connections}; "
                "give addresses, or more links of connect_local_worker"
            )
        return list(found.values())

    def run(
        self,
        inputs: Samples,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> Result:
        """Outputs for a batch of inputs of any size; see `plan/samples.py` for what may be given.

        The items of an iterator are read while the model runs, a micro-batch for each lane at a
        time, and are not kept. Their outputs are returned together: call `run` once for each item
        where these would not fit in memory.

        `progress(done, total)` is called after every micro-batch; the total of an iterator counts
        what was read so far. All checks of all inputs have passed before outputs are returned.

        Raises   VerificationError, ProtocolError, PadError, InputError; then nothing was released
        """
        result = self._run_groups(inputs, progress)
        beyond = None if self._on_clip is OnClip.IGNORE else clip_text(result.report)
        if beyond is None:
            return result
        if self._on_clip is OnClip.RAISE:
            del result  # an error keeps the frames that it passed through
            raise ClipError(f"{beyond}; nothing was released")
        warnings.warn(beyond, ClipWarning, stacklevel=2)
        return result

    def _run_groups(self, inputs: Samples, progress: Callable[[int, int], None] | None) -> Result:
        results: list[Result] = []
        done = 0
        for feeds in sample_groups(self._plans.inputs, inputs, self._group):
            with self._turn():
                results.append(self._run(feeds, _later(progress, done)))
            done += results[-1].report.inputs
        return self._together(results)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The turn of this thread.

        Raises   PlanError inside the thread's own turn, which it would wait for without an end
        """
        own = threading.get_ident()
        if self._holder == own:
            raise PlanError("run or close was called from the progress callback of run; return")
        with self._lock:
            self._holder = own
            try:
                yield
            finally:
                self._holder = None

    def _run(
        self, feeds: Mapping[str, np.ndarray], progress: Callable[[int, int], None] | None
    ) -> Result:
        if this_process() != self._process:
            raise PlanError("the session belongs to another process; open one in each process")
        if self._closed:
            raise PlanError("the session is closed; open a new one")
        if self._remote is not None:
            return self._together(self._remote.run(self._plans.batches, feeds, progress))
        self._lanes.require_idle()
        if self._lanes.lied:
            for lane in self._made:
                for executor in lane.made.values():
                    executor.redraw_checks()
            self._lanes.lied = False
        started = time.process_time()
        graph = self._plans.batches
        total = sample_count(graph, feeds)
        if total == 0:
            return self._empty(feeds)
        if self._engines is not None:
            self._engines.require(total)
        parts = [feeds] if total <= self._batch else cut(graph, feeds, self._batch)
        jobs = [
            MicroBatch(part, sample_count(graph, part), self._plans.plan_for(part))
            for part in parts
        ]
        if self._plans.made > 1:
            for lane in self._made:
                lane.keep(self._plans.kept)
        reported = _Progress(progress, total)
        try:
            self._lanes.run(jobs, reported)
        except RangeError as error:
            why = where_not_finite(graph, feeds) or sizes_remedy(self._plans.inputs, feeds)
            raise RangeError(f"{error}{why}") from None
        first = jobs[0]
        outputs = first.outputs if len(jobs) == 1 else joined(graph, [job.outputs for job in jobs])
        transcript = jobs[0].transcript
        for job in jobs[1:]:
            transcript.follow(job.transcript)
        beyond = _beyond(jobs)
        spent_ms = 1e3 * (time.process_time() - started - reported.spent_s)
        report = self._report([job.meter for job in jobs], total, beyond, spent_ms)
        return Result(outputs, report, transcript)

    def _empty(self, feeds: Mapping[str, np.ndarray]) -> Result:
        """The result of no sample."""
        names = [node.node for node in self.plan.linear_nodes]
        rows = tuple(LayerRow(name, self.plan.protections[name].name) for name in names)
        outputs = empty_outputs(self.plan, feeds)
        report = replace(self._report((), 0, (), 0.0), parts=(rows,))
        return Result(outputs, report, Transcript())

    def _together(self, results: Sequence[Result]) -> Result:
        """The results of inputs that were run one after the other."""
        first, *others = results
        if not others:
            return first
        report, transcript = first.report, first.transcript
        for other in others:
            report = report.followed_by(other.report)
            transcript.follow(other.transcript)
        outputs = joined(self._plans.batches, [result.outputs for result in results])
        return Result(outputs, report, transcript)

    def _report(
        self, meters: Sequence[Meter], inputs: int, beyond: tuple[int, ...], spent_ms: float
    ) -> Report:
        bits, module_ms, offline_ms = None, 0.0, 0.0
        waited_ns = sent = received = pads_used = queries = 0
        attempts: list[StepCosts] = []
        for meter in meters:
            offline_ms += meter.offline_ms
            pads_used += meter.pads_used
            attempts += meter.attempts
        for attempt in attempts:
            waited, to_worker, from_worker = attempt.exchanged()
            waited_ns, sent, received = waited_ns + waited, sent + to_worker, received + from_worker
            queries += attempt.queries
            for ms in attempt.module_ms.values():
                module_ms += ms
            lowest = attempt.table.lowest_bits
            if lowest is not None:
                bits = lowest if bits is None else min(bits, lowest)
        return Report(
            policy=self.plan.policy,
            inputs=inputs,
            soundness_bits=bits,
            trusted_ms=max(spent_ms - offline_ms, 0.0),
            worker_ms=1e-6 * waited_ns,
            module_ms=module_ms,
            offline_ms=offline_ms,
            bytes_to_worker=sent,
            bytes_from_worker=received,
            pads_used=pads_used,
            pads_from=self._pads_from(),
            workers=self._lanes.workers,
            workers_lost=tuple(self._lanes.lost),
            makers=() if self._makers is None else self._makers.names,
            makers_lost=() if self._makers is None else self._makers.lost,
            inputs_beyond=beyond,
            queries_used=queries,
            queries_left=None if self._engines is None else self._engines.left(),
            plans_made=self._plans.made,
            parts=tuple(attempts),
        )

    def _pads_from(self) -> str:
        pads = self._plans.own.pads
        if pads is None:
            return "none"
        if self._one_party:
            return f"{pads.kind}, of one party with a worker, which can read every input"
        return pads.kind

    @property
    def appraisal(self) -> "Appraisal | None":
        """The latest one of the machine that `trusted` names; None for this machine."""
        return None if self._remote is None else self._remote.appraisal

    @property
    def manifest(self) -> "RuntimeManifest | None":
        """With what the runtime of that machine was started; None for this machine."""
        return None if self._remote is None else self._remote.manifest

    def claims(self, *, pinned: bool = True) -> "Claims":
        """What each party can learn and do: the claims of the plan, and those about its makers.

        With `trusted`, the operator of that machine is one of them.
        """
        claims = self.plan.claims(pinned=pinned)
        if self._remote is not None:
            return self._remote.claims(claims)
        if not self._known_to:
            return claims
        encrypted = all(maker.encrypted for maker in self._known_to)
        loaded = importlib.import_module("cloister.plan.maker_claims")
        found: Claims = loaded.with_makers(claims, one_party=self._one_party, encrypted=encrypted)
        return found

    def close(self) -> None:
        """Stop local workers and engines, close links, overwrite what is left of spent pads."""
        self._closed = True
        if this_process() != self._process:
            return  # a fork's copy: the workers are the parent's
        with self._turn():
            if self._remote is not None:
                self._remote.close()
                return
            self._lanes.close()
            self._plans.close()
            if self._makers is not None:
                self._makers.close()
            if self._engines is not None:
                self._engines.close()

    def __enter__(self) -> Self:
        """The session, prepared for its first request.

        Workers get the weights, and memory for a micro-batch is there. A worker that fails
        meanwhile is treated as in a request, and a lie is raised by the first one.
        """
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise
        return self

    def _prepare(self) -> None:
        if self._closed or self._remote is not None or this_process() != self._process:
            return
        with self._turn():
            own = self._plans.own
            self._lanes.prepare(own, rows_of(own.plan.graph, self._batch))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _engines(
    plan: Plan,
    modules: Mapping[str, "CompiledModule"] | None,
    engine: str | None,
    counter: "QueryCounter | None",
    padding: "PaddingProfile | None",
    *,
    threads: int,
) -> "ModuleEngines | None":
    """The engines of the plan's modules; what runs them is loaded for such plans only.

    Raises   PlanError for arguments that the plan does not use, and see `ModuleEngines`
    """
    if not plan.modules:
        options = {"modules": modules, "engine": engine, "counter": counter, "padding": padding}
        for name, given in options.items():
            if given is not None:
                raise PlanError(f"the plan has no hidden part; leave out {name}=")
        return None
    loaded = importlib.import_module("cloister.trusted.module_engines")
    engines: ModuleEngines = loaded.ModuleEngines(
        plan, modules or {}, kind=engine or loaded.ENGINES[0], counter=counter, padding=padding,
        threads=threads,
    )  # fmt: skip
    return engines


def _makers(
    plan: Plan,
    makers: "Sequence[str | MakerAddress | WorkerLink] | None",
    *,
    timeout_s: float,
    insecure_plaintext: bool,
) -> "Makers | None":
    """The makers of a session's pads; what asks them is loaded for such sessions only.

    Raises   PlanError, InputError, see `Makers.open`
    """
    if makers is None:
        return None
    loaded = importlib.import_module(_MAKERS)
    found: Makers = loaded.Makers.open(
        plan, makers, timeout_s=timeout_s, insecure_plaintext=insecure_plaintext
    )
    return found


def _check_pads(plan: Plan, pads: PadSource) -> None:
    """Refuse pads of another plan, and pads for a plan that would not use them.

    Raises   PlanError
    """
    if pads.plan_digest != plan.digest:
        raise PlanError(
            f"the pads are for plan {pads.plan_digest.hex()[:8]}, not {plan.digest.hex()[:8]}; "
            "make pads for this plan"
        )
    if not plan.hidden_nodes:
        raise PlanError(f"policy {plan.policy!r} blinds nothing; leave out pads=")


def _later(tell: Callable[[int, int], None] | None, done: int) -> Callable[[int, int], None] | None:
    """Progress of inputs that follow others."""
    if tell is None or done == 0:
        return tell
    return lambda more, total: tell(done + more, done + total)


class _Progress:
    """Tells a caller how far a call is, and keeps the time that takes the caller."""

    def __init__(self, tell: Callable[[int, int], None] | None, total: int) -> None:
        self.spent_s = 0.0
        self._tell = tell
        self._total = total
        self._done = 0

    def __call__(self, job: MicroBatch) -> None:
        self._done += job.size
        if self._tell is not None:
            started = time.thread_time()
            self._tell(self._done, self._total)
            self.spent_s += time.thread_time() - started


def _poll_us(lanes: int, *, cores: int) -> int:
    """Microseconds for which a local worker busy-polls; none if other threads need its cores.

    Several lanes keep a worker busy, and those of its threads that wait would disturb it.
    """
    return _POLL_US if lanes == 1 and cores <= len(os.sched_getaffinity(0)) else 0


def _lane_count(
    lanes: int | None, workers: Sequence[str | WorkerLink] | None, *, threads: int
) -> int:
    if lanes is None:
        # One for each worker, as far as the clocks allow.
        several = len(workers) if workers and not isinstance(workers, str) else 1
        return several if threads == 1 else 1
    if lanes < 1:
        raise PlanError(f"lanes= must be at least 1, got {lanes}")
    if lanes > 1 and threads > 1:
        raise PlanError(
            "several lanes have one thread each, so that their work is counted apart: threads=1"
        )
    return lanes


def _places(link: WorkerLink) -> frozenset[object]:
    """What two links to one worker have in common, however they are named.

    Raises   InputError when an address leads nowhere
    """
    if link.address is not None:
        return frozenset(endpoints(link.address))
    return frozenset() if link.pid is None else frozenset({link.pid})


def _one_process(one: WorkerLink, other: WorkerLink) -> bool:
    """Whether two links are connections to one local worker."""
    return one.pid is not None and one.pid == other.pid


def _beyond(jobs: Sequence[MicroBatch]) -> tuple[int, ...]:
    """The inputs outside the calibrated range, of all micro-batches.

    Rows of a batch that is bound need not be its inputs: then any of these may lie outside.
    """
    if len(jobs) == 1:
        return _of_one_plan(jobs)
    beyond: list[int] = []
    first = 0
    for _, group in groupby(jobs, key=lambda job: job.sized):
        some = list(group)
        beyond += [first + i for i in _of_one_plan(some)]
        first += sum(job.size for job in some)
    return tuple(beyond)


def _of_one_plan(jobs: Sequence[MicroBatch]) -> tuple[int, ...]:
    clipped = jobs[0].meter.clipped
    if len(jobs) > 1:
        clipped = np.concatenate([job.meter.clipped for job in jobs], axis=1)
    found = jobs[0].sized.clips.beyond(clipped)
    if not found:
        return ()
    inputs = sum(job.size for job in jobs)
    return found if clipped.shape[1] == inputs else tuple(range(inputs))
