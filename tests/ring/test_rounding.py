import numpy as np

from cloister.ring.reference import clamp
from cloister.ring.rounding import clipped, dequantise, quantise


def test_quantise_rounds_half_to_even_and_clips():
    x = np.array([0.5, 1.5, 2.5, -0.5, -1.5, 99.0, -99.0, 7.49], np.float32)
    np.testing.assert_array_equal(quantise(x, 1.0, 7), [0, 2, 2, 0, -2, 7, -7, 7])
    assert quantise(x, 1.0, 7).dtype == np.int16


def test_clipped_is_what_quantise_brings_into_the_range():
    x = np.array([7.0, 7.49, 7.5, -7.5, 8.0, -99.0, np.inf, np.nan, 6.5], np.float32)
    np.testing.assert_array_equal(clipped(x, 1.0, 7), [0, 0, 1, 1, 1, 1, 1, 1, 0])
    np.testing.assert_array_equal(quantise(x, 1.0, 7), [7, 7, 7, -7, 7, -7, 7, -7, 6])
    # Half to even: 6.5 rounds to 6 itself.
    np.testing.assert_array_equal(clipped(x, 1.0, 6), [1, 1, 1, 1, 1, 1, 1, 1, 0])


def test_dequantise_rounds_every_operation():
    z = np.array([2**24 + 1, 2**31 - 1, -(2**31), 3], np.int32).view(np.uint32).reshape(4, 1)
    scale, bias = np.array([0.1], np.float32), np.array([1.0], np.float32)
    found = dequantise(z, scale, bias)
    assert found.dtype == np.float32
    for word, value in zip(z.ravel(), found.ravel(), strict=True):
        converted = np.float32(np.int32(np.uint32(word).view(np.int32)))
        assert value == np.float32(np.float32(converted * np.float32(0.1)) + np.float32(1.0))


def test_largest_activations_survive_a_round_trip():
    q = np.arange(-8191, 8192, dtype=np.int32)
    step = np.float32(0.0371)
    back = dequantise(
        q.view(np.uint32).reshape(-1, 1), step.reshape(1), np.zeros(1, np.float32)
    ).ravel()
    np.testing.assert_array_equal(quantise(back, float(np.float32(1) / step), 8191), q)


def test_clamp_of_negative_zero():
    assert not np.signbit(clamp(np.array([-0.0], np.float32), 0.0, np.inf))[0]
