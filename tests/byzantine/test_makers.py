"""Sessions against makers that lie: refused, nothing released, and who is dropped for it."""

from dataclasses import replace

import numpy as np
import pytest

import nets
from byzantine.test_session import flip_one, mixed_plan
from cloister.errors import MakerError, VerificationError, WorkerUnavailable
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.session import Session
from cloister.wire.messages import Answer, LoadLinear
from cloister.worker.byzantine import VALUE_LIES, Lie
from cloister.worker.engine import Engine
from trusted.links import DirectLink
from trusted.makers import MakerLink, session, worker
from trusted.test_session import plan_of


@pytest.fixture(scope="module")
def plan():
    return plan_of(nets.chain())


@pytest.fixture(scope="module")
def feeds():
    return nets.samples(nets.chain(), 2)


@pytest.fixture(scope="module")
def expected(plan, feeds):
    with Session(plan, workers=[DirectLink()]) as inline:
        return inline.run(feeds).outputs


def same(got, wanted):
    return all(np.array_equal(got[name], value) for name, value in wanted.items())


def spare():
    return DirectLink("spare worker", address="203.0.113.77:7000")


# ---- the lies of workers, told by makers over every transport


@pytest.mark.parametrize("transport", ["in-process", "shm", "rpc"])
@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("lie", sorted(set(Lie) - {Lie.HANG, Lie.DIE}))
def test_every_lie_is_refused(lying_link, plan, feeds, expected, transport, lie, after):
    """`after` is the honest blocks before; each request needs one."""
    silent = lie is Lie.STALE_CONTENT and after == 0
    # The lie does not fit into the memory for the answer, and the server says so instead.
    unsaid = lie is Lie.SHIFT_32 and transport == "shm"
    with lying_link(transport, lie, after=after) as liar:
        liar.address = "198.51.100.1:7000"
        makers, workers = [liar, MakerLink("honest", host=2)], [worker(), spare()]
        with Session(
            plan, workers=workers, makers=makers, timeout_s=20.0, lanes=1, insecure_plaintext=True
        ) as lied_to:
            for _ in range(after + silent):
                assert same(lied_to.run(feeds).outputs, expected)
            value_lie = lie in VALUE_LIES
            if not unsaid:
                with pytest.raises(VerificationError if value_lie else MakerError) as refusal:
                    lied_to.run(feeds)
                assert liar.name in str(refusal.value)
                assert "nothing was released" in str(refusal.value)
            # A wrong number may be the worker's fault; a wrong form is the maker's alone.
            report = lied_to.run(feeds).report
            assert report.makers_lost == (liar.name,)
            assert report.makers == ("honest",)
            assert report.workers_lost == (("worker",) if value_lie else ())
            assert same(lied_to.run(feeds).outputs, expected)


# ---- lies of makers alone


def rows_of(answer):
    (terms,) = answer.tensors
    return terms.copy()


def other_seed(message, answer):
    engine = Engine()
    for load in other_seed.loads:
        engine.handle(load)
    return engine.handle(replace(message, seed=bytes(32)))


def half_of_each_row(message, answer):
    terms = rows_of(answer)
    terms[:, message.words // 2 :] = 0
    return Answer(message.request_id, (terms,))


def half_of_the_rows(message, answer):
    terms = rows_of(answer)
    terms[len(terms) // 2 :] = 0
    return Answer(message.request_id, (terms,))


def half_as_large(message, answer):
    return Answer(message.request_id, (rows_of(answer)[: message.rows // 2],))


def rows_exchanged(message, answer):
    return Answer(message.request_id, (rows_of(answer)[::-1].copy(),))


def all_zero(message, answer):
    return Answer(message.request_id, (np.zeros_like(answer.tensors[0]),))


def no_answer(message, answer):
    return answer if message.request_id > 10**6 else Answer(message.request_id, ())


@pytest.mark.parametrize(
    ("twist", "error"),
    [
        (other_seed, VerificationError),
        (half_of_each_row, VerificationError),
        (half_of_the_rows, VerificationError),
        (rows_exchanged, VerificationError),
        (all_zero, VerificationError),
        (half_as_large, MakerError),
        (no_answer, MakerError),
    ],
)
def test_other_answers_are_refused(plan, feeds, twist, error):
    other_seed.loads = [LoadLinear(i, plan.linear_nodes[i].linear) for i in plan.hidden_nodes]
    outputs = None
    with session(plan, MakerLink(twist=twist)) as lied_to:
        with pytest.raises(error, match="maker maker"):
            outputs = lied_to.run(feeds)
        with pytest.raises((MakerError, WorkerUnavailable), match="is left"):
            lied_to.run(feeds)
    assert outputs is None


def test_an_old_answer_is_refused(plan, feeds, expected):
    kept = []

    def old(message, answer):
        kept.append(rows_of(answer))
        return Answer(message.request_id, (kept[0],))

    with session(plan, MakerLink(twist=old)) as lied_to:
        assert same(lied_to.run(feeds).outputs, expected)
        with pytest.raises(VerificationError, match="maker maker made are"):
            lied_to.run(feeds)


@pytest.mark.parametrize("difference", [1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_one_word_of_any_node_is_enough(plan, feeds, place, row, difference):
    layout = PadLayout.of(plan)
    for index, shape in layout.shapes.items():
        count = int(np.prod(shape))
        word = layout.offsets[index] + {"first": 0, "middle": count // 2, "last": count - 1}[place]

        def change(message, answer, word=word):
            terms = rows_of(answer)
            terms[row : row + 1, word] += np.uint32(difference)  # of arrays, sums wrap
            return Answer(message.request_id, (terms,))

        with (
            session(plan, MakerLink(twist=change)) as lied_to,
            pytest.raises(VerificationError) as refusal,
        ):
            lied_to.run(feeds)
        assert plan.linear_nodes[index].node in str(refusal.value)


def test_words_of_no_node_change_nothing(plan, feeds, expected):
    layout = PadLayout.of(plan)
    nodes = np.zeros(layout.words, np.uint32)
    for view in layout.views(nodes).values():
        view += np.uint32(1)
    assert not nodes.all()

    def noise(message, answer):
        terms = rows_of(answer)
        terms[:, nodes == 0] = 12345
        return Answer(message.request_id, (terms,))

    with session(plan, MakerLink(twist=noise)) as made:
        assert same(made.run(feeds).outputs, expected)


# ---- makers that stop


def test_a_maker_that_does_not_answer_is_followed_by_the_next(plan, feeds, expected):
    silent = MakerLink("silent", twist=lambda message, answer: None)
    honest = MakerLink("honest", host=2)
    with session(plan, silent, honest, timeout_s=5.0) as made:
        result = made.run(feeds)
    assert same(result.outputs, expected)
    assert result.report.makers_lost == ("silent",)
    assert result.report.workers_lost == ()
    # No two makers know one pad.
    assert {block.seed for block in silent.blocks}.isdisjoint(b.seed for b in honest.blocks)


@pytest.mark.parametrize("lie", [Lie.HANG, Lie.DIE])
def test_a_process_that_hangs_or_dies_is_followed_by_the_next(
    lying_link, plan, feeds, expected, lie
):
    with lying_link("shm", lie, after=1) as stopped:
        stopped.address = "198.51.100.1:7000"
        with session(plan, stopped, MakerLink("honest", host=2), timeout_s=1.0) as made:
            for _ in range(3):
                result = made.run(feeds)
                assert same(result.outputs, expected)
    assert result.report.makers_lost == (stopped.name,)


def test_no_maker_left_is_not_held_against_the_worker(plan, feeds):
    with session(plan, MakerLink(twist=lambda message, answer: None)) as made:
        for _ in range(2):
            with pytest.raises(MakerError, match="no maker of pads is left"):
                made.run(feeds)
        assert made._lanes.workers == ("worker",)
        assert made._lanes.lost == []


# ---- blame, and what leaves after a lie


def test_a_lie_of_the_worker_drops_the_maker_too(plan, feeds):
    workers = [worker(lie=flip_one), spare()]
    with session(plan, MakerLink("a"), MakerLink("b"), workers=workers, lanes=1) as lied_to:
        with pytest.raises(VerificationError, match=r"the pads that maker a made are.*cannot be"):
            lied_to.run(feeds)
        report = lied_to.run(feeds).report
    assert report.workers_lost == ("worker",)
    assert report.makers_lost == ("a",)


def test_a_lie_about_a_node_in_the_clear_is_the_workers_alone(feeds):
    plan = mixed_plan()
    workers = [worker(lie=lambda t, a: flip_one(t, a) if t else a), spare()]
    with session(plan, MakerLink(), workers=workers, lanes=1) as lied_to:
        with pytest.raises(VerificationError, match="the worker's answer is wrong;"):
            lied_to.run(feeds)
        report = lied_to.run(feeds).report
    assert report.workers_lost == ("worker",)
    assert report.makers_lost == ()


def test_a_lie_of_a_maker_keeps_clear_messages_from_leaving(feeds):
    plan, watched = mixed_plan(), worker()
    with (
        session(plan, MakerLink(twist=all_zero), workers=[watched]) as lied_to,
        pytest.raises(VerificationError),
    ):
        lied_to.run(feeds)
    assert [message.dtype for _, message in watched.seen] == [np.uint32]


def test_coefficients_are_redrawn_after_a_lie(plan, feeds):
    lie = iter([True, False])

    def once(message, answer):
        return all_zero(message, answer) if next(lie) else answer

    makers = [MakerLink("a", twist=once), MakerLink("b")]
    with session(plan, *makers, workers=[worker(), spare()], lanes=1) as lied_to:
        before = [lied_to._executor.checks.vectors(i).b.copy() for i in plan.hidden_nodes]
        with pytest.raises(VerificationError):
            lied_to.run(feeds)
        lied_to.run(feeds)
        for index, old in zip(plan.hidden_nodes, before, strict=True):
            assert not np.array_equal(lied_to._executor.checks.vectors(index).b, old)
