"""A worker that lies early and watches: no message in the clear follows a wrong checked answer.

On the executor, over every link and with several lanes, and on its oracle.
"""

from contextlib import ExitStack

import numpy as np
import pytest

import nets
from byzantine.probe import TRANSPORTS, probing_link, seen
from byzantine.test_session import mixed_plan
from cloister.errors import VerificationError
from cloister.plan.protection import SPLITTING
from cloister.ring import reference
from cloister.trusted.program.compile import compile_plan
from cloister.trusted.program.steps import Exchange, Segment
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.wire.messages import Answer, Apply
from cloister.worker.engine import Engine
from trusted.program.oracle import Oracle
from trusted.split_plans import split_plans

CHECKED = sorted(set(SPLITTING) - {"origami-none"})
LIE = np.uint32(2**20)


def clear_targets(plan):
    """What is sent in the clear, by its number on the wire."""
    return {
        step.target if isinstance(step, Segment) else step.node
        for step in compile_plan(plan).steps
        if isinstance(step, Segment) or (isinstance(step, Exchange) and not step.protection.hidden)
    }


def checked_nodes(plan):
    return [i for i, node in enumerate(plan.linear_nodes) if plan.protection_of(node).checked]


class Watch:
    """Lies about one target, and lists the targets of all messages that it is sent after that."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.after: list[int] | None = None
        self._engine = Engine()

    def lie(self, target: int, answer: np.ndarray) -> np.ndarray:
        if self.after is not None:
            self.after.append(target)
        elif target == self.target:
            self.after = []
            return answer + LIE
        return answer

    def handle(self, message):
        reply = self._engine.handle(message)
        if isinstance(message, Apply) and isinstance(reply, Answer):
            first, *more = reply.tensors
            return Answer(reply.request_id, (self.lie(message.target_id, first), *more))
        return reply


def interpreted(oracle, feeds):
    """A watch of the interpreter's messages, which lies as the other one does."""

    def watched(target):
        watch = Watch(target)
        numbers = {id(node.linear): i for i, node in enumerate(oracle.plan.linear_nodes)}

        def worker(linear, x):
            return watch.lie(numbers[id(linear)], reference.linear_map(linear, x))

        with pytest.raises(VerificationError, match=oracle.plan.linear_nodes[target].node):
            oracle.interpret(feeds, worker=worker)
        opened = {one.target for one in oracle.crossed} - set(numbers.values())
        return watch, opened

    return watched


@pytest.mark.parametrize("policy", CHECKED)
@pytest.mark.parametrize("net", nets.ALL)
def test_nothing_in_the_clear_follows_a_lie(net, policy):
    """Every split, every checked node; the executor and the interpreter send the same."""
    model = nets.ALL[net]()
    feeds = nets.samples(model, 1)
    for plan in split_plans(model, policy, ends=1):
        clear = clear_targets(plan)
        assert clear  # or nothing could be seen
        for target in checked_nodes(plan):
            oracle, watch = Oracle(plan), Watch(target)
            with (
                oracle.session(InProcessLink(watch.handle)) as session,
                pytest.raises(VerificationError, match=plan.linear_nodes[target].node),
            ):
                session.run(feeds)
            assert watch.after is not None
            assert not clear & set(watch.after)
            other, opened = interpreted(oracle, feeds)(target)
            assert other.after == watch.after
            assert not opened & clear


@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("policy", CHECKED)
def test_over_every_link_and_several_lanes(policy, transport, lanes, tmp_path):
    """Each connection is told nothing in the clear of the input that it lied about."""
    model = nets.residual()
    plan = list(split_plans(model, policy, ends=1))[-1]
    clear, target = clear_targets(plan), 0
    shape = plan.linear_nodes[target].linear.geometry.out_shape
    folders = [tmp_path / str(i) for i in range(lanes)]
    with ExitStack() as stack:
        errors = {target: np.full(shape, LIE)}
        links = [stack.enter_context(probing_link(transport, folder, errors)) for folder in folders]
        session = stack.enter_context(Session(plan, workers=links, batch=1, lanes=lanes))
        with pytest.raises(VerificationError):
            session.run(nets.samples(model, 2 * lanes))
    sent = [one for folder in folders for connection in seen(folder) for one in connection]
    assert sent
    assert all(one.blinded for one in sent)
    assert not clear & {one.target for one in sent}


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_honest_workers_are_sent_messages_in_the_clear(transport, tmp_path):
    """So that their absence above means something."""
    model = nets.residual()
    for policy in CHECKED:
        plan = list(split_plans(model, policy, ends=1))[-1]
        folder = tmp_path / policy
        with probing_link(transport, folder, {}) as link, Session(plan, workers=[link]) as session:
            session.run(nets.samples(model, 1))
        (connection,) = seen(folder)
        found = {one.target for one in connection if not one.blinded}
        assert found == clear_targets(plan)


def test_a_liar_beside_an_honest_worker_is_sent_nothing_in_the_clear(tmp_path):
    model, plan = nets.chain(), mixed_plan()
    shape = plan.linear_nodes[0].linear.geometry.out_shape
    with ExitStack() as stack:
        errors = [{}, {0: np.full(shape, LIE)}]
        links = [
            stack.enter_context(probing_link("in-process", tmp_path / str(i), error))
            for i, error in enumerate(errors)
        ]
        session = stack.enter_context(Session(plan, workers=links, batch=1, lanes=2))
        with pytest.raises(VerificationError):
            session.run(nets.samples(model, 8))
    (liar,) = seen(tmp_path / "1")
    assert liar
    assert all(one.blinded for one in liar)
