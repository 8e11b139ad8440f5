"""Fixed point and transposition equal NumPy's, with the same bits on every instruction set."""

import math

import numpy as np
import pytest

import cloister.base._native as native
from cloister.errors import RangeError, ShapeError
from cloister.ring.fixed_point import magnitudes, round_scaled, scaled_difference
from cloister.ring.transpose import transpose, transpose_each
from instruction_sets import forced

SHAPES = [(1, 1, 1), (1, 5, 784), (3, 1, 7), (7, 130, 1), (4, 6, 33), (2, 35, 64), (5, 33, 129)]


def random_values(shape, dtype):
    rng = np.random.default_rng(math.prod(shape))
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-30, 30, shape)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_magnitudes(isa, shape, dtype):
    values = random_values(shape, dtype)
    found = magnitudes(values)
    wanted = max(math.fsum(np.abs(values[:, j]).ravel().tolist()) for j in range(shape[1]))
    assert found.norm == pytest.approx(wanted, rel=shape[0] * shape[2] * 2.0**-53, abs=0)
    assert found.peak == np.abs(values).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
def test_instruction_sets_agree_on_every_bit(shape, dtype):
    values = random_values(shape, dtype)
    found = set()
    for isa in native.available_isas():
        with forced(isa):
            sums = magnitudes(values)
            found.add((sums.norm.hex(), sums.peak.hex(), round_scaled(values, -17).tobytes()))
    assert len(found) == 1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(3, 5, 1), (2, 3, 131)])
def test_no_place_hides_a_value_that_is_not_finite(isa, shape, bad, dtype):
    for at in range(math.prod(shape)):
        values = np.ones(shape, dtype)
        values.flat[at] = bad
        assert not math.isfinite(magnitudes(values).norm)
        values.flat[-1 - at] = np.finfo(dtype).max
        assert at * 2 + 1 == math.prod(shape) or not math.isfinite(magnitudes(values).norm)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("exponent", [-112, -3, 0, 9, 126])
def test_rounding(isa, shape, exponent, dtype):
    rng = np.random.default_rng(3)
    wanted = rng.integers(-32767, 32768, shape)
    # Halves, quarters and the neighbours of halves; then the nearest a type holds.
    offset = rng.choice([0.0, 0.5, -0.5, 0.25, -0.25, 0.499, -0.499], shape) * (wanted % 8 == 0)
    scaled = np.clip(wanted + offset, -32767, 32767).astype(dtype)
    values = scaled * dtype(2.0**-exponent)
    found = round_scaled(values, exponent)
    np.testing.assert_array_equal(found, np.rint(scaled).astype(np.int16).transpose(0, 2, 1))
    tiny = np.full(shape, np.finfo(dtype).smallest_subnormal, dtype)
    assert not round_scaled(tiny, exponent).any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (16, 16), (17, 33), (70, 64), (0, 3)])
def test_transpose(isa, shape):
    matrix = np.arange(math.prod(shape), dtype=np.uint32).reshape(shape) * np.uint32(0x9E3779B1)
    found = transpose(matrix)
    np.testing.assert_array_equal(found, matrix.T)
    assert found.flags.c_contiguous
    np.testing.assert_array_equal(transpose(found.T), found.T.T)
    words = np.stack([matrix, ~matrix])
    each = transpose_each(words.view(np.float32))
    np.testing.assert_array_equal(each.view(np.uint32), words.transpose(0, 2, 1))
    assert each.flags.c_contiguous


@pytest.mark.parametrize("shape", [(2, 1, 5), (1, 2, 33), (3, 3, 70), (2, 4, 1), (0, 3, 4)])
def test_interleave_turns_pictures_and_finds_what_is_not_finite(isa, shape):
    values = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    out = np.empty((shape[0], shape[2], shape[1]), np.float32)
    assert native.interleave(values, out)
    np.testing.assert_array_equal(out, values.transpose(0, 2, 1))
    for wrong in (np.nan, np.inf, -np.inf, np.float32(-np.nan)):
        for place in range(values.size):
            bad = values.copy()
            bad.reshape(-1)[place] = wrong
            assert not native.interleave(bad, out)
            np.testing.assert_array_equal(out, bad.transpose(0, 2, 1))
    large = np.full(shape, np.finfo(np.float32).max)
    assert native.interleave(large, out)


@pytest.mark.parametrize("size", [0, 1, 15, 70])
def test_one_number_that_is_not_finite_is_found(isa, size):
    values = np.full((size, 1), np.finfo(np.float32).max, np.float32)
    assert native.all_finite(values)
    for place in range(size):
        for wrong in (np.nan, np.inf, -np.inf, np.float32(-np.nan)):
            bad = values.copy()
            bad[place] = wrong
            assert not native.all_finite(bad)


def test_interleave_refuses_what_does_not_fit():
    values = np.ones((2, 3, 4), np.float32)
    for out in (np.empty((2, 3, 4), np.float32), np.empty((1, 4, 3), np.float32)):
        with pytest.raises(ValueError, match="does not fit"):
            native.interleave(values, out)
    for rows in (0, 5):
        with pytest.raises(ValueError, match="one to four"):
            native.interleave(np.ones((1, rows, 2), np.float32), np.ones((1, 2, rows), np.float32))


def test_what_is_refused():
    values = np.ones((2, 3, 4), np.float32)
    for wrong in (values[0], values.astype(np.float16), values.transpose(0, 2, 1)):
        with pytest.raises(ShapeError):
            magnitudes(wrong)
        with pytest.raises(ShapeError):
            round_scaled(wrong, 0)
    for exponent in (-127, 127):
        with pytest.raises(RangeError, match="126"):
            round_scaled(values, exponent)
    for matrix in (np.ones(3, np.uint32), np.ones((2, 2), np.int32)):
        with pytest.raises(ShapeError):
            transpose(matrix)
    for matrices in (values[0], values.astype(np.float64)):
        with pytest.raises(ShapeError):
            transpose_each(matrices)
    with pytest.raises(ValueError, match="does not fit"):
        native.round_scaled(values, 0, np.empty((2, 3, 4), np.int16))
    with pytest.raises(ValueError, match="does not fit"):
        native.transpose(np.ones((2, 3), np.uint32), np.empty((2, 3), np.uint32))


@pytest.mark.parametrize("factor", [1.0, 2.0**-17 / 255, -3e20, 2.0**-140])
@pytest.mark.parametrize("shape", [(0,), (1,), (17, 3), (5, 28, 28, 1)])
def test_scaled_differences_are_numpys(isa, shape, factor):
    rng = np.random.default_rng(4)
    p, m = rng.integers(0, 2**32, (2, *shape), dtype=np.uint64).astype(np.uint32)
    p.flat[:4], m.flat[:4] = (0, 2**31, 2**31 - 1, 5)[: p.size], (1, 0, 0, 5)[: p.size]
    found = scaled_difference(p, m, factor)
    wanted = np.subtract(p, m).view(np.int32).astype(np.float32) * np.float32(factor)
    assert found.tobytes() == wanted.tobytes()
    turned = scaled_difference(p.T, m.T, factor)
    assert turned.tobytes() == np.ascontiguousarray(wanted.T).tobytes()


def test_differences_of_other_arrays_are_refused():
    words = np.zeros((2, 3), np.uint32)
    for other in (words.view(np.int32), words.T, words[0]):
        with pytest.raises(ShapeError, match="uint32 arrays of one shape"):
            scaled_difference(words, other, 1.0)
        with pytest.raises(ShapeError, match="uint32 arrays of one shape"):
            scaled_difference(other, words, 1.0)
