"""A stage for each kind of step.

A stage says how its step enters the native executor, and does what the native executor leaves to
Python when it stops there. `STAGES` has one entry for every kind of step.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from onnxruntime import InferenceSession

import cloister.base._native as native
from cloister.base.reading import require_truths
from cloister.errors import PlanError, ProtocolError, RangeError
from cloister.graph.batch import bound_size, bound_sizes, element_type
from cloister.graph.graph import Size
from cloister.graph.layout import to_channels_last
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ort_session import RUN_ERRORS, runtime_session
from cloister.plan.plan import Plan
from cloister.plan.protection import ENCLAVE, MODULE, OPEN
from cloister.plan.quantised import QuantisedLinear
from cloister.ring.freivalds import CheckVectors
from cloister.ring.pads import expand_into
from cloister.trusted.checks import Checks, accept_unchecked, for_native
from cloister.trusted.program.epilogue import Epilogue
from cloister.trusted.program.memory_layout import value_key
from cloister.trusted.program.not_finite import (
    is_pooled,
    refused,
    require_messages,
    runtime_model,
)
from cloister.trusted.program.steps import (
    Exchange,
    Fused,
    Local,
    Module,
    Program,
    Segment,
)
from cloister.trusted.workspace import BatchRequest, Workspace
from cloister.wire.link import NativeChannel, WorkerLink
from cloister.wire.messages import Expected, TensorSpec, Unchecked, UnsizedSpec
from cloister.wire.shm.exchange import PreparedRequest, make_exchange
from cloister.wire.shm.packets import REQUEST_ID_OFFSET

UNSIZED_BYTES = 1 << 30
"""What the values of an answer take at most, together, whose sizes only the worker knows."""


class ModuleRunner(Protocol):
    """What runs the modules of a plan (module_engines.py)."""

    def run(self, node: str, inputs: Sequence[np.ndarray]) -> Sequence[np.ndarray]:
        """The outputs of a node for a batch, which is charged before."""
        ...


@dataclass(frozen=True)
class Setup:
    """The common parts of all stages of an executor; `modules` for plans that have some."""

    program: Program
    checks: Checks
    threads: int
    modules: ModuleRunner | None = None

    @cached_property
    def read_by_python(self) -> frozenset[str]:
        """The float32 values that steps which Python performs, or a caller, may read."""
        steps = self.program.steps
        read = {v for step in steps if not isinstance(step, Fused) for v in step.inputs}
        read |= {
            v for step in steps if isinstance(step, Fused) and step.source for v in step.inputs
        }
        return frozenset(read.union(self.program.plan.graph.outputs))


class Stage:
    """Step `number` of a program."""

    name: str
    protection: str
    soundness_bits: float | None = None
    shown = False
    """Whether steps that Python performs, or a caller, may read what the step has made."""
    unblinds = False
    """Whether it removes a pad from an answer."""

    def load(self, link: WorkerLink) -> None:
        """Give a worker what the step will ask it for."""

    def enter(self, space: Workspace, channel: NativeChannel | None) -> None:
        """Add the step to the native executor; by default, as one that the caller performs."""
        space.native.add_outside()

    def perform(self, request: BatchRequest, stop: native.Stop) -> None:
        """Do what the native executor stopped for."""
        raise NotImplementedError

    def complete(self, request: BatchRequest) -> None:
        """Do what is left to Python once the native executor has completed the step."""


class FusedStage(Stage):
    """One native step from a reply or a stored value to its consumers."""

    def __init__(self, setup: Setup, number: int, step: Fused) -> None:
        plan, checks = setup.program.plan, setup.checks
        node = None if step.node is None else plan.linear_nodes[step.node]
        protection = ENCLAVE if node is None else plan.protection_of(node)
        self.name, self.protection = step.name, protection.name
        self._number = number
        self._step = step
        self.unblinds = node is not None and protection.hidden
        self._stored = self._residual = None
        if step.stored:
            self._stored = value_key(setup.program, step.epilogue.value, step.channels_first)
        if step.epilogue.residual is not None:
            self._residual = (step.epilogue.residual, step.channels_first)
        self._added = self._stored is not None and any(
            isinstance(later, Fused)
            and later.node is not None
            and later.epilogue.residual is not None
            and value_key(setup.program, later.epilogue.residual, step.channels_first)
            == self._stored
            for later in setup.program.steps
        )
        self.shown = self._stored is not None and self._stored[0] in setup.read_by_python
        self._program, self._threads = setup.program, setup.threads
        self._hidden = [plan.protection_of(plan.linear_nodes[i]).hidden for i in step.sinks]
        shape = _fused_shape(plan, step, checks)
        if node is None or step.node is None:
            self.fused_step = native.FusedStep.of_values(shape)
        elif protection.checked:
            vectors = checks.vectors(step.node)
            if vectors is None:
                raise PlanError(f"node {node.node!r} is checked, but has no coefficients")
            self.fused_step = native.FusedStep.checked(
                shape, scale=node.scale, bias=node.bias, a=vectors.a, b=vectors.b
            )
        else:
            self.fused_step = native.FusedStep.unchecked(shape, scale=node.scale, bias=node.bias)

    def enter(self, space: Workspace, channel: NativeChannel | None) -> None:
        """See Stage."""
        step = self._step
        messages = [space.message(index, channel) for index in step.sinks]
        reply = None
        if step.node is not None and channel is not None:
            region, spec = space.shared("answer", step.node), space.layout.answers[step.node]
            reply = for_native(channel.answer_view(region, spec))
        residual = self._residual
        kept = self._kept(space)
        windowed = step.epilogue.window is not None
        space.native.add_fused(
            self.fused_step,
            node=step.node,
            unblinds=self.unblinds,
            binds=(
                step.node is None
                or (residual is not None and residual not in space.values)
                or any(message is None for message in messages)
                or (any(self._hidden) and native.isa() == "portable")
            ),
            reply=reply,
            residual=None if residual is None else space.values.get(residual),
            store_pre=None if windowed else kept,
            store_post=kept if windowed else None,
            sink_nodes=step.sinks,
            messages=messages,
            clipped=[space.clipped[index] for index in step.sinks],
        )

    def perform(self, request: BatchRequest, stop: native.Stop) -> None:
        """Name the arrays that are this request's own."""
        step, space = self._step, request.space
        source = residual = None
        if step.source is not None:
            source = request.values.channels_last(
                step.source, step.size, step.channels_first, step.factors
            )
        if self._residual is not None and self._residual not in space.values:
            name, channels_first = self._residual
            residual = request.values.channels_last(name, step.size, channels_first)
        if not request.values.all_finite:
            for name in step.inputs:
                if not request.values.is_finite((name, step.channels_first)):
                    self._compute_not_finite(request, name, source, residual)
        space.native.bind(
            self._number,
            source=source,
            residual=residual,
            messages=[self._buffer(index, request) for index in step.sinks],
            pads=[
                _explicit_pads(request, index) if hidden else None
                for index, hidden in zip(step.sinks, self._hidden, strict=True)
            ],
        )

    def complete(self, request: BatchRequest) -> None:
        """See Stage; the answer that it read was accepted, and later steps may read its result."""
        if request.replies and self._step.node is not None:
            request.release(self._step.node)
        if self._stored is not None:
            finite = self._number not in request.replaced
            if not finite:
                self._replace(request, *request.replaced.pop(self._number))
            kept = request.space.values[self._stored]
            request.values.put_channels_last(self._stored, kept, finite=finite)

    def _compute_not_finite(
        self,
        request: BatchRequest,
        name: str,
        source: np.ndarray | None,
        residual: np.ndarray | None,
    ) -> None:
        """Have NaN and infinity give what ONNX Runtime makes of them (not_finite.py).

        Raises   RangeError
        """
        step = self._step
        if self._residual is not None and residual is None:
            residual = request.space.values[self._residual]
        read = [array for array in (source, residual) if array is not None]
        with np.errstate(invalid="ignore", over="ignore"):
            added = np.asarray(sum(read[1:], read[0]))
        require_messages(step, name, added)
        if self._stored is None:
            return
        if self._added:
            # The native executor adds it without Python, which is to treat its NaN.
            raise refused(step.epilogue.value)
        where, values = np.isnan(added), np.full_like(added, np.nan)
        if is_pooled(step):
            feeds = {value: request.values.onnx(value) for value in step.inputs}
            (found,) = self._runtime.run(step.outputs, feeds)
            values = to_channels_last(found, channels_first=step.channels_first)
            where = np.ones_like(values, np.bool_)
        request.replaced[self._number] = (where, values)

    @cached_property
    def _runtime(self) -> InferenceSession:
        """ONNX Runtime for a step that only makes a value of values."""
        model = runtime_model(self._program, self._step)
        return runtime_session(model, threads=self._threads, optimised=True)

    def _replace(self, request: BatchRequest, where: np.ndarray, values: np.ndarray) -> None:
        kept = self._kept(request.space)
        if kept is not None and where.any():
            np.copyto(kept, values, where=where)

    def _kept(self, space: Workspace) -> np.ndarray | None:
        """Where the step stores its value, if anything reads it as float32."""
        if self._stored is None:
            return None
        whole = space.values[self._stored]
        part = space.program.slices.get(self._step.epilogue.value)
        return whole[..., part.offset : part.offset + self._step.out_size[2]] if part else whole

    def _buffer(self, index: int, request: BatchRequest) -> np.ndarray | None:
        """A buffer of the link for a message that has no place in the workspace."""
        space = request.space
        if space.memory.region is not None or index in space.staged:
            return None
        buffer = request.worker.send_buffer(space.layout.messages[index])
        request.messages[index] = buffer
        return buffer


class ExchangeStage(Stage):
    """One message of a linear node to the worker and its answer."""

    def __init__(self, setup: Setup, number: int, step: Exchange) -> None:
        self._linear = setup.program.plan.linear_nodes[step.node]
        self.name, self.protection = self._linear.node, step.protection.name
        self._number = number
        self._node = step.node
        self.soundness_bits = setup.checks.soundness_bits(step.node)

    def load(self, link: WorkerLink) -> None:
        """See Stage."""
        link.load_linear(self._node, self._linear.linear)

    def enter(self, space: Workspace, channel: NativeChannel | None) -> None:
        """See Stage; over a native channel Python has nothing to do."""
        sent, received = space.layout.messages[self._node], space.layout.answers[self._node]
        space.traffic[self._number] = sent.nbytes, received.nbytes
        if channel is None:
            space.native.add_outside(node=self._node)
            return
        place, room = space.shared("message", self._node), space.shared("answer", self._node)
        spec, expect = space.layout.messages[self._node], space.layout.answers[self._node]
        exchange = make_exchange(self._node, place, spec, room, expect)
        staged = space.staged.get(self._node)
        space.native.add_exchange(
            node=self._node,
            packet=exchange.packet,
            answer=exchange.answer,
            id_offset=REQUEST_ID_OFFSET,
            staged=staged,
            place=None if staged is None else channel.request_view(place, spec),
        )
        space.exchanges[self._number] = exchange

    def perform(self, request: BatchRequest, stop: native.Stop) -> None:
        """Exchange the message over a link, or have the link end what did not go as expected."""
        space = request.space
        exchange = space.exchanges[self._number]
        if exchange is None:
            self._exchange(request)
            return
        _complete(request, exchange, stop)
        space.native.answered(self._number)

    def _exchange(self, request: BatchRequest) -> None:
        space, node = request.space, self._node
        message = space.staged[node] if node in space.staged else request.messages.pop(node)
        started = time.perf_counter_ns()
        request_id = request.new_id()
        (reply,) = request.worker.exchange(
            request_id, node, (message,), (space.layout.answers[node],),
            timeout_s=request.timeout_s,
        )  # fmt: skip
        request.replies[node] = request_id
        space.native.answered(self._number, for_native(reply))
        waited = time.perf_counter_ns() - started
        request.costs.more.append((self._number, waited, 0, 0))


class SegmentStage(Stage):
    """Open nodes, run whole by a worker on float32 values."""

    shown = True

    def __init__(self, setup: Setup, number: int, step: Segment) -> None:
        self.name, self.protection = step.name, OPEN.name
        self._graph = setup.program.runtime_graph
        self._number = number
        self._step = step
        if any(setup.program.plan.protections[node.name] != OPEN for node in step.nodes):
            raise PlanError(f"{self.name}: the plan protects one of its nodes")

    def load(self, link: WorkerLink) -> None:
        """See Stage."""
        step = self._step
        model = model_bytes(self._graph, nodes=step.nodes, inputs=step.inputs, outputs=step.outputs)
        link.load_segment(step.target, model)

    def enter(self, space: Workspace, channel: NativeChannel | None) -> None:
        """See Stage; over a native channel, one stored value goes out without Python."""
        target = self._step.target
        key = space.layout.crossing.get(target)
        if channel is None or key is None:
            space.native.add_outside()
            return
        place, room = space.shared("message", target), space.shared("answer", target)
        spec, expect = space.layout.messages[target], space.layout.answers[target]
        exchange = make_exchange(target, place, spec, room, expect)
        _, channels_first = key
        space.native.add_segment(
            packet=exchange.packet,
            answer=exchange.answer,
            id_offset=REQUEST_ID_OFFSET,
            value=space.values[key],
            place=channel.request_view(place, spec),
            channels_first=channels_first,
        )
        space.exchanges[self._number] = exchange
        space.traffic[self._number] = spec.nbytes, expect.nbytes
        space.answers[target] = channel.answer_view(room, expect)

    def perform(self, request: BatchRequest, stop: native.Stop) -> None:
        """See Stage."""
        exchange = request.space.exchanges[self._number]
        if exchange is None:
            self._exchange(request)
            return
        _complete(request, exchange, stop)
        self.complete(request)

    def complete(self, request: BatchRequest) -> None:
        """See Stage; no native step reads the answer."""
        answer = request.space.answers[self._step.target]
        self._enter_reply(request, self._step.outputs[0], answer)

    def _exchange(self, request: BatchRequest) -> None:
        step, link = self._step, request.worker
        tensors = tuple(np.asarray(request.values.onnx(v), order="C") for v in step.inputs)
        expect = self._expected(bound_sizes(self._graph, request.feeds))
        started = time.perf_counter_ns()
        request_id = request.new_id()
        replies = link.exchange(
            request_id, step.target, tensors, expect, timeout_s=request.timeout_s
        )
        wait_ns = time.perf_counter_ns() - started
        pairs = zip(step.outputs, replies, strict=True)
        found = [self._enter_reply(request, value, reply) for value, reply in pairs]
        link.release(request_id)
        sent, received = (sum(one.nbytes for one in some) for some in (tensors, found))
        request.costs.more.append((self._number, wait_ns, sent, received))

    def _enter_reply(
        self, request: BatchRequest, value: str, reply: Unchecked[np.ndarray]
    ) -> np.ndarray:
        # The plan promises neither privacy nor correctness here.
        answer = accept_unchecked(reply, protection=OPEN, node=self.name)
        found = np.array(answer.values)
        what = f"worker {request.worker.name}: value {value!r}"
        require_truths(found, what, kind=ProtocolError)
        request.values.put(value, found)
        return found

    def _expected(self, bound: Mapping[str, int]) -> tuple[Expected, ...]:
        """What the answer must look like, given the sizes of the request's inputs.

        Values whose sizes only the worker knows share UNSIZED_BYTES.
        """
        forms = [_bound(self._graph.sizes(value), bound) for value in self._step.outputs]
        unsized = sum(sizes is None or None in sizes for sizes in forms)
        expected: list[Expected] = []
        for value, sizes in zip(self._step.outputs, forms, strict=True):
            dtype = element_type(self._graph, value)
            if sizes is None or None in sizes:
                expected.append(UnsizedSpec(dtype, sizes, UNSIZED_BYTES // unsized))
            else:
                expected.append(TensorSpec(dtype, tuple(size or 0 for size in sizes)))
        return tuple(expected)


def _bound(
    sizes: tuple[Size, ...] | None, bound: Mapping[str, int]
) -> tuple[int | None, ...] | None:
    """Sizes with numbers in the place of symbols, None where there is no number."""
    if sizes is None:
        return None
    return tuple(bound_size(size, bound) for size in sizes)


class LocalStage(Stage):
    """Nodes that ONNX Runtime computes inside."""

    def __init__(self, setup: Setup, number: int, step: Local) -> None:
        self.name, self.protection = step.name, ENCLAVE.name
        self._step = step
        model = model_bytes(
            setup.program.runtime_graph, nodes=step.nodes, inputs=step.inputs, outputs=step.outputs
        )
        self._session = runtime_session(model, threads=setup.threads, optimised=True)

    def perform(self, request: BatchRequest, stop: native.Stop) -> None:
        """See Stage."""
        step = self._step
        feeds = {value: request.values.onnx(value) for value in step.inputs}
        try:
            found = self._session.run(step.outputs, feeds)
        except RUN_ERRORS as error:
            # Its text may contain values, so only its kind is repeated.
            raise RangeError(
                f"node {step.nodes[0].name!r} and those after it: ONNX Runtime cannot compute them "
                f"for this input ({type(error).__name__})"
            ) from None
        for value, array in zip(step.outputs, found, strict=True):
            request.values.put(value, array)


class ModuleStage(Stage):
    """A hidden part, which a compiled module computes.

    The native executor stops here only once every answer that was fetched is compared.
    """

    def __init__(self, setup: Setup, number: int, step: Module) -> None:
        (node,) = step.nodes
        self.name, self.protection = node.name, MODULE.name
        self._number = number
        self._step = step
        if setup.modules is None:
            raise PlanError(f"node {node.name!r}: is hidden, and no module was given that runs it")
        self._modules = setup.modules

    def perform(self, request: BatchRequest, stop: native.Stop) -> None:
        """See Stage."""
        step = self._step
        inputs = [np.asarray(request.values.onnx(value), order="C") for value in step.inputs]
        started = time.perf_counter()
        found = self._modules.run(self.name, inputs)
        request.costs.module_ms[self._number] = 1e3 * (time.perf_counter() - started)
        request.costs.queries += len(inputs[0])
        for value, array in zip(step.outputs, found, strict=True):
            request.values.put(value, array)


STAGES: Mapping[type, Callable[..., Stage]] = {
    Fused: FusedStage,
    Exchange: ExchangeStage,
    Segment: SegmentStage,
    Local: LocalStage,
    Module: ModuleStage,
}


def _complete(request: BatchRequest, exchange: PreparedRequest, stop: native.Stop) -> None:
    """Have the link end an exchange that did not go as the native executor expects.

    The link finds out what is wrong and raises; what came may also be a late answer to an earlier
    request, and then this one's is still to come.
    """
    request.next_id = stop.request_id + 1
    request.worker.complete(
        stop.request_id,
        exchange,
        sent=stop.why != "unsent",
        came=stop.packet,
        deadline_s=stop.deadline_s,
        timeout_s=request.timeout_s,
    )


def _fused_shape(plan: Plan, step: Fused, checks: Checks) -> native.FusedShape:
    epilogue, height, width, channels = step.epilogue, *step.size
    return native.FusedShape(
        height=height,
        width=width,
        channels=channels,
        lo=epilogue.lo,
        hi=epilogue.hi,
        window=_window(epilogue),
        sinks=[_sink(plan.linear_nodes[i], checks.vectors(i)) for i in step.sinks],
    )


def _window(epilogue: Epilogue) -> native.Window | None:
    if epilogue.window is None:
        return None
    if epilogue.depthwise is None:
        return epilogue.window.to_native()
    filters = epilogue.depthwise
    return epilogue.window.to_native(
        filters.weights, filters.bias, lo=epilogue.after_lo, hi=epilogue.after_hi
    )


def _sink(node: QuantisedLinear, vectors: CheckVectors | None) -> native.Sink:
    if vectors is None:
        return native.Sink.unchecked(inv_scale=node.inv_x_scale, qmax=node.x_qmax)
    return native.Sink.checked(
        inv_scale=node.inv_x_scale, qmax=node.x_qmax, rows=vectors.rows, columns=vectors.columns
    )


def _explicit_pads(request: BatchRequest, index: int) -> np.ndarray | None:
    """The pads of a linear node as an array, on a CPU without AES instructions."""
    if not request.pad_sets or native.isa() != "portable":
        return None
    pads = np.empty(request.space.layout.messages[index].shape, np.uint32)
    for pad, image in zip(request.pad_sets, pads, strict=True):
        expand_into(pad.key, pad.pad_id, domain=index, out=image.reshape(-1))
    return pads
