import numpy as np
import pytest

from cloister import _native
from cloister.crypto.csprng import InsecureSeededRandom
from cloister.field import reference
from cloister.field.freivalds import P52, SOUNDNESS_BITS, draw, field_elements
from cloister.field.linear import Geometry, LinearMap

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
    "unread": Geometry((7, 7), 2, (2, 2), 2, (1, 1), (3, 3)),
}


@pytest.fixture(params=_native.available_isas())
def isa(request):
    before = _native.isa()
    _native.force_isa(request.param)
    yield request.param
    _native.force_isa(before)


def linear(geometry, weights=None):
    rng = np.random.default_rng(5)
    shape = geometry.weight_shape
    if weights is None:
        return LinearMap(geometry, rng.integers(-32768, 32768, shape).astype(np.int16))
    return LinearMap(geometry, np.full(shape, weights, np.int16))


def adjoint(layer, a, b, threads=1):
    t = np.zeros(layer.geometry.in_elements, np.uint64)
    _native.freivalds_adjoint(layer.geometry.to_tuple(), layer.weights, a, b, t, threads)
    return t


@pytest.mark.parametrize("name", GEOMETRIES)
def test_adjoint_equals_reference(name, isa):
    layer = linear(GEOMETRIES[name])
    vectors = draw(layer, rng=InsecureSeededRandom(1))
    expected = reference.adjoint(layer, vectors.a, vectors.b)
    np.testing.assert_array_equal(vectors.t, expected)
    np.testing.assert_array_equal(adjoint(layer, vectors.a, vectors.b, threads=3), expected)


@pytest.mark.parametrize("weight", [-32768, 32767, 0])
@pytest.mark.parametrize("coefficient", [0, 1, P52 - 1])
def test_adjoint_at_the_extremes(weight, coefficient, isa):
    layer = linear(GEOMETRIES["3x3"], weight)
    a = np.full(35, coefficient, np.uint64)
    b = np.full(10, coefficient, np.uint64)
    np.testing.assert_array_equal(adjoint(layer, a, b), reference.adjoint(layer, a, b))


def test_adjoint_of_a_long_column(isa):
    layer = linear(Geometry((1, 1), 9, (1, 1), 9001), -32768)
    a, b = np.full(1, P52 - 1, np.uint64), np.full(9001, P52 - 1, np.uint64)
    np.testing.assert_array_equal(adjoint(layer, a, b), reference.adjoint(layer, a, b))


def test_adjoint_of_a_large_kernel(isa):
    layer = linear(Geometry((70, 70), 1, (70, 70), 1, (70, 70), pad=(35, 35)), 32767)
    a, b = np.full(4900, P52 - 1, np.uint64), np.full(1, P52 - 1, np.uint64)
    taps = sum(len(outputs) for _, outputs, _ in reference.taps(layer.geometry))
    t = adjoint(layer, a, b)
    assert int(t.astype(object).sum() % P52) == 32767 * taps % P52  # (-1) * (-1) = 1
    assert t.max() < P52


@pytest.mark.parametrize("name", GEOMETRIES)
def test_both_sides_agree(name):
    layer = linear(GEOMETRIES[name])
    g = layer.geometry
    # Small weights: the centred product is exact, as the plan's bound promises.
    layer = LinearMap(g, (layer.weights >> 6).astype(np.int16))
    rng = np.random.default_rng(2)
    x = rng.integers(-2047, 2048, (1, *g.in_shape)).astype(np.int16)
    z = reference.linear_map(layer, x).view(np.int32)[0]
    vectors = draw(layer, rng=InsecureSeededRandom(2))
    assert reference.answer_sum(vectors.a, vectors.b, z) == reference.check_sum(vectors.t, x)


def test_dot_equals_python_integers():
    rng = np.random.default_rng(3)
    coefficients = rng.integers(0, P52, 1000).astype(np.uint64)
    coefficients[:3] = P52 - 1
    values = rng.integers(-(2**31), 2**31, 1000).astype(np.int32)
    values[:2] = -(2**31), 2**31 - 1
    assert _native.freivalds_dot(coefficients, values) == reference.check_sum(coefficients, values)


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
    assert 2 / P52 <= 2**-SOUNDNESS_BITS <= 2**-50
    assert all(pow(base, P52 - 1, P52) == 1 for base in (2, 3, 5, 7, 11, 13))


def test_sizes_that_do_not_fit_are_refused():
    layer = linear(GEOMETRIES["3x3"])
    good = [np.zeros(35, np.uint64), np.zeros(10, np.uint64), np.zeros(210, np.uint64)]
    for i in range(3):
        arrays = list(good)
        arrays[i] = arrays[i][:-1].copy()
        with pytest.raises(ValueError, match="fit"):
            _native.freivalds_adjoint(layer.geometry.to_tuple(), layer.weights, *arrays)
