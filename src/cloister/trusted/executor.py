"""Runs a compiled program for one batch of inputs: the trusted side of every protection.

One native executor runs the steps of every plan over every link, and stops at each step that Python
performs: compute a local step, run a module, send several values to an open segment, exchange a
message over a link without a native channel (stages.py).

The order of release: a node's answer is compared with its check before the next message is sent,
before a module runs and before any output is returned. The one exception is harmless: the fused
step that reads an answer writes the next *blinded* request while it reads, and such a request is
uniform, whatever the worker has changed. A request in the clear is therefore written to private
memory first whenever the plan hides anything, and copied out only after the checks.
"""

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np

from cloister.base.reading import parsing
from cloister.base.rng import Csprng
from cloister.errors import PlanError
from cloister.graph.batch import row_count
from cloister.graph.output_values import owned
from cloister.plan.plan import Plan
from cloister.trusted.checks import Checks, wrong_answer
from cloister.trusted.pads.maker import PadUse
from cloister.trusted.pads.masked_terms import unmask_without_aes
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.memory_layout import lay_out
from cloister.trusted.program.steps import Program
from cloister.trusted.report import Meter
from cloister.trusted.stages import STAGES, ModuleRunner, Setup, Stage
from cloister.trusted.step_costs import StepCosts, StepTable
from cloister.trusted.values import Values
from cloister.trusted.workspace import BatchRequest, WorkMemory, Workspace
from cloister.wire.link import NativeChannel, WorkerLink
from cloister.wire.shm.packets import MAX_PACKET_BYTES

_KEPT_BATCHES = 2
"""Batch sizes that stay laid out: a session's own, and that of the last, smaller one."""


class Executor:
    """A compiled plan with its check vectors, ready to run batches.

    Not for use by several threads at once; several executors of one plan run side by side, each
    with its own links.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        rng: Csprng,
        threads: int = 1,
        first_request_id: int = 1,
        modules: ModuleRunner | None = None,
    ) -> None:
        self.plan = plan
        self._modules = modules
        # A plan is not trusted; a contradiction that no check found raises an error here.
        with parsing("the plan cannot be run", kind=PlanError):
            self.program: Program = compile_plan(plan)
        self._rng = rng
        self._threads = threads
        self.next_request_id = first_request_id
        # Memory by batch size: reserved at native channels, which it does not keep alive, and
        # private memory for links without one.
        self._at_channels: weakref.WeakKeyDictionary[NativeChannel, dict[int, Workspace]]
        self._at_channels = weakref.WeakKeyDictionary()
        self._private: dict[int, Workspace] = {}
        self.checks = Checks(plan, rng=rng)
        with parsing("the plan cannot be run", kind=PlanError):
            self._stages = self._make_stages(self.checks)
        self._shown = [number for number, stage in enumerate(self._stages) if stage.shown]
        self._table = StepTable(
            tuple(stage.name for stage in self._stages),
            tuple(stage.protection for stage in self._stages),
            tuple(stage.soundness_bits for stage in self._stages),
            {node.node: node.linear.geometry.in_elements for node in plan.linear_nodes},
        )

    def redraw_checks(self) -> None:
        """New secret coefficients for every checked node, while no request is under way."""
        checks = Checks(self.plan, rng=self._rng)
        stages = self._make_stages(checks)
        retired, self.checks, self._stages = self.checks, checks, stages
        for channel in list(self._at_channels):
            self._let_go(channel)
        self._private.clear()
        # Nothing native uses them any more.
        retired.erase()

    def forget(self, link: object) -> None:
        """A link was closed: release the memory that it shared."""
        for channel in list(self._at_channels):
            if channel is link:
                self._let_go(channel)

    def close(self) -> None:
        """Give shared memory back, and overwrite the coefficients; nothing is run any more."""
        for channel in list(self._at_channels):
            self._let_go(channel)
        self._private.clear()
        self._stages = []
        self.checks.erase()

    def load(self, link: WorkerLink) -> None:
        """Give a worker the linear maps and open segments it will be asked for."""
        for stage in self._stages:
            stage.load(link)

    def prepare(self, link: WorkerLink | None, rows: int) -> None:
        """Lay out the memory for requests of so many rows."""
        self._workspace(None if link is None else link.native_channel(), rows)

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        *,
        link: WorkerLink | None,
        pads: PadUse | None,
        meter: Meter,
        timeout_s: float,
    ) -> dict[str, Any]:
        """Run one batch; the outputs by name.

        Raises   VerificationError, ProtocolError, PadError, RangeError; then nothing was released
        """
        rows = row_count(self.plan.graph, feeds)
        channel = None if link is None else link.native_channel()
        space = self._workspace(channel, rows)
        values = Values(self.plan.graph, feeds, rows=rows)
        times = np.empty((len(self._stages), 3), np.int64)
        costs = StepCosts(self._table, times, space.traffic)
        request = BatchRequest(
            link, pads, costs, feeds, values, space, timeout_s, self.next_request_id
        )
        # Each step uses one at most. After a failure none of them is used again.
        self.next_request_id += len(self._stages)
        try:
            self._begin(request)
            self._run_steps(request, -1 if channel is None else channel.descriptor)
            costs.crossed = space.crossed
            # The next request uses this one's memory.
            costs.clipped = space.clipped.copy()
            outputs = {name: owned(values.onnx(name)) for name in self.plan.graph.outputs}
            self.next_request_id = request.next_id
            return outputs
        finally:
            costs.sums = space.native.costs(times, costs.done)
            meter.attempts.append(costs)
            self._end(request)

    def _begin(self, request: BatchRequest) -> None:
        if request.pads is None:
            if self.plan.hidden_nodes:
                raise PlanError("the plan blinds, but the session has no pads")
            request.space.native.begin()
            return
        pads = request.pad_sets = request.pads.claim()
        unmask_without_aes(pads, self.plan)
        request.space.native.begin(
            keys=[pad.key for pad in pads],
            pad_ids=[pad.pad_id for pad in pads],
            terms=[pad.terms for pad in pads],
            mask_keys=[pad.mask_key for pad in pads],
        )

    def _run_steps(self, request: BatchRequest, descriptor: int) -> None:
        native = request.space.native
        first = 0
        while True:
            stop = native.run(
                first,
                next_request_id=request.next_id,
                descriptor=descriptor,
                timeout_s=request.timeout_s,
                max_packet_bytes=MAX_PACKET_BYTES,
            )
            self._complete(first, stop.step, request)
            if stop.why == "done":
                return
            stage = self._stages[stop.step]
            if stop.why == "mismatch":
                pads = request.pads if stage.unblinds else None
                raise wrong_answer(stage.name, beside="" if pads is None else pads.blame())
            stage.perform(request, stop)
            first = stop.step + (stop.why != "unbound")

    def _complete(self, first: int, end: int, request: BatchRequest) -> None:
        """Enter what the native executor has completed; the steps before were completed too."""
        request.costs.done = end
        if request.replies or request.replaced:
            completed = self._stages[first:end]
        else:
            completed = [self._stages[number] for number in self._shown if first <= number < end]
        for stage in completed:
            stage.complete(request)
        exchanges = request.space.exchanged(first, end)
        if exchanges.requests:
            request.worker.exchanged(request.next_id, exchanges)
            request.next_id += len(exchanges.requests)

    def _end(self, request: BatchRequest) -> None:
        """Whatever happened: nothing of the request is kept, and its pads are spent."""
        native, outstanding = request.space.native, request.space.native.outstanding
        native.end()
        try:
            if outstanding is not None:
                step, request_id = outstanding
                exchange = request.space.exchanges[step]
                if exchange is not None:
                    request.worker.abandon(request_id, exchange)
            for node in list(request.replies):
                request.release(node)
        finally:
            if request.pads is not None:
                request.pads.erase()

    # ---- set-up

    def _make_stages(self, checks: Checks) -> list[Stage]:
        setup = Setup(self.program, checks, self._threads, self._modules)
        return [
            STAGES[type(step)](setup, number, step)
            for number, step in enumerate(self.program.steps)
        ]

    def _workspace(self, channel: NativeChannel | None, batch: int) -> Workspace:
        """The workspace for a batch size, prepared on first use."""
        spaces = self._private if channel is None else self._at_channels.setdefault(channel, {})
        space = spaces.pop(batch, None)
        if space is None:
            layout = lay_out(self.program, batch)
            memory = next((other.memory for other in spaces.values()), None)
            if memory is None or not memory.holds(layout):
                _clear(spaces, channel)
                memory = WorkMemory(layout, channel)
            while len(spaces) >= _KEPT_BATCHES:
                spaces.pop(next(iter(spaces)))
            space = Workspace(self.program, layout, memory, batch=batch, threads=self._threads)
            for stage in self._stages:
                stage.enter(space, channel)
        # The last one is the one used last.
        spaces[batch] = space
        return space

    def _let_go(self, channel: NativeChannel) -> None:
        _clear(self._at_channels.pop(channel), channel)


def _clear(spaces: dict[int, Workspace], channel: NativeChannel | None) -> None:
    """Drop workspaces, and give back the memory in which they all lie."""
    regions = [space.memory.region for space in spaces.values()]
    spaces.clear()
    if channel is not None and regions and regions[0] is not None:
        channel.unreserve(regions[0])
