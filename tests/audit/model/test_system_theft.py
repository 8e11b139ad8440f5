"""A thief of a running system: the host has the outer plan, the worker and all messages."""

import numpy as np
import pytest

pytest.importorskip("torch")

from audit.model import victims
from cloister.audit.model import linear_recovery
from cloister.audit.model.victim import victim
from cloister.errors import VerificationError
from cloister.graph.hidden import hide
from cloister.plan import policies
from cloister.plan.protection import hiding
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.wire.messages import Unchecked
from cloister.worker.engine import Engine
from trusted.modules import onnx_module

FEATURES = 12
QUERIES = 2 * (FEATURES + 1)


class ChoosingLink(InProcessLink):
    """A worker that answers the last layer outside with values of its own choice."""

    def __init__(self, chosen):
        super().__init__(Engine().handle)
        self._chosen = chosen

    def receive(self, request_id, *, timeout_s):
        found = super().receive(request_id, timeout_s=timeout_s)
        (answer,) = (one.expose_unchecked() for one in found)
        if answer.size != self._chosen.size:
            return tuple(Unchecked(one.expose_unchecked()) for one in found)
        return (Unchecked(self._chosen.reshape(answer.shape).astype(answer.dtype)),)


def planned(outer):
    graph = victims.classifier()
    split = hide(graph, last=1)
    module = onnx_module(split.hidden)
    named = split.named(module.manifest.digest)
    plan = policies.make(hiding(outer), named, calibration=victims.digits()[0].x[:64])
    return plan, {split.node: module}


def answers_to(outer, chosen):
    plan, modules = planned(outer)
    with Session(
        plan, workers=[ChoosingLink(chosen)], modules=modules, engine="onnxruntime",
        batch=QUERIES, on_clip="ignore",
    ) as session:  # fmt: skip
        (output,) = session.run(victims.digits()[1].x[:QUERIES]).outputs.values()
    return output


@pytest.fixture
def chosen():
    values = np.random.default_rng(9).standard_normal((QUERIES, FEATURES))
    return values.astype(np.float32)


def test_unchecked_exposed_layers_let_a_worker_choose_what_a_module_is_asked(chosen):
    """26 answers of a session give the head, whatever samples the session was given."""
    found = linear_recovery.recover(chosen, answers_to("open", chosen))
    true = victim(victims.classifier()).split(1).weights()
    true = true - true.mean(axis=1, keepdims=True)
    assert found.is_determined
    assert np.linalg.norm(found.weights[:-1] - true) / np.linalg.norm(true) < 1e-4


@pytest.mark.parametrize("outer", ["slalom", "verified"])
def test_checked_exposed_layers_do_not(outer, chosen):
    with pytest.raises(VerificationError):
        answers_to(outer, np.round(100 * chosen))


def test_the_outer_plan_has_nothing_of_the_hidden_layer():
    plan, modules = planned("open")
    data = plan.to_bytes()
    hidden = hide(victims.classifier(), last=1).hidden
    inside = {name for node in hidden.nodes for name in (node.name, *node.outputs)}
    for name in (inside - set(hidden.outputs)) | set(hidden.constants):
        assert f'"{name}"'.encode() not in data
    assert len(hidden.constants) == 2
    for array in hidden.constants.values():
        raw = array.tobytes()
        assert all(raw[i : i + 16] not in data for i in range(0, len(raw) - 16, 4))
    (module,) = modules.values()
    assert module.manifest.digest.hex().encode() in data
