import numpy as np
import pytest

from cloister.errors import InputError, RangeError
from cloister.wire.messages import (
    Answer,
    Apply,
    Failure,
    Hello,
    Loaded,
    LoadLinear,
    LoadSegment,
    Welcome,
)
from cloister.worker.engine import Engine, MemoryBudget
from wire.loopback import blinded, linear, slow


@pytest.fixture
def engine():
    return Engine(name="e")


def test_greeting(engine):
    assert engine.handle(Hello()) == Welcome(1, "e", "cpu")
    assert isinstance(engine.handle(Hello(99)), Failure)


def test_load_and_apply(engine):
    assert engine.handle(LoadLinear(4, linear())) == Loaded(4)
    x = blinded()
    answer = engine.handle(Apply(8, 4, (x,)))
    assert isinstance(answer, Answer)
    assert answer.request_id == 8
    assert (answer.tensors[0] == slow(linear(), x)).all()


@pytest.mark.parametrize(
    "tensors",
    [
        (),
        (blinded(), blinded()),
        (blinded().astype(np.float32),),
        (blinded()[..., :2],),
        (blinded()[0],),
        (np.uint32(3).reshape(()),),
    ],
)
def test_whatever_cannot_be_applied_is_a_failure_of_that_request(engine, tensors):
    engine.handle(LoadLinear(4, linear()))
    failure = engine.handle(Apply(8, 4, tensors))
    assert isinstance(failure, Failure)
    assert failure.request_id == 8


def test_messages_of_the_other_direction_are_failures(engine):
    for message in (Loaded(1), Answer(1, ()), Failure(0, ""), Welcome(1, "", "")):
        assert isinstance(engine.handle(message), Failure)


def test_broken_segments_are_failures(engine):
    assert isinstance(engine.handle(LoadSegment(1, b"nonsense")), Failure)
    assert isinstance(engine.handle(Apply(1, 1, ())), Failure)


def test_memory_is_bounded_shared_and_given_back():
    size = 2 * linear().weights.nbytes + 16 * linear().geometry.in_elements
    budget = MemoryBudget(2 * size)
    first, second = Engine(budget=budget), Engine(budget=budget)
    assert first.handle(LoadLinear(1, linear())) == Loaded(1)
    assert second.handle(LoadLinear(1, linear())) == Loaded(1)
    assert "worker memory" in first.handle(LoadLinear(2, linear())).message
    # Replacing takes no more; what failed to load takes nothing.
    assert first.handle(LoadLinear(1, linear(3))) == Loaded(1)
    second.close()
    assert isinstance(second.handle(LoadSegment(1, b"nonsense")), Failure)
    assert first.handle(LoadLinear(2, linear())) == Loaded(2)
    with pytest.raises(RangeError):
        budget.take(1)


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="threads"):
        Engine(threads=0)
    with pytest.raises(InputError, match="use --device cpu"):
        Engine(device="cuda:77")
