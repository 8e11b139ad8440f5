"""What the operator of an attested machine learns follows from the appraisal."""

import pytest

import nets
from cloister.graph.onnx import read
from cloister.graph.passes import normalise
from cloister.plan import policies
from cloister.plan.claims import FILES, MEMORY, MESSAGES, WEIGHTS, Extent, Role, Verb
from cloister.plan.runtime_claims import SESSION, with_runtime


def claims(policy="slalom"):
    model = nets.chain()
    graph = normalise.prepare(read.from_model(model, name="net"))
    return policies.make(policy, graph, calibration=nets.samples(model, 2)).claims()


def of(found, role, verb, about):
    (one,) = [s for s in found.of(role, verb) if s.about == about]
    return one


def test_hardware_bounds_what_the_operator_learns():
    found = with_runtime(claims(), platform="sev-snp", hardware_rooted=True)
    memory = of(found, Role.HOST, Verb.LEARNS, MEMORY)
    assert memory.extent is Extent.BOUNDED
    assert "hardware_rooted: true" in memory.text
    assert "taps its memory" in memory.assumes
    assert of(found, Role.HOST, Verb.CAN, MEMORY).extent is Extent.BOUNDED
    assert of(found, Role.HOST, Verb.LEARNS, WEIGHTS).extent is Extent.BOUNDED
    assert found.worst(Role.HOST) is Extent.BOUNDED


@pytest.mark.parametrize(
    ("policy", "learns", "can"),
    [
        ("slalom", Extent.BOUNDED, Extent.BOUNDED),
        ("blinded", Extent.BOUNDED, Extent.EVERYTHING),
        ("verified", Extent.EVERYTHING, Extent.BOUNDED),
        ("open", Extent.EVERYTHING, Extent.EVERYTHING),
    ],
)
def test_the_operator_learns_and_can_what_its_workers_do(policy, learns, can):
    found = with_runtime(claims(policy), platform="tdx", hardware_rooted=True)
    assert found.worst(Role.HOST) is learns
    assert found.worst(Role.HOST, Verb.CAN) is can
    assert "chooses the workers" in of(found, Role.HOST, Verb.LEARNS, MESSAGES).text


def test_where_there_are_no_workers_the_operator_has_no_messages():
    found = with_runtime(claims("enclave"), platform="tdx", hardware_rooted=True)
    for verb in Verb:
        assert MESSAGES not in [s.about for s in found.of(Role.HOST, verb)]


def test_without_hardware_the_operator_learns_everything():
    found = with_runtime(claims(), platform="insecure-simulated", hardware_rooted=False)
    memory = of(found, Role.HOST, Verb.LEARNS, MEMORY)
    assert memory.extent is Extent.EVERYTHING
    assert "hardware_rooted: false" in memory.text
    assert found.worst(Role.HOST, Verb.CAN) is Extent.EVERYTHING


@pytest.mark.parametrize("rooted", [False, True])
@pytest.mark.parametrize("policy", ["slalom", "verified", "enclave"])
def test_workers_learn_the_same_and_the_network_sees_a_session(policy, rooted):
    before, found = claims(policy), None
    found = with_runtime(before, platform="tdx", hardware_rooted=rooted)
    for verb in Verb:
        assert found.of(Role.WORKER, verb) == before.of(Role.WORKER, verb)
        assert of(found, Role.NETWORK, verb, SESSION).extent is Extent.BOUNDED
    assert not [s for s in found.statements if s.about == FILES]
    assert "tdx" in found.subject
    text = str(found)
    assert text.count("hardware_rooted: true") == rooted
