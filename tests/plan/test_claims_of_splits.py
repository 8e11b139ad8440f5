"""What the claims of a plan with a split say, against what a worker sees and does."""

from dataclasses import replace

import numpy as np
import pytest

import nets
from byzantine.probe import probing_link, seen
from byzantine.test_unchecked_split import honest_view, images, integers, planned, twin
from cloister.errors import VerificationError
from cloister.graph.interpreter import interpret
from cloister.graph.split import split_at
from cloister.plan.claims import FROM_SPLIT, THE_INPUT, Claims, Extent, Role, Strength, Verb
from cloister.plan.planned_split import SplitEvidence
from cloister.plan.protection import OPEN, SPLITTING
from cloister.ring.rounding import quantise
from cloister.trusted.session import Session
from plan.test_claims_by_role import said
from trusted.split_plans import split_plans
from trusted.test_session import plan_of
from trusted.test_transcript_is_uniform import ALARM, p_value

__all__ = ["images"]

EVIDENCE = SplitEvidence(
    bytes(range(32)), ("gan", "decoder", "ridge"), "faces", "ab" * 32, 200, 50, 0.031, 0.04, -0.25
)
HONEST = "the worker follows the protocol"


def with_evidence(plan, evidence=EVIDENCE):
    return replace(plan, split=replace(plan.split, evidence=evidence))


@pytest.mark.parametrize("policy", SPLITTING)
def test_what_is_proved_and_what_is_measured(policy, images):
    """At most what crosses: proved. What that tells: measured, or everything."""
    plan = planned(policy, images)
    bare, told = plan.claims(), with_evidence(plan).claims()
    for claims in (bare, told):
        most = said(claims, Role.WORKER, THE_INPUT)
        assert most.extent is Extent.BOUNDED
        assert most.text == (
            f"no more than the values that cross the split after {plan.split.until[0]}, and what "
            "is computed from them"
        )
        assert "pseudorandom" in most.assumes
        assert Claims.from_dict(claims.to_dict()) == claims
    nothing_known = said(bare, Role.WORKER, FROM_SPLIT)
    assert (nothing_known.extent, nothing_known.text) == (
        Extent.EVERYTHING, "all that these values tell of it; no audit has measured it"
    )  # fmt: skip
    measured = said(told, Role.WORKER, FROM_SPLIT)
    assert measured.extent is Extent.BOUNDED
    assert measured.text == (
        "gan, decoder and ridge pick the true image of 50 in at most 3.1% (chance 2.0%) and find, "
        "on average, at most 0.0% of its variance and 0.04 SSIM above a blind guess, on 200 images "
        "of faces (SHA-256 abababababababab), says report 0001020304050607; other attacks may "
        "find more"
    )
    if policy != "origami-none":
        assert nothing_known.strength is Strength.PROVED
        assert measured.strength is Strength.EMPIRICAL


@pytest.mark.parametrize("policy", SPLITTING)
def test_evidence_that_nobody_vouches_for(policy, images):
    """The writer of a plan's file names any report: without a digest it bounds nothing."""
    found = said(
        with_evidence(planned(policy, images)).claims(pinned=False), Role.WORKER, FROM_SPLIT
    )
    assert found.extent is Extent.EVERYTHING
    assert found.text == (
        "all that these values tell of it; the plan names report 0001020304050607, and no digest "
        "pins the plan"
    )


def test_what_rests_on_a_worker_that_follows_the_protocol(images):
    """Every statement about hidden values of the policy without checks, and of no other."""
    for policy in SPLITTING:
        plan = planned(policy, images)
        for claims in (plan.claims(), with_evidence(plan).claims()):
            resting = {
                s.about.partition(" (")[0]
                for s in claims.of(Role.WORKER, Verb.LEARNS) if HONEST in s.assumes
            }  # fmt: skip
            if policy != "origami-none":
                assert resting == set()
                assert not claims.of(Role.WORKER, Verb.CAN)[-1].text.startswith("find more")
                continue
            assert resting == {"blinded", "enclave", THE_INPUT, FROM_SPLIT}
            can = said(claims, Role.WORKER, THE_INPUT, Verb.CAN)
            assert can.extent is Extent.EVERYTHING
            assert can.text.endswith("assumes that the worker follows the protocol")
            assert claims.soundness_bits is None


@pytest.mark.parametrize("policy", SPLITTING)
def test_lines_are_few_and_short(policy, images):
    lines = str(with_evidence(planned(policy, images)).claims()).splitlines()
    assert len(lines) <= 26
    assert max(map(len, lines)) <= 420


# ---- against a worker


@pytest.mark.parametrize("policy", SPLITTING)
@pytest.mark.parametrize("net", ["residual", "branches", "several", "depthwise"])
def test_a_worker_sees_what_crosses_and_no_more(policy, net, tmp_path):
    """In the clear: after the split only, and only what follows from what crosses."""
    model = nets.ALL[net]()
    feeds = nets.samples(model, 60)
    for i, plan in enumerate(list(split_plans(model, policy, ends=1))[::2]):
        split = split_at(plan.graph, plan.split.until)
        with (
            probing_link("in-process", tmp_path / str(i), {}) as link,
            Session(plan, workers=[link], batch=60, on_clip="ignore") as session,
        ):
            session.run(feeds)
        ((*messages,),) = seen(tmp_path / str(i))
        for message in messages:
            if message.target < len(plan.linear_nodes):
                name = plan.linear_nodes[message.target].node
                assert message.blinded is (name in split.before)
                if message.blinded:
                    assert p_value(message.tensors[0]) > ALARM
        crossing = interpret(plan.graph, feeds, wanted=split.values)
        if OPEN in plan.protections.values():
            opened = [one for one in messages if one.target >= len(plan.linear_nodes)]
            (segment,) = opened
            # In float32, up to the fixed point of the layers before the split.
            shapes = sorted(tensor.shape for tensor in segment.tensors if len(tensor) == 60)
            assert shapes == sorted(crossing[value].shape for value in split.values)


def test_inputs_of_later_layers_are_exact_in_fixed_point(tmp_path, images):
    """Full integrity: what crosses, in integers, and what is computed from it."""
    plan = planned("origami", images)
    view, _ = honest_view(plan, images, tmp_path / "full")
    pooled, _ = honest_view(planned("origami-prefix", images), images, tmp_path / "prefix")
    node = plan.linear_nodes[1]
    pooled = np.moveaxis(pooled, 1, -1).reshape(len(images), -1)  # as the layer reads it
    wanted = quantise(pooled, node.inv_x_scale, node.x_qmax)
    np.testing.assert_array_equal(view.reshape(len(images), -1), wanted)
    assert said(plan.claims(), Role.WORKER, "verified").text.endswith("exactly, in fixed point")


@pytest.mark.parametrize("policy", SPLITTING)
def test_inputs_of_one_crossing_look_the_same(policy, tmp_path, images):
    """No more than what crosses: two inputs that differ, and whose crossing values do not."""
    plan, first = planned(policy, images), images[:1]
    view, _ = honest_view(plan, first, tmp_path / "first")
    other = twin(plan, first, view, tmp_path / "others")
    assert (integers(plan, first) != integers(plan, other)).any()
    sights = []
    for name, image in (("one", first), ("other", other)):
        clear, _ = honest_view(plan, image, tmp_path / name)
        sights.append(clear)
    np.testing.assert_array_equal(*sights)


def test_a_worker_decides_what_is_open_after_the_split(tmp_path, images):
    """Its answer is believed with `prefix`, and refused with full integrity."""
    plan = planned("origami-prefix", images)
    _, honest = honest_view(plan, images[:1], tmp_path / "honest")
    error = np.float32([1000, 0, 0, 0])
    segment = len(plan.linear_nodes)
    with (
        probing_link("in-process", tmp_path / "lie", {segment: error}) as link,
        Session(plan, workers=[link]) as session,
    ):
        found = session.run(images[:1]).outputs
    for name, value in found.items():
        np.testing.assert_array_equal(value, honest[name] + error)
    can = said(plan.claims(), Role.WORKER, "open", Verb.CAN)
    assert (can.extent, "believed" in can.text) == (Extent.EVERYTHING, True)
    full = planned("origami", images)
    with (
        probing_link("in-process", tmp_path / "full", {1: np.uint32([1, 0, 0, 0])}) as link,
        Session(full, workers=[link]) as session,
        pytest.raises(VerificationError, match=full.linear_nodes[1].node),
    ):
        session.run(images[:1])
    assert said(full.claims(), Role.WORKER, "verified", Verb.CAN).extent is Extent.BOUNDED


def test_the_network_learns_what_a_worker_does(images):
    for policy in SPLITTING:
        claims = with_evidence(planned(policy, images)).claims()
        for verb in Verb:
            (network,) = claims.of(Role.NETWORK, verb)
            assert network.extent is claims.worst(Role.WORKER, verb)
            assert bool(network.assumes) is any(s.assumes for s in claims.of(Role.WORKER, verb))


@pytest.mark.parametrize(("policy", "like"), [
    ("origami", "slalom"), ("origami-prefix", "slalom"), ("origami-none", "blinded"),
])  # fmt: skip
def test_without_a_split_the_claims_are_those_of_blinded_layers(policy, like):
    claims = plan_of(nets.chain(), policy).claims()
    assert claims.statements == plan_of(nets.chain(), like).claims().statements
