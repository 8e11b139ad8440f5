"""Programs with prices that tests choose: no clock is read."""

import zlib

import nets
from cloister.graph.onnx import read
from cloister.graph.ops.linear_nodes import is_linear
from cloister.graph.passes import normalise
from cloister.planner.cost_table import CostTable, FloatCost, SegmentCost
from cloister.planner.step_shape import DEFAULT_RATES
from cloister.trusted.program.steps import Local


def graph_of(build):
    return normalise.prepare(read.from_model(build(), name=getattr(build, "__name__", "net")))


def linear_names(graph):
    return [node.name for node in graph.nodes if is_linear(graph, node)]


def deep(layers=8, channels=4, size=6):
    """A chain of convolutions with an activation after each."""
    net = nets.Net(11)
    x = net.input("image", channels, size, size)
    for _ in range(layers):
        x = net.op("Relu", net.conv(x, channels, channels, pads=[1, 1, 1, 1]))
    return net.model(net.gemm(net.op("Flatten", x), channels * size * size, 3))


class DrawnLocals:
    """Prices of local steps, drawn from the names of their nodes."""

    def __init__(self, seed=0, most_ms=0.2):
        self.seed, self.most_ms = seed, most_ms

    def ms(self, step: Local) -> float:
        return sum(self.of(node.name) for node in step.nodes)

    def of(self, name: str) -> float:
        drawn = zlib.crc32(f"{self.seed} {name}".encode()) / 2**32
        return self.most_ms * drawn


def priced_table(*, steps=None, exchanges=None, local=None, **changed):
    given = {
        "batch": 1,
        "steps": steps or {},
        "rates": dict(DEFAULT_RATES),
        "exchanges": exchanges or {},
        "local": local or DrawnLocals(),
        "floats": FloatCost(1e-9),
        "segment": SegmentCost(0.25, 1e-6, 2.0),
        "request_ms": 0.5,
        "step_ms": 0.01,
        **changed,
    }
    return CostTable(**given)
