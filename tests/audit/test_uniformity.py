"""What workers see under each policy, measured on real sessions with the demo's model."""

from importlib import resources

import numpy as np
import pytest

from cloister.audit.input.exposure import exposure
from cloister.graph.onnx.load import load
from cloister.plan import policies
from cloister.plan.claims import USE, Extent, Role, Verb
from cloister.plan.protection import BLINDED
from cloister.trusted.session import Session

# One false alarm in 10^10 runs and layers at most; a leak of one percent of the words is far below.
ALARM = 1e-12


@pytest.fixture(scope="module")
def graph():
    with resources.as_file(resources.files("cloister.examples") / "digits.onnx") as path:
        return load(path)


@pytest.fixture(scope="module")
def images():
    # Mostly zeros and very regular: whatever blinding leaves visible would show.
    images = np.zeros((16, 1, 8, 8), np.float32)
    images[:, :, 2:6, 3] = 1.0
    return images


def transcript_of(plan, images):
    with Session(plan, record_payloads=True) as session:
        return session.run(images).transcript


@pytest.mark.parametrize("policy", ["slalom", "blinded"])
def test_requests_are_uniform_where_the_worker_is_said_to_learn_nothing(graph, images, policy):
    plan = policies.make(policy, graph, calibration=images)
    transcript = transcript_of(plan, images)
    learns = plan.claims().of(Role.WORKER, Verb.LEARNS)
    assert {one.extent for one in learns if one.about != USE} == {Extent.NOTHING}
    assert plan.hidden_nodes == tuple(range(len(plan.linear_nodes)))
    for target in plan.hidden_nodes:
        seen = exposure(transcript, target)
        assert seen.hidden
        assert seen.inputs == len(images)
        assert ALARM < seen.uniformity.p < 1 - ALARM, plan.linear_nodes[target].node


def test_equal_inputs_have_different_requests(graph, images):
    plan = policies.make("blinded", graph, calibration=images)
    assert all(plan.protection_of(node) is BLINDED for node in plan.linear_nodes)
    transcript = transcript_of(plan, images)
    messages = [m.payload for m in transcript.messages(target_id=0, direction="to_worker")]
    rows = np.concatenate(messages).reshape(len(images), -1)
    assert len(np.unique(rows, axis=0)) == len(images)
    # Differences of equal inputs are differences of pads, hence uniform as well.
    differences = np.diff(rows, axis=0)
    assert (differences == 0).mean() < 0.01


def test_verified_requests_show_the_input(graph, images):
    plan = policies.make("verified", graph, calibration=images)
    assert plan.claims().worst(Role.WORKER) is Extent.EVERYTHING
    seen = exposure(transcript_of(plan, images), 0)
    assert not seen.hidden
    assert seen.uniformity.p < ALARM
    expected = (images[:, 0] == 1.0) * 255
    np.testing.assert_array_equal(seen.pictures, expected)
