"""Geometries that no kernel could compute are refused before one is asked."""

import json
import struct

import pytest

from cloister.errors import ShapeError
from cloister.ring.linear import MAX_SPAN, Geometry


@pytest.mark.parametrize("size", [MAX_SPAN, 2**40, 2**62, 2**63 - 1])
@pytest.mark.parametrize("field", ["stride", "dilation", "pad", "upsample", "kernel", "out_size"])
def test_sizes_whose_products_wrap(field, size):
    fields = {"in_size": (4, 4), "in_channels": 1, "out_size": (2, 2), "kernel": (2, 2)}
    for pair in ((size, size), (1, size), (size, 1)):
        with pytest.raises(ShapeError, match=r"2\^31"):
            Geometry(out_channels=1, **(fields | {field: pair}))


def test_a_crop_is_bounded_too():
    with pytest.raises(ShapeError, match="padding"):
        Geometry((4, 4), 1, (2, 2), 1, pad=(0, -MAX_SPAN))


def test_what_spans_little_is_a_map_however_large_its_stride():
    assert Geometry((4, 4), 1, (1, 1), 1, stride=(2**31, 2**31)).out_elements == 1
    widest = Geometry((1, 4), 1, (1, 2), 1, stride=(1, MAX_SPAN - 2))
    assert Geometry.from_bytes(widest.to_bytes()) == widest
    with pytest.raises(ShapeError):
        Geometry((1, 4), 1, (1, 2), 1, stride=(1, MAX_SPAN - 1))


# ---- forms

GEOMETRY = Geometry((1, 2), 12, (4, 5), 18, (7, 8), (9, 10), (11, 13), (14, 15), (-16, 17), 6)
NUMBERS = (1, 2, 12, 4, 5, 18, 7, 8, 9, 10, 11, 13, 14, 15, -16, 17, 6)


def test_on_the_wire_its_integers_lie_in_the_order_of_its_fields():
    assert GEOMETRY.to_bytes() == struct.pack("<17q", *NUMBERS)
    assert Geometry.from_bytes(GEOMETRY.to_bytes()) == GEOMETRY


@pytest.mark.parametrize("size", [0, 8 * 16, 8 * 18])
def test_bytes_of_another_length_are_refused(size):
    with pytest.raises(ShapeError, match="136 B"):
        Geometry.from_bytes(bytes(size))


def test_in_json_its_fields_have_names():
    fields = json.loads(json.dumps(GEOMETRY.to_fields()))
    assert fields["pad"] == [-16, 17]
    assert Geometry.from_fields(fields) == GEOMETRY


@pytest.mark.parametrize(
    "change",
    [
        {"pad": 0}, {"pad": [0]}, {"pad": [0, 0, 0]}, {"pad": [0, True]}, {"pad": [0, 0.0]},
        {"pad": [0, 1 << 31]}, {"groups": [1]}, {"groups": "1"}, {"groups": 0}, {"more": 1},
    ],
    ids=str,
)  # fmt: skip
def test_fields_that_describe_nothing_are_refused(change):
    fields = GEOMETRY.to_fields()
    with pytest.raises(ShapeError):
        Geometry.from_fields(fields | change)
    del fields["groups"]
    with pytest.raises(ShapeError, match="groups"):
        Geometry.from_fields(fields)
