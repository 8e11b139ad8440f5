"""Geometries that no kernel could compute are refused before one is asked."""

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
    assert Geometry.from_tuple(widest.to_tuple()) == widest
    with pytest.raises(ShapeError):
        Geometry((1, 4), 1, (1, 2), 1, stride=(1, MAX_SPAN - 1))
