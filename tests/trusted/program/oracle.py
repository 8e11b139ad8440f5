"""The interpreter in the place of a session: the same inputs, pads and check coefficients."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cloister.base.rng import InsecureSeededRandom
from cloister.graph.batch import cut, joined, row_count
from cloister.plan.plan import Plan
from cloister.plan.samples import as_samples
from cloister.ring import reference
from cloister.ring.freivalds import draw
from cloister.trusted.pads.maker import InlinePads
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.step_interpreter import (
    Crossed,
    Interpretation,
    Interpreter,
    ModuleFunction,
)
from cloister.trusted.report import Result
from cloister.trusted.session import Session

SEED = 12


class KnownPads:
    """Inline pads under a key that a test can ask for, with the ids they gave out."""

    kind = "inline"

    def __init__(self, plan: Plan) -> None:
        self._pads = InlinePads(plan, rng=InsecureSeededRandom(SEED))
        self.plan_digest = plan.digest
        self.key = b""
        self.ids: list[int] = []

    def take(self, count):
        pads = self._pads.take(count)
        self.ids += [pad.pad_id for pad in pads]
        self.key = pads[0].key
        return pads

    def recycle(self, pads) -> None:
        self._pads.recycle(pads)

    def erase(self) -> None:
        self._pads.erase()


@dataclass
class Oracle:
    """Sessions of one plan, and what the interpreter says of each of their runs."""

    plan: Plan
    batch: int = 2
    modules: Mapping[str, ModuleFunction] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pads = KnownPads(self.plan) if self.plan.hidden_nodes else None
        rng = InsecureSeededRandom(SEED)
        self.checks = {
            index: draw(node.linear, rng=rng)
            for index, node in enumerate(self.plan.linear_nodes)
            if self.plan.protection_of(node).checked
        }
        self.program = compile_plan(self.plan)
        self._used = 0

    def session(self, link, *, record: bool = True, **options) -> Session:
        """A session that draws the same coefficients and pads."""
        return Session(
            self.plan,
            workers=None if link is None else [link],
            pads=self.pads,
            batch=self.batch,
            rng=InsecureSeededRandom(SEED),
            record_payloads=record,
            on_clip="ignore",
            **options,
        )

    def interpret(self, feeds, *, worker=reference.linear_map) -> list[Interpretation]:
        """The interpretation of each micro-batch of the session's last run."""
        self.crossed: list[Crossed] = []
        interpreter = Interpreter(
            self.program,
            checks=self.checks,
            worker=worker,
            watch=self.crossed.append,
            modules=self.modules,
        )
        found = []
        for part in cut(self.plan.graph, as_samples(self.plan.graph, feeds), self.batch):
            if self.pads is None:
                found.append(interpreter.run(part))
                continue
            used, self._used = self._used, self._used + row_count(self.plan.graph, part)
            ids = self.pads.ids[used : self._used]
            found.append(interpreter.run(part, pad_key=self.pads.key, pad_ids=ids))
        return found

    def assert_explains(self, result: Result, feeds, *, worker=reference.linear_map) -> None:
        """The session's last run gave, sent and received what the interpreter says, bit for bit."""
        found = self.interpret(feeds, worker=worker)
        outputs = joined(self.plan.graph, [one.outputs for one in found])
        assert list(result.outputs) == list(outputs)
        for name, value in outputs.items():
            assert_same_bits(result.outputs[name], value)
        entries = result.transcript.entries
        wanted = [
            (direction, each.target, tensor)
            for each in self.crossed
            for direction, tensors in (("to_worker", each.sent), ("from_worker", each.received))
            for tensor in tensors
        ]
        for entry, (direction, target, tensor) in zip(entries, wanted, strict=True):
            assert (entry.direction, entry.target_id) == (direction, target)
            assert (entry.dtype, entry.shape) == (tensor.dtype, tensor.shape)
            if entry.payload is not None:
                assert_same_bits(entry.payload, tensor)
        rows = {row.name: row.clipped for row in result.report.layers}
        for index, node in enumerate(self.plan.linear_nodes):
            assert rows[node.node] == sum(int(one.clipped[index].sum()) for one in found)
        for one in found:
            assert set(one.sums) == set(self.checks)


def assert_same_bits(one: np.ndarray, other: np.ndarray) -> None:
    assert (one.dtype, one.shape) == (other.dtype, other.shape)
    assert np.ascontiguousarray(one).tobytes() == np.ascontiguousarray(other).tobytes()
