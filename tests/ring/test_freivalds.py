import numpy as np
import pytest

import cloister.base._native as native
from cloister.base.rng import InsecureSeededRandom
from cloister.ring import reference
from cloister.ring.freivalds import (
    P52,
    SOUNDNESS_BITS,
    coefficient_count,
    draw,
    draw_dense,
    field_elements,
    keeps_factors,
)
from cloister.ring.linear import Geometry, LinearMap

GEOMETRIES = {
    "3x3": Geometry((5, 7), 6, (5, 7), 10, (3, 3), pad=(1, 1)),
    "stride": Geometry((9, 8), 3, (5, 4), 17, (3, 3), (2, 2), pad=(1, 1)),
    "dilated": Geometry((9, 11), 4, (5, 5), 5, (3, 3), (1, 2), (2, 1)),
    "grouped": Geometry((4, 5), 12, (4, 5), 18, (3, 1), pad=(1, 0), groups=3),
    "depthwise": Geometry((5, 4), 19, (5, 4), 19, (3, 3), pad=(1, 1), groups=19),
    "transposed": Geometry((3, 4), 5, (6, 8), 7, (4, 4), upsample=(2, 2), pad=(2, 2)),
    "cropped": Geometry((8, 9), 2, (3, 3), 3, (3, 3), pad=(-1, -2)),
    "dense": Geometry((1, 1), 301, (1, 1), 33),
    "sequence": Geometry((1, 6), 9, (1, 6), 8),
    "one": Geometry((1, 1), 1, (1, 1), 1),
    "wide": Geometry((3, 12), 20, (3, 12), 6, (3, 3), pad=(1, 1)),
    "wide, strided": Geometry((4, 19), 16, (3, 9), 8, (3, 5), (2, 2), (1, 2), pad=(1, 3), groups=2),
    "wide, transposed": Geometry((2, 10), 17, (5, 21), 3, (3, 4), upsample=(2, 2), pad=(2, 2)),
    "unread": Geometry((7, 7), 2, (2, 2), 2, (1, 1), (3, 3)),
}


def linear(geometry, weights=None):
    rng = np.random.default_rng(5)
    shape = geometry.weight_shape
    if weights is None:
        return LinearMap(geometry, rng.integers(-32768, 32768, shape).astype(np.int16))
    return LinearMap(geometry, np.full(shape, weights, np.int16))


def random_elements(count, seed):
    return np.random.default_rng(seed).integers(0, P52, count).astype(np.uint64)


def secrets(geometry, value=None):
    """alpha, beta and b: random, or all the same."""
    counts = (*geometry.out_size, geometry.out_channels)
    if value is not None:
        return tuple(np.full(count, value, np.uint64) for count in counts)
    return tuple(random_elements(count, seed) for seed, count in enumerate(counts))


def factors(layer, alpha, beta, b, threads=1):
    g = layer.geometry
    # Every word must be written: the arrays begin with what no result is.
    arrays = [
        np.full(shape, 2**64 - 1, np.uint64)
        for shape in (
            g.out_size[0] * g.out_size[1],
            (g.kernel[1], g.in_size[1]),
            (g.in_size[0], g.kernel[1], g.in_channels),
        )
    ]
    native.freivalds_factors(g.native(), layer.weights, alpha, beta, b, *arrays, threads)
    return arrays


def expand(geometry, columns, rows, threads=1):
    t = np.full(geometry.in_shape, 2**64 - 1, np.uint64)
    native.freivalds_expand(geometry.native(), columns, rows, t, threads)
    return t


def assert_right(layer, alpha, beta, b, threads=1):
    """The factors and their expansion against the definition, A^T s."""
    a, columns, rows = factors(layer, alpha, beta, b, threads)
    products = np.outer(alpha.astype(object), beta.astype(object)) % P52
    np.testing.assert_array_equal(a, products.ravel().astype(np.uint64))
    expected = reference.adjoint(layer, a, b).reshape(layer.geometry.in_shape)
    np.testing.assert_array_equal(reference.factored(rows, columns), expected)
    np.testing.assert_array_equal(expand(layer.geometry, columns, rows, threads), expected)
    assert max(a.max(), columns.max(), rows.max()) < P52


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_factors_and_expansion_equal_reference(name, threads, isa):
    layer = linear(GEOMETRIES[name])
    assert_right(layer, *secrets(layer.geometry), threads=threads)


@pytest.mark.parametrize("weight", [-32768, 32767, 0])
@pytest.mark.parametrize("coefficient", [0, 1, P52 - 1])
@pytest.mark.parametrize("name", ["3x3", "wide", "transposed"])
def test_factors_at_the_extremes(name, weight, coefficient, isa):
    layer = linear(GEOMETRIES[name], weight)
    assert_right(layer, *secrets(layer.geometry, coefficient))


def test_factors_of_a_long_column(isa):
    layer = linear(Geometry((1, 1), 9, (1, 1), 9001), -32768)
    assert_right(layer, *secrets(layer.geometry, P52 - 1))


def test_factors_of_a_large_kernel(isa):
    layer = linear(Geometry((70, 70), 1, (70, 70), 1, (70, 70), pad=(35, 35)), 32767)
    taps = sum(len(outputs) for _, outputs, _ in reference.taps(layer.geometry))
    _, columns, rows = factors(layer, *secrets(layer.geometry, P52 - 1))
    t = expand(layer.geometry, columns, rows)
    total = int(t.astype(object).sum() % P52)
    assert total == -32767 * taps % P52  # (-1) * (-1) * (-1) = -1
    assert t.max() < P52
    np.testing.assert_array_equal(t, reference.factored(rows, columns))


def test_factors_of_a_kernel_as_long_as_its_sequence(isa):
    """More taps in a column, and more columns, than accumulators take without folding."""
    kernel = 4200
    for geometry in (
        Geometry((1, 1), 3, (kernel, 1), 1, (kernel, 1), pad=(kernel - 1, 0)),
        Geometry((1, 1), 3, (1, kernel), 1, (1, kernel), pad=(0, kernel - 1)),
    ):
        assert_right(linear(geometry, -32768), *secrets(geometry, P52 - 1))


@pytest.mark.parametrize("drawing", [draw, draw_dense])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_both_sides_agree(name, drawing):
    layer = linear(GEOMETRIES[name])
    g = layer.geometry
    # Small weights: the centred product is exact, as the plan's bound promises.
    layer = LinearMap(g, (layer.weights >> 6).astype(np.int16))
    rng = np.random.default_rng(2)
    x = rng.integers(-2047, 2048, (1, *g.in_shape)).astype(np.int16)
    z = reference.linear_map(layer, x).view(np.int32)[0]
    vectors = drawing(layer, rng=InsecureSeededRandom(2))
    t = reference.factored(vectors.rows, vectors.columns)
    assert reference.answer_sum(vectors.a, vectors.b, z) == reference.check_sum(t.ravel(), x)
    expected = reference.adjoint(layer, vectors.a, vectors.b)
    np.testing.assert_array_equal(t.ravel(), expected)


def test_dense_and_factored_are_the_same_coefficients():
    layer = linear(GEOMETRIES["wide"])
    one, two = (f(layer, rng=InsecureSeededRandom(6)) for f in (draw, draw_dense))
    assert one.columns is not None and two.columns is None
    assert one.rows.size < two.rows.size == layer.geometry.in_elements
    np.testing.assert_array_equal(reference.factored(one.rows, one.columns), two.rows)
    np.testing.assert_array_equal(one.a, two.a)
    np.testing.assert_array_equal(one.b, two.b)


@pytest.mark.parametrize(
    ("name", "factored"),
    [("wide", True), ("dense", True), ("one", True), ("sequence", True), ("3x3", False)],
)
def test_small_images_keep_their_coefficients_expanded(name, factored):
    vectors = draw(linear(GEOMETRIES[name]), rng=InsecureSeededRandom(1))
    assert (vectors.columns is not None) == factored


@pytest.mark.parametrize("name", ["wide", "wide, strided", "wide, transposed"])
def test_vectors_of_any_width_keep_the_factors_of_wide_images(name, isa):
    geometry = GEOMETRIES[name]
    assert keeps_factors(geometry) == (isa != "portable")
    assert keeps_factors(GEOMETRIES["dense"]) and not keeps_factors(GEOMETRIES["3x3"])
    vectors = draw(linear(geometry), rng=InsecureSeededRandom(1))
    kept = [array.size for array in (vectors.rows, vectors.columns) if array is not None]
    assert sum(kept) == coefficient_count(geometry)
    assert (sum(kept) < geometry.in_elements) == (isa != "portable")


@pytest.mark.parametrize("name", ["wide", "3x3"])
def test_coefficients_are_secret_and_can_be_erased(name):
    layer = linear(GEOMETRIES[name])
    vectors = draw(layer, rng=InsecureSeededRandom(1))
    assert "[" not in repr(vectors)
    other = draw(layer, rng=InsecureSeededRandom(2))
    for mine, theirs in ((vectors.a, other.a), (vectors.b, other.b), (vectors.rows, other.rows)):
        assert mine.any() and np.mean(mine == theirs) < 0.1
    vectors.erase()
    for array in (vectors.a, vectors.b, vectors.rows, vectors.columns):
        assert array is None or not array.any()


def test_dot_equals_python_integers():
    rng = np.random.default_rng(3)
    coefficients = rng.integers(0, P52, 1000).astype(np.uint64)
    coefficients[:3] = P52 - 1
    values = rng.integers(-(2**31), 2**31, 1000).astype(np.int32)
    values[:2] = -(2**31), 2**31 - 1
    assert native.freivalds_dot(coefficients, values) == reference.check_sum(coefficients, values)


def test_field_elements_are_uniform():
    elements = field_elements(20000, rng=InsecureSeededRandom(4))
    assert elements.dtype == np.uint64
    assert elements.max() < P52
    counts = np.bincount((elements.astype(float) / P52 * 50).astype(int), minlength=50)
    assert ((counts - 400) ** 2 / 400).sum() < 100  # chi-square, 49 degrees: far in the tail


def test_field_elements_reject_what_is_beyond_the_prime():
    class Stubborn:
        def __init__(self) -> None:
            self.words = [P52, 2**52 - 1, P52 - 1, 5]

        def random_bytes(self, n: int) -> bytes:
            words, self.words = self.words[: n // 8], self.words[n // 8 :]
            return np.array(words, np.uint64).tobytes()

    np.testing.assert_array_equal(field_elements(2, rng=Stubborn()), [P52 - 1, 5])


def test_soundness():
    assert 3 / P52 <= 2**-SOUNDNESS_BITS <= 2**-50
    assert SOUNDNESS_BITS == 50.4
    assert all(pow(base, P52 - 1, P52) == 1 for base in (2, 3, 5, 7, 11, 13))


def test_degree_three_is_needed():
    """One wrong element, over a field of seven: it passes more often than degree two allows."""
    p = 7
    values = np.arange(p)
    alpha, beta, b = np.meshgrid(values, values, values)
    passed = np.count_nonzero(alpha * beta * b % p == 0)
    assert passed == p**3 - (p - 1) ** 3
    assert 2 * p**2 < passed <= 3 * p**2


ARRAYS = ("alpha", "beta", "b", "a", "columns", "rows")


@pytest.mark.parametrize("i", range(6), ids=ARRAYS)
def test_sizes_that_do_not_fit_are_refused(i):
    layer = linear(GEOMETRIES["3x3"])
    arrays = [np.zeros(size, np.uint64) for size in (5, 7, 10, 35, 21, 90)]
    native.freivalds_factors(layer.geometry.native(), layer.weights, *arrays)
    arrays[i] = arrays[i][:-1].copy()
    with pytest.raises(ValueError, match="fit"):
        native.freivalds_factors(layer.geometry.native(), layer.weights, *arrays)


@pytest.mark.parametrize("i", range(3), ids=["columns", "rows", "t"])
def test_expansions_that_do_not_fit_are_refused(i):
    arrays = [np.zeros(size, np.uint64) for size in (21, 90, 210)]
    native.freivalds_expand(GEOMETRIES["3x3"].native(), *arrays)
    arrays[i] = arrays[i][:-1].copy()
    with pytest.raises(ValueError, match="fit"):
        native.freivalds_expand(GEOMETRIES["3x3"].native(), *arrays)


def test_weights_that_do_not_fit_are_refused():
    layer = linear(GEOMETRIES["3x3"])
    with pytest.raises(ValueError, match="weights"):
        native.freivalds_factors(
            layer.geometry.native(),
            layer.weights[:-1].copy(),
            *(np.zeros(size, np.uint64) for size in (5, 7, 10, 35, 21, 90)),
        )
