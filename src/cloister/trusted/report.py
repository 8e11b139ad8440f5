"""The costs and the results of a run."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from cloister.base.notebook import html_table
from cloister.trusted.layer_row import LayerRow
from cloister.trusted.step_costs import StepCosts
from cloister.wire.transcript import Transcript

if TYPE_CHECKING:
    from cloister.attest.appraisal import Appraisal

_SUMS = (
    "inputs", "trusted_ms", "worker_ms", "module_ms", "offline_ms",
    "bytes_to_worker", "bytes_from_worker", "pads_used", "queries_used",
)  # fmt: skip


@dataclass
class Report:
    """Totals of a run; not frozen, which would cost a small model's request some percent.

    `trusted_ms` is CPU time of the trusted process, all threads; `worker_ms` the sum of all lanes'
    waits for workers, which overlap; `offline_ms` CPU time spent making pads (inline pads only).
    `soundness_bits` is the weakest checked layer's, None where nothing is checked. `workers_lost`
    lists workers that hung, died or lied since the session began, `makers_lost` makers of pads.
    `inputs_beyond` has the numbers of inputs outside the calibrated range (clips.py). `module_ms`
    is time waited for the processes of hidden modules, `queries_used` the samples that they
    answered; `queries_left` is how many more they may, None where the plan sets no limit.
    `plans_made` counts the session's plans for inputs of different sizes, its own included.
    `appraisal` is that of the machine on which the trusted side ran, None for this machine.
    """

    policy: str
    inputs: int
    soundness_bits: float | None
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
    parts: tuple[Iterable[LayerRow], ...] = field(repr=False, compare=False)
    """The rows of each attempt at each micro-batch; `layers` has those of one name as one."""
    appraisal: "Appraisal | None" = field(default=None, repr=False, compare=False)

    @property
    def hardware_rooted(self) -> bool:
        """Whether hardware vouches for the trusted side; only an appraisal tells."""
        return self.appraisal is not None and self.appraisal.hardware_rooted

    @cached_property
    def layers(self) -> tuple[LayerRow, ...]:
        """The rows, computed when a caller asks for the first time."""
        rows: dict[str, LayerRow] = {}
        for row in chain.from_iterable(self.parts):
            if row.name in rows:
                rows[row.name].add(row)
            else:
                rows[row.name] = replace(row)
        return tuple(rows.values())

    @property
    def python_ms(self) -> float:
        """The part of `trusted_ms` that the native executor did not spend."""
        parts = [part for part in self.parts if isinstance(part, StepCosts)]
        return self.trusted_ms - 1e-6 * sum(part.sums[0] for part in parts)

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
        bits = [b for b in (self.soundness_bits, other.soundness_bits) if b is not None]
        sums = {name: getattr(self, name) + getattr(other, name) for name in _SUMS}
        beyond = (*self.inputs_beyond, *(self.inputs + i for i in other.inputs_beyond))
        return replace(
            other,
            soundness_bits=min(bits, default=None),
            inputs_beyond=beyond,
            parts=(*self.parts, *other.parts),
            **sums,
        )

    def _repr_html_(self) -> str:
        left_out = ("layers", "appraisal")
        shown = {name: value for name, value in self.to_dict().items() if name not in left_out}
        return html_table("run", ((name.replace("_", " "), shown[name]) for name in shown))

    def to_dict(self) -> dict[str, object]:
        """Plain values for JSON."""
        names = [one.name for one in fields(self) if one.name not in ("parts", "appraisal")]
        return {
            **{name: getattr(self, name) for name in names},
            "layers": tuple(asdict(row) for row in self.layers),
            "clipped": self.clipped,
            "quantised": self.quantised,
            "hardware_rooted": self.hardware_rooted,
            "appraisal": None if self.appraisal is None else self.appraisal.to_json(),
        }


@dataclass
class Meter:
    """What a micro-batch cost, all attempts together."""

    attempts: list[StepCosts] = field(default_factory=list)
    offline_ms: float = 0.0
    pads_used: int = 0

    @property
    def clipped(self) -> np.ndarray:
        """Of the attempt that succeeded, the last one: uint64 (linear nodes, inputs)."""
        counts = self.attempts[-1].clipped if self.attempts else None
        return np.zeros((0, 0), np.uint64) if counts is None else counts


@dataclass(frozen=True)
class Result:
    """Outputs by name, the report, and the transcript of what the workers saw.

    An output is an array or what else ONNX Runtime returns: a list for a sequence, a dictionary for
    a map, None for an optional value that is not there.
    """

    outputs: Mapping[str, Any]
    report: Report
    transcript: Transcript
