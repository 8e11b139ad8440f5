"""The memory that the steps of a program use, and one batch that runs through them."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np

import cloister.base._native as native
from cloister.errors import PlanError
from cloister.trusted.pads.maker import PadUse
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.source import PadSet
from cloister.trusted.program.memory_layout import ALIGNMENT, lay_out, padded
from cloister.trusted.program.steps import Program
from cloister.trusted.report import Meter
from cloister.trusted.values import Values
from cloister.wire.link import NativeChannel, WorkerLink
from cloister.wire.messages import TensorSpec, Unchecked
from cloister.wire.shm.arena import Region
from cloister.wire.shm.exchange import PreparedRequest


class Workspace:
    """The memory of a program for one batch size, and the native executor that works in it.

    answers   of segments by target, where the native executor exchanges their messages
    channel   over which the native executor exchanges messages itself; None: links do. It is not
              kept, only the memory reserved there (`region`)
    """

    def __init__(
        self, program: Program, *, channel: NativeChannel | None, batch: int, threads: int
    ) -> None:
        plan = program.plan
        self.program = program
        self.layout = lay_out(program, batch)
        self.region = None if channel is None else channel.reserve(self.layout.shared.nbytes)
        block = np.empty(self.layout.private.nbytes + ALIGNMENT, np.uint8)
        self._private = block[-block.ctypes.data % ALIGNMENT :]
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

    def shared(self, kind: str, index: int) -> Region:
        """Where in the reserved memory the message or the answer of an exchange lies."""
        if self.region is None:
            raise PlanError("the workspace has no shared memory")
        specs = self.layout.messages if kind == "message" else self.layout.answers
        offset = self.region.offset + self.layout.shared.offsets[kind, index]
        return Region(self.region.segment, offset, padded(specs[index].nbytes))

    def message(self, index: int, channel: NativeChannel | None) -> np.ndarray | None:
        """Where the request of a linear node is written; None: every request has its own buffer."""
        if index in self.staged:
            return self.staged[index]
        if channel is None:
            return None
        return channel.request_view(self.shared("message", index), self.layout.messages[index])

    def _inside(self, key: Hashable, spec: TensorSpec) -> np.ndarray:
        offset = self.layout.private.offsets[key]
        return np.ndarray(spec.shape, spec.dtype, buffer=self._private, offset=offset)


@dataclass
class BatchRequest:
    """One batch in flight.

    `messages` are buffers of the link that wait to be sent, by linear node; `replies` the ids of
    requests whose answers are still to be read; `replaced`, by fused step, what is stored in place
    of its own values, and where (not_finite.py).
    """

    link: WorkerLink | None
    pads: PadUse | None
    meter: Meter
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
