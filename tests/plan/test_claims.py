import dataclasses
from typing import get_args

import pytest

import nets
from cloister.errors import PlanError, RangeError
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.claims import SENT, USE, Extent, Role, Verb, claims_of
from cloister.plan.protection import BLINDED, BLINDED_VERIFIED, ENCLAVE, OPEN, VERIFIED
from cloister.plan.quantise import quantise_node
from cloister.plan.quantised import Precision, static_bound
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.wire.messages import Answer, Failure, Loaded, Message, Welcome
from cloister.worker.engine import Engine
from trusted.test_session import plan_of

VISIBLE = "integer weights"


def by_protection(claims, verb=Verb.LEARNS):
    return {one.about.partition(" (")[0]: one.text for one in claims.of(Role.WORKER, verb)}


def visible(claims):
    """What a worker always sees."""
    return by_protection(claims)[USE]


@pytest.mark.parametrize("policy", ["slalom", "verified", "blinded"])
def test_claims_always_say_that_the_worker_sees_the_weights(policy):
    assert VISIBLE in visible(plan_of(nets.chain(), policy).claims())


def test_every_message_to_a_worker_has_its_line():
    """A new kind of message shows something, and the claims have to say what."""
    to_worker = {
        kind.__name__
        for kind in get_args(Message)
        if kind not in (Welcome, Loaded, Answer, Failure)
    }
    assert set(SENT) == to_worker


@pytest.mark.parametrize("policy", ["slalom", "verified", "blinded", "open"])
def test_what_a_session_sends_is_among_what_is_said(policy):
    """Every message of a run, as the worker's side receives it."""
    plan, kinds, engine = plan_of(nets.chain(), policy), set(), Engine()

    def handle(message):
        kinds.add(type(message).__name__)
        return engine.handle(message)

    with Session(plan, workers=[InProcessLink(handle)]) as session:
        session.run(nets.samples(nets.chain(), 2))
    assert {"Apply"} < kinds
    said = visible(plan.claims())
    for kind in kinds:
        assert SENT[kind] in said, kind


def test_open_parts_show_their_names():
    found = visible(claims_of("mixed", {"a": BLINDED_VERIFIED, "c": OPEN}))
    assert "integer weights" in found
    assert "names and notes of the open part" in found
    assert "names" not in visible(claims_of("slalom", {"a": BLINDED_VERIFIED}))


def test_nothing_is_learned_or_changed_only_where_that_follows_from_the_whole_plan():
    slalom = plan_of(nets.chain(), "slalom").claims()
    assert by_protection(slalom)["enclave"] == "nothing"
    assert by_protection(slalom)["blinded+verified"].startswith("nothing about this input")
    verified = plan_of(nets.chain(), "verified").claims()
    assert "results" in by_protection(verified)["enclave"]
    assert by_protection(verified, Verb.CAN)["enclave"] == "nothing"
    blinded = plan_of(nets.chain(), "blinded").claims()
    assert by_protection(blinded)["enclave"] == "nothing"
    assert "unchecked answers" in by_protection(blinded, Verb.CAN)["enclave"]


@pytest.mark.parametrize("later", [VERIFIED, OPEN])
def test_a_clear_node_behind_hidden_ones_is_spelled_out(later):
    protections = {"a": BLINDED_VERIFIED, "b": BLINDED, "c": later, "d": ENCLAVE}
    claims = claims_of("mixed", protections)
    assert claims.worst(Role.WORKER) is Extent.EVERYTHING
    told = by_protection(claims)
    assert "in the clear" in told["blinded+verified"]
    assert "own changes" in told["blinded"]
    assert "in the clear" in told["enclave"]


def test_a_plan_whose_results_may_wrap_is_refused():
    """The bound is computed from the weights, whatever the plan states."""
    plan = plan_of(nets.chain())
    node = plan.linear_nodes[0]
    lying = dataclasses.replace(node, x_qmax=2**31 // max(node.bound // node.x_qmax, 1) + 1)
    assert static_bound(lying) >= 2**31
    with pytest.raises(PlanError, match="wrap"):
        dataclasses.replace(plan, quantised={**plan.quantised, node.node: lying})


@pytest.mark.parametrize("bits", [(16, 14), (12, 12), (8, 8), (2, 2)])
def test_every_node_has_a_proof_that_it_does_not_wrap(bits):
    graph = normalise.prepare(read.from_model(nets.separable(), name="net"))
    precision = Precision(*bits)
    for node in plan_of(nets.separable()).linear_nodes:
        source = next(n for n in graph.nodes if n.name == node.node)
        made = quantise_node(graph, source, ranges=(3.0,), precision=precision)
        assert made.bound == static_bound(made) < 2**31


def test_bits_out_of_range_are_refused():
    with pytest.raises(RangeError, match="weight bits"):
        Precision(weight_bits=17)
    with pytest.raises(RangeError, match="activation bits"):
        Precision(activation_bits=15)


def test_policies_without_protection_are_asked_for_by_name():
    assert policies.NAMES == ("slalom", "verified", "blinded", "enclave", "open")
    assert {"open", "np"}.isdisjoint(policies.__all__)
    assert {"slalom", "verified", "blinded", "enclave"} < set(policies.__all__)
