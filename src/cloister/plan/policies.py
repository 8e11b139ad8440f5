"""Policies: from a model to a plan.

slalom     linear nodes go to the worker, blinded and verified
verified   linear nodes go to the worker in the clear, every answer is checked
blinded    linear nodes go to the worker blinded, answers are not checked
enclave    everything stays inside the trusted runtime
open       everything goes to the worker in the clear and no answer is checked: the baseline; only
           `make` gives it, by its name. Nodes that no worker can run stay inside (openable.py)
ennclave   the end of the model is hidden: a compiled module computes it, and a worker all nodes
           before it, as in `open`

origami    linear nodes before a split go to the worker blinded and verified, those after it in the
           clear and verified; `origami-prefix` runs everything after the split on the worker, in
           one message; `origami-none` is that without any check, as published

All but `ennclave` may treat the nodes before a hidden end: `slalom+ennclave`, and so on.

In the first three, depthwise convolutions stay inside where that is cheaper (placement.py), and raw
channels of different scale get scales of their own (input_factors.py). A worker learns these, as
powers of two, from the weights: calibrate on other samples than the inputs to be hidden.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

from cloister.errors import PlanError, UnsupportedError
from cloister.graph.graph import LINEAR_OPS, Graph, Node
from cloister.graph.hidden import hide
from cloister.graph.legality import require_sizes, require_supported
from cloister.graph.onnx.specialise import specialise
from cloister.graph.ops.linear_nodes import geometry, has_finite_bias, is_linear, why_inside
from cloister.graph.ops.table import Kind, find
from cloister.graph.passes.float32_products import narrow_doubles
from cloister.graph.passes.normalise import prepare
from cloister.graph.split import split_at
from cloister.plan.accuracy import warn_of_errors
from cloister.plan.bound_sizes import bound_parts, largest
from cloister.plan.input_factors import reads_raw
from cloister.plan.openable import kept_inside
from cloister.plan.placement import keep_inside
from cloister.plan.plan import Plan
from cloister.plan.planned_split import PlannedSplit
from cloister.plan.protection import (
    ENCLAVE,
    EVERYWHERE,
    HIDING,
    INTEGRITY,
    MODULE,
    OPEN,
    OUTSOURCED,
    SPLITTING,
    Protection,
    hiding,
    outer_policy,
)
from cloister.plan.quantise import calibrate, quantise_node
from cloister.plan.quantised import Precision, QuantisedLinear, Ranges, factor_shape
from cloister.plan.samples import Samples, as_samples
from cloister.plan.split_choice import AUTO, choose_split
from cloister.plan.split_report import SplitReport
from cloister.plan.split_report import load as load_report
from cloister.ring.linear import LinearMap

__all__ = [
    "NAMES",
    "assign",
    "blinded",
    "enclave",
    "ennclave",
    "for_sizes",
    "from_ranges",
    "make",
    "measure_ranges",
    "needs_ranges",
    "origami",
    "slalom",
    "verified",
]

NAMES = (*OUTSOURCED, *EVERYWHERE)
"""Policies for whole models; those of `HIDING` are for models with a hidden end."""
SHOWN = 3
"""Nodes that a message names at most."""


def assign(
    model: Graph,
    policy: str,
    *,
    split: PlannedSplit | None = None,
    inside: Collection[str] | None = None,
) -> dict[str, Protection]:
    """The protection a policy gives to every node, by node name.

    split    where a policy of SPLITTING stops to hide values; None: nowhere
    inside   the linear nodes that stay inside although the policy could send them out; None: those
             that are cheaper there (placement.py)

    Raises   PlanError for an unknown policy or a node inside that is not linear, InputError for a
             split that the model does not have
    """
    modules = [node for node in model.nodes if node.is_module]
    outer = outer_policy(policy)
    if outer is not None:
        if not modules:
            raise PlanError(
                f"policy {policy!r} hides the end of a model: say which (`policies.ennclave`)"
            )
        hidden = {node.name: MODULE for node in modules}
        others = tuple(node for node in model.nodes if node.name not in hidden)
        return {**_assigned(model, others, outer, split, inside), **hidden}
    if modules and policy in (*NAMES, *SPLITTING):
        raise PlanError(
            f"node {modules[0].name!r} is a hidden part, and policy {policy!r} has none; use "
            f"policy {hiding(policy)!r}"
        )
    return _assigned(model, model.nodes, policy, split, inside)


def _assigned(
    model: Graph,
    nodes: tuple[Node, ...],
    policy: str,
    split: PlannedSplit | None,
    inside: Collection[str] | None,
) -> dict[str, Protection]:
    if inside is not None:
        linear = {node.name for node in nodes if is_linear(model, node)}
        for name in sorted(set(inside) - linear):
            raise PlanError(f"node {name!r}: is no linear node that could stay inside")
    if policy in SPLITTING:
        halves = SPLITTING[policy]
        names = {node.name for node in nodes}
        if split is not None:
            names &= split_at(model, split.until).before
        before = [node for node in nodes if node.name in names]
        after = [node for node in nodes if node.name not in names]
        opened = _opened(model, after)
        return {
            **_sent(model, before, halves.before, inside),
            **(opened if halves.after == OPEN else _sent(model, after, halves.after, inside)),
        }
    if policy in EVERYWHERE:
        alike = EVERYWHERE[policy]
        return _opened(model, nodes) if alike == OPEN else {node.name: alike for node in nodes}
    if policy in OUTSOURCED:
        return _sent(model, nodes, OUTSOURCED[policy], inside)
    raise _unknown(policy)


def _opened(model: Graph, nodes: Sequence[Node]) -> dict[str, Protection]:
    """Nodes on the worker in the clear, but for those that no worker can run."""
    kept = kept_inside(model)
    return {node.name: ENCLAVE if node.name in kept else OPEN for node in nodes}


def _sent(
    model: Graph, nodes: Sequence[Node], outside: Protection, inside: Collection[str] | None
) -> dict[str, Protection]:
    """Linear nodes on the worker, but for those that stay inside."""
    linear = [node for node in nodes if is_linear(model, node) and has_finite_bias(model, node)]
    if inside is not None:
        sent = {node.name for node in linear} - set(inside)
        return {node.name: outside if node.name in sent else ENCLAVE for node in nodes}
    kept = [node for node in linear if keep_inside(model, node, outside)]
    # Something has to go out, or there is nothing to protect.
    sent = {node.name for node in linear} - {node.name for node in kept}
    sent = sent or {node.name for node in linear}
    return {node.name: outside if node.name in sent else ENCLAVE for node in nodes}


def _unknown(policy: str) -> PlanError:
    return PlanError(
        f"unknown policy {policy!r}; choose one of {', '.join((*NAMES, *SPLITTING, *HIDING))}"
    )


def make(
    policy: str,
    model: Graph,
    *,
    calibration: Samples | None = None,
    precision: Precision | None = None,
    by_channel: bool = True,
    split: PlannedSplit | None = None,
    inside: Collection[str] | None = None,
) -> Plan:
    """A plan by the policy's name; see the functions below, and `assign`.

    `by_channel` gives raw input channels scales of their own, which the worker learns as powers of
    two: turn it off where the samples are the very inputs to be hidden. Where nodes become
    integers, the model's free sizes are those of the samples (bound_sizes.py); a session makes
    plans for other sizes when it needs them.
    Warns (PrecisionWarning) when a layer's error on the first samples exceeds a bound.
    """
    if calibration is None or not needs_ranges(policy):
        ranges = measure_ranges(policy, model, calibration=calibration, split=split, inside=inside)
        return from_ranges(
            policy, model, ranges=ranges, precision=precision, split=split, inside=inside
        )
    parts = bound_parts(model, as_samples(model, calibration))
    measured = [
        measure_ranges(
            policy, graph, calibration=part, by_channel=by_channel, split=split, inside=inside
        )
        for graph, part in parts
    ]
    graph, samples = parts[0]
    plan = from_ranges(
        policy, graph, ranges=largest(measured), precision=precision, split=split, inside=inside
    )
    warn_of_errors(plan, samples)
    return plan if graph is model else replace(plan, template=model)


def for_sizes(plan: Plan, sizes: Mapping[str, int]) -> Plan:
    """The plan for other sizes of its template's inputs: the same ranges, and what goes out.

    `sizes` has a number for each of `plan.sizes`, at least.

    Raises   PlanError for a plan without a template
    """
    if plan.template is None:
        raise PlanError("the plan has no model with free sizes; make it from one")
    graph = specialise(plan.template, {name: sizes[name] for name in plan.sizes})
    graph = _in_float32(plan.policy, graph)
    inside = {n.name for n in graph.nodes if is_linear(graph, n) and n.name not in plan.quantised}
    protections = assign(graph, plan.policy, split=plan.split, inside=inside)
    whole = _whole_ranges(graph, plan)
    known = {name: n for name, n in _kept_integers(graph, plan).items() if name not in whole}
    ranges = {**plan.ranges, **whole}
    made = _planned(plan.policy, graph, protections, ranges, plan.precision, plan.split, known)
    return replace(made, template=plan.template)


def _kept_integers(graph: Graph, plan: Plan) -> dict[str, QuantisedLinear]:
    """The integers of nodes that have the weights of the plan's: they depend on no size."""
    before = {node.name: node for node in plan.graph.nodes if node.name in plan.quantised}
    found = {}
    for node in graph.nodes:
        if before.get(node.name) is not node or not is_linear(graph, node):
            continue
        read = [value for value in node.inputs[1:] if value]
        if all(graph.constants.get(v) is plan.graph.constants.get(v) for v in read):
            numbers = plan.quantised[node.name]
            linear = LinearMap(geometry(graph, node), numbers.linear.weights)
            found[node.name] = replace(numbers, linear=linear)
    return found


def _whole_ranges(graph: Graph, plan: Plan) -> dict[str, Ranges]:
    """One range for nodes that have one for each element of an image of another size."""
    return {
        node.name: (max(plan.ranges[node.name]),)
        for node in graph.nodes
        if node.name in plan.ranges and is_linear(graph, node)
        if len(plan.ranges[node.name]) not in (1, math.prod(factor_shape(geometry(graph, node))))
    }


def slalom(model: Graph, *, calibration: Samples, precision: Precision | None = None) -> Plan:
    """Linear nodes on the worker under one-time pads, every answer checked.

    `calibration` is a batch of typical inputs; it sets the activations' fixed-point scales.
    """
    return make("slalom", model, calibration=calibration, precision=precision)


def verified(model: Graph, *, calibration: Samples, precision: Precision | None = None) -> Plan:
    """Linear nodes on the worker in the clear, every answer checked."""
    return make("verified", model, calibration=calibration, precision=precision)


def blinded(model: Graph, *, calibration: Samples, precision: Precision | None = None) -> Plan:
    """Linear nodes on the worker under one-time pads, answers not checked."""
    return make("blinded", model, calibration=calibration, precision=precision)


def enclave(model: Graph) -> Plan:
    """Everything inside the trusted runtime."""
    return make("enclave", model)


def ennclave(
    model: Graph,
    *,
    module_digest: bytes,
    last: int | None = None,
    first: str | None = None,
    outer: str = "open",
    queries: int | None = None,
    until: str | Sequence[str] = AUTO,
    audit: SplitReport | str | PathLike[str] | None = None,
    calibration: Samples | None = None,
    precision: Precision | None = None,
) -> Plan:
    """The end of the model in a compiled module, the nodes before it as policy `outer` has them.

    module_digest   of the module that was compiled from `hide(model, ...).hidden`
    last, first     which nodes are hidden (`graph.hidden.hide`)
    queries         how many samples the module may answer in all; None: any number
    until, audit    of a policy with a split, as of `origami`; the audit is of the whole model
    """
    named = hide(model, last=last, first=first).named(module_digest, queries=queries)
    if outer in SPLITTING:
        return _split(
            hiding(outer), named, until, audit,
            audited=model, calibration=calibration, precision=precision,
        )  # fmt: skip
    if until != AUTO or audit is not None:
        raise PlanError(f"policy {outer!r} has no split; leave out until= and audit=")
    return make(hiding(outer), named, calibration=calibration, precision=precision)


def origami(
    model: Graph,
    *,
    until: str | Sequence[str] = AUTO,
    integrity: str = "full",
    audit: SplitReport | str | PathLike[str] | None = None,
    calibration: Samples | None = None,
    precision: Precision | None = None,
) -> Plan:
    """Linear nodes before a split blinded and verified; what comes after it in the clear.

    until         the last nodes before the split; "auto": the shallowest split that the audit
                  accepts, and if it accepts none, every linear node is blinded
    integrity     "full": all answers are checked; "prefix": those before the split, and the rest
                  runs on the worker in one message; "none": no answer, which hides the input only
                  from a worker that follows the protocol
    audit         a report of `cloister audit input`, or its file; "auto" needs one
    calibration   a batch of typical inputs; without it the report's ranges are used

    Raises   PlanError for a report of another model, or one that does not accept the split,
             InputError for a split that the model does not have, UnsupportedError
    """
    if integrity not in INTEGRITY:
        raise PlanError(f"integrity {integrity!r}: choose one of {', '.join(INTEGRITY)}")
    return _split(
        INTEGRITY[integrity], model, until, audit,
        audited=model, calibration=calibration, precision=precision,
    )  # fmt: skip


def _split(
    policy: str,
    model: Graph,
    until: str | Sequence[str],
    audit: SplitReport | str | PathLike[str] | None,
    *,
    audited: Graph,
    calibration: Samples | None,
    precision: Precision | None,
) -> Plan:
    """A plan of a policy that has a split; `audited` is the model that the audit has to name."""
    if not isinstance(audit, SplitReport | str | PathLike | None):
        raise PlanError("audit: give a report of `cloister audit input`, or its file or folder")
    report = audit if isinstance(audit, SplitReport | None) else load_report(Path(audit))
    split = choose_split(model, until, report, audited=audited)
    if calibration is None and report is not None:
        return from_ranges(policy, model, ranges=report.ranges, precision=precision, split=split)
    return make(policy, model, calibration=calibration, precision=precision, split=split)


def measure_ranges(
    policy: str,
    model: Graph,
    *,
    calibration: Samples | None,
    by_channel: bool = True,
    split: PlannedSplit | None = None,
    inside: Collection[str] | None = None,
) -> dict[str, Ranges]:
    """Largest magnitude, over typical inputs, of what every node reads that the policy sends out.

    Nodes that read raw inputs get a range per channel, unless `by_channel` is off.
    Raises PlanError without inputs, UnsupportedError when there is nothing to send to a worker.
    """
    require_supported(model)
    model = _in_float32(policy, model)
    protections = assign(model, policy, split=split, inside=inside)
    if not needs_ranges(policy):
        return {}
    _require_sizes(policy, model)
    linear = _sent_out(model, protections)
    if calibration is None:
        raise PlanError(f"policy {policy!r} needs calibration=: a batch of typical inputs")
    samples = as_samples(model, calibration)
    names = frozenset(node.name for node in linear)
    raw = (node.name for node in linear if by_channel and reads_raw(model, node, names))
    return calibrate(model, linear, samples, by_channel=frozenset(raw))


def from_ranges(
    policy: str,
    model: Graph,
    *,
    ranges: Mapping[str, Ranges],
    precision: Precision | None = None,
    split: PlannedSplit | None = None,
    inside: Collection[str] | None = None,
) -> Plan:
    """A plan from ranges measured before.

    Raises PlanError when a node's ranges are missing: they were measured with another model.
    """
    require_supported(model)
    model = _in_float32(policy, model)
    protections = assign(model, policy, split=split, inside=inside)
    if needs_ranges(policy):
        _require_sizes(policy, model)
        _sent_out(model, protections)
    return _planned(policy, model, protections, ranges, precision or Precision(), split, {})


def _planned(
    policy: str,
    model: Graph,
    protections: Mapping[str, Protection],
    ranges: Mapping[str, Ranges],
    precision: Precision,
    split: PlannedSplit | None,
    known: Mapping[str, QuantisedLinear],
) -> Plan:
    """The plan with these protections; one that sends nothing to a worker is a plan too.

    known   integers that some nodes have already
    """
    quantised = {}
    for node in (one for one in model.nodes if protections[one.name].on_integers):
        if node.name not in ranges:
            raise PlanError(
                f"node {node.name!r} has no range: the calibration belongs to another model"
            )
        quantised[node.name] = known.get(node.name) or quantise_node(
            model, node, ranges=ranges[node.name], precision=precision
        )
    used = {name: tuple(ranges[name]) for name in quantised}
    return Plan(
        model, policy, protections, quantised, precision=precision, ranges=used, split=split
    )


def _in_float32(policy: str, model: Graph) -> Graph:
    """The model with float64 products in float32, if nodes of the policy become integers."""
    narrow = narrow_doubles(model) if needs_ranges(policy) else model
    return model if narrow is model else prepare(narrow)


def needs_ranges(policy: str) -> bool:
    """Whether nodes of a policy become integers, for which typical inputs set ranges.

    Raises PlanError for an unknown policy.
    """
    outer = outer_policy(policy) or policy
    if outer not in (*NAMES, *SPLITTING):
        raise _unknown(policy)
    return outer not in EVERYWHERE


def _require_sizes(policy: str, model: Graph) -> None:
    what, remedy = f"policy {policy!r}", "give typical inputs (calibration=), or "
    require_sizes(model, what, remedy=remedy)


def _sent_out(model: Graph, protections: Mapping[str, Protection]) -> list[Node]:
    linear = [node for node in model.nodes if protections[node.name].on_integers]
    if not linear:
        raise UnsupportedError(_nothing_to_send(model))
    return linear


def _nothing_to_send(model: Graph) -> str:
    """Why no node goes out: a model may have products that workers do not compute."""
    if any(node.is_module for node in model.nodes):
        return (
            "no linear node that a worker computes is left before the hidden end; hide fewer "
            "layers, or use the enclave policy before it"
        )
    inside = [node for node in model.nodes if _is_product(node)]
    inside.sort(key=lambda node: node.op not in LINEAR_OPS)
    if not inside:
        return (
            "the model has no linear node with constant weights, so there is nothing to send to a "
            "worker; use the enclave policy"
        )
    listed = "; ".join(
        f"node {node.name!r} ({node.op}): {why_inside(model, node)}" for node in inside[:SHOWN]
    )
    more = f"; and {len(inside) - SHOWN} more" if len(inside) > SHOWN else ""
    return (
        "the model has no linear node with constant weights that a worker computes: "
        f"{listed}{more}; use the enclave policy"
    )


def _is_product(node: Node) -> bool:
    """Whether a node may multiply by weights: what ONNX Runtime alone knows may, too."""
    spec = find(node)
    return spec is None or spec.kind is Kind.LINEAR
