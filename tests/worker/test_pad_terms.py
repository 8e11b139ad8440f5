"""What a maker computes: the terms of a block as defined, or a refusal before any work."""

import hmac
from dataclasses import replace

import numpy as np
import pytest

from cloister.ring.linear import Geometry
from cloister.ring.pad_block import BlockKeys
from cloister.wire.messages import Answer, Failure, Loaded, LoadLinear, LoadSegment
from cloister.worker.budget import MemoryBudget
from cloister.worker.engine import Engine
from cloister.worker.targets import TargetStore
from wire.loopback import block_of, linear, slow_terms

STRIDED = Geometry((6, 4), 4, (3, 2), 6, kernel=(3, 3), stride=(2, 2), pad=(1, 1), groups=2)
DENSE = Geometry((1, 1), 50, (1, 1), 7)
MAPS = {2: linear(1), 3: linear(2, STRIDED), 9: linear(3, DENSE)}


def engine_with(maps, **options):
    engine = Engine(**options)
    for target, one in maps.items():
        assert engine.handle(LoadLinear(target, one)) == Loaded(target)
    return engine


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("gap", [0, 16])
def test_terms_are_those_of_the_definition(rows, gap, threads):
    message = block_of(MAPS, request_id=4, rows=rows, gap=gap)
    answer = engine_with(MAPS, threads=threads).handle(message)
    assert isinstance(answer, Answer)
    assert answer.request_id == 4
    (terms,) = answer.tensors
    assert terms.dtype == np.uint32
    np.testing.assert_array_equal(terms, slow_terms(message, MAPS))


def test_rows_depend_on_their_pad_id_alone():
    engine = engine_with(MAPS)
    (whole,) = engine.handle(block_of(MAPS, first_id=7, rows=3)).tensors
    (last,) = engine.handle(block_of(MAPS, first_id=9, rows=1)).tensors
    np.testing.assert_array_equal(whole[2:], last)


def test_the_two_keys_of_a_seed_differ_and_follow_from_it_alone():
    one, other = BlockKeys.of(bytes(32)), BlockKeys.of(bytes(31) + b"\1")
    assert len({one.pad_key, one.mask_key, other.pad_key, other.mask_key}) == 4
    assert one == BlockKeys.of(bytes(32))
    # RFC 5869, by hand.
    extracted = hmac.digest(bytes(32), bytes(32), "sha256")
    for key, purpose in ((one.pad_key, b"pads"), (one.mask_key, b"masks")):
        info = b"cloister block " + purpose + b" v1\1"
        assert key == hmac.digest(extracted, info, "sha256")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"targets": (2, 3, 10)}, "target 10 is no linear map"),
        ({"offsets": (0, 8, 600)}, "target 2: its terms"),
        ({"words": 200}, "its terms"),
    ],
)
def test_what_does_not_fit_is_a_failure_of_that_request(changed, words):
    failure = engine_with(MAPS).handle(replace(block_of(MAPS, request_id=8), **changed))
    assert isinstance(failure, Failure)
    assert failure.request_id == 8
    assert words in failure.message


def test_a_segment_makes_no_pads():
    engine = engine_with(MAPS)
    engine._targets[9] = (None, object())
    assert "no linear map" in engine.handle(block_of(MAPS)).message
    assert isinstance(engine.handle(LoadSegment(9, b"nonsense")), Failure)


def test_memory_is_counted_before_anything_is_made():
    maps = {1: linear()}
    budget = MemoryBudget(1 << 20)
    engine = engine_with(maps, store=TargetStore(budget))
    for rows in (1 << 16, 2000):
        failure = engine.handle(block_of(maps, rows=rows))
        assert isinstance(failure, Failure)
        assert "worker memory" in failure.message
    assert isinstance(engine.handle(block_of(maps, rows=2)), Answer)
    engine.close()
    budget.take(1 << 20)  # all of it was given back
