"""The native pass against its definition, bit for bit, on every instruction set."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from cloister import _native
from cloister.crypto.csprng import InsecureSeededRandom, pad_stream
from cloister.field import codec, reference
from cloister.field.freivalds import P52, field_elements

KEY = bytes(range(7, 39))
INF = float("inf")
MAX_2X2 = (0, 2, 2, 2, 2, 1, 1, 0, 0)


@pytest.fixture(params=_native.available_isas())
def isa(request):
    before = _native.isa()
    _native.force_isa(request.param)
    yield request.param
    _native.force_isa(before)


@dataclass
class Case:
    """One pass with its inputs; `sinks` are (inv_scale, qmax, blinded)."""

    size: tuple[int, int, int]
    n: int = 1
    reply: bool = True
    unblind: bool = True
    residual: bool = False
    clamp: tuple[float, float] = (-INF, INF)
    pool: tuple[int, ...] | None = None
    check: bool = True
    sinks: list[tuple[float, int, bool]] = field(default_factory=lambda: [(900.0, 2047, True)])
    extreme: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        secret = InsecureSeededRandom(self.seed)
        h, w, c = self.size
        shape = (self.n, h, w, c)
        self.out = (*self.pool[9:11], c) if self.pool else self.size
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
        elements = int(np.prod(self.out))
        self.t = [field_elements(elements, rng=secret) for _ in self.sinks]
        if self.extreme is not None:
            for coefficients in (self.a, self.b, *self.t):
                coefficients[...] = P52 - 1
        self.nonces = [[rng.bytes(12) for _ in range(self.n)] for _ in self.sinks]

    @property
    def source(self):
        if not self.reply:
            return self.values
        words = self.z.view(np.uint32)
        return words + self.unblinding if self.unblind else words.copy()

    def pad(self, i):
        streams = [pad_stream(KEY, nonce, int(np.prod(self.out))) for nonce in self.nonces[i]]
        return np.stack(streams).reshape(self.n, *self.out)

    def native(self):
        made = _native.Pass(
            *self.size,
            self.scale if self.reply else None,
            self.bias if self.reply else None,
            *self.clamp,
            self.pool,
            [(inv_scale, qmax) for inv_scale, qmax, _ in self.sinks],
        )
        if self.check:
            if self.reply:
                made.set_check(self.a, self.b)
            for i, t in enumerate(self.t):
                made.set_sink_check(i, t)
        return made


@dataclass
class Result:
    pre: np.ndarray
    post: np.ndarray
    requests: list[np.ndarray]
    sums_out: np.ndarray
    sums_in: np.ndarray

    def assert_equal(self, other):
        for mine, theirs in ((self.pre, other.pre), (self.post, other.post)):
            np.testing.assert_array_equal(mine.view(np.uint32), theirs.view(np.uint32))
        for mine, theirs in zip(self.requests, other.requests, strict=True):
            assert mine.dtype == theirs.dtype
            np.testing.assert_array_equal(mine, theirs)
        np.testing.assert_array_equal(self.sums_out, other.sums_out)
        np.testing.assert_array_equal(self.sums_in, other.sums_in)


def expected(case):
    f = case.values
    if case.reply:
        f = codec.dequantise(case.z.view(np.uint32), case.scale, case.bias)
    if case.more is not None:
        f = f + case.more
    pre = reference.clamp(f, *case.clamp)
    post = reference.pool(pre, case.pool) if case.pool else pre
    sums_out = np.zeros(case.n, np.uint64)
    if case.check and case.reply:
        sums_out[:] = [reference.answer_sum(case.a, case.b, z) for z in case.z]
    sums_in = np.zeros((len(case.sinks), case.n), np.uint64)
    requests = []
    for i, (inv_scale, qmax, blinded) in enumerate(case.sinks):
        q = codec.quantise(post, inv_scale, qmax)
        if case.check:
            sums_in[i] = [reference.check_sum(case.t[i], one) for one in q]
        requests.append(reference.blind(q, case.pad(i)) if blinded else q)
    return Result(pre, post, requests, sums_out, sums_in)


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
    explicit = explicit or _native.isa() == "portable"
    requests = [
        np.zeros((case.n, *case.out), np.uint32 if blinded else np.int16)
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
    (made or case.native()).run(
        case.n,
        case.source if source is None else source,
        case.unblinding if case.reply else None,
        more,
        pre[..., inside],
        post[..., inside],
        requests,
        keys,
        nonces,
        pads,
        sums_out,
        sums_in,
        threads,
    )
    for array in (pre, post):
        assert not array[..., :spread].any()
        assert not array[..., spread + c :].any()
    return Result(
        np.ascontiguousarray(pre[..., inside]),
        np.ascontiguousarray(post[..., inside]),
        requests,
        sums_out,
        sums_in,
    )


SHAPES = [
    (1, 1, 1), (1, 1, 3), (1, 1, 4096), (3, 1, 5), (1, 9, 17), (5, 7, 16), (6, 4, 33),
    (7, 11, 64), (13, 3, 3), (2, 3, 2500),
]  # fmt: skip


@pytest.mark.parametrize("size", SHAPES)
def test_reply_to_request(size, isa):
    case = Case(size, n=2, clamp=(0.0, INF))
    run(case).assert_equal(expected(case))


@pytest.mark.parametrize("size", SHAPES)
def test_values_to_request(size, isa):
    case = Case(size, reply=False)
    run(case).assert_equal(expected(case))


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
    run(case).assert_equal(expected(case))


@pytest.mark.parametrize("z", [2**31 - 1, -(2**31) + 1, -(2**31), 0])
@pytest.mark.parametrize("size", [(5, 3, 37), (1, 1, 70000), (70, 70, 3)])
def test_extremes(z, size, isa):
    case = Case(size, extreme=z, sinks=[(1e9, 8191, True), (1e9, 8191, False)])
    run(case).assert_equal(expected(case))


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
    size, pool = POOLS[name]
    case = Case(size, n=2, reply=reply, pool=pool, clamp=(0.0, 6.0) if reply else (-INF, INF))
    run(case).assert_equal(expected(case))


@pytest.mark.parametrize("name", ["max 3x3 stride 2", "max 2x2, odd size", None])
def test_slices_of_wider_arrays(name, isa):
    size, pool = POOLS[name] if name else ((3, 4, 10), None)
    case = Case(size, n=2, pool=pool, residual=True, clamp=(0.0, INF))
    run(case, spread=3).assert_equal(expected(case))


@pytest.mark.parametrize("name", [*POOLS, None])
@pytest.mark.parametrize("n", [1, 3])
def test_threads_do_not_change_the_result(name, n, isa):
    size, pool = POOLS[name] if name else ((30, 31, 13), None)
    case = Case(size, n=n, pool=pool, residual=True)
    run(case, threads=4).assert_equal(expected(case))


def test_explicit_pads_equal_generated_ones(isa):
    case = Case((5, 5, 11), n=2)
    run(case, explicit=True).assert_equal(expected(case))


def test_no_sinks(isa):
    case = Case((3, 3, 10), sinks=[])
    run(case).assert_equal(expected(case))


def test_a_pass_can_run_again_with_other_checks(isa):
    first, second = Case((4, 4, 20), seed=1), Case((4, 4, 20), seed=2)
    made = first.native()
    run(first, made=made).assert_equal(expected(first))
    second.scale, second.bias = first.scale, first.bias
    made.set_check(second.a, second.b)
    made.set_sink_check(0, second.t[0])
    run(second, made=made).assert_equal(expected(second))
    made.set_check(None, None)
    made.set_sink_check(0, None)
    second.check = False
    run(second, made=made).assert_equal(expected(second))


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
    truth = expected(case).sums_out
    for name, words in tampered(case):
        sums = run(case, source=words + case.unblinding).sums_out
        assert sums[0] != truth[0], name
    np.testing.assert_array_equal(run(case).sums_out, truth)


@pytest.mark.parametrize("name", ["max 2x2, odd size", "max sparse"])
def test_the_check_covers_pixels_that_pooling_drops(name, isa):
    size, pool = POOLS[name]
    case = Case(size, pool=pool, sinks=[])
    wrong = case.source
    wrong[:, -1, -1, :1] += np.uint32(1)
    assert run(case, source=wrong).sums_out[0] != expected(case).sums_out[0]


# ---- what must be refused


def arguments(case, **changes):
    blinded = [np.zeros((case.n, *case.out), np.uint32)]
    given = {
        "n": case.n,
        "source": case.source,
        "unblind": case.unblinding,
        "residual": None,
        "store_pre": None,
        "store_post": None,
        "sink_out": blinded,
        "sink_keys": [None],
        "sink_nonces": [None],
        "sink_pads": [case.pad(0)],
        "sums_out": np.zeros(case.n, np.uint64),
        "sums_in": np.zeros((1, case.n), np.uint64),
    }
    return {**given, **changes}


REFUSED = {
    "no pad": {"sink_pads": [None]},
    "key without nonces": {"sink_pads": [None], "sink_keys": [KEY]},
    "short nonces": {"sink_pads": [None], "sink_keys": [KEY], "sink_nonces": [bytes(12)]},
    "short key": {"sink_keys": [KEY[:16]]},
    "plain sink with a pad": {"sink_out": [np.zeros((2, 3, 4, 5), np.int16)]},
    "int64 source": {"source": np.zeros((2, 3, 4, 5), np.int64)},
    "float32 source": {"source": np.zeros((2, 3, 4, 5), np.float32)},
    "source shape": {"source": np.zeros((2, 4, 3, 5), np.uint32)},
    "source layout": {"source": np.zeros((2, 5, 3, 4), np.uint32).transpose(0, 2, 3, 1)},
    "unblind shape": {"unblind": np.zeros((1, 3, 4, 5), np.uint32)},
    "sink shape": {"sink_out": [np.zeros((2, 3, 4, 6), np.uint32)]},
    "sink layout": {"sink_out": [np.zeros((2, 3, 4, 6), np.uint32)[..., :5]]},
    "sink dtype": {"sink_out": [np.zeros((2, 3, 4, 5), np.float32)]},
    "pad shape": {"sink_pads": [np.zeros((1, 3, 4, 5), np.uint32)]},
    "two sinks": {"sink_out": [np.zeros((2, 3, 4, 5), np.uint32)] * 2},
    "sums": {"sums_out": np.zeros(1, np.uint64)},
    "sums of sinks": {"sums_in": np.zeros((2, 2), np.uint64)},
    "overlapping store": {
        "store_pre": np.lib.stride_tricks.as_strided(
            np.zeros(100, np.float32), (2, 3, 4, 5), (16, 16, 4, 4)
        )
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_written(name):
    case = Case((3, 4, 5), n=2)
    given = arguments(case, **REFUSED[name])
    with pytest.raises(ValueError):
        case.native().run(**given)
    assert not any(sink.any() for sink in given["sink_out"])


def test_read_only_output_is_refused():
    case = Case((3, 4, 5))
    given = arguments(case)
    given["sink_out"][0].flags.writeable = False
    with pytest.raises((TypeError, ValueError, RuntimeError)):
        case.native().run(**given)


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
        {"pool": (*MAX_2X2, 3, 3, 0)},
        {"pool": (0, 0, 2, 2, 2, 1, 1, 0, 0, 1, 1, 0)},
        {"pool": (0, 2, 2, 2, 2, 1, 1, 2, 0, 2, 2, 0)},
    ],
)
def test_impossible_passes_are_refused(change):
    given = {
        "size": (3, 4, 5),
        "scale": np.zeros(5, np.float32),
        "bias": np.zeros(5, np.float32),
        "clamp": (0.0, 1.0),
        "pool": None,
        "sinks": [(1.0, 100)],
        **change,
    }
    with pytest.raises(ValueError):
        _native.Pass(
            *given["size"], given["scale"], given["bias"], *given["clamp"], given["pool"],
            given["sinks"],
        )  # fmt: skip


def test_coefficients_beyond_the_prime_are_refused():
    case = Case((3, 4, 5))
    made = case.native()
    case.a[3] = P52
    with pytest.raises(ValueError, match="coefficient"):
        made.set_check(case.a, case.b)
    case.t[0][-1] = P52
    with pytest.raises(ValueError, match="coefficient"):
        made.set_sink_check(0, case.t[0])
