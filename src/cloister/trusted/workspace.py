"""The memory that the steps of a program use, and one batch that runs through them."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

import cloister.base._native as native
from cloister.base.private_memory import private_memory
from cloister.errors import PlanError
from cloister.trusted.pads.maker import PadUse
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.source import PadSet
from cloister.trusted.program.memory_layout import MemoryLayout, padded
from cloister.trusted.program.steps import Program
from cloister.trusted.step_costs import StepCosts
from cloister.trusted.values import Values
from cloister.wire.link import NativeChannel, WorkerLink
from cloister.wire.messages import TensorSpec, Unchecked
from cloister.wire.shm.arena import Region
from cloister.wire.shm.exchange import PreparedRequest, PreparedRequests


class WorkMemory:
    """A private block, and a region of the memory shared at a channel, if there is one.

    The workspaces of all batch sizes lie in it, for one request runs at a time.
    """

    def __init__(self, layout: MemoryLayout, channel: NativeChannel | None) -> None:
        self.region = None if channel is None else channel.reserve(layout.shared.nbytes)
        self.private = private_memory(layout.private.nbytes)

    def holds(self, layout: MemoryLayout) -> bool:
        """Whether there is room for a layout."""
        room = layout.shared.nbytes if self.region is None else self.region.size
        return layout.shared.nbytes <= room and layout.private.nbytes <= self.private.size


class Workspace:
    """The places of a program's values for one batch size, and the native executor that uses them.

    answers   of segments by target, where the native executor exchanges their messages
    traffic   bytes to and from the worker, by step, where they are always the same
    """

    def __init__(
        self,
        program: Program,
        layout: MemoryLayout,
        memory: WorkMemory,
        *,
        batch: int,
        threads: int,
    ) -> None:
        plan = program.plan
        self.program = program
        self.layout = layout
        self.memory = memory
        self.values = {
            key: self._inside(key, TensorSpec(np.dtype(np.float32), shape))
            for key, shape in self.layout.shapes.items()
        }
        self.staged = {
            index: self._inside(("staged", index), self.layout.messages[index])
            for index in self.layout.staged
        }
        self.clipped = np.zeros((len(plan.linear_nodes), batch), np.uint64)
        self.exchanges: list[PreparedRequest | None] = [None] * len(program.steps)
        self._exchanged: dict[tuple[int, int], PreparedRequests] = {}
        self.traffic = np.zeros((len(program.steps), 2), np.int64)
        self.answers: dict[int, Unchecked[np.ndarray]] = {}
        checked = [plan.protection_of(node).checked for node in plan.linear_nodes]
        pads = PadLayout.of(plan)
        self.native = native.Executor(
            checked=checked,
            batch=batch,
            threads=threads,
            pad_offsets=pads.offsets,
            pad_words=pads.words,
        )

    def exchanged(self, first: int, end: int) -> PreparedRequests:
        """The exchanges of some steps, which most requests complete together."""
        found = self._exchanged.get((first, end))
        if found is None:
            some = [exchange for exchange in self.exchanges[first:end] if exchange is not None]
            found = self._exchanged[first, end] = PreparedRequests.of(some)
        return found

    @cached_property
    def crossed(self) -> tuple[int, int]:
        """The sums of `traffic`."""
        sent, received = self.traffic.sum(axis=0).tolist()
        return sent, received

    def shared(self, kind: str, index: int) -> Region:
        """Where in the reserved memory the message or the answer of an exchange lies."""
        region = self.memory.region
        if region is None:
            raise PlanError("the workspace has no shared memory")
        specs = self.layout.messages if kind == "message" else self.layout.answers
        offset = region.offset + self.layout.shared.offsets[kind, index]
        return Region(region.segment, offset, padded(specs[index].nbytes))

    def message(self, index: int, channel: NativeChannel | None) -> np.ndarray | None:
        """Where the request of a linear node is written; None: every request has its own buffer."""
        if index in self.staged:
            return self.staged[index]
        if channel is None:
            return None
        return channel.request_view(self.shared("message", index), self.layout.messages[index])

    def _inside(self, key: Hashable, spec: TensorSpec) -> np.ndarray:
        offset = self.layout.private.offsets[key]
        return np.ndarray(spec.shape, spec.dtype, buffer=self.memory.private, offset=offset)


@dataclass
class BatchRequest:
    """One batch in flight.

    `messages` are buffers of the link that wait to be sent, by linear node; `replies` the ids of
    requests whose answers are still to be read; `replaced`, by fused step, what is stored in place
    of its own values, and where (not_finite.py).
    """

    link: WorkerLink | None
    pads: PadUse | None
    costs: StepCosts
    feeds: Mapping[str, np.ndarray]
    values: Values
    space: Workspace
    timeout_s: float
    next_id: int
    pad_sets: list[PadSet] = field(default_factory=list)
    messages: dict[int, np.ndarray] = field(default_factory=dict)
    replies: dict[int, int] = field(default_factory=dict)
    replaced: dict[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    @property
    def worker(self) -> WorkerLink:
        """The link.

        Raises   PlanError when there is none
        """
        if self.link is None:
            raise PlanError("the plan sends work to a worker, but the session has none")
        return self.link

    def new_id(self) -> int:
        """A request id that was not used before."""
        self.next_id += 1
        return self.next_id - 1

    def release(self, node: int) -> None:
        """The answer of a linear node was read."""
        request_id = self.replies.pop(node, None)
        if request_id is not None:
            self.worker.release(request_id)
