"""MADD with CONTRACT gives the same bits on a processor that has no such instruction."""

import ctypes

import numpy as np
import pytest

from cloister.codegen.c_source import kernel_texts
from cloister.codegen.toolchain import compile_c, find_compiler

SOURCE = "\n".join(
    [
        "#include <stddef.h>",
        "#include <stdint.h>",
        *kernel_texts(["prelude.c"]),
        "EXPORT void madd(const float *a, const float *b, const float *c, float *y, int count);",
        "void madd(const float *a, const float *b, const float *c, float *y, int count)",
        "{",
        "    for (int i = 0; i < count; i++)",
        "        y[i] = MADD(a[i], b[i], c[i]);",
        "}",
    ]
)


@pytest.fixture(scope="module", params=["zig", "gcc"])
def builds(request, tmp_path_factory):
    folder, found = tmp_path_factory.mktemp("madd"), {}
    for build in ("native-x86-64", "native-x86-64-v3"):
        compiler = find_compiler(request.param)
        path = folder / f"{build}.so"
        path.write_bytes(compile_c(SOURCE, build, compiler=compiler, contraction="fma"))
        found[build] = ctypes.CDLL(str(path)).madd
    return found


def results(function, *numbers):
    arrays = [np.ascontiguousarray(one, np.float32) for one in numbers]
    y = np.zeros_like(arrays[0])
    pointers = [ctypes.c_void_p(one.ctypes.data) for one in (*arrays, y)]
    function(*pointers, ctypes.c_int(y.size))
    return y


def same(builds, *numbers):
    slow, fast = (results(builds[name], *numbers) for name in ("native-x86-64", "native-x86-64-v3"))
    nan = np.isnan(fast)
    assert np.array_equal(np.isnan(slow), nan)
    assert slow[~nan].tobytes() == fast[~nan].tobytes()
    return slow


def test_random_bits_give_the_same_bits(builds):
    rng = np.random.default_rng(1)
    same(builds, *(rng.integers(0, 2**32, 300_000, np.uint32).view(np.float32) for _ in range(3)))


def test_sums_near_a_tie_give_the_same_bits(builds):
    """Products of 13 bits each often end half way between two numbers; a little more decides."""
    rng = np.random.default_rng(2)
    a, b = (rng.integers(2**12, 2**13, 200_000).astype(np.float32) for _ in range(2))
    for exponent in (-30, -60, -100, 3, 0):
        sign = rng.choice([-1, 1], a.size)
        c = (sign * rng.integers(1, 4, a.size) * 2.0**exponent).astype(np.float32)
        found = same(builds, a, b, c)
        assert exponent >= 0 or (found != a * b + c).any()


def test_cancelling_and_subnormal_sums_give_the_same_bits(builds):
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(200_000).astype(np.float32) for _ in range(2))
    c = -(a * b)
    assert np.any(same(builds, a, b, c) != 0)
    tiny = (2.0 ** rng.integers(-76, -70, a.size)).astype(np.float32)
    same(builds, a * tiny, b * tiny, c * np.float32(2.0**-146))


def test_special_numbers_give_the_same_bits(builds):
    special = [0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38, 1e-45, -1e-45, 1e-38]
    a, b, c = (one.reshape(-1) for one in np.meshgrid(special, special, special))
    same(builds, a, b, c)
