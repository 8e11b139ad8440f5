"""What a session takes in memory once it is entered, before anything runs.

`plan/memory.py` has the peak of the trusted process's whole life. Here is what stays while requests
are served, of both processes; the memory of messages and values is laid out as a session does it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from cloister.base.sizes import human_bytes
from cloister.errors import CloisterError
from cloister.graph.graph import Graph
from cloister.plan.cost import PlanCost
from cloister.plan.memory import KEPT, MESSAGES, RING_BYTES, SERVING, VALUES, WEIGHT_BYTES
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import Protection
from cloister.planner.stand_in import stand_in, zero_maps
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.memory_layout import lay_out
from cloister.trusted.program.steps import Segment

WORKER_BYTES = 94 * 2**20
"""A worker's process without weights, and what its allocator keeps."""
SEGMENT_COPIES = 3
"""Of an open segment's constants, which ONNX Runtime keeps."""


@dataclass(frozen=True)
class SessionMemory:
    """Bytes that a session with a local worker takes.

    private          of the trusted process alone, with pads for one message made inline, without
                     the freed memory that its allocator keeps
    shared           of both processes: messages and answers
    worker           of the worker's process alone; 0 where nothing is sent
    pads_per_input   of `private`, for each input of a message; as much for each pad set that is
                     made before and kept in memory
    """

    batch: int
    private: int
    shared: int
    worker: int
    pads_per_input: int

    def __str__(self) -> str:
        shown = [
            f"{human_bytes(self.private)} in the trusted process, besides what its allocator keeps"
        ]
        if self.worker:
            shown += [
                f"{human_bytes(self.shared)} shared with a local worker",
                f"{human_bytes(self.worker)} in the worker",
            ]
        text = f"a session of batch {self.batch} takes about {', '.join(shown)}"
        if self.pads_per_input:
            text += f"; a pad set takes {human_bytes(self.pads_per_input)} for each input"
        return text

    def to_dict(self) -> dict[str, int]:
        """Plain values for JSON."""
        return {
            "batch": self.batch,
            **{f"{name}_bytes": n for name, n in asdict(self).items() if name != "batch"},
        }


def session_memory(
    graph: Graph,
    policy: str,
    protections: Mapping[str, Protection],
    cost: PlanCost,
    *,
    batch: int,
    split: PlannedSplit | None = None,
) -> SessionMemory | None:
    """What a session takes for messages of `batch` inputs; None: it is not known.

    cost   of the same protections and batch (`estimate`)
    """
    if graph.free_sizes or any(node.is_module for node in graph.nodes):
        return None
    try:
        plan = stand_in(graph, policy, protections, zero_maps(graph), split=split)
        program = compile_plan(plan)
        layout = lay_out(program, graph.batch or batch)
    except CloisterError:
        return None
    serving = cost.memory.phases[SERVING]
    kept = sum(serving.values()) - sum(serving[name] for name in (KEPT, MESSAGES, VALUES))
    maps = [node.linear for node in plan.linear_nodes]
    opened = [node for step in program.steps if isinstance(step, Segment) for node in step.nodes]
    names = {name for node in opened for name in node.inputs} & graph.constants.keys()
    constants = sum(graph.constants[name].nbytes for name in names)
    answer = batch * RING_BYTES * max((m.geometry.out_elements for m in maps), default=0)
    worker = WORKER_BYTES + WEIGHT_BYTES * sum(m.weights.size for m in maps) + answer
    return SessionMemory(
        batch=batch,
        private=kept + layout.private.nbytes,
        # Messages that Python sends have no place in the layout.
        shared=max(layout.shared.nbytes, serving[MESSAGES]),
        worker=worker + SEGMENT_COPIES * constants if maps or opened else 0,
        pads_per_input=RING_BYTES * PadLayout.of(plan).words,
    )
