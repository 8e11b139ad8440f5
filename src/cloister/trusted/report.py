"""The costs and the results of a run."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cloister.base.notebook import html_table
from cloister.wire.transcript import Transcript

_SUMS = (
    "inputs", "trusted_ms", "worker_ms", "module_ms", "offline_ms",
    "bytes_to_worker", "bytes_from_worker", "pads_used", "queries_used",
)  # fmt: skip


@dataclass(slots=True)
class LayerRow:
    """One step of the program: CPU time inside, time waited, traffic; sums over all inputs.

    Of a module, `module_ms` is the time until its process answered.

    Of a linear layer, `quantised` counts the activations that became integers, `clipped` those of
    them that lay beyond the calibrated range; `clipped_share` is the largest share of one input.
    """

    name: str
    protection: str
    trusted_ms: float = 0.0
    worker_ms: float = 0.0
    module_ms: float = 0.0
    bytes_to_worker: int = 0
    bytes_from_worker: int = 0
    soundness_bits: float | None = None
    clipped: int = 0
    quantised: int = 0
    clipped_share: float = 0.0

    def add(self, other: "LayerRow") -> None:
        """Add what the same step cost for other inputs."""
        self.trusted_ms += other.trusted_ms
        self.worker_ms += other.worker_ms
        self.module_ms += other.module_ms
        self.bytes_to_worker += other.bytes_to_worker
        self.bytes_from_worker += other.bytes_from_worker
        self.soundness_bits = other.soundness_bits
        self.clipped += other.clipped
        self.quantised += other.quantised
        self.clipped_share = max(self.clipped_share, other.clipped_share)


@dataclass(frozen=True)
class Report:
    """Totals of a run.

    `trusted_ms` is CPU time of the trusted process, all threads; `worker_ms` the sum of all lanes'
    waits for workers, which overlap; `offline_ms` CPU time spent making pads (inline pads only).
    `soundness_bits` is the weakest checked layer's, None where nothing is checked. `workers_lost`
    lists workers that hung, died or lied since the session began, `makers_lost` makers of pads.
    `inputs_beyond` has the numbers of inputs outside the calibrated range (clips.py). `module_ms`
    is time waited for the processes of hidden modules, `queries_used` the samples that they
    answered; `queries_left` is how many more they may, None where the plan sets no limit.
    `plans_made` counts the session's plans for inputs of different sizes, its own included.
    """

    policy: str
    inputs: int
    soundness_bits: float | None
    hardware_rooted: bool
    trusted_ms: float
    worker_ms: float
    module_ms: float
    offline_ms: float
    bytes_to_worker: int
    bytes_from_worker: int
    pads_used: int
    pads_from: str
    workers: tuple[str, ...]
    workers_lost: tuple[str, ...]
    makers: tuple[str, ...]
    makers_lost: tuple[str, ...]
    inputs_beyond: tuple[int, ...]
    queries_used: int
    queries_left: int | None
    plans_made: int
    layers: tuple[LayerRow, ...]

    @property
    def clipped(self) -> int:
        """Activations beyond the calibrated range, in all layers."""
        return sum(row.clipped for row in self.layers)

    @property
    def quantised(self) -> int:
        """Activations that became integers, in all layers."""
        return sum(row.quantised for row in self.layers)

    def followed_by(self, other: "Report") -> "Report":
        """The report of these inputs and of those that the same session ran next."""
        rows = {row.name: replace(row) for row in self.layers}
        for row in other.layers:
            rows.setdefault(row.name, LayerRow(row.name, row.protection)).add(row)
        bits = [b for b in (self.soundness_bits, other.soundness_bits) if b is not None]
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMS}
        beyond = (*self.inputs_beyond, *(self.inputs + i for i in other.inputs_beyond))
        return replace(
            other,
            soundness_bits=min(bits, default=None),
            inputs_beyond=beyond,
            layers=tuple(rows.values()),
            **sums,
        )

    def _repr_html_(self) -> str:
        shown = {name: value for name, value in self.to_dict().items() if name != "layers"}
        return html_table("run", ((name.replace("_", " "), shown[name]) for name in shown))

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return {**asdict(self), "clipped": self.clipped, "quantised": self.quantised}


@dataclass
class Meter:
    """Accumulates a report while the executor runs the program.

    `clipped` is uint64 (linear nodes, inputs): of one micro-batch.
    """

    rows: dict[str, LayerRow] = field(default_factory=dict)
    clipped: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.uint64))
    trusted_ms: float = 0.0
    offline_ms: float = 0.0
    pads_used: int = 0
    queries: int = 0

    def row(self, name: str, protection: str) -> LayerRow:
        """The row of a step, made on first use."""
        row = self.rows.get(name)
        if row is None:
            row = self.rows[name] = LayerRow(name, protection)
        return row

    def total(self) -> LayerRow:
        """The sum of all rows."""
        total = LayerRow("", "")
        for row in self.rows.values():
            total.add(row)
        return total


@dataclass(frozen=True)
class Result:
    """Outputs by name, the report, and the transcript of what the workers saw.

    An output is an array or what else ONNX Runtime returns: a list for a sequence, a dictionary for
    a map, None for an optional value that is not there.
    """

    outputs: Mapping[str, Any]
    report: Report
    transcript: Transcript
