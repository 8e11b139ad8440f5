"""Rules that decide which functions an authority issues decide the same on every machine."""

import numpy as np
import pytest

from cloister.authority import functions


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
