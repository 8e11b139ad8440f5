"""Values of every kind cross as bytes, and damaged bytes are refused."""

import math

import ml_dtypes
import numpy as np
import pytest

from cloister.base.rng import InsecureSeededRandom
from cloister.errors import CloisterError, InputError, ProtocolError
from cloister.trusted.packed_values import MAX_DEPTH, pack, unpack

RNG = np.random.default_rng(3)
VALUES = {
    "float": RNG.standard_normal((2, 3)).astype(np.float32),
    "turned": RNG.standard_normal((3, 2)).T,
    "whole": np.arange(5, dtype=np.int64),
    "truths": np.array([[True], [False]]),
    "half": np.ones((1, 2), ml_dtypes.bfloat16),
    "four bits": np.array([1, 2, 3], ml_dtypes.int4),
    "texts": np.array([["a", "ä"], ["", "b"]], object),
    "nothing": np.zeros((0, 4), np.float32),
    "scalar": np.array(3.5),
    "maps": [{"cat": 0.25, "dog": 0.75}, {"cat": 1.0, "dog": 0.0}],
    "numbered": {1: 0.5, -2: math.inf},
    "list": [np.zeros(2, np.int8), np.ones((1, 1), np.uint16)],
    "absent": None,
    "plain": [True, 1, 0.1, "x"],
}  # fmt: skip


def same(one, other):
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and (one == other).all()
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and one == other


@pytest.mark.parametrize("name", VALUES)
def test_a_value_crosses_as_it_is(name):
    assert same({name: VALUES[name]}, unpack(pack({name: VALUES[name]})))


def test_all_values_cross_together_in_their_order():
    assert same(VALUES, unpack(pack(VALUES)))
    assert same(unpack(pack({"x": np.float32(0.5), "y": (1, 2)})), {"x": 0.5, "y": [1, 2]})


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (object(), "object cannot be sent"),
        ({1.5: 1}, "the key 1.5"),
        ({True: 1}, "the key True"),
        (np.array(["2020-01-01"], "datetime64[D]"), r"array of datetime64\[D\]"),
        (nested(MAX_DEPTH), "deeper than"),
    ],
)
def test_a_value_that_cannot_cross_is_named(value, said):
    with pytest.raises(InputError, match=f"x.*{said}|{said}"):
        pack({"x": value})


def test_damaged_bytes_are_refused_or_hold_values():
    data, rng = pack(VALUES), InsecureSeededRandom(5)
    for _ in range(2000):
        damaged = bytearray(data)
        at = int.from_bytes(rng.random_bytes(4), "little") % len(data)
        match rng.random_bytes(1)[0] % 3:
            case 0:
                damaged[at] ^= 1 + rng.random_bytes(1)[0] % 255
            case 1:
                del damaged[at:]
            case 2:
                damaged[at:at] = rng.random_bytes(1 + at % 7)
        try:
            unpack(bytes(damaged))
        except CloisterError as error:
            assert type(error) is ProtocolError


@pytest.mark.parametrize(
    "document",
    [b"[" * 100_000, b'["map",[1,2]]', b'["array",[1,[1000000000]]]', b'["list"]', b'{"x":1}',
     b'["map",["x",["set",1]]]', b'["map",["x",["map",[true,1]]]]'],
)  # fmt: skip
def test_documents_that_describe_no_values_are_refused(document):
    head = b"CLOV" + (1).to_bytes(4, "little") + len(document).to_bytes(8, "little")
    with pytest.raises(ProtocolError):
        unpack(head + document)
