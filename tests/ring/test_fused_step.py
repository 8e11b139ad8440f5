"""The native fused step against its definition, bit for bit, on every instruction set."""

import dataclasses
import inspect
from dataclasses import dataclass, field

import numpy as np
import pytest

import cloister.base._native as native
from cloister.base.rng import InsecureSeededRandom, keystream
from cloister.ring import reference, rounding
from cloister.ring.freivalds import P52, field_elements
from cloister.ring.window_geometry import WindowGeometry

KEY = bytes(range(7, 39))
INF = float("inf")
MAX_2X2 = (0, 2, 2, 2, 2, 1, 1, 0, 0)
KINDS = ("max", "average", "depthwise")


def geometry(window):
    """A window from its kind's number, kernel, stride, dilation, pad, out_size and whether
    positions outside of the image count."""
    kind, kh, kw, sh, sw, dh, dw, pt, pl, oh, ow, count = window
    sizes = ((kh, kw), (sh, sw), (dh, dw), (pt, pl), (oh, ow))
    return WindowGeometry(KINDS[kind], *sizes, bool(count))


def shape_of(size, clamp, window, depthwise, sinks):
    """`depthwise` are filters, bias and the clamp behind them."""
    found = None
    if window is not None:
        weights, bias, lo, hi = depthwise or (None, None, -INF, INF)
        # Without the tests' shape checker: the native step has to refuse wrong shapes itself.
        to_native = inspect.unwrap(WindowGeometry.to_native)
        found = to_native(geometry(window), weights, bias, lo=lo, hi=hi)
    height, width, channels = size
    return native.FusedShape(
        height=height, width=width, channels=channels, lo=clamp[0], hi=clamp[1], window=found,
        sinks=sinks,
    )  # fmt: skip


@dataclass
class Case:
    """One fused step with its inputs; `sinks` are (inv_scale, qmax, blinded).

    `terms`: how many products each sink's coefficients are sums of; None, or nothing: each element
    has its own. `inner` clamps behind a depthwise window.
    """

    size: tuple[int, int, int]
    n: int = 1
    reply: bool = True
    unblind: bool = True
    residual: bool = False
    clamp: tuple[float, float] = (-INF, INF)
    window: tuple[int, ...] | None = None
    inner: tuple[float, float] = (-INF, INF)
    check: bool = True
    terms: tuple[int | None, ...] = ()
    sinks: list[tuple[float, int, bool]] = field(default_factory=lambda: [(900.0, 2047, True)])
    extreme: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        secret = InsecureSeededRandom(self.seed)
        h, w, c = self.size
        shape = (self.n, h, w, c)
        self.out = (*self.window[9:11], c) if self.window else self.size
        self.scale = (rng.uniform(0.5, 2, c) * 1e-9).astype(np.float32)
        self.bias = rng.normal(0, 0.3, c).astype(np.float32)
        self.z = rng.integers(-(2**31), 2**31, shape).astype(np.int32)
        if self.extreme is not None:
            self.z[...] = self.extreme
        words = rng.integers(0, 2**32, shape, dtype=np.uint32)
        self.unblinding = words if self.unblind else None
        self.values = rng.normal(0, 1, shape).astype(np.float32)
        self.more = rng.normal(0, 1, shape).astype(np.float32) if self.residual else None
        self.a, self.b = field_elements(h * w, rng=secret), field_elements(c, rng=secret)
        terms = self.terms or (None,) * len(self.sinks)
        self.checks = [self.input_check(count, secret) for count in terms]
        if self.extreme is not None:
            for coefficients in (self.a, self.b, *(x for pair in self.checks for x in pair)):
                if coefficients is not None:
                    coefficients[...] = P52 - 1
        self.nonces = [[rng.bytes(12) for _ in range(self.n)] for _ in self.sinks]

        self.depthwise = None
        if self.window and self.window[0] == 2:
            weights = rng.normal(0, 0.5, (*self.window[1:3], c)).astype(np.float32)
            self.depthwise = (weights, rng.normal(0, 0.3, c).astype(np.float32), *self.inner)

    def input_check(self, terms, secret):
        """rows and columns; the latter None when every element has its own coefficient."""
        h, w, c = self.out
        rows = field_elements(h * (terms or w) * c, rng=secret).reshape(h, -1, c)
        return rows, terms and field_elements(terms * w, rng=secret).reshape(terms, w)

    @property
    def source(self):
        if not self.reply:
            return self.values
        words = self.z.view(np.uint32)
        return words + self.unblinding if self.unblind else words.copy()

    def pad(self, i):
        streams = [keystream(KEY, nonce, int(np.prod(self.out))) for nonce in self.nonces[i]]
        return np.stack(streams).reshape(self.n, *self.out)

    def native(self):
        sinks = [
            native.Sink.checked(inv_scale=inv_scale, qmax=qmax, rows=rows, columns=columns)
            if self.check
            else native.Sink.unchecked(inv_scale=inv_scale, qmax=qmax)
            for (inv_scale, qmax, _), (rows, columns) in zip(self.sinks, self.checks, strict=True)
        ]
        shape = shape_of(self.size, self.clamp, self.window, self.depthwise, sinks)
        if not self.reply:
            return native.FusedStep.of_values(shape)
        if not self.check:
            return native.FusedStep.unchecked(shape, scale=self.scale, bias=self.bias)
        return native.FusedStep.checked(shape, scale=self.scale, bias=self.bias, a=self.a, b=self.b)


def aligned(shape, dtype):
    """Zeros that begin with a cache line, as the arrays of a link do."""
    words = np.zeros(int(np.prod(shape)) * np.dtype(dtype).itemsize + 64, np.uint8)
    start = -words.ctypes.data % 64
    return words[start : words.size - 64 + start].view(dtype).reshape(shape)


def assert_equal(mine, theirs):
    for one, other in ((mine.before_window, theirs.before_window), (mine.value, theirs.value)):
        np.testing.assert_array_equal(one.view(np.uint32), other.view(np.uint32))
    for one, other in zip(mine.requests, theirs.requests, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(mine.answer_sums, theirs.answer_sums)
    np.testing.assert_array_equal(mine.request_sums, theirs.request_sums)
    np.testing.assert_array_equal(mine.clipped, theirs.clipped)


def expected(case):
    return reference.fused_step(
        case.source,
        affine=reference.Affine(case.scale, case.bias) if case.reply else None,
        unblinding=case.unblinding,
        coefficients=(case.a, case.b) if case.check else None,
        residual=case.more,
        bounds=case.clamp,
        window=case.window and geometry(case.window),
        filters=case.depthwise and reference.Filters(*case.depthwise),
        sinks=[
            reference.Sink(
                inv_scale,
                qmax,
                case.pad(i) if blinded else None,
                reference.factored(*case.checks[i]) if case.check else None,
            )
            for i, (inv_scale, qmax, blinded) in enumerate(case.sinks)
        ],
    )


def run(case, *, made=None, source=None, explicit=False, threads=1, spread=0):
    """Run natively; `spread` > 0 stores into (and adds from) channel slices of wider arrays."""
    h, w, c = case.size
    wide = c + 2 * spread
    pre = np.zeros((case.n, h, w, wide), np.float32)
    post = np.zeros((case.n, *case.out[:2], wide), np.float32)
    inside = slice(spread, spread + c)
    more = case.more
    if more is not None and spread:
        more = np.zeros((case.n, h, w, wide), np.float32)
        more[..., inside] = case.more
        more = more[..., inside]
    explicit = explicit or native.isa() == "portable"
    requests = [
        aligned((case.n, *case.out), np.uint32 if blinded else np.int16)
        for _, _, blinded in case.sinks
    ]
    keys = [KEY if blinded and not explicit else None for _, _, blinded in case.sinks]
    nonces = [b"".join(case.nonces[i]) if key is not None else None for i, key in enumerate(keys)]
    pads = [
        case.pad(i) if blinded and explicit else None
        for i, (_, _, blinded) in enumerate(case.sinks)
    ]
    sums_out = np.zeros(case.n, np.uint64)
    sums_in = np.zeros((len(case.sinks), case.n), np.uint64)
    clipped = np.full((len(case.sinks), case.n), 7, np.uint64)
    (made or case.native()).run(
        n=case.n,
        source=case.source if source is None else source,
        unblind=case.unblinding if case.reply else None,
        residual=more,
        store_pre=pre[..., inside],
        store_post=post[..., inside],
        sinks=[
            native.SinkArrays(out, key=key, nonces=nonce, pad=pad)
            for out, key, nonce, pad in zip(requests, keys, nonces, pads, strict=True)
        ],
        answer_sums=sums_out,
        request_sums=sums_in,
        clipped=clipped,
        threads=threads,
    )
    for array in (pre, post):
        assert not array[..., :spread].any()
        assert not array[..., spread + c :].any()
    return reference.FusedResult(
        np.ascontiguousarray(pre[..., inside]),
        np.ascontiguousarray(post[..., inside]),
        requests,
        sums_out,
        sums_in,
        clipped,
    )


SHAPES = [
    (1, 1, 1), (1, 1, 3), (1, 1, 4096), (3, 1, 5), (1, 9, 17), (5, 7, 16), (6, 4, 33),
    (7, 11, 64), (13, 3, 3), (2, 3, 2500),
]  # fmt: skip


@pytest.mark.parametrize("size", SHAPES)
def test_reply_to_request(size, isa):
    case = Case(size, n=2, clamp=(0.0, INF))
    assert_equal(run(case), expected(case))


@pytest.mark.parametrize("size", SHAPES)
def test_values_to_request(size, isa):
    case = Case(size, reply=False)
    assert_equal(run(case), expected(case))


@pytest.mark.parametrize("unblind", [False, True])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("reply", [False, True])
def test_every_combination(unblind, residual, check, reply, isa):
    case = Case(
        (4, 5, 21),
        n=2,
        reply=reply,
        unblind=unblind,
        residual=residual,
        check=check,
        clamp=(-0.5, 0.75),
        sinks=[(900.0, 2047, True), (8000.0, 8191, False), (3.0, 1, True)],
    )
    assert_equal(run(case), expected(case))


@pytest.mark.parametrize("z", [2**31 - 1, -(2**31) + 1, -(2**31), 0])
@pytest.mark.parametrize("size", [(5, 3, 37), (1, 1, 70000), (70, 70, 3)])
def test_extremes(z, size, isa):
    case = Case(size, extreme=z, sinks=[(1e9, 8191, True), (1e9, 8191, False)])
    assert_equal(run(case), expected(case))


POOLS = {
    "max 2x2": ((6, 8, 9), (*MAX_2X2, 3, 4, 0)),
    "max 2x2, odd size": ((7, 9, 16), (*MAX_2X2, 3, 4, 0)),
    "max 2x2, ceil mode": ((7, 9, 16), (*MAX_2X2, 4, 5, 0)),
    "max 3x3 stride 2": ((9, 11, 20), (0, 3, 3, 2, 2, 1, 1, 1, 1, 5, 6, 0)),
    "max 3x3 stride 1": ((5, 4, 6), (0, 3, 3, 1, 1, 1, 1, 1, 1, 5, 4, 0)),
    "max dilated": ((9, 9, 4), (0, 2, 3, 1, 2, 3, 2, 1, 2, 8, 5, 0)),
    "max 1xk": ((1, 12, 7), (0, 1, 3, 1, 3, 1, 1, 0, 0, 1, 4, 0)),
    "max sparse": ((9, 9, 5), (0, 2, 2, 4, 4, 1, 1, 0, 0, 2, 2, 0)),
    "average": ((8, 6, 17), (1, 2, 3, 2, 3, 1, 1, 0, 0, 4, 2, 0)),
    "average, pads excluded": ((7, 7, 8), (1, 3, 3, 2, 2, 1, 1, 1, 1, 4, 4, 0)),
    "average, pads included": ((7, 7, 8), (1, 3, 3, 2, 2, 1, 1, 1, 1, 4, 4, 1)),
    "global average": ((7, 5, 40), (1, 7, 5, 1, 1, 1, 1, 0, 0, 1, 1, 0)),
    "global average, wide": ((3, 3, 2100), (1, 3, 3, 1, 1, 1, 1, 0, 0, 1, 1, 0)),
}


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("reply", [False, True])
def test_pools(name, reply, isa):
    size, window = POOLS[name]
    case = Case(size, n=2, reply=reply, window=window, clamp=(0.0, 6.0) if reply else (-INF, INF))
    assert_equal(run(case), expected(case))


DEPTHWISE = {
    "3x3": ((6, 8, 9), (2, 3, 3, 1, 1, 1, 1, 1, 1, 6, 8, 0)),
    "3x3, not square": ((4, 13, 16), (2, 3, 3, 1, 1, 1, 1, 1, 1, 4, 13, 0)),
    "3x3 unpadded": ((6, 8, 33), (2, 3, 3, 1, 1, 1, 1, 0, 0, 4, 6, 0)),
    "3x3 stride 2": ((9, 11, 20), (2, 3, 3, 2, 2, 1, 1, 1, 1, 5, 6, 0)),
    "3x3 stride 2, even": ((8, 10, 7), (2, 3, 3, 2, 2, 1, 1, 0, 0, 4, 5, 0)),
    "3x3 dilated": ((9, 10, 17), (2, 3, 3, 1, 1, 2, 3, 2, 3, 9, 10, 0)),
    "3x3 on one pixel": ((1, 1, 50), (2, 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, 0)),
    "3x3 on two rows": ((2, 5, 12), (2, 3, 3, 1, 1, 1, 1, 1, 1, 2, 5, 0)),
    "1x1": ((5, 4, 21), (2, 1, 1, 1, 1, 1, 1, 0, 0, 5, 4, 0)),
    "1x1 stride 3": ((7, 8, 5), (2, 1, 1, 3, 3, 1, 1, 0, 0, 3, 3, 0)),
    "5x5": ((7, 6, 18), (2, 5, 5, 1, 1, 1, 1, 2, 2, 7, 6, 0)),
    "5x3 stride 2x1": ((8, 6, 4), (2, 5, 3, 2, 1, 1, 1, 2, 1, 4, 6, 0)),
    "3x5, three rows of five": ((3, 9, 16), (2, 5, 3, 1, 1, 1, 1, 1, 0, 1, 7, 0)),
    "7x7": ((8, 9, 6), (2, 7, 7, 1, 1, 1, 1, 3, 3, 8, 9, 0)),
    "7x7 larger than the image": ((3, 2, 19), (2, 7, 7, 1, 1, 1, 1, 3, 3, 3, 2, 0)),
    "7x1 dilated": ((14, 3, 3), (2, 7, 1, 2, 1, 2, 1, 6, 0, 7, 3, 0)),
    "sequence": ((1, 30, 8), (2, 1, 3, 1, 2, 1, 1, 0, 1, 1, 15, 0)),
    "sparse": ((11, 9, 5), (2, 2, 2, 4, 4, 1, 1, 0, 0, 3, 2, 0)),
    "wide": ((3, 3, 2100), (2, 3, 3, 1, 1, 1, 1, 1, 1, 3, 3, 0)),
    "long": ((3, 1100, 3), (2, 3, 3, 1, 1, 1, 1, 1, 1, 3, 1100, 0)),
}


@pytest.mark.parametrize("name", DEPTHWISE)
@pytest.mark.parametrize("reply", [False, True])
def test_depthwise(name, reply, isa):
    size, window = DEPTHWISE[name]
    clamp = (0.0, 6.0) if reply else (-INF, INF)
    case = Case(size, n=2, reply=reply, window=window, clamp=clamp)
    assert_equal(run(case), expected(case))


@pytest.mark.parametrize("inner", [(0.0, 6.0), (-0.25, 0.25), (0.0, 0.0), (-INF, 1.0)])
@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2", "7x7"])
def test_depthwise_with_a_clamp_of_its_own(name, inner, isa):
    size, window = DEPTHWISE[name]
    case = Case(size, n=2, window=window, residual=True, clamp=(-0.5, 0.75), inner=inner)
    assert_equal(run(case), expected(case))


@pytest.mark.parametrize("name", ["3x3", "3x3 stride 2", "sparse", "wide", "long", "5x5"])
@pytest.mark.parametrize("terms", [1, 3, 5])
def test_depthwise_into_products(name, terms, isa):
    size, window = DEPTHWISE[name]
    case = Case(size, n=2, window=window, terms=(terms,))
    assert_equal(run(case), expected(case))


@pytest.mark.parametrize("n", [1, 2, 5])
@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize("name", DEPTHWISE)
def test_threads_do_not_change_depthwise_windows(name, reply, n, isa):
    size, window = DEPTHWISE[name]
    case = Case(size, n=n, reply=reply, window=window, residual=reply, terms=(2,))
    made, truth = case.native(), expected(case)
    for threads in (4, 1, 3):
        assert_equal(run(case, made=made, threads=threads), truth)


def test_depthwise_rounds_every_step(isa):
    """Sums whose value depends on the order, and products that a fused step would not round."""
    size, window = DEPTHWISE["3x3"]
    case = Case(size, reply=False, window=window, sinks=[(1.0, 8191, False)])
    case.values *= np.float32(10) ** np.arange(-4, 5, dtype=np.float32)
    assert_equal(run(case), expected(case))
    truth = reference.depthwise(case.values, *case.depthwise[:2], geometry(window), -INF, INF)
    weights, bias = case.depthwise[:2]
    backwards = reference.depthwise(
        case.values[:, ::-1, ::-1], weights[::-1, ::-1], bias, geometry(window), -INF, INF
    )[:, ::-1, ::-1]
    assert (truth != backwards).any(), "the order would not be noticed"


def test_depthwise_of_infinities_and_zeros(isa):
    """What is outside the image is not multiplied by zero, which would make NaN of infinities."""
    size, window = DEPTHWISE["3x3"]
    case = Case(size, reply=False, window=window, sinks=[])
    case.values[:, 0, 0], case.values[:, 5, 7] = np.inf, -0.0
    case.depthwise[0][...] = np.abs(case.depthwise[0])
    assert_equal(run(case), expected(case))


# c: few and many channels, around vectors of 8 and 16 lanes, blocks of AES, and tiles of 2048.
FACTORED = [
    (3, 5, 1), (2, 15, 3), (2, 16, 4), (3, 17, 8), (2, 18, 12), (2, 33, 16), (2, 7, 20),
    (4, 15, 16), (3, 16, 24), (2, 19, 33), (5, 9, 64), (2, 40, 66), (3, 31, 68), (6, 1, 64),
    (1, 1, 300), (2, 3, 512), (2, 2, 1000), (1, 3, 2047), (2, 2, 2048), (1, 3, 2049),
    (2, 2, 2500), (1, 2, 4101), (1, 1, 20000), (2, 1030, 1), (2, 1500, 2), (1, 2100, 4),
    (3, 127, 16),
]  # fmt: skip


@pytest.mark.parametrize("explicit", [False, True])
@pytest.mark.parametrize("size", FACTORED, ids=str)
def test_coefficients_that_are_products(size, explicit, isa):
    terms = (3, 1, 2)
    case = Case(size, n=2, terms=terms, sinks=[(900.0, 2047, True)] * 2 + [(900.0, 8191, False)])
    assert_equal(run(case, explicit=explicit), expected(case))


@pytest.mark.parametrize("terms", range(1, 8))
@pytest.mark.parametrize(
    "size", [(3, 17, 16), (3, 9, 64), (2, 20, 37), (2, 3, 21), (1, 2, 2100)], ids=str
)
def test_any_number_of_terms(terms, size, isa):
    sinks = [(900.0, 2047, True), (50.0, 8191, False), (3.0, 1, True)]
    case = Case(size, n=2, terms=(terms, None, 8 - terms), sinks=sinks)
    assert_equal(run(case), expected(case))


@pytest.mark.parametrize("terms", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("z", [2**31 - 1, -(2**31)])
@pytest.mark.parametrize(
    "size", [(2, 1100, 1), (2, 1024, 16), (1, 15, 128), (1, 1, 2048), (1, 1, 40000)], ids=str
)
def test_products_at_the_extremes(terms, z, size, isa):
    sinks = [(1e9, 8191, True), (1e9, 8191, False)]
    case = Case(size, extreme=z, terms=(terms, terms), sinks=sinks)
    assert_equal(run(case), expected(case))


# Kernels cut coefficients into digits of 13 bits: these have the largest ones of either sign.
LARGEST_DIGITS = sum(4095 << (13 * i) for i in range(4)) % P52
SMALLEST_DIGITS = (-(4095 << 39) - sum(4096 << (13 * i) for i in range(3))) % P52


@pytest.mark.parametrize("coefficient", [0, 1, P52 - 1, LARGEST_DIGITS, SMALLEST_DIGITS])
@pytest.mark.parametrize("size", [(3, 20, 18), (1, 2000, 16), (2, 2, 2048)], ids=str)
@pytest.mark.parametrize("z", [2**31 - 1, -(2**31)])
def test_products_of_equal_coefficients(coefficient, size, z, isa):
    sinks = [(1e9, 8191, True), (1e9, 8191, False)]
    case = Case(size, extreme=z, terms=(2, 1), sinks=sinks)
    for check in case.checks:
        for array in check:
            array[...] = coefficient
    assert_equal(run(case), expected(case))


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("terms", [1, 3, 5])
@pytest.mark.parametrize(
    "size", [(30, 31, 13), (7, 100, 16), (5, 3, 1024), (2, 2, 3000), (2, 2500, 2)], ids=str
)
def test_threads_do_not_change_sums_of_products(size, terms, n, isa):
    case = Case(size, n=n, terms=(terms, terms), sinks=[(900.0, 2047, True), (9.0, 99, False)])
    assert_equal(run(case, threads=4), expected(case))


@pytest.mark.parametrize("reply", [False, True])
@pytest.mark.parametrize("name", ["max 2x2, odd size", "average, pads included", "global average"])
def test_pools_into_products(name, reply, isa):
    size, window = POOLS[name]
    case = Case(size, n=2, reply=reply, window=window, terms=(2,))
    assert_equal(run(case, threads=3), expected(case))


@pytest.mark.parametrize("terms", [None, 1, 3, 4])
@pytest.mark.parametrize("size", [(2, 4096, 64), (64, 8, 1024), (1, 40, 16384)], ids=str)
def test_requests_beyond_the_caches(terms, size, isa):
    """Large enough to be stored past the caches."""
    case = Case(size, terms=(terms,), reply=False)
    made = case.native()
    result = run(case, made=made)
    q = rounding.quantise(case.values, *case.sinks[0][:2])
    np.testing.assert_array_equal(result.requests[0], reference.blind(q, case.pad(0)))
    rows, columns = case.checks[0]
    if terms is None:
        total = reference.check_sum(rows.ravel(), q)
    else:
        # Channels first: a thousandth of the long products.
        total = sum(
            reference.check_sum(columns[k], exact_products(rows[y, k], q[0, y]))
            for y in range(size[0])
            for k in range(terms)
        )
    assert int(result.request_sums[0, 0]) == total % P52


def exact_products(coefficients, values):
    """values @ coefficients modulo P52, by halves that are exact in 64 bits."""
    low, high = coefficients & np.uint64(2**26 - 1), coefficients >> np.uint64(26)
    sums = [values.astype(np.int64) @ half.astype(np.int64) for half in (low, high)]
    return (sums[0].astype(object) + 2**26 * sums[1].astype(object)) % P52


@pytest.mark.parametrize("name", ["max 3x3 stride 2", "max 2x2, odd size", None])
def test_slices_of_wider_arrays(name, isa):
    size, window = POOLS[name] if name else ((3, 4, 10), None)
    case = Case(size, n=2, window=window, residual=True, clamp=(0.0, INF))
    assert_equal(run(case, spread=3), expected(case))


@pytest.mark.parametrize("name", [*POOLS, None])
@pytest.mark.parametrize("n", [1, 3])
def test_threads_do_not_change_the_result(name, n, isa):
    size, window = POOLS[name] if name else ((30, 31, 13), None)
    case = Case(size, n=n, window=window, residual=True)
    assert_equal(run(case, threads=4), expected(case))


def test_explicit_pads_equal_generated_ones(isa):
    case = Case((5, 5, 11), n=2)
    assert_equal(run(case, explicit=True), expected(case))


def around_the_limit(qmax):
    """Values close to what rounds to qmax and to qmax + 1, of either sign."""
    tie = np.float32(qmax + 0.5)
    found = [np.float32(v) for v in (0, qmax, qmax + 1, np.inf, np.finfo(np.float32).max)]
    found += [np.nextafter(tie, np.float32(0)), tie, np.nextafter(tie, np.float32(np.inf))]
    return np.array([*found, *(-v for v in found)], np.float32)


@pytest.mark.parametrize("terms", [None, 1, 3, 5])
@pytest.mark.parametrize("blinded", [False, True])
@pytest.mark.parametrize("qmax", [1, 2, 127, 2046, 2047, 8191])
def test_clipped_is_what_rounds_beyond_the_range(qmax, blinded, terms, isa):
    values = around_the_limit(qmax)
    case = Case((1, 5, len(values)), reply=False, terms=(terms,), sinks=[(1.0, qmax, blinded)])
    case.values[...] = values
    found = run(case)
    assert_equal(found, expected(case))
    # Half to even: an odd qmax's tie rounds to qmax + 1. Five pixels, two signs.
    assert found.clipped[0, 0] == 5 * 2 * (4 + qmax % 2)


@pytest.mark.parametrize("terms", [None, 3, 5])
@pytest.mark.parametrize("size", [(4, 3, 21), (2, 40, 64), (1, 2, 2500)], ids=str)
def test_a_nan_that_arithmetic_makes_counts_as_clipped(size, terms, isa):
    case = Case(size, reply=False, residual=True, terms=(terms,), sinks=[(1.0, 100, True)])
    case.values[0, 0, 1, 2:5] = INF
    case.more[0, 0, 1, 3:6] = -INF  # channels 3 and 4: infinity minus infinity
    found = run(case)
    with np.errstate(invalid="ignore"):
        want = expected(case)
    np.testing.assert_array_equal(found.requests[0], want.requests[0])
    np.testing.assert_array_equal(found.request_sums, want.request_sums)
    assert found.clipped[0, 0] == want.clipped[0, 0] == 4


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("terms", [None, 1, 3, 4, 7])
@pytest.mark.parametrize(
    "size", [(1, 1, 1), (3, 1, 5), (5, 7, 16), (6, 40, 33), (2, 2, 2500), (30, 31, 64)], ids=str
)
def test_clipped_values_are_counted_for_every_image_and_sink(size, terms, threads, isa):
    """None, few, most or all of them."""
    scales = [0.0, 1e-30, 40.0, -3e4, 1e9]
    sinks = [(scale, 100 + i, i % 2 == 0) for i, scale in enumerate(scales)]
    case = Case(size, n=3, check=terms is not None, terms=(terms,) * 5, sinks=sinks)
    case.z[1] //= 1000
    found = run(case, threads=threads).clipped
    np.testing.assert_array_equal(found, expected(case).clipped)
    assert not found[:2].any()
    assert found[4].all()


def test_no_sinks(isa):
    case = Case((3, 3, 10), sinks=[])
    assert_equal(run(case), expected(case))


def test_coefficients_belong_to_a_step(isa):
    first, second = Case((4, 4, 20), seed=1), Case((4, 4, 20), seed=2)
    second.scale, second.bias = first.scale, first.bias
    unchecked = Case((4, 4, 20), seed=2, check=False)
    unchecked.scale, unchecked.bias = first.scale, first.bias
    made = [(case, case.native()) for case in (first, second, unchecked)]
    for case, step in made * 2:
        assert_equal(run(case, made=step), expected(case))


def tampered(case):
    """Answers that differ from the true one, each in one way a worker may try."""
    z = case.z.view(np.uint32)
    yield "swapped channels", z[..., [1, 0, *range(2, z.shape[-1])]]
    swapped = z.copy()
    swapped[:, 0, 0], swapped[:, 2, 1] = z[:, 2, 1], z[:, 0, 0]
    yield "swapped pixels", swapped
    yield "shifted rows", np.roll(z, 1, axis=1)
    for step in (1, 2**31, 2**32 - 1, 47, 2**16):
        wrong = z.copy()
        wrong[:, 1, 2, 3:4] += np.uint32(step)
        yield f"one element + {step}", wrong
        yield f"all elements + {step}", z + np.uint32(step)
    yield "cancelling errors", z + np.where(np.arange(z.shape[-1]) % 2, 1, -1).astype(np.uint32)
    yield "doubled", z * np.uint32(2)
    yield "zeros", np.zeros_like(z)


def test_the_check_notices_every_change(isa):
    case = Case((4, 5, 24), sinks=[], seed=3)
    truth = expected(case).answer_sums
    for name, words in tampered(case):
        sums = run(case, source=words + case.unblinding).answer_sums
        assert sums[0] != truth[0], name
    np.testing.assert_array_equal(run(case).answer_sums, truth)


@pytest.mark.parametrize("name", ["max 2x2, odd size", "max sparse"])
def test_the_check_covers_pixels_that_no_window_reads(name, isa):
    size, window = POOLS[name]
    case = Case(size, window=window, sinks=[])
    wrong = case.source
    wrong[:, -1, -1, :1] += np.uint32(1)
    assert run(case, source=wrong).answer_sums[0] != expected(case).answer_sums[0]


@pytest.mark.parametrize("terms", [None, 1, 4])
def test_the_input_check_depends_on_every_element(terms, isa):
    case = Case((3, 17, 6), reply=False, terms=(terms,), sinks=[(1.0, 8191, False)])
    case.values[...] = 0
    made = case.native()
    t = reference.factored(*case.checks[0])
    for at in [(0, 0, 0), (1, 16, 5), (2, 3, 4), (0, 16, 0), (2, 16, 5)]:
        case.values[...] = 0
        case.values[(0, *at)] = 1
        assert run(case, made=made).request_sums[0, 0] == t[at]
        case.values[(0, *at)] = -1
        assert run(case, made=made).request_sums[0, 0] == (P52 - int(t[at])) % P52


# ---- what must be refused


def arguments(case, *, out=None, sinks=1, **changes):
    out = np.zeros((case.n, *case.out), np.uint32) if out is None else out
    arrays = {key: changes.pop(key, None) for key in ("key", "nonces")}
    pad = changes.pop("pad", case.pad(0))
    return {
        "n": case.n,
        "source": case.source,
        "unblind": case.unblinding,
        "sinks": [native.SinkArrays(out, **arrays, pad=pad)] * sinks,
        "answer_sums": np.zeros(case.n, np.uint64),
        "request_sums": np.zeros((1, case.n), np.uint64),
        "clipped": np.zeros((1, case.n), np.uint64),
        **changes,
    }


REFUSED = {
    "no pad": {"pad": None},
    "key without nonces": {"pad": None, "key": KEY},
    "short nonces": {"pad": None, "key": KEY, "nonces": bytes(12)},
    "short key": {"key": KEY[:16]},
    "plain sink with a pad": {"out": np.zeros((2, 3, 4, 5), np.int16)},
    "int64 source": {"source": np.zeros((2, 3, 4, 5), np.int64)},
    "float32 source": {"source": np.zeros((2, 3, 4, 5), np.float32)},
    "source shape": {"source": np.zeros((2, 4, 3, 5), np.uint32)},
    "source layout": {"source": np.zeros((2, 5, 3, 4), np.uint32).transpose(0, 2, 3, 1)},
    "unblind shape": {"unblind": np.zeros((1, 3, 4, 5), np.uint32)},
    "sink shape": {"out": np.zeros((2, 3, 4, 6), np.uint32)},
    "sink layout": {"out": np.zeros((2, 3, 4, 6), np.uint32)[..., :5]},
    "sink dtype": {"out": np.zeros((2, 3, 4, 5), np.float32)},
    "pad shape": {"pad": np.zeros((1, 3, 4, 5), np.uint32)},
    "two sinks": {"sinks": 2},
    "sums": {"answer_sums": np.zeros(1, np.uint64)},
    "sums of sinks": {"request_sums": np.zeros((2, 2), np.uint64)},
    "counts of sinks": {"clipped": np.zeros((2, 2), np.uint64)},
    "counts of images": {"clipped": np.zeros((1, 3), np.uint64)},
    "overlapping store": {
        "store_pre": np.lib.stride_tricks.as_strided(
            np.zeros(100, np.float32), (2, 3, 4, 5), (16, 16, 4, 4)
        )
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(name):
    case = Case((3, 4, 5), n=2)
    out = np.zeros((2, 3, 4, 5), np.uint32)
    given = arguments(case, **({"out": out} | REFUSED[name]))
    with pytest.raises(ValueError):
        case.native().run(**given)
    assert not out.any()


def test_read_only_output_is_refused():
    out = np.zeros((1, 3, 4, 5), np.uint32)
    out.flags.writeable = False
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        arguments(Case((3, 4, 5)), out=out)


def test_arguments_have_names():
    case = Case((3, 4, 5))
    with pytest.raises(TypeError):
        case.native().run(*arguments(case).values())


FILTER = (np.zeros((2, 2, 5), np.float32), np.zeros(5, np.float32), 0.0, 1.0)


@pytest.mark.parametrize(
    "change",
    [
        {"size": (0, 1, 1)},
        {"sinks": [(1.0, 8192)]},
        {"sinks": [(1.0, 0)]},
        {"sinks": [(INF, 5)]},
        {"clamp": (1.0, 0.0)},
        {"bias": None},
        {"bias": np.zeros(4, np.float32)},
        {"bias": np.full(5, np.nan, np.float32)},
        {"scale": np.full(5, np.nan, np.float32)},
        {"window": (*MAX_2X2, 3, 3, 0)},
        {"window": (0, 0, 2, 2, 2, 1, 1, 0, 0, 1, 1, 0)},
        {"window": (0, 2, 2, 2, 2, 1, 1, 2, 0, 2, 2, 0)},
        {"window": (0, 2, 2, 1, 1, 1, 2**62, 0, 0, 2, 4, 0)},
        {"window": (2, *MAX_2X2[1:], 1, 2, 0)},
        {"window": (0, *MAX_2X2[1:], 1, 2, 0), "depthwise": FILTER},
        {"window": (2, 3, 2, 1, 1, 1, 1, 0, 0, 1, 3, 0), "depthwise": FILTER},
        {"window": (2, *MAX_2X2[1:], 3, 2, 0), "depthwise": FILTER},
        {"window": (2, *MAX_2X2[1:], 1, 2, 0), "depthwise": (FILTER[0], FILTER[0], 0.0, 1.0)},
        {"window": (2, *MAX_2X2[1:], 1, 2, 0), "depthwise": (*FILTER[:2], 1.0, 0.0)},
        {"window": (2, *MAX_2X2[1:], 1, 2, 0), "depthwise": (FILTER[0] + INF, *FILTER[1:])},
        {
            "window": (2, *MAX_2X2[1:], 1, 2, 0),
            "depthwise": (FILTER[0], np.full(5, np.nan, np.float32), 0.0, 1.0),
        },
        {"window": (2, *MAX_2X2[1:], 1, 2, 0), "depthwise": (*FILTER[:2], 0.0, float("nan"))},
    ],
)
def test_impossible_steps_are_refused(change):
    given = {
        "size": (3, 4, 5),
        "scale": np.zeros(5, np.float32),
        "bias": np.zeros(5, np.float32),
        "clamp": (0.0, 1.0),
        "window": None,
        "sinks": [(1.0, 100)],
        "depthwise": None,
        **change,
    }

    def make():
        sinks = [native.Sink.unchecked(inv_scale=x, qmax=qmax) for x, qmax in given["sinks"]]
        keys = ("size", "clamp", "window", "depthwise")
        shape = shape_of(*(given[key] for key in keys), sinks)
        native.FusedStep.unchecked(shape, scale=given["scale"], bias=given["bias"])

    with pytest.raises(TypeError if given["bias"] is None else ValueError):
        make()


def test_unknown_windows_are_refused():
    window = geometry((*MAX_2X2, 1, 2, 0))
    with pytest.raises(ValueError, match="no window mean"):
        dataclasses.replace(window, kind="mean").to_native()


def test_coefficients_beyond_the_prime_are_refused():
    case = Case((3, 4, 5), terms=(2,))
    for array, at in ((case.a, -1), (case.b, -1), *((array, -1) for array in case.checks[0])):
        kept = array.flat[at]
        array.flat[at] = P52
        with pytest.raises(ValueError, match="coefficient"):
            case.native()
        array.flat[at] = kept
    assert_equal(run(case), expected(case))


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (59, None), (61, None), (15, 3), (15, 5), (14, 4), (16, 4), (0, 0), (60, 4),
        (30, 4), (2**20, 4),
    ],
)  # fmt: skip
def test_coefficients_that_do_not_fit_are_refused(rows, columns):
    case = Case((3, 4, 5))
    case.checks = [[None if size is None else np.ones(size, np.uint64) for size in (rows, columns)]]
    with pytest.raises(ValueError, match="need"):
        case.native()


@pytest.mark.parametrize(("name", "size"), [("a", 11), ("a", 13), ("b", 4), ("b", 6), ("b", 0)])
def test_coefficients_of_an_answer_that_do_not_fit_are_refused(name, size):
    case = Case((3, 4, 5))
    setattr(case, name, np.ones(size, np.uint64))
    with pytest.raises(ValueError, match=f"{name} needs"):
        case.native()
