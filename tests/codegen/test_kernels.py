"""The C kernels against float64, on odd shapes, and against each other, bit by bit."""

import ctypes
import functools
import itertools
import math
import tempfile
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import wasmtime

from cloister.codegen.c_source import kernel_texts
from cloister.codegen.packing import (
    conv_scratch_floats,
    dense_scratch_floats,
    pack_conv,
    pack_dense,
    pack_depthwise,
)
from cloister.codegen.toolchain import compile_c, find_compiler
from cloister.trusted.engines.guarded_memory import GuardedMemory
from cloister.trusted.engines.processor import runnable_builds

ROUNDING = 2.0**-24
INFINITY = math.inf
PAGE = 65536


@dataclass(frozen=True)
class Window:
    """A convolution or pool: (height, width) pairs, pads (top, left, bottom, right)."""

    size: tuple
    channels: int
    kernel: tuple
    stride: tuple = (1, 1)
    dilation: tuple = (1, 1)
    pads: tuple = (0, 0, 0, 0)

    @property
    def out_size(self):
        return tuple(
            (self.size[i] + self.pads[i] + self.pads[i + 2] - self.reach(i)) // self.stride[i] + 1
            for i in range(2)
        )

    def reach(self, i):
        return (self.kernel[i] - 1) * self.dilation[i] + 1

    @property
    def x_shape(self):
        return (*self.size, self.channels)

    def taps(self, x, fill):
        """For each tap of the window, in order: the (oh, ow, c) values under it."""
        top, left, bottom, right = self.pads
        padded = np.pad(x, ((top, bottom), (left, right), (0, 0)), constant_values=fill)
        (oh, ow), (sh, sw), (dh, dw) = self.out_size, self.stride, self.dilation
        for i, j in np.ndindex(*self.kernel):
            rows = slice(i * dh, i * dh + (oh - 1) * sh + 1, sh)
            columns = slice(j * dw, j * dw + (ow - 1) * sw + 1, sw)
            yield padded[rows, columns]

    def arguments(self, *between):
        """As C passes them: sizes, `between`, then the window's geometry."""
        geometry = (*self.kernel, *self.stride, *self.dilation, *self.pads[:2])
        return ", ".join(map(str, (*self.size, self.channels, *self.out_size, *between, *geometry)))


@dataclass(frozen=True)
class Case:
    """One call of a kernel: the C expression, its buffers, and what it has to give.

    margin   what float64 allows around `expected`
    """

    call: str
    x: np.ndarray
    packed: np.ndarray
    bias: np.ndarray
    residual: np.ndarray
    scratch: int
    expected: np.ndarray
    margin: np.ndarray


def drawn(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def number(value):
    return f"{'-' if value < 0 else ''}{'POSITIVE_INFINITY' if math.isinf(value) else abs(value)}"


def finished(call, buffers, scratch, total, size, count, *, bias, residual, limits):
    """A case whose products sum to `total`, the sums of their sizes being `size`."""
    x, packed, own_bias, own_residual = buffers
    terms = (own_bias if bias else 0.0) + np.zeros_like(total)
    more = own_residual.astype(np.float64) if residual else np.zeros_like(total)
    expected = np.clip(total + terms + more, *limits)
    margin = (count + 3) * ROUNDING * (size + np.abs(terms) + np.abs(more))
    return Case(call, x, packed, own_bias, own_residual, scratch, expected.ravel(), margin.ravel())


def conv_case(window, channels, groups=1, *, bias=True, residual=False, limits=(-INFINITY, 6.0)):
    rng = np.random.default_rng(channels)
    own = window.channels // groups
    x = drawn(rng, *window.x_shape)
    weights = drawn(rng, channels, own, *window.kernel)
    made, total, size = channels // groups, [], []
    for group in range(groups):
        inside = slice(group * own, (group + 1) * own)
        filters = weights[group * made : (group + 1) * made].astype(np.float64)
        taps = [tap[..., inside] for tap in window.taps(x.astype(np.float64), 0.0)]
        matrix = filters.transpose(2, 3, 1, 0).reshape(len(taps), own, made)
        total.append(sum(t @ m for t, m in zip(taps, matrix, strict=True)))
        size.append(sum(abs(t) @ abs(m) for t, m in zip(taps, matrix, strict=True)))
    total, size = (np.concatenate(parts, axis=-1) for parts in (total, size))
    given = ("bias" if bias else "NULL", "residual" if residual else "NULL")
    call = (
        f"conv2d(x, packed, {', '.join(given)}, y, scratch, {window.arguments(channels)}, "
        f"{groups}, {', '.join(map(number, limits))});"
    )
    scratch = conv_scratch_floats(
        channels=window.channels, groups=groups, out_size=window.out_size, kernel=window.kernel
    )
    buffers = (x, pack_conv(weights, groups), drawn(rng, channels), drawn(rng, *total.shape))
    return finished(
        call, buffers, scratch, total, size, own * math.prod(window.kernel), bias=bias,
        residual=residual, limits=limits,
    )  # fmt: skip


def depthwise_case(window, *, bias=True, limits=(0.0, INFINITY)):
    rng = np.random.default_rng(window.channels)
    x, weights = drawn(rng, *window.x_shape), drawn(rng, window.channels, *window.kernel)
    packed = pack_depthwise(weights)
    pairs = list(
        zip(
            window.taps(x.astype(np.float64), 0.0),
            packed.reshape(-1, window.channels).astype(np.float64),
            strict=True,
        )
    )
    total, size = sum(t * w for t, w in pairs), sum(abs(t * w) for t, w in pairs)
    call = (
        f"depthwise2d(x, packed, {'bias' if bias else 'NULL'}, y, {window.arguments()}, "
        f"{', '.join(map(number, limits))});"
    )
    buffers = (x, packed, drawn(rng, window.channels), drawn(rng, 1))
    return finished(
        call, buffers, 0, total, size, len(pairs), bias=bias, residual=False, limits=limits
    )


def dense_case(m, k, n, *, bias=True, residual=False, limits=(-INFINITY, INFINITY)):
    rng = np.random.default_rng(k)
    x, weights = drawn(rng, m, k), drawn(rng, k, n)
    total = x.astype(np.float64) @ weights
    size = abs(x).astype(np.float64) @ abs(weights)
    call = (
        f"dense(x, packed, {'bias' if bias else 'NULL'}, {'residual' if residual else 'NULL'}, y, "
        f"scratch, {m}, {k}, {n}, {', '.join(map(number, limits))});"
    )
    buffers = (x, pack_dense(weights), drawn(rng, n), drawn(rng, m, n))
    scratch = dense_scratch_floats(rows=m, inputs=k)
    return finished(
        call, buffers, scratch, total, size, k, bias=bias, residual=residual, limits=limits
    )


def matmul_case(m, k, n):
    rng = np.random.default_rng(k)
    buffers = (drawn(rng, m, k), drawn(rng, k, n), drawn(rng, 1), drawn(rng, 1))
    total = buffers[0].astype(np.float64) @ buffers[1]
    size = abs(buffers[0]).astype(np.float64) @ abs(buffers[1])
    call = f"matmul(x, packed, y, {m}, {k}, {n});"
    limits = (-INFINITY, INFINITY)
    return finished(call, buffers, 0, total, size, k, bias=False, residual=False, limits=limits)


def pool_case(window, kind, *, counted=0, limits=(-INFINITY, INFINITY)):
    x = drawn(np.random.default_rng(window.channels), *window.x_shape)
    wide = x.astype(np.float64)
    inside = sum(window.taps(np.ones_like(wide), 0.0))
    if kind == "max":
        total, margin = np.max(list(window.taps(wide, -INFINITY)), axis=0), np.zeros(1)
    else:
        positions = counted or inside
        total = sum(window.taps(wide, 0.0)) / positions
        size = sum(window.taps(abs(wide), 0.0)) / positions
        margin = (math.prod(window.kernel) + 2) * ROUNDING * size
    more = (counted,) if kind == "average" else ()
    call = (
        f"pool2d_{kind}(x, y, "
        f"{', '.join(map(str, (window.arguments(), *more, *map(number, limits))))});"
    )
    nothing = np.zeros(1, np.float32)
    expected = np.clip(total, *limits).ravel()
    margin = np.broadcast_to(margin.ravel(), expected.shape)
    return Case(call, x, nothing, nothing, nothing, 0, expected, margin)


CASES = {
    "strides and one pad": conv_case(Window((7, 11), 3, (3, 2), (2, 1), pads=(1, 0, 0, 1)), 5),
    "dilation": conv_case(
        Window((9, 6), 20, (3, 3), dilation=(2, 1), pads=(2, 1, 2, 1)), 37, residual=True
    ),
    "dilation along a row": conv_case(
        Window((5, 17), 32, (2, 3), (1, 3), dilation=(1, 4), pads=(0, 5, 3, 1)), 48, bias=False
    ),
    "groups": conv_case(Window((8, 5), 12, (3, 3), pads=(1, 2, 0, 1)), 18, 3, residual=True),
    "groups with full panels": conv_case(Window((3, 10), 64, (1, 3), pads=(0, 1, 0, 1)), 96, 2),
    "channels in parts": conv_case(Window((3, 5), 1210, (1, 1)), 33, residual=True),
    "channels in parts of a window": conv_case(
        Window((4, 3), 592, (2, 2), pads=(1, 0, 0, 0)), 16, limits=(0.0, INFINITY)
    ),
    "rows of taps": conv_case(Window((5, 13), 130, (3, 3), pads=(1, 1, 1, 1)), 16),
    "single taps": conv_case(Window((6, 4), 300, (2, 3), pads=(1, 0, 0, 2)), 24),
    "one axis": conv_case(
        Window((1, 50), 6, (1, 5), (1, 3), dilation=(1, 2), pads=(0, 2, 0, 0)), 7
    ),
    "one pixel": conv_case(Window((3, 5), 16, (3, 5)), 32),
    "many pixels": conv_case(Window((17, 23), 4, (3, 3), pads=(1, 1, 1, 1)), 40),
    "large windows": conv_case(Window((19, 14), 3, (7, 7), (2, 2), pads=(3, 3, 3, 3)), 64),
    "windows outside": conv_case(Window((3, 4), 2, (2, 2), pads=(3, 4, 2, 3)), 3, bias=False),
    "pointwise": conv_case(Window((14, 9), 48, (1, 1)), 80, residual=True, limits=(0.0, 6.0)),
    "pointwise with strides": conv_case(Window((7, 10), 17, (1, 1), (2, 3)), 8),
    "dense": dense_case(1, 37, 5),
    "dense of one number": dense_case(1, 1, 1, bias=False),
    "dense of full panels": dense_case(1, 300, 128, limits=(0.0, INFINITY)),
    "dense of more panels": dense_case(1, 65, 110, residual=True),
    "dense rows": dense_case(3, 50, 17, bias=False, residual=True),
    "dense blocks": dense_case(131, 700, 33, residual=True, limits=(-1.0, 20.0)),
    "product": matmul_case(5, 9, 7),
    "product of panels": matmul_case(13, 21, 64),
    "product with a column of a panel": matmul_case(2, 16, 49),
    "product of columns as wide as a panel": matmul_case(3, 4, 16),
    "depthwise": depthwise_case(Window((9, 14), 5, (3, 3), pads=(1, 1, 1, 1))),
    "depthwise of vectors": depthwise_case(
        Window((6, 31), 35, (3, 2), (2, 1), pads=(0, 1, 2, 0)), bias=False
    ),
    "depthwise with strides": depthwise_case(
        Window((12, 27), 48, (3, 3), (1, 2), pads=(1, 0, 1, 2))
    ),
    "depthwise with dilation": depthwise_case(
        Window((11, 16), 16, (3, 3), dilation=(3, 2), pads=(2, 3, 4, 1)), limits=(-1.0, 1.0)
    ),
    "depthwise along one axis": depthwise_case(Window((1, 40), 9, (1, 4), pads=(0, 2, 0, 1))),
    "depthwise of a small image": depthwise_case(Window((2, 2), 3, (5, 5), pads=(2, 2, 2, 2))),
    "maximum": pool_case(Window((7, 10), 19, (2, 3), (2, 2), pads=(0, 1, 1, 1)), "max"),
    "maximum with dilation": pool_case(
        Window((9, 8), 32, (3, 2), dilation=(2, 3)), "max", limits=(0.0, 1.0)
    ),
    "average": pool_case(Window((7, 10), 21, (3, 3), (2, 1), pads=(1, 1, 1, 1)), "average"),
    "average of all positions": pool_case(
        Window((6, 5), 16, (3, 2), (1, 2), pads=(1, 0, 1, 1)), "average", counted=6
    ),
    "average of an image": pool_case(Window((5, 9), 40, (5, 9)), "average", limits=(0.0, 6.0)),
}
HEADER = "#include <stddef.h>\n#include <stdint.h>\n"
FILES = ("prelude.c", "memory.c", "conv2d.c", "depthwise2d.c", "dense.c", "matmul.c", "pool2d.c")
FUNCTION = """\
__attribute__((visibility("default"), used))
#if defined(__wasm__)
__attribute__((export_name("case_{at}")))
#endif
void case_{at}(const float *restrict x, const float *restrict packed, const float *restrict bias,
    const float *restrict residual, float *restrict y, float *restrict scratch)
{{
    (void)packed, (void)bias, (void)residual, (void)scratch;
    {call}
}}
"""
INTERFACE = """\
EXPORT uint64_t cloister_module_size(int32_t which) { return (uint64_t)which; }
EXPORT int32_t cloister_module_run(void) { return 0; }
EXPORT void multiply_add(const float *a, const float *b, const float *c, float *y, int count)
{
    for (int i = 0; i < count; i += WIDTH)
        vec_store(y + i, vec_madd(vec_load(a + i, WIDTH), vec_load(b + i, WIDTH),
                                  vec_load(c + i, WIDTH)), WIDTH);
}
"""


@functools.cache
def binary(build, contraction, compiler="zig"):
    calls = [FUNCTION.format(at=at, call=case.call) for at, case in enumerate(CASES.values())]
    source = "\n".join((HEADER, *kernel_texts(FILES), INTERFACE, *calls))
    return compile_c(source, build, compiler=find_compiler(compiler), contraction=contraction)


@functools.cache
def library(build, contraction, compiler="zig"):
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(binary(build, contraction, compiler))
        file.flush()
        return ctypes.CDLL(file.name)


@functools.cache
def native_outputs(build, contraction, compiler="zig"):
    """Every case's output. Buffers end where a page begins that cannot be read or written."""
    made = {}
    for at, (name, case) in enumerate(CASES.items()):
        function = library(build, contraction, compiler)[f"case_{at}"]
        memories = []
        for array in (case.x, case.packed, case.bias, case.residual):
            memories.append(GuardedMemory(array.nbytes))
            memories[-1].view[:] = array.tobytes()
        y = GuardedMemory(4 * case.expected.size)
        scratch = GuardedMemory(4 * max(1, case.scratch))
        scratch.view[:] = b"\xff" * len(scratch.view)  # NaN: what is read must be written first
        function(*(ctypes.c_void_p(one.address) for one in (*memories, y, scratch)))
        made[name] = np.frombuffer(y.view, np.float32).copy()
        padding = ctypes.c_ubyte * (-y.nbytes % 64)
        assert not any(padding.from_address(y.address + y.nbytes)), name
        for memory, array in zip(
            memories, (case.x, case.packed, case.bias, case.residual), strict=True
        ):
            assert bytes(memory.view) == array.tobytes(), name
    return made


def wasm_outputs():
    engine = wasmtime.Engine()
    store = wasmtime.Store(engine)
    exports = wasmtime.Instance(store, wasmtime.Module(engine, binary("wasm", "off")), []).exports(
        store
    )
    memory, base = exports["memory"], -(-exports["__heap_base"].value(store) // 64) * 64
    made = {}
    for at, (name, case) in enumerate(CASES.items()):
        arrays = (case.x, case.packed, case.bias, case.residual)
        places, end = [], base
        sizes = [*(a.nbytes for a in arrays), 4 * case.expected.size, 4 * case.scratch]
        for nbytes in sizes:
            places.append(end)
            end += -(-nbytes // 64) * 64
        if end > memory.data_len(store):
            memory.grow(store, -(-(end - memory.data_len(store)) // PAGE))
        for place, array in zip(places, arrays, strict=False):
            memory.write(store, array.tobytes(), place)
        exports[f"case_{at}"](store, *places)
        data = bytes(memory.read(store, places[4], places[4] + sizes[4]))
        made[name] = np.frombuffer(data, np.float32)
    return made


def differing(a, b):
    return [name for name in CASES if a[name].tobytes() != b[name].tobytes()]


@pytest.mark.parametrize("contraction", ["fma", "off"])
@pytest.mark.parametrize("build", runnable_builds())
def test_kernels_equal_float64(build, contraction):
    made = native_outputs(build, contraction)
    for name, case in CASES.items():
        error = np.abs(made[name].astype(np.float64) - case.expected)
        assert (error <= case.margin).all(), (name, (error / (case.margin + 1e-300)).max())


@pytest.mark.parametrize("contraction", ["fma", "off"])
def test_all_instruction_sets_give_the_same_bits(contraction):
    first, *others = (native_outputs(build, contraction) for build in runnable_builds())
    assert others
    for other in others:
        assert differing(first, other) == []


def test_wasm_gives_the_bits_of_native_builds_without_contraction():
    assert differing(wasm_outputs(), native_outputs("native-x86-64", "off")) == []


def test_contraction_changes_bits():
    assert differing(native_outputs("native-x86-64", "off"), native_outputs("native-x86-64", "fma"))


@pytest.mark.parametrize("build", runnable_builds())
def test_gcc_gives_the_bits_of_zig(build):
    assert differing(native_outputs(build, "fma", "gcc"), native_outputs(build, "fma")) == []


def rounded_once(a, b, c):
    """a b + c, exact, then rounded to float32 (to even); for finite results."""
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return 0.0
    size = abs(exact)
    exponent = max(-149, math.floor(math.log2(size)) - 23)
    while size >= Fraction(2) ** (exponent + 24):
        exponent += 1
    while exponent > -149 and size < Fraction(2) ** (exponent + 23):
        exponent -= 1
    mantissa = round(size / Fraction(2) ** exponent)  # Python rounds ties to even
    return math.copysign(math.ldexp(mantissa, exponent), exact)


def hard_operands():
    """Ties and their neighbours, cancellation, subnormal and huge numbers, infinities, NaN."""
    rng = np.random.default_rng(3)
    bits = rng.integers(0, 2**32, (3, 4096), dtype=np.uint32)
    random = bits.view(np.float32)
    near = np.float32([1, 1 + 2**-23, 1 + 2**-12, 1 - 2**-24, 3, 2**-24, 2**-25, 2**-48, 2**-126])
    near = np.concatenate([near, near * np.float32(2**-60), near * np.float32(2**70)])
    grid = np.array(list(itertools.product(near, near, (-near, near))), dtype=object)
    ties = np.float32([[a, b, c] for a, b, group in grid for c in group]).T
    edges = np.float32([0, -0.0, 1, -1, INFINITY, -INFINITY, np.nan, 2**-149, 3.4e38, -3.4e38])
    special = np.float32(list(itertools.product(edges, repeat=3))).T
    drawn_ones = rng.standard_normal((2, 4096)).astype(np.float32)
    cancelled = np.stack([*drawn_ones, -(drawn_ones[0] * drawn_ones[1])])
    found = np.concatenate([random, ties, special, cancelled], axis=1)
    return np.ascontiguousarray(found[:, : found.shape[1] // 16 * 16])


def multiply_add(build, operands):
    y = np.empty(operands.shape[1], np.float32)
    pointers = (ctypes.c_void_p(one.ctypes.data) for one in (*operands, y))
    library(build, "fma").multiply_add(*pointers, ctypes.c_int(len(y)))
    return y


@pytest.mark.parametrize("build", runnable_builds())
def test_products_and_sums_are_rounded_once(build):
    operands = hard_operands()
    with np.errstate(all="ignore"):
        made = multiply_add(build, operands)
        plain = operands[0].astype(np.float64) * operands[1] + operands[2]
    largest = float(np.finfo(np.float32).max)
    ordinary = np.isfinite(operands).all(axis=0) & (abs(plain) < largest)
    assert 10_000 < ordinary.sum() < len(made)
    for a, b, c, y in zip(*operands[:, ordinary], made[ordinary], strict=True):
        assert y == rounded_once(a, b, c), (a, b, c)
    # Infinities and NaN: what double precision says.
    with np.errstate(all="ignore"):
        special = plain[~np.isfinite(operands).all(axis=0)].astype(np.float32)
    np.testing.assert_array_equal(made[~np.isfinite(operands).all(axis=0)], special)
