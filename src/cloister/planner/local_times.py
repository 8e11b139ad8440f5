"""Processor time of nodes inside, measured in ONNX Runtime as a session runs them."""

import statistics
import time
from dataclasses import dataclass, field

from cloister.graph.graph import Graph
from cloister.graph.onnx.export import model_bytes
from cloister.graph.ort_session import runtime_session
from cloister.planner.stand_in import filled
from cloister.trusted.program.steps import Local

REPEATS = 5


@dataclass
class MeasuredLocals:
    """Milliseconds of local steps for one input; each is measured when it is first asked for.

    known   what was measured elsewhere, by the names of the nodes
    """

    graph: Graph
    batch: int
    known: dict[tuple[str, ...], float] = field(default_factory=dict)

    def ms(self, step: Local) -> float:
        """See LocalTimes."""
        names = tuple(node.name for node in step.nodes)
        if names not in self.known:
            self.known[names] = self._measured(step)
        return self.known[names]

    def _measured(self, step: Local) -> float:
        model = model_bytes(self.graph, nodes=step.nodes, inputs=step.inputs, outputs=step.outputs)
        session = runtime_session(model, threads=1, optimised=True)
        feeds = {value: filled(self.graph, value, self.batch) for value in step.inputs}
        found = []
        for _ in range(1 + REPEATS):
            started = time.thread_time_ns()
            session.run(step.outputs, feeds)
            found.append(1e-6 * (time.thread_time_ns() - started))
        return statistics.median(found[1:]) / self.batch
