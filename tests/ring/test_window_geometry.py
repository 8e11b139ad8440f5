"""Which windows read something of an image, decided without laying the windows out."""

import itertools

import numpy as np
import pytest

from cloister.ring.window_geometry import MAX_STARTS, WindowGeometry


def laid_out(window, size):
    starts = np.arange(window.out_size[1]) * window.stride[1] - window.pad[1]
    at = starts[:, None] + np.arange(window.kernel[1]) * window.dilation[1]
    return bool(((at >= 0) & (at < size)).any(axis=1).all())


@pytest.mark.parametrize("kernel", [1, 2, 3, 4])
def test_small_windows_are_decided_as_if_laid_out(kernel):
    found = set()
    for stride, dilation, pad, out, size in itertools.product(
        range(1, 4), range(1, 6), range(-3, 9), range(1, 6), range(1, 6)
    ):
        window = WindowGeometry(
            "max", (1, kernel), (1, stride), (1, dilation), (0, pad), (1, out)
        )  # fmt: skip
        assert window.reads((1, size)) == laid_out(window, size), window
        found.add(window.reads((1, size)))
    assert found == {True, False}


def test_huge_windows_are_decided_at_once():
    huge = 2**62
    for kernel, stride, dilation, pad, out, wanted in (
        (huge, 1, 1, 0, 1, True), (huge, 1, 1, huge - 1, 1, True), (huge, 1, 1, huge, 1, False),
        (2, huge, 1, 0, 2, False), (2, 1, huge, 0, huge, False), (1, 1, 1, -huge, 1, False),
        (huge, 1, 9, 2 * MAX_STARTS, 2 * MAX_STARTS, False),
    ):  # fmt: skip
        window = WindowGeometry("max", (1, kernel), (1, stride), (1, dilation), (0, pad), (1, out))
        assert window.reads((1, 8)) == wanted
