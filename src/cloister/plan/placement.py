"""Where a depthwise convolution runs: on the worker, or inside, in the trusted side's fused step.

On the worker every input and output crosses the border once more and a message pair is exchanged;
inside, every tap is a multiplication. Which is cheaper depends on the kernel and the protection.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

import cloister.base._native as native
from cloister.base.rng import Csprng
from cloister.graph.graph import Graph, Node
from cloister.graph.ops.depthwise import depthwise_window
from cloister.graph.ops.linear_nodes import geometry
from cloister.plan.protection import BLINDED, Protection
from cloister.ring.freivalds import CheckVectors, draw
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.window_geometry import WindowGeometry

SAMPLE = Geometry((28, 28), 256, (28, 28), 256, (3, 3), pad=(1, 1))
"""The layer on which costs are measured: typical, and in the cache."""
TAPS = 9
REPEATS = 50


@dataclass(frozen=True)
class Costs:
    """Trusted CPU time of the two choices.

    crossing_ns   one number crossing the border, in either direction, with everything the
                  protection does to it
    exchange_us   one request and its answer over shared memory
    tap_ns        one tap of a depthwise convolution in the fused step
    """

    crossing_ns: float
    exchange_us: float = 11.0
    tap_ns: float = 0.03


# One core of an AMD EPYC with AVX-512; `measure` finds those of the machine it runs on. Plans use
# these, because a plan, its digest and its pads must not depend on who makes it.
_DEFAULT = {
    (True, True): Costs(0.23),
    (True, False): Costs(0.16),
    (False, True): Costs(0.15),
}


def default_costs(protection: Protection) -> Costs:
    """The costs plans are made with, for a protection that sends nodes out."""
    return _DEFAULT[protection.hidden, protection.checked]


@dataclass(frozen=True)
class Placement:
    """Where one depthwise node runs, with the trusted time of both choices per input."""

    node: str
    inside: bool
    inside_us: float
    outside_us: float


def place(graph: Graph, node: Node, costs: Costs) -> Placement | None:
    """What computing a depthwise node inside and outside costs; None for any other node."""
    if depthwise_window(graph, node) is None:
        return None
    shape = geometry(graph, node)
    taps = shape.kernel[0] * shape.kernel[1]
    inside_us = 1e-3 * costs.tap_ns * taps * shape.out_elements
    crossing = shape.in_elements + shape.out_elements
    outside_us = 1e-3 * costs.crossing_ns * crossing + costs.exchange_us
    return Placement(node.name, inside_us < outside_us, inside_us, outside_us)


def keep_inside(graph: Graph, node: Node, outside: Protection) -> bool:
    """Whether a plan computes this node inside although a worker could."""
    found = place(graph, node, default_costs(outside))
    return found is not None and found.inside


def placements(
    graph: Graph, protections: Mapping[str, Protection], costs: Costs
) -> tuple[Placement, ...]:
    """Both sides' costs for every depthwise node, and where these protections put it."""
    found = [(place(graph, node, costs), protections[node.name]) for node in graph.nodes]
    return tuple(replace(p, inside=not at.on_worker) for p, at in found if p is not None)


def measure(protection: Protection, *, rng: Csprng) -> Costs:
    """The costs on this machine, by timing a fused step; the exchange's is not measured."""
    shape = SAMPLE.in_shape
    elements = int(np.prod(shape))
    linear = LinearMap(SAMPLE, np.ones(SAMPLE.weight_shape, np.int16))
    plain = _best(_Step(shape, BLINDED).run)
    convolved = _best(_Step(shape, BLINDED, filters=SAMPLE).run)
    vectors = draw(linear, rng=rng) if protection.checked else None
    bordering = _best(_Step(shape, protection, vectors=vectors).run)
    return Costs(
        crossing_ns=1e9 * bordering / (2 * elements),
        tap_ns=max(1e9 * (convolved - plain) / (TAPS * elements), 0.001),
    )


class _Step:
    """One fused step with arrays to run on; what they hold does not matter."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        protection: Protection,
        *,
        filters: Geometry | None = None,
        vectors: CheckVectors | None = None,
    ) -> None:
        height, width, channels = shape
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        window = None
        if filters is not None:
            taps = np.ones((*filters.kernel, channels), np.float32)
            window = WindowGeometry(
                "depthwise",
                filters.kernel,
                filters.stride,
                filters.dilation,
                filters.pad,
                filters.out_size,
            ).to_native(taps, zeros)
        sink = native.Sink.unchecked(inv_scale=1.0, qmax=2047)
        if vectors is not None:
            sink = native.Sink.checked(
                inv_scale=1.0, qmax=2047, rows=vectors.rows, columns=vectors.columns
            )
        made = native.FusedShape(
            height=height, width=width, channels=channels, lo=0.0, hi=6.0, window=window,
            sinks=[sink],
        )  # fmt: skip
        self._step = native.FusedStep.unchecked(made, scale=ones, bias=zeros)
        if vectors is not None:
            self._step = native.FusedStep.checked(
                made, scale=ones, bias=zeros, a=vectors.a, b=vectors.b
            )
        hidden = protection.hidden and native.isa() != "portable"
        self._reply = np.zeros((1, *shape), np.uint32)
        self._unblinding = np.zeros((1, *shape), np.uint32) if hidden else None
        self._request = native.SinkArrays(
            np.empty((1, *shape), np.uint32 if hidden else np.int16),
            key=bytes(32) if hidden else None,
            nonces=bytes(12) if hidden else None,
        )

    def run(self) -> None:
        self._step.run(
            n=1,
            source=self._reply,
            unblind=self._unblinding,
            sinks=[self._request],
            answer_sums=np.empty(1, np.uint64),
            request_sums=np.empty((1, 1), np.uint64),
            clipped=np.empty((1, 1), np.uint64),
        )


def _best(run: Callable[[], None]) -> float:
    best = np.inf
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - started)
    return float(best)
