"""Policies: from a model to a plan.

slalom     linear nodes go to the worker, blinded and verified
verified   linear nodes go to the worker in the clear, every answer is checked
blinded    linear nodes go to the worker blinded, answers are not checked
enclave    everything stays inside the trusted runtime
open       everything goes to the worker in the clear and no answer is checked: the baseline; only
           `make` gives it, by its name

In the first three, depthwise convolutions stay inside where that is cheaper (placement.py), and raw
channels of different scale get scales of their own (input_factors.py). A worker learns these, as
powers of two, from the weights: calibrate on other samples than the inputs to be hidden.
"""

from collections.abc import Mapping

from cloister.errors import PlanError, UnsupportedError
from cloister.graph.graph import Graph, Node
from cloister.graph.legality import require_supported
from cloister.graph.ops.linear_nodes import is_linear
from cloister.graph.ops.table import Kind, find
from cloister.plan.accuracy import warn_of_errors
from cloister.plan.input_factors import reads_raw
from cloister.plan.placement import keep_inside
from cloister.plan.plan import Plan
from cloister.plan.protection import ENCLAVE, EVERYWHERE, OUTSOURCED, Protection
from cloister.plan.quantise import calibrate, quantise_node
from cloister.plan.quantised import Precision, Ranges
from cloister.plan.samples import Samples, as_samples

__all__ = [
    "NAMES",
    "assign",
    "blinded",
    "enclave",
    "from_ranges",
    "make",
    "measure_ranges",
    "slalom",
    "verified",
]

NAMES = (*OUTSOURCED, *EVERYWHERE)
SHOWN = 3
"""Nodes that a message names at most."""


def assign(model: Graph, policy: str) -> dict[str, Protection]:
    """The protection a policy gives to every node, by node name.

    Raises PlanError for an unknown policy.
    """
    if policy in EVERYWHERE:
        return {node.name: EVERYWHERE[policy] for node in model.nodes}
    if policy in OUTSOURCED:
        outside = OUTSOURCED[policy]
        linear = [node for node in model.nodes if is_linear(model, node)]
        kept = [node for node in linear if keep_inside(model, node, outside)]
        # Something has to go out, or there is nothing to protect.
        sent = {node.name for node in linear} - {node.name for node in kept}
        sent = sent or {node.name for node in linear}
        return {node.name: outside if node.name in sent else ENCLAVE for node in model.nodes}
    raise PlanError(f"unknown policy {policy!r}; choose one of {', '.join(NAMES)}")


def make(
    policy: str,
    model: Graph,
    *,
    calibration: Samples | None = None,
    precision: Precision | None = None,
    by_channel: bool = True,
) -> Plan:
    """A plan by the policy's name; see the functions below.

    `by_channel` gives raw input channels scales of their own, which the worker learns as powers of
    two: turn it off where the samples are the very inputs to be hidden.
    Warns (PrecisionWarning) when a layer's error on the first samples exceeds a bound.
    """
    ranges = measure_ranges(policy, model, calibration=calibration, by_channel=by_channel)
    plan = from_ranges(policy, model, ranges=ranges, precision=precision)
    if calibration is not None:
        warn_of_errors(plan, as_samples(model, calibration))
    return plan


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


def measure_ranges(
    policy: str, model: Graph, *, calibration: Samples | None, by_channel: bool = True
) -> dict[str, Ranges]:
    """Largest magnitude, over typical inputs, of what every node reads that the policy sends out.

    Nodes that read raw inputs get a range per channel, unless `by_channel` is off.
    Raises PlanError without inputs, UnsupportedError when there is nothing to send to a worker.
    """
    require_supported(model)
    if policy in EVERYWHERE:
        return {}
    linear = _sent_out(model, assign(model, policy))
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
) -> Plan:
    """A plan from ranges measured before.

    Raises PlanError when a node's ranges are missing: they were measured with another model.
    """
    require_supported(model)
    precision = precision or Precision()
    protections = assign(model, policy)
    quantised = {}
    for node in () if policy in EVERYWHERE else _sent_out(model, protections):
        if node.name not in ranges:
            raise PlanError(
                f"node {node.name!r} has no range: the calibration belongs to another model"
            )
        quantised[node.name] = quantise_node(
            model, node, ranges=ranges[node.name], precision=precision
        )
    used = {name: tuple(ranges[name]) for name in quantised}
    return Plan(model, policy, protections, quantised, precision=precision, ranges=used)


def _sent_out(model: Graph, protections: Mapping[str, Protection]) -> list[Node]:
    linear = [node for node in model.nodes if protections[node.name].on_worker]
    if not linear:
        raise UnsupportedError(_nothing_to_send(model))
    return linear


def _nothing_to_send(model: Graph) -> str:
    """Why no node goes out: a model may have products that workers do not compute."""
    inside = [
        f"{node.name!r} ({node.op})"
        for node in model.nodes
        if (spec := find(node)) is None or spec.kind is Kind.LINEAR
    ]
    if not inside:
        return (
            "the model has no linear node with constant weights, so there is nothing to send to a "
            "worker; use the enclave policy"
        )
    shown = ", ".join(inside[:SHOWN]) + (", ..." if len(inside) > SHOWN else "")
    return (
        "the model has no linear node with constant weights that a worker computes: float32 Conv "
        "and ConvTranspose of one or two dimensions, Gemm and MatMul with a matrix, on each input "
        f"of a batch alone; kept inside: {shown}; use the enclave policy"
    )
