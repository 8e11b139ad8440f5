"""What a run cost, and what it gives back."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from cloister.wire.transcript import Transcript


@dataclass(slots=True)
class LayerRow:
    """One step of the program: CPU time inside, time waited, traffic; sums over all inputs."""

    name: str
    protection: str
    trusted_ms: float = 0.0
    worker_ms: float = 0.0
    bytes_to_worker: int = 0
    bytes_from_worker: int = 0
    soundness_bits: float | None = None


@dataclass(frozen=True)
class Report:
    """Totals of a run.

    `trusted_ms` is CPU time of the trusted process, all threads; `worker_ms` the sum of all lanes'
    waits for workers, which overlap; `offline_ms` CPU time spent making pads (inline pads only).
    `soundness_bits` is the weakest checked layer's, None where nothing is checked. `workers_lost`
    lists workers that hung, died or lied since the session began.
    """

    policy: str
    inputs: int
    soundness_bits: float | None
    hardware_rooted: bool
    trusted_ms: float
    worker_ms: float
    offline_ms: float
    bytes_to_worker: int
    bytes_from_worker: int
    pads_used: int
    pads_from: str
    workers: tuple[str, ...]
    workers_lost: tuple[str, ...]
    layers: tuple[LayerRow, ...]

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass
class Meter:
    """Accumulates a report while the runtime walks the program."""

    rows: dict[str, LayerRow] = field(default_factory=dict)
    trusted_ms: float = 0.0
    offline_ms: float = 0.0
    pads_used: int = 0

    def row(self, name: str, protection: str) -> LayerRow:
        """The row of a step, made on first use."""
        return self.rows.setdefault(name, LayerRow(name, protection))

    def total(self, column: str) -> float:
        """Sum of one column."""
        return float(sum(getattr(row, column) for row in self.rows.values()))


@dataclass(frozen=True)
class Result:
    """Outputs by name, the report, and the transcript of what the workers saw."""

    outputs: Mapping[str, np.ndarray]
    report: Report
    transcript: Transcript
