"""Everything that decides what a fused step costs, with the exchange whose answer it reads.

Steps of one shape cost the same, whatever the model and its weights. A shape that was not measured
is estimated from the work that it does: so many numbers of an answer read, of a request written,
and so on, at rates that are fitted to the shapes that were measured.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from cloister.plan.plan import Plan
from cloister.plan.protection import BLINDED, BLINDED_VERIFIED, VERIFIED, Protection
from cloister.ring.freivalds import keeps_factors
from cloister.ring.linear import Geometry
from cloister.ring.window_geometry import WindowGeometry
from cloister.trusted.program.steps import Fused

PROTECTED = (BLINDED_VERIFIED, BLINDED, VERIFIED)
DEFAULT_RATES: Mapping[str, float] = {
    "step": 5000.0,
    "exchange": 25000.0,
    "input": 200.0,
    "pad": 250.0,
    "answer blinded+verified": 0.18,
    "answer blinded": 0.14,
    "answer verified": 0.15,
    "value": 0.1,
    "turned": 1.0,
    "residual": 0.1,
    "pooled": 0.05,
    "tap": 0.03,
    "stored": 0.1,
    "request blinded+verified": 0.26,
    "request blinded": 0.17,
    "request verified": 0.12,
    "check term": 0.01,
}
"""Nanoseconds of processor time for each unit of work; what no measurement says stays near these.

    step       and exchange: once for all inputs of a batch
    input      of a batch, in each step, whatever its size; pad: where the step adds or removes pads
    turned      a number brought from ONNX's layout into channels-last order
    pooled      a position of a pooling window; tap: of a depthwise one
    check term  a number of a checked request, for each column of its kernel
"""
PRIOR_WEIGHT = 0.05
"""How much a rate's deviation from its default weighs, against that of a shape's time: relative."""
LEAST_MS = 0.02
"""Times below are not weighed more than this one: they are mostly noise."""
LEAST_RATE = 0.05
"""Of its default, below which no rate is taken to be."""


@dataclass(frozen=True)
class StepShape:
    """A fused step without its numbers.

    answer     the protection of the answer that it reads; None: it reads a float32 value
    size       (h, w, c) of what it reads, `out_size` of its result
    turned     float32 numbers that are brought into channels-last order before
    requests   the protection of every request that it writes, and the columns of its check
    """

    answer: Protection | None
    size: tuple[int, int, int]
    out_size: tuple[int, int, int]
    turned: int
    residual: bool
    window: WindowGeometry | None
    stored: bool
    requests: tuple[tuple[Protection, int], ...]

    def work(self) -> dict[str, float]:
        """How often each unit of DEFAULT_RATES occurs, for one input."""
        before, after = math.prod(self.size), math.prod(self.out_size)
        work = dict.fromkeys(DEFAULT_RATES, 0.0)
        work["step"] = work["input"] = 1.0
        work["pad"] = 1.0 if any(p.hidden for p in self._protections) else 0.0
        if self.answer is None:
            work["value"] = before
        else:
            work["exchange"] = 1.0
            work[f"answer {self.answer.name}"] = before
        work["turned"] = self.turned
        work["residual"] = before if self.residual else 0
        work["stored"] = after if self.stored else 0
        if self.window is not None:
            unit = "tap" if self.window.kind == "depthwise" else "pooled"
            work[unit] = after * math.prod(self.window.kernel)
        for protection, columns in self.requests:
            work[f"request {protection.name}"] += after
            work["check term"] += after * columns
        return work

    @property
    def _protections(self) -> list[Protection]:
        """Of the answer that it reads and of the requests that it writes."""
        written = [protection for protection, _ in self.requests]
        return written if self.answer is None else [self.answer, *written]

    @property
    def source(self) -> tuple[object, ...]:
        """What shapes have in common that read and compute the same."""
        return (self.answer, self.size, self.out_size, self.turned, self.residual, self.window)


def step_shape(plan: Plan, step: Fused, stored: Collection[tuple[str, bool]]) -> StepShape:
    """The shape of a step; `stored` are the channels-last values that earlier steps have made."""
    turned = [name for name in step.inputs if (name, step.channels_first) not in stored]
    sinks = [plan.linear_nodes[index] for index in step.sinks]
    protections = [plan.protection_of(node) for node in sinks]
    return StepShape(
        answer=None if step.node is None else plan.protection_of(plan.linear_nodes[step.node]),
        size=step.size,
        out_size=step.out_size,
        turned=len(turned) * math.prod(step.size),
        residual=step.epilogue.residual is not None,
        window=step.epilogue.window,
        stored=step.stored,
        requests=tuple(
            (protection, _check_columns(node.linear.geometry) if protection.checked else 0)
            for node, protection in zip(sinks, protections, strict=True)
        ),
    )


def _check_columns(geometry: Geometry) -> int:
    """Columns over which the check of a request sums; 0 where its coefficients are stored."""
    return geometry.kernel[1] if keeps_factors(geometry) else 0


def fitted_rates(measured: Mapping[StepShape, float]) -> dict[str, float]:
    """Nanoseconds for each unit of work that explain the milliseconds of these shapes.

    Least squares over relative errors, held near the defaults; no rate is less than LEAST_RATE of
    its default.
    """
    names = tuple(DEFAULT_RATES)
    defaults = np.array([DEFAULT_RATES[name] for name in names])
    rows, times = np.zeros((0, len(names))), np.zeros(0)
    if measured:
        weights = np.array([1 / max(ms, LEAST_MS) for ms in measured.values()])
        work = np.array([[shape.work()[name] for name in names] for shape in measured])
        rows = 1e-6 * work * defaults * weights[:, None]
        times = np.array(list(measured.values())) * weights
    rows = np.vstack([rows, PRIOR_WEIGHT * np.eye(len(names))])
    times = np.concatenate([times, np.full(len(names), PRIOR_WEIGHT)])
    factors = np.full(len(names), LEAST_RATE)
    free = np.ones(len(names), bool)
    while free.any():
        rest = times - rows[:, ~free] @ factors[~free]
        found = np.linalg.lstsq(rows[:, free], rest, rcond=None)[0]
        low = found < LEAST_RATE
        factors[free] = np.maximum(found, LEAST_RATE)
        if not low.any():
            break
        free[np.flatnonzero(free)[low]] = False
    return dict(zip(names, (factors * defaults).tolist(), strict=True))


def estimated_ms(shape: StepShape, rates: Mapping[str, float]) -> float:
    """Milliseconds that a shape takes at some rates."""
    return 1e-6 * sum(rates[name] * count for name, count in shape.work().items())
