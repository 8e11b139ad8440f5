import threading
from dataclasses import replace

import numpy as np
import pytest

from cloister.errors import InputError, RangeError
from cloister.ring.linear import LinearMap
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
from cloister.worker import targets
from cloister.worker.budget import MemoryBudget
from cloister.worker.engine import Engine
from cloister.worker.targets import TargetStore
from wire.loopback import blinded, expected, linear, map_bytes, slow


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
    size = map_bytes(batch=1)
    budget = MemoryBudget(2 * size)
    first, second = (Engine(store=store) for store in [TargetStore(budget)] * 2)
    assert first.handle(LoadLinear(1, linear(1))) == Loaded(1)
    assert second.handle(LoadLinear(1, linear(2))) == Loaded(1)
    assert "worker memory" in first.handle(LoadLinear(2, linear(4))).message
    # Replacing takes no more; what failed to load takes nothing.
    assert first.handle(LoadLinear(1, linear(3))) == Loaded(1)
    second.close()
    assert isinstance(second.handle(LoadSegment(1, b"nonsense")), Failure)
    assert first.handle(LoadLinear(2, linear(4))) == Loaded(2)
    with pytest.raises(RangeError):
        budget.take(1)


def test_the_same_weights_are_kept_once_and_for_as_long_as_anybody_uses_them():
    store = TargetStore(MemoryBudget(map_bytes() + expected()[0].nbytes))
    first, second = Engine(store=store), Engine(store=store)
    assert first.handle(LoadLinear(1, linear())) == Loaded(1)
    assert first.handle(LoadLinear(2, linear())) == Loaded(2)
    assert second.handle(LoadLinear(7, linear())) == Loaded(7)
    assert "worker memory" in second.handle(LoadLinear(8, linear(5))).message
    assert first._targets[1][1] is second._targets[7][1]
    first.close()
    x = blinded()
    (answer,) = second.handle(Apply(1, 7, (x,))).tensors
    assert (answer == slow(linear(), x)).all()
    assert isinstance(first.handle(Apply(1, 1, (x,))), Failure)
    second.close()
    assert second.handle(LoadLinear(8, linear(5))) == Loaded(8)


def test_maps_that_differ_anywhere_are_different_targets():
    base = linear()
    flipped = base.weights.copy()
    flipped.flat[0] ^= 1
    maps = [
        base,
        LinearMap(base.geometry, flipped),
        LinearMap(replace(base.geometry, pad=(0, 1)), base.weights),
        LinearMap(replace(base.geometry, out_size=(5, 6)), base.weights),
    ]
    assert len({targets.key_of_linear(one) for one in maps}) == len(maps)
    assert targets.key_of_linear(linear()) == targets.key_of_linear(base)
    assert targets.key_of_segment(b"a") != targets.key_of_segment(b"b")


def test_a_target_that_cannot_be_made_is_made_by_the_next_who_asks():
    store = TargetStore(MemoryBudget(10))

    def fails():
        raise RangeError("no")

    with pytest.raises(RangeError, match="no"):
        store.hold(b"key", 10, fails)
    target = object()
    shared, found = store.hold(b"key", 10, lambda: target)
    assert found is target
    assert store.hold(b"key", 10, fails)[1] is target
    store.let_go(shared)
    with pytest.raises(RangeError, match="worker memory"):
        store.hold(b"other", 1, fails)


def test_many_threads_hold_one_target():
    store, made = TargetStore(MemoryBudget(1)), []

    def work():
        for _ in range(200):
            shared, target = store.hold(b"key", 1, lambda: made.append(1) or object())
            assert target is not None
            store.let_go(shared)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made
    store.hold(b"other", 1, object)


def test_the_gate_is_closed_while_one_computes():
    gate = threading.Lock()
    engine = Engine(gate=gate)
    engine.handle(LoadLinear(1, linear()))
    seen = []
    target = engine._targets[1][1]
    run = target.run
    target.run = lambda tensors: seen.append(gate.locked()) or run(tensors)
    assert isinstance(engine.handle(Apply(1, 1, (blinded(),))), Answer)
    assert seen == [True]
    assert not gate.locked()


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="threads"):
        Engine(threads=0)
    with pytest.raises(InputError, match="use --device cpu"):
        Engine(device="cuda:77")
