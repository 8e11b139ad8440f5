import numpy as np
import pytest

import cloister.published._published_native as native
from cloister.errors import RangeError
from cloister.published.ddh.curve import Curve25519
from cloister.published.dlog import (
    MAX_CURVE_REACH,
    CurveLogarithm,
    ModularLogarithm,
    check_range,
    table_size,
)
from published import ristretto_reference as reference

GROUP = Curve25519()
pytestmark = pytest.mark.usefixtures("isa")


def elements(values):
    values = np.asarray(values, np.int64)[:, None]
    zero = GROUP.encode_scalars([0] * len(values))
    return GROUP.powers(GROUP.generator[None], zero, plus=values, bound=2**45)[:, 0]


@pytest.mark.parametrize(("lo", "hi"), [(-5000, 5000), (0, 100), (-3, -1), (90, 1090), (7, 7)])
def test_every_logarithm_of_a_range_and_none_beside_it(lo, hi):
    logarithm = CurveLogarithm(lo, hi)
    values = np.arange(lo, hi + 1)
    np.testing.assert_array_equal(logarithm.solve(elements(values)), values)
    for beside in (lo - 1, hi + 1, -(2**44), 2**44):
        with pytest.raises(RangeError, match="not within"):
            logarithm.solve(elements([lo, beside]))


def test_the_table_agrees_with_the_reference_everywhere():
    """A raw table of 37 entries: odd blocks, both signs, and steps of 75 beyond it."""
    table = native.CurveLogarithm(37, threads=2)
    values = np.arange(-200, 201)
    points = {int(m): reference.encode(reference.multiply(int(m), reference.G)) for m in values}
    data = np.frombuffer(b"".join(points.values()), np.uint8).reshape(-1, 32)
    out = np.empty(len(values), np.int64)
    for lo, hi in [(-200, 200), (-37, 37), (-38, 38), (-200, 0), (5, 150), (-111, -40)]:
        table.solve(data, lo, hi, out, 2)
        inside = (values >= lo) & (values <= hi)
        np.testing.assert_array_equal(out[inside], values[inside])
        assert (out[~inside] == np.iinfo(np.int64).min).all()


def test_giant_steps_reach_far():
    far = [2**31 - 1, -(2**31) + 1, 0, 12345678, -987654321]
    np.testing.assert_array_equal(CurveLogarithm(-(2**31), 2**31).solve(elements(far)), far)


def test_another_element_is_no_small_multiple():
    stranger = GROUP.powers(GROUP.generator[None], GROUP.encode_scalars([2**200 + 1]))[0]
    with pytest.raises(RangeError, match="key"):
        CurveLogarithm(-(10**6), 10**6).solve(stranger)


def test_no_elements_have_no_logarithms():
    assert CurveLogarithm(0, 5).solve(np.empty((0, 32), np.uint8)).shape == (0,)


def test_ranges_are_checked():
    with pytest.raises(RangeError, match="empty"):
        CurveLogarithm(1, 0)
    with pytest.raises(RangeError, match="fewer bits"):
        CurveLogarithm(0, MAX_CURVE_REACH + 1)
    check_range(-MAX_CURVE_REACH, MAX_CURVE_REACH, reach=MAX_CURVE_REACH)
    with pytest.raises(ValueError, match="entries"):
        native.CurveLogarithm(0)
    with pytest.raises(ValueError, match="range"):
        native.CurveLogarithm(4).solve(elements([0]), 3, 2, np.empty(1, np.int64))


def test_tables_hold_small_ranges_whole():
    for reach in (0, 1, 1000, 1025, 250_000):
        assert table_size(reach) >= reach
    assert table_size(2**40) < 2**21
    assert table_size(1000) == table_size(900)


def test_modular_logarithms():
    p, q = 1000003 * 2 + 1, 1000003
    p = next(c for c in range(2 * q + 1, 10**8, 2 * q) if all(c % d for d in range(2, 10**4)))
    g = pow(2, (p - 1) // q, p)
    values = list(range(-300, 301, 7))
    logarithm = ModularLogarithm(p, g, lo=-300, hi=300)
    assert logarithm.solve([pow(g, v, p) for v in values]) == values
    with pytest.raises(RangeError, match="not within"):
        logarithm.solve([pow(g, 301, p)])
    wide = ModularLogarithm(p, g, lo=-100_000, hi=100_000)
    far = [-100_000, 99_999, 40_000, -33_333]
    assert wide.solve([pow(g, v, p) for v in far]) == far
