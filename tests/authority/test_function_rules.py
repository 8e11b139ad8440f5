"""Rules that decide which functions an authority issues decide the same on every machine."""

import numpy as np
import pytest

from cloister.authority import functions
from cloister.authority.requests import Forward, Gradient
from cloister.ring import pads
from cloister.ring.linear import Geometry, LinearMap


@pytest.mark.parametrize("direction", [-np.inf, 0.0, np.inf])
def test_a_row_with_exactly_as_many_bits_as_it_needs_is_refused(direction, monkeypatch):
    """Four elements of 255 values, and an answer of 65,025: (255^4)^(1/2) = 65,025."""
    logarithm = np.log2

    def nudged(values):
        found = logarithm(values)
        return np.nextafter(found, direction) if direction else found

    monkeypatch.setattr(functions.np, "log2", nudged)
    row = np.array([[65, 63, 64, 64]])
    assert functions.packed(row, 127).all()
    assert not functions.packed(np.array([[65, 63, 64, 63]]), 127).any()


GEOMETRIES = pytest.mark.parametrize(
    "geometry",
    [
        Geometry((4, 4), 2, (1, 1), 3, kernel=(4, 4)),
        Geometry((5, 4), 2, (5, 4), 3, kernel=(3, 3), pad=(1, 1)),
        Geometry((5, 6), 4, (3, 2), 2, kernel=(3, 2), stride=(2, 3), pad=(1, 0), groups=2),
        Geometry((3, 4), 2, (6, 7), 2, kernel=(3, 2), upsample=(2, 2), pad=(2, 1)),
        Geometry((6, 5), 1, (2, 3), 2, kernel=(3, 2), dilation=(2, 3), pad=(0, 2)),
    ],
)


def kinds(rows):
    """Rows without their places: what is left of each, in order of size."""
    return {tuple(sorted(row[row != 0].tolist())) for row in rows} - {()}


def as_cut(request):
    return kinds(row for piece in request.cuts.pieces(request.rows) for row in piece)


@GEOMETRIES
@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_the_rows_that_are_checked_are_those_of_the_answers(geometry, at_once, monkeypatch):
    """Compared with answers on every sample that has a single element."""
    monkeypatch.setattr(functions, "WEIGHTS_AT_ONCE", at_once)
    generator = np.random.default_rng(4)
    elements = np.eye(geometry.in_elements, dtype=np.uint32).reshape(-1, *geometry.in_shape)
    weights = generator.integers(-(2**15), 2**15, geometry.weight_shape).astype(np.int16)
    forward = Forward("set", np.zeros(1, np.int64), LinearMap(geometry, weights))
    answers = pads.forward(forward.linear, elements).view(np.int32)
    assert as_cut(forward) == kinds(answers.reshape(len(elements), -1).T)
    delta = generator.integers(-(2**15), 2**15, (2, *geometry.out_shape)).astype(np.int16)
    of_each = []
    for one in delta:
        answers = [pads.gradient(geometry, one[None], x[None]).view(np.int32) for x in elements]
        of_each.append(kinds(np.array(answers).reshape(len(elements), -1).T))
    assert as_cut(Gradient("set", np.arange(len(delta)), geometry, delta)) == set.union(*of_each)
