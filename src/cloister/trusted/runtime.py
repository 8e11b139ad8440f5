"""Walks a program for one batch of inputs: the trusted side of every protection.

The order of release: a node's answer is compared with its check before the next message is sent
and before any output is returned. The one exception is harmless: the native pass that reads an
answer writes the next *blinded* request while it reads, and such a request is uniform whatever was
tampered with. A request in the clear is therefore written to private memory first whenever the
plan hides anything, and copied out only after the checks.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import onnxruntime as ort

import cloister._native as native
from cloister.base.reading import require_truths
from cloister.base.rng import Csprng, pad_stream
from cloister.errors import PlanError, ProtocolError, RangeError, UnsupportedError
from cloister.graph.batch import bound_sizes, element_type, row_count
from cloister.graph.graph import Graph
from cloister.graph.interpreter import ORT_ERRORS, runtime_session
from cloister.graph.onnx.export import to_model
from cloister.plan.plan import Plan
from cloister.trusted.checks import CheckBook, accept
from cloister.trusted.pads.maker import PadUse
from cloister.trusted.program.compile import (
    Fuse,
    Local,
    Program,
    Remote,
    Segment,
    compile_plan,
)
from cloister.trusted.report import Meter
from cloister.trusted.values import Values
from cloister.trusted.walk import Trip, WalkBook
from cloister.wire.link import WorkerLink
from cloister.wire.messages import TensorSpec
from cloister.wire.shm.shm_link import ShmLink
from cloister.wire.transcript import RecordingLink


@dataclass
class _Request:
    """One batch in flight: its values, messages and sums."""

    link: WorkerLink | None
    pads: PadUse | None
    meter: Meter
    feeds: Mapping[str, np.ndarray]
    values: Values
    batch: int
    timeout_s: float
    clipped: np.ndarray
    messages: dict[int, np.ndarray] = field(default_factory=dict)
    request_sums: dict[int, np.ndarray] = field(default_factory=dict)
    replies: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)


class Runtime:
    """A compiled plan with its check vectors, ready to run batches.

    Not for use by several threads at once; several runtimes of one plan run side by side, each
    with its own links.
    """

    def __init__(
        self, plan: Plan, *, rng: Csprng, threads: int = 1, first_request_id: int = 1
    ) -> None:
        self.plan = plan
        self.program: Program = compile_plan(plan)
        self.checks = CheckBook(plan, rng=rng)
        self._threads = threads
        # Other runtimes may run in other threads; helper threads are only seen by the process's
        # clock.
        self._clock = time.thread_time if threads == 1 else time.process_time
        self._hides = bool(plan.hidden_nodes)
        self._passes: dict[int, native.Pass] = {}
        self._sessions: dict[int, ort.InferenceSession] = {}
        for i, step in enumerate(self.program.steps):
            if isinstance(step, Fuse):
                self._passes[i] = _native_pass(plan, step)
            elif isinstance(step, Local):
                self._sessions[i] = _local_session(plan.graph, step, threads)
        self._walks = WalkBook(self.program, self._passes, self.checks, threads=threads)
        self._request_ids = first_request_id - 1
        self._install_checks()

    def redraw_checks(self) -> None:
        """New secret coefficients for every checked node."""
        retired = self.checks.redraw()
        self._install_checks()
        retired.erase()

    def forget(self, link: WorkerLink) -> None:
        """A link was closed: let go of the memory it shared."""
        self._walks.forget(link)

    def load(self, link: WorkerLink) -> None:
        """Give a worker the linear maps and open segments it will be asked for."""
        for index, node in enumerate(self.plan.linear_nodes):
            link.load_linear(index, node.linear)
        for step in self.program.steps:
            if isinstance(step, Segment):
                model = to_model(
                    self.plan.graph, nodes=step.nodes, inputs=step.inputs, outputs=step.outputs
                )
                link.load_segment(step.target, model.SerializeToString())

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        *,
        link: WorkerLink | None,
        pads: PadUse | None,
        meter: Meter,
        timeout_s: float,
    ) -> dict[str, np.ndarray]:
        """Run one batch; the outputs by name.

        Raises   VerificationError, ProtocolError, PadError, RangeError; then nothing was released
        """
        rows = row_count(self.plan.graph, feeds)
        values = Values(self.plan.graph, feeds, self.program.slices, rows=rows)
        clipped = np.zeros((len(self.plan.linear_nodes), rows), np.uint64)
        request = _Request(link, pads, meter, feeds, values, rows, timeout_s, clipped)
        # Not added: an attempt that was given up and repeated is counted once.
        meter.clipped = clipped
        try:
            walkable = self._walks.link_of(link)
            if walkable is not None:
                return self._walk(walkable, request)
            for i, step in enumerate(self.program.steps):
                if isinstance(step, Fuse):
                    self._fuse(i, step, request)
                elif isinstance(step, Remote):
                    self._remote(step, request)
                elif isinstance(step, Segment):
                    self._segment(step, request)
                else:
                    self._local(i, step, request)
            return {name: request.values.onnx(name) for name in self.plan.graph.outputs}
        finally:
            for request_id, _ in request.replies.values():
                _link(request).release(request_id)
            if pads is not None:
                pads.erase()

    def _walk(self, link: ShmLink, request: _Request) -> dict[str, np.ndarray]:
        """The same steps natively, over shared memory."""
        recorder = request.link if isinstance(request.link, RecordingLink) else None

        def local(i: int) -> None:
            step = self.program.steps[i]
            if isinstance(step, Local):
                self._local(i, step, request)

        walk = self._walks.get(link, request.batch)
        trip = Trip(
            request.values,
            request.pads,
            request.meter,
            request.timeout_s,
            recorder,
            local,
            clipped=request.clipped,
            next_request_id=self._request_ids + 1,
        )
        try:
            walk.run(link, trip)
        finally:
            self._request_ids = trip.next_request_id - 1
        # The walk uses its memory again.
        return {name: request.values.onnx(name).copy() for name in self.plan.graph.outputs}

    # ---- one linear node

    def _remote(self, step: Remote, request: _Request) -> None:
        node = self.plan.linear_nodes[step.node]
        row = request.meter.row(node.node, self.plan.protection_of(node).name)
        message = request.messages.pop(step.node)
        expect = TensorSpec(np.dtype(np.uint32), (request.batch, *node.linear.geometry.out_shape))
        started = time.perf_counter()
        request_id = self._next_request_id()
        link = _link(request)
        link.submit(request_id, step.node, (message,), (expect,))
        (reply,) = link.receive(request_id, timeout_s=request.timeout_s)
        row.worker_ms += 1e3 * (time.perf_counter() - started)
        row.bytes_to_worker += message.nbytes
        row.bytes_from_worker += 4 * request.batch * node.linear.geometry.out_elements
        row.soundness_bits = self.checks.soundness_bits(step.node)
        # The reply stays unchecked until the pass that follows has compared both sides.
        request.replies[step.node] = (request_id, reply.expose_unchecked())

    def _fuse(self, i: int, step: Fuse, request: _Request) -> None:
        started = self._clock()
        source, unblinding = self._source_of(step, request)
        residual = step.epilogue.residual
        kept = (
            request.values.new(step.epilogue.value, step.out_size, step.channels_first)
            if step.stored
            else None
        )
        added = (
            request.values.channels_last(residual, step.size, step.channels_first)
            if residual
            else None
        )
        answer_sums = np.zeros(request.batch, np.uint64)
        request_sums = np.zeros((len(step.sinks), request.batch), np.uint64)
        clipped = np.zeros((len(step.sinks), request.batch), np.uint64)
        sinks = [self._sink(index, request) for index in step.sinks]
        for j in range(request.batch):
            one = slice(j, j + 1)
            self._passes[i].run(
                1,
                source[one],
                None if unblinding is None else unblinding[j][None],
                None if added is None else added[one],
                None if kept is None or step.epilogue.window else kept[one],
                kept[one] if kept is not None and step.epilogue.window else None,
                [sink.message[one] for sink in sinks],
                [sink.key for sink in sinks],
                [sink.nonces[j] if sink.nonces else None for sink in sinks],
                [sink.explicit_pad(j) for sink in sinks],
                answer_sums[one],
                request_sums[:, one],
                clipped[:, one],
                self._threads,
            )
        if step.node is not None:
            request_id, _ = request.replies.pop(step.node)
            _link(request).release(request_id)
            self._accept(step.node, answer_sums, request)
        request.clipped[list(step.sinks)] = clipped
        for index, sink, sums in zip(step.sinks, sinks, request_sums, strict=True):
            request.messages[index] = sink.message
            request.request_sums[index] = sums.copy()
        protection = self._row_protection(step)
        row = request.meter.row(step.name, protection)
        row.trusted_ms += 1e3 * (self._clock() - started)

    def _source_of(
        self, step: Fuse, request: _Request
    ) -> tuple[np.ndarray, list[np.ndarray] | None]:
        if step.node is None:
            name = step.source or ""
            found = request.values.channels_last(name, step.size, step.channels_first, step.factors)
            return found, None
        reply = request.replies[step.node][1]
        node = self.plan.linear_nodes[step.node]
        if not self.plan.protection_of(node).hidden:
            return reply, None
        return reply, _pads(request).unblinding(step.node)

    def _accept(self, index: int, answer_sums: np.ndarray, request: _Request) -> None:
        node = self.plan.linear_nodes[index]
        if self.plan.protection_of(node).checked:
            accept(answer_sums, request.request_sums.pop(index), node=node.node)

    def _sink(self, index: int, request: _Request) -> "_Sink":
        node = self.plan.linear_nodes[index]
        shape = (request.batch, *node.linear.geometry.in_shape)
        if self.plan.protection_of(node).hidden:
            message = _link(request).send_buffer(TensorSpec(np.dtype(np.uint32), shape))
            pads = _pads(request)
            return _Sink(message, pads.key, pads.nonces(index))
        if self._hides:
            return _Sink(np.empty(shape, np.int16))
        return _Sink(_link(request).send_buffer(TensorSpec(np.dtype(np.int16), shape)))

    def _row_protection(self, step: Fuse) -> str:
        if step.node is None:
            return "enclave"
        return self.plan.protection_of(self.plan.linear_nodes[step.node]).name

    # ---- open segments and local nodes

    def _segment(self, step: Segment, request: _Request) -> None:
        row = request.meter.row(f"open segment {step.nodes[0].name}", "open")
        tensors = tuple(np.asarray(request.values.onnx(v), order="C") for v in step.inputs)
        sizes = bound_sizes(self.plan.graph, request.feeds)
        expect = tuple(self._spec(value, sizes) for value in step.outputs)
        started = time.perf_counter()
        request_id = self._next_request_id()
        link = _link(request)
        link.submit(request_id, step.target, tensors, expect)
        replies = link.receive(request_id, timeout_s=request.timeout_s)
        row.worker_ms += 1e3 * (time.perf_counter() - started)
        for value, reply in zip(step.outputs, replies, strict=True):
            # Open means believed: the plan promises neither privacy nor correctness here.
            found = np.array(reply.expose_unchecked())
            require_truths(found, f"worker {link.name}: value {value!r}", kind=ProtocolError)
            request.values.put(value, found)
        link.release(request_id)
        row.bytes_to_worker += sum(tensor.nbytes for tensor in tensors)
        row.bytes_from_worker += sum(spec.nbytes for spec in expect)

    def _spec(self, value: str, sizes: Mapping[str, int]) -> TensorSpec:
        known = self.plan.graph.sizes(value)
        if known is None or any(isinstance(size, str) and size not in sizes for size in known):
            raise UnsupportedError(
                f"value {value!r}: its shape is not known, so a worker's answer could not be "
                "bounded; use the enclave policy"
            )
        shape = tuple(sizes[size] if isinstance(size, str) else size for size in known)
        return TensorSpec(element_type(self.plan.graph, value), shape)

    def _local(self, i: int, step: Local, request: _Request) -> None:
        started = self._clock()
        feeds = {value: request.values.onnx(value) for value in step.inputs}
        found = _run_local(self._sessions[i], step, feeds)
        for value, array in zip(step.outputs, found, strict=True):
            request.values.put(value, array)
        row = request.meter.row(f"local {step.nodes[0].name}", "enclave")
        row.trusted_ms += 1e3 * (self._clock() - started)

    # ---- set-up

    def _next_request_id(self) -> int:
        self._request_ids += 1
        return self._request_ids

    def _install_checks(self) -> None:
        for i, step in enumerate(self.program.steps):
            if not isinstance(step, Fuse):
                continue
            native = self._passes[i]
            if step.node is not None:
                vectors = self.checks.vectors(step.node)
                native.set_check(*((vectors.a, vectors.b) if vectors else (None, None)))
            for position, index in enumerate(step.sinks):
                vectors = self.checks.vectors(index)
                native.set_sink_check(
                    position, *((vectors.rows, vectors.columns) if vectors else (None, None))
                )


@dataclass
class _Sink:
    """Where a pass writes one linear node's request, and under which pads."""

    message: np.ndarray
    key: bytes | None = None
    nonces: list[bytes] | None = None

    def explicit_pad(self, j: int) -> np.ndarray | None:
        """The pad as an array, on a CPU without AES instructions."""
        if self.key is None or self.nonces is None or native.isa() != "portable":
            return None
        shape = self.message.shape[1:]
        return pad_stream(self.key, self.nonces[j], int(np.prod(shape))).reshape(1, *shape)


def _link(request: _Request) -> WorkerLink:
    if request.link is None:
        raise PlanError("the plan sends work to a worker, but the session has none")
    return request.link


def _pads(request: _Request) -> PadUse:
    if request.pads is None:
        raise PlanError("the plan blinds, but the session has no pads")
    return request.pads


def _run_local(
    session: ort.InferenceSession, step: Local, feeds: dict[str, np.ndarray]
) -> list[np.ndarray]:
    try:
        return list(session.run(step.outputs, feeds))
    except ORT_ERRORS as error:
        # Its text may contain values, so only its kind is repeated.
        raise RangeError(
            f"node {step.nodes[0].name!r} and those after it: ONNX Runtime cannot compute them for "
            f"this input ({type(error).__name__})"
        ) from None


def _native_pass(plan: Plan, step: Fuse) -> native.Pass:
    node = None if step.node is None else plan.linear_nodes[step.node]
    window, convolved = step.epilogue.window, step.epilogue.depthwise
    sinks = [(plan.linear_nodes[i].inv_x_scale, plan.linear_nodes[i].x_qmax) for i in step.sinks]
    return native.Pass(
        *step.size,
        None if node is None else node.scale,
        None if node is None else node.bias,
        step.epilogue.lo,
        step.epilogue.hi,
        None if window is None else window.to_tuple(),
        sinks,
        None
        if convolved is None
        else (convolved.weights, convolved.bias, step.epilogue.after_lo, step.epilogue.after_hi),
    )


def _local_session(graph: Graph, step: Local, threads: int) -> ort.InferenceSession:
    model = to_model(graph, nodes=step.nodes, inputs=step.inputs, outputs=step.outputs)
    return runtime_session(model.SerializeToString(), threads=threads, optimised=True)
