"""Metered sessions: what is released is spent, and what is not spent is not released."""

import hashlib
import os
import traceback
import types
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import nets
from cloister.base.rng import SystemRandom
from cloister.errors import (
    BudgetError,
    CounterError,
    ForkError,
    InputError,
    PlanError,
    RollbackError,
    TicketError,
    VerificationError,
)
from cloister.plan import policies
from cloister.tickets.output_release import commitment
from cloister.tickets.receipt import Receipt
from cloister.tickets.ticket import OutputMode
from cloister.tickets.ticket_meter import TicketMeter
from cloister.trusted import module_engines
from cloister.trusted.metered_session import MeteredSession, bought_result
from cloister.trusted.report import Result
from cloister.trusted.session import Session
from cloister.wire.inprocess import InProcessLink
from cloister.worker.engine import Engine
from graph.test_hidden import graph_of
from tickets.licences import DIGEST, MemoryCounter, meter, ticket
from trusted.links import DirectLink
from trusted.modules import Started, planned_end

MODEL = nets.chain()
PLANNED = planned_end(MODEL)


@pytest.fixture
def started(monkeypatch) -> Started:
    made = Started()
    monkeypatch.setattr(module_engines, "start_engine", made)
    return made


def session(planned=PLANNED, *, link=None) -> Session:
    return Session(
        planned.plan, workers=[link or InProcessLink(Engine().handle)], modules=planned.modules,
        on_clip="ignore", batch=2,
    )  # fmt: skip


@pytest.fixture
def opened(tmp_path) -> TicketMeter:
    return meter(tmp_path / "meter", counter=MemoryCounter())


def samples(count: int):
    return nets.samples(MODEL, count)


def scores(count: int) -> np.ndarray:
    with session() as plain:
        (found,) = plain.run(samples(count)).outputs.values()
    return found


def test_the_outputs_are_reduced_and_paid_for(started, opened):
    with session() as own:
        result = MeteredSession(own, opened, rng=SystemRandom()).run(samples(3))
    (found,) = result.outputs.values()
    assert found.tolist() == scores(3).argmax(axis=1).tolist()
    assert result.report.inputs == 3
    assert opened.left() == 7
    assert result.receipt.receipt.serials == range(100, 103)


def test_the_receipt_is_of_these_outputs_and_its_opening_shows_it(started, opened):
    with session() as own:
        metered = MeteredSession(own, opened, rng=SystemRandom())
        first, second = metered.run(samples(2)), metered.run(samples(2))
    public = Ed25519PublicKey.from_public_bytes(opened.receipt_key)
    for result in (first, second):
        receipt = Receipt.verify(result.receipt.data, signer=public)
        assert receipt.commitment == commitment(result.outputs, result.opening)
    assert first.opening != second.opening
    assert first.receipt.receipt.commitment != second.receipt.receipt.commitment
    second.receipt.receipt.require_predecessor(first.receipt.receipt, opened.ticket)


@pytest.mark.parametrize("mode", OutputMode)
def test_each_mode_releases_what_it_says(started, tmp_path, mode):
    top = 2 if mode is OutputMode.TOP_K else None
    opened = meter(tmp_path / "meter", ticket(outputs=mode, top=top), counter=MemoryCounter())
    with session() as own:
        metered = MeteredSession(own, opened, rng=SystemRandom())
        if mode is OutputMode.PROBABILITIES:
            # This model answers scores.
            with pytest.raises(InputError, match="are no probabilities"):
                metered.run(samples(1))
            return
        (found,) = metered.run(samples(1)).outputs.values()
    assert found.dtype == np.int64
    assert found.shape == ((1,) if top is None else (1, 2))


@pytest.mark.parametrize("give", [lambda feeds: feeds, lambda feeds: iter([feeds])])
def test_a_batch_beyond_the_quota_is_refused_before_anything_is_computed(started, opened, give):
    opened.spend(8, DIGEST)
    with session() as own:
        metered = MeteredSession(own, opened, rng=SystemRandom())
        with pytest.raises(BudgetError, match="2 of its 10 outputs are left, and 3 are asked for"):
            metered.run(give(samples(3)))
        assert started.calls == []
        assert opened.left() == 2
        assert metered.run(give(samples(2))).report.inputs == 2


def test_no_input_has_no_receipt(started, opened):
    with session() as own, pytest.raises(InputError, match="none to release"):
        MeteredSession(own, opened, rng=SystemRandom()).run(samples(0))
    assert opened.receipts() == []


def test_a_plan_without_a_hidden_part_has_nothing_to_meter(opened):
    plan = policies.enclave(graph_of(MODEL))
    with Session(plan) as own, pytest.raises(PlanError, match="this plan has none"):
        MeteredSession(own, opened, rng=SystemRandom())


def test_a_lie_of_a_worker_costs_nothing(started, opened):
    def lie(_, answer):
        answer[..., 0] += 1
        return answer

    with session(link=DirectLink(lie=lie)) as own, pytest.raises(VerificationError):
        MeteredSession(own, opened, rng=SystemRandom()).run(samples(1))
    assert opened.left() == 10


class Failing:
    """A meter whose spend fails after the outputs were computed."""

    def __init__(self, own: TicketMeter, error: Exception) -> None:
        self.ticket, self.require, self.error = own.ticket, own.require, error

    def spend(self, *_: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    "error",
    [BudgetError("x"), RollbackError("x"), TicketError("x"), OSError("x"), KeyboardInterrupt()],
)
def test_outputs_that_were_not_spent_are_nowhere(started, opened, error):
    """Neither returned, nor in what the error keeps."""
    wanted = scores(2).tobytes()
    with session() as own:
        metered = MeteredSession(own, Failing(opened, error), rng=SystemRandom())
        with pytest.raises(type(error)) as caught:
            metered.run(samples(2))
        kept = [
            value
            for frame, _ in traceback.walk_tb(caught.value.__traceback__)
            if "cloister" in frame.f_code.co_filename and "tests" not in frame.f_code.co_filename
            for value in frame.f_locals.values()
        ]
    assert kept
    assert not any(isinstance(value, Result) for value in kept)
    arrays = [one for value in kept if isinstance(value, dict) for one in value.values()]
    assert arrays
    assert all(one.tobytes() != wanted for one in arrays)
    assert caught.value.__cause__ is None
    assert hashlib.sha256(wanted).hexdigest() not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "rows"),
    [
        (OutputMode.LABEL, [[np.inf, 0]]),
        (OutputMode.LABEL, [[0, np.nan]]),
        (OutputMode.TOP_K, [[np.inf, 0]]),
        (OutputMode.PROBABILITIES, [[0.5, 0.6]]),
        (OutputMode.PROBABILITIES, [[np.nan, 0.5]]),
    ],
)
def test_a_refusal_that_tells_of_scores_is_paid_for(started, tmp_path, mode, rows):
    """Else whoever chooses inputs could ask without an end whether their scores are such."""
    top = 1 if mode is OutputMode.TOP_K else None
    opened = meter(tmp_path / "meter", ticket(outputs=mode, top=top), counter=MemoryCounter())
    with session() as own:
        plain = own.run(samples(1))
    result = replace(plain, outputs={"y": np.array(rows, np.float32)})
    for left in reversed(range(10)):
        with pytest.raises(InputError, match="its inputs are paid for") as caught:
            bought_result(result, opened, rng=SystemRandom())
        assert opened.left() == left
        assert caught.value.__cause__ is None
    # Nothing is left to ask with: the answer is the same for all scores.
    with pytest.raises(BudgetError, match="0 of its 10 outputs are left"):
        bought_result(result, opened, rng=SystemRandom())


@pytest.mark.parametrize(
    ("mode", "top", "outputs"),
    [
        (OutputMode.TOP_K, 3, {"y": np.zeros((1, 2), np.float32)}),
        (OutputMode.LABEL, None, {"y": np.zeros((1, 2, 2), np.float32)}),
        (OutputMode.LABEL, None, {"y": np.zeros((1, 2)), "z": np.zeros((1, 2))}),
    ],
)
def test_a_ticket_that_does_not_fit_the_bundle_costs_nothing(started, tmp_path, mode, top, outputs):
    """The sizes of outputs are no secret."""
    opened = meter(tmp_path / "meter", ticket(outputs=mode, top=top), counter=MemoryCounter())
    with session() as own:
        result = replace(own.run(samples(1)), outputs=outputs)
    with pytest.raises(InputError):
        bought_result(result, opened, rng=SystemRandom())
    assert opened.left() == 10


def frames_of(error: BaseException) -> list[types.FrameType]:
    """All frames that an error keeps: its own, those of errors before it, and their callers'."""
    coming: list[object] = [error]
    found: list[types.FrameType] = []
    while coming:
        one = coming.pop()
        if isinstance(one, BaseException):
            coming += [one.__context__, one.__cause__]
            coming += [frame for frame, _ in traceback.walk_tb(one.__traceback__)]
        elif isinstance(one, types.FrameType) and one not in found:
            found.append(one)
            coming.append(one.f_back)
    return found


def values_in(found: object, *, deep: int = 4) -> Iterator[np.ndarray]:
    if isinstance(found, np.ndarray):
        yield found
    elif deep and isinstance(found, dict | list | tuple):
        for one in found.values() if isinstance(found, dict) else found:
            yield from values_in(one, deep=deep - 1)
    elif deep and hasattr(found, "outputs"):
        yield from values_in(found.outputs, deep=deep - 1)


@pytest.mark.parametrize("attack", ["progress raises", "the counter is moved"])
def test_no_frame_of_an_error_keeps_outputs(started, tmp_path, attack):
    wanted, counter = scores(2), MemoryCounter()
    opened = meter(tmp_path / "meter", counter=counter)

    def advanced(before: int, to: int) -> None:
        counter.value += 1
        raise CounterError("another copy")

    def progress(done: int, total: int) -> None:
        if done == total and attack == "progress raises":
            raise KeyError("stop")

    counter.advance = advanced
    with session() as own:
        metered = MeteredSession(own, opened, rng=SystemRandom())
        with pytest.raises((KeyError, ForkError)) as caught:
            metered.run(samples(2), progress=progress)
        frames = frames_of(caught.value)
    assert any("metered_session" in frame.f_code.co_filename for frame in frames)
    source = f"src{os.sep}cloister"
    kept = [
        array
        for frame in frames
        if source in frame.f_code.co_filename
        for value in frame.f_locals.values()
        for array in values_in(value)
    ]
    assert kept  # the inputs
    assert not any(one.shape == wanted.shape and np.allclose(one, wanted) for one in kept)


def test_outputs_of_a_session_that_lost_its_quota_meanwhile_are_not_released(started, opened):
    """Another process spent it between the question and the spend."""

    def meanwhile(done: int, total: int) -> None:
        if done == total:
            opened.spend(9, DIGEST)

    with session() as own, pytest.raises(BudgetError, match="1 of its 10 outputs are left"):
        MeteredSession(own, opened, rng=SystemRandom()).run(samples(2), progress=meanwhile)
    assert opened.left() == 1
