"""What the steps of one attempt at a micro-batch cost, and the rows of a report made of it.

The native executor measures; nothing is computed for a step before somebody reads the rows.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Int64, UInt64

from cloister.trusted.layer_row import LayerRow


@dataclass(frozen=True, eq=False)
class StepTable:
    """The steps of an executor: the name and protection of each, steps of one name share a row.

    soundness_bits   of every step: see Report
    elements         of one input of every linear node, by name, in the order of the plan
    """

    names: tuple[str, ...]
    protections: tuple[str, ...]
    soundness_bits: tuple[float | None, ...]
    elements: Mapping[str, int]

    @cached_property
    def lowest_bits(self) -> float | None:
        """The weakest checked step's."""
        return min((bits for bits in self.soundness_bits if bits is not None), default=None)


@dataclass(eq=False)
class StepCosts:
    """One attempt; iterating gives its rows.

    times       nanoseconds by step: of native code, waited, of Python
    traffic     bytes to and from the worker, by step
    done        so many steps were completed; what later ones took is not counted
    sums        of the times of the steps that were completed
    crossed     the sums of their traffic, once all are completed
    more        what a link that is not native adds: step, nanoseconds waited, bytes to and from
    module_ms   by step
    queries     samples that modules answered
    clipped     by linear node and input, once the attempt has succeeded
    """

    table: StepTable
    times: Int64[np.ndarray, "steps 3"]
    traffic: Int64[np.ndarray, "steps 2"]
    done: int = 0
    sums: tuple[int, int, int] = (0, 0, 0)
    crossed: tuple[int, int] | None = None
    more: list[tuple[int, int, int, int]] = field(default_factory=list)
    module_ms: dict[int, float] = field(default_factory=dict)
    queries: int = 0
    clipped: UInt64[np.ndarray, "nodes inputs"] | None = None

    def exchanged(self) -> tuple[int, int, int]:
        """Nanoseconds waited, bytes to and from the worker, in all."""
        waited = self.sums[1]
        sent, received = self.crossed or self.traffic[: self.done].sum(axis=0).tolist()
        for _, more_ns, to_worker, from_worker in self.more:
            waited, sent, received = waited + more_ns, sent + to_worker, received + from_worker
        return waited, sent, received

    def __iter__(self) -> Iterator[LayerRow]:
        table, rows = self.table, dict[str, LayerRow]()
        times, traffic = self.times.tolist(), self.traffic.tolist()
        for step in range(self.done):
            name = table.names[step]
            row = rows.setdefault(name, LayerRow(name, table.protections[step]))
            native_ns, wait_ns, python_ns = times[step]
            row.enter(native_ns + python_ns, wait_ns, *traffic[step])
            row.module_ms += self.module_ms.get(step, 0.0)
            if table.soundness_bits[step] is not None:
                row.soundness_bits = table.soundness_bits[step]
        for step, *costs in self.more:
            rows[table.names[step]].enter(0, *costs)
        if self.clipped is not None:
            self._enter_clips(rows, self.clipped.astype(np.int64))
        return iter(rows.values())

    def _enter_clips(
        self, rows: Mapping[str, LayerRow], clipped: Int64[np.ndarray, "nodes inputs"]
    ) -> None:
        totals, worst = clipped.sum(axis=1).tolist(), clipped.max(axis=1).tolist()
        for (name, size), total, most in zip(
            self.table.elements.items(), totals, worst, strict=True
        ):
            row = rows[name]
            row.quantised += clipped.shape[1] * size
            row.clipped += total
            row.clipped_share = max(row.clipped_share, most / size)
