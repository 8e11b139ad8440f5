"""The views that attacks are given: what a session's worker was sent, of attacked and of public
images. A worker knows the plan, so what it makes of public images has the same rounding errors: an
attack that learned from exact values would take these for parts of the image.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from cloister.audit.input.attack_knowledge import AttackKnowledge, PartBefore
from cloister.audit.input.split_images import SplitImages
from cloister.audit.input.split_view import SplitView, observe, observe_blinded
from cloister.base.rng import Csprng
from cloister.errors import RangeError
from cloister.graph.graph import Graph
from cloister.graph.part import part
from cloister.graph.passes.rewrite import without_unused
from cloister.graph.split import Split, part_before
from cloister.plan import policies
from cloister.plan.plan import Plan
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.quantised import Ranges
from cloister.trusted.clips import OnClip
from cloister.trusted.session import Session
from cloister.wire.transcript import Transcript

AT_ONCE = 16
"""Images of one run: a transcript has every message, and only what is attacked is kept."""

Seen = Callable[[Transcript, int], SplitView]
"""From what a worker was sent of so many inputs to its view."""


@dataclass(frozen=True, eq=False)
class ViewedSplit:
    """What a worker sees of attacked images, and what its attacks know beforehand."""

    attacked: SplitView
    knowledge: AttackKnowledge

    @property
    def nbytes(self) -> int:
        """Of both views; what attacks derive from public images once is about as large as these."""
        known = sum(value.nbytes for value in self.knowledge.view.values)
        return sum(value.nbytes for value in self.attacked.values) + 2 * known


def split_view(
    graph: Graph, images: SplitImages, *, split: Split, ranges: Mapping[str, Ranges], rng: Csprng
) -> ViewedSplit:
    """The values that cross a split: blinded, checked and unblinded by a session before it."""
    plan = policies.from_ranges(
        "origami-prefix", graph, ranges=ranges, split=PlannedSplit(split.until)
    )
    before = PartBefore(part_before(graph, split), images.pixels)
    return _viewed(plan, images, before, _clear, rng)


def input_view(
    graph: Graph, images: SplitImages, *, ranges: Mapping[str, Ranges], rng: Csprng
) -> ViewedSplit:
    """The inputs themselves: the control where every attack has to succeed."""
    plan = policies.from_ranges("open", graph, ranges=ranges)
    before = PartBefore(part(graph, (), graph.inputs, graph.inputs), images.pixels)
    return _viewed(plan, images, before, _clear, rng)


def blinded_view(
    graph: Graph,
    images: SplitImages,
    *,
    shallowest: Split,
    ranges: Mapping[str, Ranges],
    rng: Csprng,
) -> ViewedSplit:
    """What the first linear node's worker is sent under one-time pads: the control where every
    attack has to fail. Public images are blinded by pads of their own.
    """
    first = part_before(graph, shallowest)
    plan = policies.from_ranges("slalom", first, ranges=ranges)
    before = PartBefore(_before_first(first, plan), images.pixels)
    return _viewed(plan, images, before, _blinded, rng)


def _before_first(graph: Graph, plan: Plan) -> Graph:
    """The nodes up to what the first linear node on the worker reads."""
    name = plan.linear_nodes[0].node
    place = next(i for i, node in enumerate(graph.nodes) if node.name == name)
    read = graph.nodes[place].inputs[0]
    return without_unused(replace(graph, nodes=graph.nodes[:place], outputs=(read,), joins={}))


def _viewed(
    plan: Plan, images: SplitImages, before: PartBefore, seen: Seen, rng: Csprng
) -> ViewedSplit:
    inputs = images.inputs(np.concatenate([images.attacked, images.public]))
    both = _watched(plan, inputs, seen, rng)
    attacked, public = np.split(np.arange(both.count), [len(images.attacked)])
    return ViewedSplit(both.of(attacked), AttackKnowledge(images.public, both.of(public), before))


def _watched(plan: Plan, inputs: np.ndarray, seen: Seen, rng: Csprng) -> SplitView:
    views = []
    with Session(plan, record_payloads=True, on_clip=OnClip.IGNORE, rng=rng) as session:
        for start in range(0, len(inputs), AT_ONCE):
            some = inputs[start : start + AT_ONCE]
            views.append(seen(session.run(some).transcript, len(some)))
    parts = [np.concatenate(one) for one in zip(*(view.values for view in views), strict=True)]
    if not all(np.isfinite(one).all() for one in parts):
        names = () if plan.split is None else plan.split.until
        raise RangeError(
            f"the split at {','.join(names) or 'the input'!r}: NaN or infinity crosses, "
            "which no attack takes; leave out the images or the split that give it"
        )
    return SplitView(tuple(parts))


def _clear(transcript: Transcript, inputs: int) -> SplitView:
    return observe(transcript, inputs=inputs)


def _blinded(transcript: Transcript, inputs: int) -> SplitView:
    return observe_blinded(transcript, target_id=0, inputs=inputs)
