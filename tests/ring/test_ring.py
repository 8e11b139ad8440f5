"""The ring kernel equals a plain loop, on every instruction set, for every kind of geometry."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cloister.base._native as native
from cloister.errors import InputError, ShapeError
from cloister.ring import reference
from cloister.ring.linear import Geometry, LinearMap
from cloister.ring.ring_map import RingMap

ISAS = native.available_isas()
EXTREME_X = (0x80000000, 0xFFFFFFFF, 0x7FFF8000, 0x00008000, 0xFFFF8000, 0x7FFFFFFF)

GEOMETRIES = {
    "one_element": Geometry((1, 1), 1, (1, 1), 1),
    "dense": Geometry((1, 1), 70, (1, 1), 45),
    "dense_odd_long": Geometry((1, 1), 4101, (1, 1), 33),
    "sequence": Geometry((1, 7), 5, (1, 7), 40),
    "pointwise": Geometry((5, 3), 9, (5, 3), 17),
    "conv3x3": Geometry((6, 9), 3, (6, 9), 64, (3, 3), pad=(1, 1)),
    "conv3x3_several_blocks": Geometry((4, 5), 300, (4, 5), 34, (3, 3), pad=(1, 1)),
    "wide_run_of_odd_length": Geometry((5, 6), 3, (3, 5), 8, (3, 1)),
    "kernel_2x3": Geometry((7, 5), 4, (6, 5), 6, (2, 3), pad=(0, 1)),
    "stride": Geometry((9, 12), 3, (5, 4), 7, (3, 3), (2, 3), pad=(1, 1)),
    "stride_beyond_kernel": Geometry((9, 9), 2, (3, 3), 5, (1, 1), (3, 4)),
    "dilation": Geometry((9, 8), 3, (9, 6), 5, (3, 2), dilation=(2, 3), pad=(2, 1)),
    "groups": Geometry((5, 6), 6, (5, 6), 9, (3, 3), pad=(1, 1), groups=3),
    "groups_wide": Geometry((3, 3), 10, (3, 3), 80, (3, 3), pad=(1, 1), groups=2),
    "depthwise": Geometry((6, 5), 19, (6, 5), 19, (3, 3), pad=(1, 1), groups=19),
    "depthwise_times_3": Geometry((6, 5), 5, (3, 3), 15, (3, 3), (2, 2), pad=(1, 1), groups=5),
    "depthwise_pointwise": Geometry((3, 4), 6, (3, 4), 6, groups=6),
    "transposed": Geometry((4, 5), 3, (8, 10), 6, (4, 4), upsample=(2, 2), pad=(2, 2)),
    "transposed_uneven": Geometry((3, 4), 2, (5, 9), 3, (2, 3), upsample=(2, 3), pad=(1, 0)),
    "negative_pad": Geometry((7, 8), 3, (4, 4), 5, (3, 3), pad=(-1, -2)),
    "all_padding": Geometry((2, 2), 2, (3, 3), 4, (1, 1), pad=(5, 5)),
    "beyond_the_end": Geometry((2, 2), 2, (9, 9), 4, (2, 2)),
    "row_of_time": Geometry((1, 11), 6, (1, 6), 8, (1, 3), (1, 2), pad=(0, 1)),
    "row_of_time_dilated": Geometry((1, 11), 3, (1, 11), 8, (1, 3), dilation=(1, 2), pad=(0, 2)),
}


def naive(linear, x):
    """Every product of the definition, in Python's order, with NumPy only across channels."""
    g, w = linear.geometry, linear.weights.astype(np.int64)
    x = x.astype(np.int64)
    y = np.zeros((len(x), *g.out_shape), np.uint64)
    group_in, group_out = g.in_channels // g.groups, g.out_channels // g.groups
    taps = itertools.product(range(g.out_size[0]), range(g.out_size[1]), *map(range, g.kernel))
    for oy, ox, ky, kx in taps:
        uy = oy * g.stride[0] + ky * g.dilation[0] - g.pad[0]
        ux = ox * g.stride[1] + kx * g.dilation[1] - g.pad[1]
        if uy % g.upsample[0] or ux % g.upsample[1]:
            continue
        iy, ix = uy // g.upsample[0], ux // g.upsample[1]
        if not (0 <= iy < g.in_size[0] and 0 <= ix < g.in_size[1]):
            continue
        for group in range(g.groups):
            outs = slice(group * group_out, (group + 1) * group_out)
            ins = x[:, iy, ix, group * group_in : (group + 1) * group_in]
            # Wraps modulo 2^64, of which 2^32 is a divisor.
            product = ins.astype(np.uint64) @ w[outs, ky, kx].T.astype(np.uint64)
            y[:, oy, ox, outs] += product
    return (y & np.uint64(0xFFFFFFFF)).astype(np.uint32)


def random_map(geometry, rng):
    shape = geometry.weight_shape
    return LinearMap(geometry, rng.integers(-(2**15), 2**15, shape).astype(np.int16))


def random_x(geometry, n, dtype, rng):
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, (n, *geometry.in_shape), dtype, endpoint=True)


@pytest.mark.parametrize("dtype", [np.uint32, np.int16])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_equals_the_definition(isa, name, dtype):
    rng = np.random.default_rng(1)
    linear = random_map(GEOMETRIES[name], rng)
    ring = RingMap(linear)
    for n in (1, 3):
        x = random_x(linear.geometry, n, dtype, rng)
        np.testing.assert_array_equal(ring.apply(x), naive(linear, x))


@pytest.mark.parametrize("weight", [-32768, 32767])
@pytest.mark.parametrize("name", ["dense", "conv3x3", "groups", "depthwise", "transposed"])
def test_extreme_entries(isa, name, weight):
    g = GEOMETRIES[name]
    linear = LinearMap(g, np.full(g.weight_shape, weight, np.int16))
    ring = RingMap(linear)
    for value in EXTREME_X:
        x = np.full((2, *g.in_shape), value, np.uint32)
        np.testing.assert_array_equal(ring.apply(x), naive(linear, x))
    for value in (-32768, 32767):
        x = np.full((2, *g.in_shape), value, np.int16)
        np.testing.assert_array_equal(ring.apply(x), naive(linear, x))


@st.composite
def geometries(draw):
    def pair(low, high):
        return (draw(st.integers(low, high)), draw(st.integers(low, high)))

    groups = draw(st.integers(1, 3))
    return Geometry(
        in_size=pair(1, 7),
        in_channels=groups * draw(st.integers(1, 5)),
        out_size=pair(1, 7),
        out_channels=groups * draw(st.integers(1, 20)),
        kernel=pair(1, 3),
        stride=pair(1, 3),
        dilation=pair(1, 3),
        upsample=pair(1, 3),
        pad=pair(-3, 4),
        groups=groups,
    )


@settings(max_examples=200, deadline=None)
@given(geometry=geometries(), n=st.integers(0, 3), seed=st.integers(0, 2**32 - 1))
def test_any_geometry_on_every_path(geometry, n, seed):
    rng = np.random.default_rng(seed)
    linear = random_map(geometry, rng)
    before = native.isa()
    try:
        for dtype in (np.uint32, np.int16):
            x = random_x(geometry, n, dtype, rng)
            expected = naive(linear, x)
            for isa in ISAS:
                native.force_isa(isa)
                for threads in (1, 3):
                    y = RingMap(linear).apply(x, threads=threads)
                    np.testing.assert_array_equal(y, expected)
    finally:
        native.force_isa(before)


@pytest.mark.parametrize(
    "geometry",
    [
        Geometry((60, 70), 40, (60, 70), 33, (3, 3), pad=(1, 1)),
        Geometry((90, 60), 40, (45, 60), 40, (5, 3), (2, 1), pad=(2, 1), groups=40),
        Geometry((1, 900), 200, (1, 900), 8, (1, 3), pad=(0, 1)),
    ],
    ids=["conv", "depthwise", "sequence"],
)
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_inputs_of_several_bands(geometry, threads):
    rng = np.random.default_rng(2)
    linear = random_map(geometry, rng)
    for n in (1, 2):
        x = random_x(geometry, n, np.uint32, rng)
        y = RingMap(linear).apply(x, threads=threads)
        np.testing.assert_array_equal(y, reference.linear_map(linear, x))


def test_one_map_serves_changing_batches_threads_and_types():
    rng = np.random.default_rng(3)
    linear = random_map(GEOMETRIES["conv3x3_several_blocks"], rng)
    ring = RingMap(linear)
    calls = [(1, np.int16, 1), (70, np.uint32, 3), (2, np.int16, 2), (0, np.uint32, 1)]
    for n, dtype, threads in calls:
        x = random_x(linear.geometry, n, dtype, rng)
        np.testing.assert_array_equal(ring.apply(x, threads=threads), naive(linear, x))


def test_the_sum_of_two_blinded_halves_is_the_whole():
    rng = np.random.default_rng(4)
    ring = RingMap(random_map(GEOMETRIES["stride"], rng))
    x = random_x(ring.geometry, 2, np.int16, rng)
    r = random_x(ring.geometry, 2, np.uint32, rng)
    blinded = x.astype(np.uint32) + r
    np.testing.assert_array_equal(ring.apply(blinded) - ring.apply(r), ring.apply(x))


def test_writes_into_out():
    rng = np.random.default_rng(5)
    ring = RingMap(random_map(GEOMETRIES["conv3x3"], rng))
    x = random_x(ring.geometry, 2, np.uint32, rng)
    x.flags.writeable = False
    out = np.full((2, *ring.geometry.out_shape), 7, np.uint32)
    assert ring.apply(x, out=out) is out
    np.testing.assert_array_equal(out, ring.apply(x))


@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 6, 9, 3), np.int32),
        np.zeros((1, 6, 9, 3), ">u4"),
        np.zeros((1, 6, 9, 3), np.float32),
        np.zeros((1, 9, 6, 3), np.uint32),
        np.zeros((6, 9, 3), np.uint32),
        np.zeros((1, 3, 6, 9), np.uint32).transpose(0, 2, 3, 1),
    ],
    ids=["int32", "big_endian", "float32", "transposed_shape", "no_batch", "not_contiguous"],
)
def test_refuses_another_input(x):
    ring = RingMap(random_map(GEOMETRIES["conv3x3"], np.random.default_rng(6)))
    with pytest.raises(ShapeError, match="linear map"):
        ring.apply(x)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_images_of_the_output_may_lie_apart(isa, name, threads):
    rng = np.random.default_rng(9)
    ring = RingMap(random_map(GEOMETRIES[name], rng))
    x, elements = random_x(ring.geometry, 5, np.uint32, rng), ring.geometry.out_elements
    rows = np.full((5, 3 + elements + 16), 7, np.uint32)
    out = rows[:, 3 : 3 + elements].reshape(5, *ring.geometry.out_shape)
    assert ring.apply(x, out=out, threads=threads) is out
    for image, one in zip(x, out, strict=True):
        np.testing.assert_array_equal(one, ring.apply(image[None])[0])
    assert np.all(rows[:, :3] == 7)
    assert np.all(rows[:, 3 + elements :] == 7)


def test_refuses_another_output():
    g = Geometry((2, 2), 3, (2, 2), 3)
    ring = RingMap(random_map(g, np.random.default_rng(7)))
    x = np.zeros((2, 2, 2, 3), np.uint32)
    read_only = np.zeros_like(x)
    read_only.flags.writeable = False
    wrong = [
        np.zeros((1, 2, 2, 3), np.uint32),
        np.zeros((2, 2, 2, 3), np.int32),
        np.zeros((2, 2, 2, 6), np.uint32)[..., ::2],
        read_only,
        x,
    ]
    for out in wrong:
        with pytest.raises(ShapeError, match="linear map: out must"):
            ring.apply(x, out=out)
    with pytest.raises(InputError, match="threads"):
        ring.apply(x, threads=0)


def test_the_kernel_checks_sizes_itself():
    weights = np.zeros((3, 1, 1, 3), np.int16)
    with pytest.raises(ValueError, match="weights"):
        native.RingMap(Geometry((1, 1), 4, (1, 1), 3).native(), weights)
    ring = native.RingMap(Geometry((1, 1), 3, (1, 1), 3).native(), weights)
    with pytest.raises(ValueError, match="fit"):
        ring.apply(np.zeros((2, 1, 1, 3), np.uint32), np.zeros((1, 1, 1, 3), np.uint32), 1)


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("geometry", [
    Geometry((4, 4), 64, (4, 4), 16),
    Geometry((7, 5), 70, (7, 5), 40, (3, 3), pad=(1, 1)),
    Geometry((9, 6), 80, (5, 6), 68, (3, 2), (2, 1), (1, 2), pad=(1, 1), groups=2),
], ids=["smallest", "conv", "groups"])  # fmt: skip
def test_shapes_that_suit_tiles(geometry):
    rng = np.random.default_rng(4)
    linear = random_map(geometry, rng)
    ring = RingMap(linear)
    assert ring.on_tiles == (native.isa() == "amx")
    for dtype in (np.uint32, np.int16):
        for n in (1, 3):
            x = random_x(geometry, n, dtype, rng)
            np.testing.assert_array_equal(ring.apply(x), naive(linear, x))


@pytest.mark.usefixtures("isa")
@pytest.mark.parametrize("geometry", [
    Geometry((4, 4), 64, (4, 4), 15),
    Geometry((4, 4), 63, (4, 4), 16),
    Geometry((3, 5), 64, (3, 5), 16),
    Geometry((1, 1), 4096, (1, 1), 1000),
    Geometry((9, 9), 64, (9, 9), 64, (3, 3), pad=(1, 1), groups=64),
], ids=["channels", "weights", "positions", "dense", "depthwise"])  # fmt: skip
def test_shapes_that_leave_tiles_empty(geometry):
    assert not RingMap(random_map(geometry, np.random.default_rng(5))).on_tiles


def test_force_isa_names_what_it_does_not_know():
    with pytest.raises(ValueError, match="unknown instruction set: sse"):
        native.force_isa("sse")
    assert native.isa() in ISAS
