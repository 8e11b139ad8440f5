import numpy as np
import pytest

from cloister.base.rng import keystream
from cloister.errors import InputError, RangeError, ShapeError
from cloister.ring import pads
from cloister.ring.linear import Geometry, LinearMap

KEY = bytes(range(32))

GEOMETRIES = [
    Geometry((1, 1), 7, (1, 1), 5),
    Geometry((9, 6), 3, (4, 4), 4, kernel=(3, 2), stride=(2, 1), pad=(1, 0)),
    Geometry((8, 5), 2, (4, 3), 3, kernel=(3, 2), dilation=(2, 2)),
    Geometry((7, 6), 4, (3, 2), 6, kernel=(3, 3), stride=(2, 2), groups=2),
    Geometry((4, 3), 2, (8, 6), 3, kernel=(3, 3), upsample=(2, 2), pad=(1, 1)),
]


def naive_forward(g: Geometry, weights, x):
    """The definition of `field.linear`, term by term, on Python-sized integers."""
    n = x.shape[0]
    y = np.zeros((n, *g.out_shape), np.int64)
    for p, k, x_at in _taps(g):
        for o in range(g.out_channels):
            c0 = o // (g.out_channels // g.groups) * g.weight_shape[3]
            channels = x[:, x_at[0], x_at[1], c0 : c0 + g.weight_shape[3]]
            y[:, p[0], p[1], o] += channels @ weights[o, k[0], k[1]].astype(np.int64)
    return y


def naive_gradient(g: Geometry, delta, x):
    dw = np.zeros(g.weight_shape, np.int64)
    for p, k, x_at in _taps(g):
        for o in range(g.out_channels):
            c0 = o // (g.out_channels // g.groups) * g.weight_shape[3]
            channels = x[:, x_at[0], x_at[1], c0 : c0 + g.weight_shape[3]]
            dw[o, k[0], k[1]] += delta[:, p[0], p[1], o].astype(np.int64) @ channels
    return dw


def _taps(g: Geometry):
    for py, px in np.ndindex(*g.out_size):
        for ky, kx in np.ndindex(*g.kernel):
            y = py * g.stride[0] + ky * g.dilation[0] - g.pad[0]
            x = px * g.stride[1] + kx * g.dilation[1] - g.pad[1]
            if y % g.upsample[0] or x % g.upsample[1]:
                continue
            y, x = y // g.upsample[0], x // g.upsample[1]
            if 0 <= y < g.in_size[0] and 0 <= x < g.in_size[1]:
                yield (py, px), (ky, kx), (y, x)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_terms_of_ciphertext_and_mask_differ_by_the_plain_map(geometry):
    rng = np.random.default_rng(1)
    x = rng.integers(-127, 128, (5, *geometry.in_shape)).astype(np.int16)
    ids = np.array([3, 4, 900, 0, 2**62], np.int64)
    weights = rng.integers(-1000, 1001, geometry.weight_shape).astype(np.int16)
    delta = rng.integers(-1000, 1001, (5, *geometry.out_shape)).astype(np.int16)
    linear = LinearMap(geometry, weights)
    p = pads.blind(KEY, x, ids, domain=pads.DATA_DOMAIN)
    m = pads.expand(KEY, ids, geometry.in_shape, domain=pads.DATA_DOMAIN)
    forward = pads.unblind(pads.forward(linear, p), pads.forward(linear, m))
    np.testing.assert_array_equal(forward, naive_forward(geometry, weights, x.astype(np.int64)))
    back = pads.unblind(pads.gradient(geometry, delta, p), pads.gradient(geometry, delta, m))
    np.testing.assert_array_equal(back, naive_gradient(geometry, delta, x.astype(np.int64)))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_a_gradient_in_pieces_is_the_gradient(geometry, monkeypatch):
    rng = np.random.default_rng(2)
    values = rng.integers(0, 2**32, (7, *geometry.in_shape), dtype=np.uint32)
    delta = rng.integers(-(2**15), 2**15, (7, *geometry.out_shape)).astype(np.int16)
    whole = pads.gradient(geometry, delta, values)
    monkeypatch.setattr(pads, "_PACKED_BYTES", 1)
    np.testing.assert_array_equal(pads.gradient(geometry, delta, values), whole)
    want = naive_gradient(geometry, delta, values.astype(np.int64))
    np.testing.assert_array_equal(whole, want.astype(np.uint32))


def test_pads_are_the_reference_stream_under_the_stated_nonce(isa):
    ids = np.array([0, 1, 2**63 - 1], np.int64)
    got = pads.expand(KEY, ids, (3, 5), domain=pads.LABEL_DOMAIN)
    for row, i in zip(got, ids.tolist(), strict=True):
        nonce = i.to_bytes(8, "big") + (1).to_bytes(4, "big")
        np.testing.assert_array_equal(row.reshape(-1), keystream(KEY, nonce, 15))


def test_unblinding_is_exact_at_the_ends_of_the_ring():
    m = np.array([0, 5, 2**32 - 1], np.uint32)
    x = np.array([-(2**31), 2**31 - 1, -1], np.int64)
    np.testing.assert_array_equal(pads.unblind((x + m).astype(np.uint32), m), x)


def test_a_repeated_sample_number_is_refused():
    with pytest.raises(RangeError, match="repeated"):
        pads.blind(KEY, np.zeros((2, 3), np.int16), np.array([1, 1]), domain=0)


@pytest.mark.parametrize("dtype", [np.float32, np.uint8, np.bool_])
def test_only_signed_integers_are_blinded(dtype):
    with pytest.raises(ShapeError, match="signed"):
        pads.blind(KEY, np.zeros((1, 3), dtype), np.array([1]), domain=0)


def test_wrong_shapes_are_refused():
    g = GEOMETRIES[1]
    v = np.zeros((2, *g.in_shape), np.uint32)
    with pytest.raises(ShapeError, match="delta"):
        pads.gradient(g, np.zeros((3, *g.out_shape), np.int16), v)
    with pytest.raises(ShapeError, match="values"):
        pads.gradient(g, np.zeros((2, *g.out_shape), np.int16), v.astype(np.int64))
    with pytest.raises(ShapeError, match="pad term"):
        pads.unblind(np.zeros(3, np.uint32), np.zeros(4, np.uint32))
    with pytest.raises(RangeError, match="out of range"):
        pads.expand(KEY, np.array([-1]), (1,), domain=0)
    with pytest.raises(RangeError, match="32 bytes"):
        pads.expand(KEY[:31], np.array([1]), (1,), domain=0)


def test_an_empty_batch_has_gradient_zero():
    g = GEOMETRIES[0]
    empty = np.zeros((0, *g.in_shape), np.uint32)
    assert not pads.gradient(g, np.zeros((0, *g.out_shape), np.int16), empty).any()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("n", [1, 2, 7, 64])
@pytest.mark.parametrize(("size", "channels", "outputs"), [
    ((1, 1), 1, 1), ((1, 31), 1, 5), ((4, 8), 1, 6), ((3, 11), 1, 13), ((5, 3), 13, 3),
])  # fmt: skip
def test_dense_gradients(isa, size, channels, outputs, n, threads):
    """Also at the ends of the ring, and for numbers of samples, inputs and outputs that no vector
    divides.
    """
    geometry = Geometry(size, channels, (1, 1), outputs, kernel=size)
    assert geometry.is_dense
    rng = np.random.default_rng(n)
    values = rng.integers(0, 2**32, (n, *geometry.in_shape), dtype=np.uint32)
    delta = rng.integers(-(2**15), 2**15, (n, *geometry.out_shape)).astype(np.int16)
    for words in (2**15, 2**31, 2**32 - 1):
        values[rng.random(values.shape) < 0.2] = words
    delta[rng.random(delta.shape) < 0.2] = -(2**15)
    found = pads.gradient(geometry, delta, values, threads=threads)
    want = naive_gradient(geometry, delta, values.astype(np.int64))
    np.testing.assert_array_equal(found, want.astype(np.uint32))


@pytest.mark.parametrize("other", [
    {"out_size": (2, 1), "pad": (1, 0)}, {"pad": (0, 1)}, {"dilation": (2, 1)}, {"groups": 2},
    {"kernel": (3, 2)}, {"upsample": (1, 2)},
])  # fmt: skip
def test_other_maps_are_not_dense(other):
    fields = {"in_size": (4, 2), "in_channels": 2, "out_size": (1, 1), "out_channels": 2}
    geometry = Geometry(**(fields | {"kernel": (4, 2)} | other))
    assert not geometry.is_dense
    rng = np.random.default_rng(3)
    values = rng.integers(0, 2**32, (3, *geometry.in_shape), dtype=np.uint32)
    delta = rng.integers(-(2**15), 2**15, (3, *geometry.out_shape)).astype(np.int16)
    want = naive_gradient(geometry, delta, values.astype(np.int64))
    np.testing.assert_array_equal(pads.gradient(geometry, delta, values), want.astype(np.uint32))


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_no_threads_are_refused(geometry):
    values = np.zeros((2, *geometry.in_shape), np.uint32)
    with pytest.raises(InputError, match="threads must be at least 1"):
        pads.gradient(geometry, np.zeros((2, *geometry.out_shape), np.int16), values, threads=0)
