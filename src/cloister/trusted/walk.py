"""Drives the native walker: the fast way through a program over shared memory.

It does what the runtime does step by step, in the same order of release (runtime.py), with the
memory of all messages and values laid out beforehand. Only what needs Python interrupts it: local
nodes, values that come from them, and a worker that does not answer as expected.
"""

import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import numpy as np

import cloister._native as native
from cloister.errors import PlanError
from cloister.plan.protection import ENCLAVE
from cloister.trusted.checks import CheckBook, wrong_answer
from cloister.trusted.pads.maker import PadUse
from cloister.trusted.program.compile import Fuse, Local, Program, Remote, Segment
from cloister.trusted.program.layout import (
    ALIGNMENT,
    ValueKey,
    make_schedule,
    padded,
    value_key,
)
from cloister.trusted.report import Meter
from cloister.trusted.values import Values
from cloister.wire.link import WorkerLink
from cloister.wire.messages import TensorSpec
from cloister.wire.shm.arena import Region
from cloister.wire.shm.exchange import Exchange, make_exchange
from cloister.wire.shm.packets import MAX_PACKET_BYTES, REQUEST_ID_OFFSET
from cloister.wire.shm.shm_link import ShmLink
from cloister.wire.transcript import Crossing, Direction, RecordingLink

# Batch sizes whose memory stays laid out: a session's own, and that of the last, smaller one.
_KEPT_BATCHES = 2


@dataclass
class Trip:
    """One batch on its way through a walk."""

    values: Values
    pads: PadUse | None
    meter: Meter
    timeout_s: float
    recorder: RecordingLink | None
    local: Callable[[int], None]
    clipped: np.ndarray
    next_request_id: int


@dataclass(frozen=True)
class _Entry:
    """A native step for the report and the transcript; a pass exchanges nothing."""

    name: str
    protection: str
    node: int
    exchange: Exchange | None = None
    crossing: Crossing | None = None


@dataclass(frozen=True)
class _Stage:
    """Native steps `first` to `last` - 1, and what Python does before.

    `local` is a local step to run, `inputs` the first native step, a pass whose float32 inputs lie
    elsewhere for every request.
    """

    local: int | None
    inputs: Fuse | None
    first: int
    last: int


class Walk:
    """The native walker of one program, link and batch size. Does not keep the link alive."""

    def __init__(
        self,
        program: Program,
        passes: Mapping[int, native.Pass],
        checks: CheckBook,
        link: ShmLink,
        *,
        batch: int,
        threads: int,
    ) -> None:
        self._program = program
        self._plan = program.plan
        self._checks = checks
        self._schedule = make_schedule(program, batch)
        self._hidden = sorted(self._plan.hidden_nodes)
        self._native = native.Walker(len(self._plan.linear_nodes), batch, threads)
        block = np.empty(self._schedule.private.nbytes + ALIGNMENT, np.uint8)
        self._private = block[-block.ctypes.data % ALIGNMENT :]
        self._values = {
            key: self._inside(key, TensorSpec(np.dtype(np.float32), shape))
            for key, shape in self._schedule.shapes.items()
        }
        self._clipped = np.zeros((len(self._plan.linear_nodes), batch), np.uint64)
        self._entries: list[_Entry] = []
        self._stages: list[_Stage] = []
        self._opening: tuple[int | None, Fuse | None] = (None, None)
        self._written: set[ValueKey] = set()
        self.region = link.reserve(self._schedule.shared.nbytes)
        self._prepare(passes, link)

    def run(self, link: ShmLink, trip: Trip) -> None:
        """Walk the whole program; the values are in the trip's then.

        Raises   VerificationError, ProtocolError, PadError, RangeError
        """
        trip.values.adopt(self._values)
        self._begin(trip)
        try:
            for stage in self._stages:
                if stage.local is not None:
                    trip.local(stage.local)
                if stage.inputs is not None:
                    self._set_inputs(stage.first, stage.inputs, trip)
                self._walk(stage, link, trip)
            trip.clipped[...] = self._clipped
        except BaseException:
            # Ids that an interrupted walk may have used are never used again.
            if self._native.outstanding is None:
                trip.next_request_id += len(self._entries)
            raise
        finally:
            if self._native.outstanding is not None:
                native, request_id = self._native.outstanding
                trip.next_request_id = request_id + 1
                link.adopt(request_id, self._exchange(native), sent=True)
                link.release(request_id)
            self._native.end()

    def _walk(self, stage: _Stage, link: ShmLink, trip: Trip) -> None:
        first = stage.first
        while first < stage.last:
            why, native, request_id, deadline, came = self._native.run(
                first,
                stage.last,
                trip.next_request_id,
                link.descriptor,
                trip.timeout_s,
                MAX_PACKET_BYTES,
            )
            self._account(first, native, link, trip)
            if why == "done":
                break
            entry = self._entries[native]
            if why == "mismatch":
                raise wrong_answer(self._plan.linear_nodes[entry.node].node)
            # Whatever is wrong, the link finds out and raises; it may also be a late answer to
            # an earlier request, and then this one's is still to come.
            _note("to_worker", request_id, entry, trip)
            trip.next_request_id = request_id + 1
            try:
                link.adopt(request_id, self._exchange(native), sent=why != "unsent")
                link.finish(request_id, came, deadline=deadline, timeout_s=trip.timeout_s)
            finally:
                link.release(request_id)
            self._native.answered(native)
            _note("from_worker", request_id, entry, trip)
            self._enter_row(entry, self._native.costs()[native], trip.meter)
            first = native + 1

    def _exchange(self, native: int) -> Exchange:
        exchange = self._entries[native].exchange
        if exchange is None:
            raise PlanError("the native walker stopped at a step that sends nothing")
        return exchange

    # ---- one request

    def _begin(self, trip: Trip) -> None:
        if trip.pads is None:
            self._native.begin(None, (), (), ())
            return
        pad_ids, unblinding = trip.pads.claim_all(self._hidden)
        self._native.begin(trip.pads.key, pad_ids, self._hidden, unblinding)

    def _set_inputs(self, native: int, step: Fuse, trip: Trip) -> None:
        source = residual = None
        if step.source is not None:
            source = trip.values.channels_last(
                step.source, step.size, step.channels_first, step.factors
            )
        if step.epilogue.residual is not None:
            residual = trip.values.channels_last(
                step.epilogue.residual, step.size, step.channels_first
            )
        self._native.set_inputs(native, source, residual)

    def _account(self, first: int, end: int, link: ShmLink, trip: Trip) -> None:
        """Enter completed steps into the report and the transcript."""
        costs = self._native.costs()
        entries = self._entries[first:end]
        for entry, cost in zip(entries, costs[first:end], strict=True):
            self._enter_row(entry, cost, trip.meter)
        if trip.recorder is not None:
            crossings = [entry.crossing for entry in entries if entry.crossing is not None]
            trip.recorder.note_all(trip.next_request_id, crossings)
        exchanges = [entry.exchange for entry in entries if entry.exchange is not None]
        link.count(exchanges)
        trip.next_request_id += len(exchanges)

    def _enter_row(self, entry: _Entry, cost: tuple[int, int], meter: Meter) -> None:
        row = meter.rows.get(entry.name) or meter.row(entry.name, entry.protection)
        if entry.exchange is None:
            row.trusted_ms += 1e-6 * cost[0]
            return
        row.worker_ms += 1e-6 * cost[1]
        row.bytes_to_worker += entry.exchange.message_bytes
        row.bytes_from_worker += entry.exchange.answer_bytes
        row.soundness_bits = self._checks.soundness_bits(entry.node)

    # ---- set-up

    def _prepare(self, passes: Mapping[int, native.Pass], link: ShmLink) -> None:
        first = 0
        for i, step in enumerate(self._program.steps):
            if isinstance(step, Fuse):
                if self._needs_inputs(step):
                    self._close_stage(first)
                    first = len(self._entries)
                    self._opening = (None, step)
                self._add_pass(step, passes[i], link)
            elif isinstance(step, Remote):
                self._add_exchange(step, link)
            elif isinstance(step, Local):
                self._close_stage(first)
                first = len(self._entries)
                self._opening = (i, None)
        self._close_stage(first)

    def _close_stage(self, first: int) -> None:
        local, inputs = self._opening
        last = len(self._entries)
        if last > first or local is not None:
            self._stages.append(_Stage(local, inputs, first, last))
        self._opening = (None, None)

    def _needs_inputs(self, step: Fuse) -> bool:
        """Whether Python has to say for every request where an input of the pass lies."""
        residual = step.epilogue.residual
        return step.node is None or (
            residual is not None and (residual, step.channels_first) not in self._written
        )

    def _add_pass(self, step: Fuse, native: native.Pass, link: ShmLink) -> None:
        linear = None if step.node is None else self._plan.linear_nodes[step.node]
        protection = ENCLAVE if linear is None else self._plan.protection_of(linear)
        kept = self._kept(step)
        windowed = step.epilogue.window is not None
        residual = None
        if not self._needs_inputs(step) and step.epilogue.residual is not None:
            residual = self._values[step.epilogue.residual, step.channels_first]
        self._native.add_pass(
            native,
            -1 if step.node is None else step.node,
            linear is not None and protection.hidden,
            linear is not None and protection.checked,
            None if step.node is None else link.view(*self._answer(step.node)),
            residual,
            None if windowed else kept,
            kept if windowed else None,
            step.sinks,
            [self._message(index, link) for index in step.sinks],
            [self._clipped[index] for index in step.sinks],
        )
        self._entries.append(_Entry(step.name, protection.name, step.node or 0))
        if step.stored:
            self._written.add(value_key(self._program, step.epilogue.value, step.channels_first))

    def _kept(self, step: Fuse) -> np.ndarray | None:
        """Where the pass stores its value, if anybody reads it as float32."""
        if not step.stored:
            return None
        name = step.epilogue.value
        whole = self._values[value_key(self._program, name, step.channels_first)]
        part = self._program.slices.get(name)
        return whole[..., part.offset : part.offset + step.out_size[2]] if part else whole

    def _add_exchange(self, step: Remote, link: ShmLink) -> None:
        node = self._plan.linear_nodes[step.node]
        place, spec = self._place(("message", step.node), self._schedule.messages[step.node])
        exchange = make_exchange(step.node, place, spec, *self._answer(step.node))
        waits = step.node in self._schedule.staged
        self._native.add_exchange(
            step.node,
            exchange.packet,
            exchange.answer,
            REQUEST_ID_OFFSET,
            self._inside(("staged", step.node), spec) if waits else None,
            link.view(place, spec) if waits else None,
        )
        protection = self._plan.protection_of(node)
        crossing = Crossing(step.node, exchange.spec, exchange.expect)
        self._entries.append(_Entry(node.node, protection.name, step.node, exchange, crossing))

    def _message(self, index: int, link: ShmLink) -> np.ndarray:
        spec = self._schedule.messages[index]
        if index in self._schedule.staged:
            return self._inside(("staged", index), spec)
        return link.view(*self._place(("message", index), spec))

    def _answer(self, index: int) -> tuple[Region, TensorSpec]:
        return self._place(("answer", index), self._schedule.answers[index])

    def _place(self, key: Hashable, spec: TensorSpec) -> tuple[Region, TensorSpec]:
        block, offset = self.region, self._schedule.shared.offsets[key]
        return Region(block.segment, block.offset + offset, padded(spec.nbytes)), spec

    def _inside(self, key: Hashable, spec: TensorSpec) -> np.ndarray:
        offset = self._schedule.private.offsets[key]
        return np.ndarray(spec.shape, spec.dtype, buffer=self._private, offset=offset)


class WalkBook:
    """The walks of one runtime, by link and batch size."""

    def __init__(
        self,
        program: Program,
        passes: Mapping[int, native.Pass],
        checks: CheckBook,
        *,
        threads: int,
    ) -> None:
        self._program = program
        self._passes = passes
        self._checks = checks
        self._threads = threads
        self._walks: weakref.WeakKeyDictionary[ShmLink, dict[int, Walk]] = (
            weakref.WeakKeyDictionary()
        )
        self._walkable = not any(isinstance(step, Segment) for step in program.steps)

    def link_of(self, link: WorkerLink | None) -> ShmLink | None:
        """The link that the native walker can use instead of this one, if there is any."""
        if not self._walkable or native.isa() == "portable":
            return None
        plain = link.unrecorded if isinstance(link, RecordingLink) else link
        return plain if isinstance(plain, ShmLink) and plain.idle else None

    def get(self, link: ShmLink, batch: int) -> Walk:
        """The walk for a batch size, prepared on first use."""
        walks = self._walks.setdefault(link, {})
        walk = walks.pop(batch, None)
        if walk is None:
            while len(walks) >= _KEPT_BATCHES:
                link.unreserve(walks.pop(next(iter(walks))).region)
            walk = Walk(
                self._program, self._passes, self._checks, link, batch=batch, threads=self._threads
            )
        # The last one is the one used last.
        walks[batch] = walk
        return walk

    def forget(self, link: WorkerLink) -> None:
        """The link is closed: its memory is not needed any more."""
        if isinstance(link, ShmLink):
            self._walks.pop(link, None)


def _note(direction: Direction, request_id: int, entry: _Entry, trip: Trip) -> None:
    exchange = entry.exchange
    if trip.recorder is not None and exchange is not None:
        spec = exchange.spec if direction == "to_worker" else exchange.expect
        trip.recorder.note(direction, request_id, entry.node, spec)
