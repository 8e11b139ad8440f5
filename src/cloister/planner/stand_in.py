"""Plans whose linear maps are zero: they cost what the model's own plans cost.

The time of every step depends on shapes and protections alone. Of a map that is zero, the image of
every pad is zero as well: answers are unblinded and checked as ever, and no pad has to be made.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from cloister.base.rng import KEY_BYTES
from cloister.errors import UnsupportedError
from cloister.graph.graph import Graph
from cloister.graph.ops.linear_nodes import geometry, is_linear
from cloister.plan.plan import Plan
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import Protection
from cloister.plan.quantised import QuantisedLinear
from cloister.ring.linear import Geometry, LinearMap
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.source import PadSet, reclaim

QMAX = 2047
SCALE = np.float32(1 / 1024)
FILL = 0.5
"""What inputs and biases hold: as an integer it is in the range that requests have."""


def zero_maps(graph: Graph) -> dict[str, QuantisedLinear]:
    """A map of zeros for every linear node; all stand-ins of a model share them."""
    return {
        node.name: _zero_map(node.name, geometry(graph, node))
        for node in graph.nodes
        if is_linear(graph, node)
    }


def _zero_map(name: str, shape: Geometry) -> QuantisedLinear:
    channels = shape.out_channels
    return QuantisedLinear(
        node=name,
        linear=LinearMap(shape, np.zeros(shape.weight_shape, np.int16)),
        scale=np.full(channels, SCALE, np.float32),
        bias=np.full(channels, FILL, np.float32),
        x_scale=float(SCALE),
        x_qmax=QMAX,
        bound=0,
        weight_bits=12.0,
    )


def stand_in(
    graph: Graph,
    policy: str,
    protections: Mapping[str, Protection],
    maps: Mapping[str, QuantisedLinear],
    *,
    split: PlannedSplit | None = None,
) -> Plan:
    """The plan of these protections with maps of zeros.

    Raises   PlanError for protections that no plan may have
    """
    sent = {name: maps[name] for name, protection in protections.items() if protection.on_integers}
    return Plan(graph, policy, protections, sent, split=split)


class StandInPads:
    """The pads of a stand-in: their images are zeros, in memory that was written before."""

    kind = "stand-in"

    def __init__(self, plan: Plan) -> None:
        self.plan_digest = plan.digest
        self._words = PadLayout.of(plan).words
        self._spare: list[np.ndarray] = []
        self._next_id = 0

    def take(self, count: int) -> list[PadSet]:
        """See PadSource."""
        pads = []
        for _ in range(count):
            terms = self._spare.pop(0) if len(self._spare) > count else self._made()
            pads.append(PadSet(self._next_id, bytes(KEY_BYTES), terms))
            self._next_id += 1
        return pads

    def recycle(self, pads: Sequence[PadSet]) -> None:
        """See PadSource."""
        self._spare += reclaim(pads)

    def erase(self) -> None:
        """See PadSource."""
        self._spare.clear()

    def _made(self) -> np.ndarray:
        terms = np.empty(self._words, np.uint32)
        terms.fill(0)  # memory of its own: pages that were never written are all one page
        return terms


def typical_feeds(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    """A batch of inputs of the model's shapes; what they hold does not matter.

    Raises   UnsupportedError for an input of open size
    """
    return {name: filled(graph, name, batch) for name in graph.inputs}


def filled(graph: Graph, value: str, batch: int) -> np.ndarray:
    """Ordinary numbers of the type and shape of a value.

    Raises   UnsupportedError for one of open size
    """
    known = graph.types.get(value)
    if known is None or None in known.shape[1:]:
        raise UnsupportedError(
            f"value {value!r}: its size is open, so the costs of plans cannot be measured; export "
            "the model with a fixed size"
        )
    shape = tuple(batch if size is None else size for size in known.shape)
    return np.full(shape, FILL if known.dtype.kind == "f" else 0, known.dtype)
