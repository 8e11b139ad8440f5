"""The group's kernels against RFC 9496 and a slow implementation of it in plain integers."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cloister.published._published_native as native
from cloister.base.rng import InsecureSeededRandom
from cloister.errors import EncryptionError
from cloister.published.ddh.curve import Curve25519
from published import ristretto_reference as reference

GROUP = Curve25519()
ORDER = GROUP.order

# RFC 9496, appendix A.1: 0, G, 2 G, ..., 15 G.
MULTIPLES = """\
0000000000000000000000000000000000000000000000000000000000000000
e2f2ae0a6abc4e71a884a961c500515f58e30b6aa582dd8db6a65945e08d2d76
6a493210f7499cd17fecb510ae0cea23a110e8d5b901f8acadd3095c73a3b919
94741f5d5d52755ece4f23f044ee27d5d1ea1e2bd196b462166b16152a9d0259
da80862773358b466ffadfe0b3293ab3d9fd53c5ea6c955358f568322daf6a57
e882b131016b52c1d3337080187cf768423efccbb517bb495ab812c4160ff44e
f64746d3c92b13050ed8d80236a7f0007c3b3f962f5ba793d19a601ebb1df403
44f53520926ec81fbd5a387845beb7df85a96a24ece18738bdcfa6a7822a176d
903293d8f2287ebe10e2374dc1a53e0bc887e592699f02d077d5263cdd55601c
02622ace8f7303a31cafc63f8fc48fdc16e1c8c8d234b2f0d6685282a9076031
20706fd788b2720a1ed2a5dad4952b01f413bcf0e7564de8cdc816689e2db95f
bce83f8ba5dd2fa572864c24ba1810f9522bc6004afe95877ac73241cafdab42
e4549ee16b9aa03099ca208c67adafcafa4c3f3e4e5303de6026e3ca8ff84460
aa52e000df2e16f55fb1032fc33bc42742dad6bd5a8fc0be0167436c5948501f
46376b80f409b29dc2b5f6f0c52591990896e5716f41477cd30085ab7f10301e
e0c418f7c8d9c4cdd7395b93ea124f3ad99021bb681dfc3302a9d99a2e53e64e
""".splitlines()

# RFC 9496, appendix A.2: not canonical; negative; no square; negative x y; s = -1 (y = 0).
INVALID = """\
00ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff
ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
f3ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
0100000000000000000000000000000000000000000000000000000000000000
01ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
ed57ffd8c914fb201471d1c3d245ce3c746fcbe63a3679d51b6a516ebebe0e20
c34c4e1826e5d403b78e246e88aa051c36ccf0aafebffe137d148a2bf9104562
c940e5a4404157cfb1628b108db051a8d439e1a421394ec4ebccb9ec92a8ac78
47cfc5497c53dc8e61c91d17fd626ffb1c49e2bca94eed052281b510b1117a24
f1c6165d33367351b0da8f6e4511010c68174a03b6581212c71c0e1d026c3c72
87260f7a2f12495118360f02c26a470f450dadf34a413d21042b43b9d93e1309
26948d35ca62e643e26a83177332e6b6afeb9d08e4268b650f1f5bbd8d81d371
4eac077a713c57b4f4397629a4145982c661f48044dd3f96427d40b147d9742f
de6a7b00deadc788eb6b6c8d20c0ae96c2f2019078fa604fee5b87d6e989ad87
bcab477be20861e01e4a0e295284146a510150d9817763caf1a6f4b422d67042
2a292df7e32cababbd9de088d1d1abec9fc0440f637ed2fba145094dc14bea08
f4a9e534fc0d216c44b218fa0c42d99635a0127ee2e53c712f70609649fdff22
8268436f8c4126196cf64b3c7ddbda90746a378625f9813dd9b8457077256731
2810e5cbc2cc4d4eece54f61c6f69758e289aa7ab440b3cbeaa21995c2f4232b
3eb858e78f5a7254d8c9731174a94f76755fd3941c0ac93735c07ba14579630e
a45fdc55c76448c049a1ab33f17023edfb2be3581e9c7aade8a6125215e04220
d483fe813c6ba647ebbfd3ec41adca1c6130c2beeee9d9bf065c8d151c5f396e
8a2e1d30050198c65a54483123960ccc38aef6848e1ec8f5f780e8523769ba32
32888462f8b486c68ad7dd9610be5192bbeaf3b443951ac1a8118419d9fa097b
227142501b9d4355ccba290404bde41575b037693cef1f438c47f8fbf35d1165
5c37cc491da847cfeb9281d407efc41e15144c876e0170b499a96a22ed31e01e
445425117cb8c90edcbc7c1cc0e74f747f2c1efa5630a967c64f287792a48a4b
ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f
""".splitlines()

EXTREME_SCALARS = [
    0,
    1,
    2,
    7,
    8,
    9,
    15,
    16,
    ORDER - 1,
    ORDER - 2,
    (ORDER - 1) // 2,
    2**252,
    2**252 - 1,
]


pytestmark = pytest.mark.usefixtures("isa")


def rows(encodings):
    return np.frombuffer(b"".join(encodings), np.uint8).reshape(-1, 32)


@cache
def element(m):
    return reference.encode(reference.multiply(m, reference.G))


def elements(*multiples):
    return rows(element(m) for m in multiples)


def scalars(*values):
    return GROUP.encode_scalars(list(values))


def test_the_reference_agrees_with_the_standard():
    point = reference.IDENTITY
    for encoding in MULTIPLES:
        assert reference.encode(point).hex() == encoding
        decoded = reference.decode(bytes.fromhex(encoding))
        assert decoded is not None
        assert reference.encode(decoded).hex() == encoding
        point = reference.add(point, reference.G)
    for encoding in INVALID:
        assert reference.decode(bytes.fromhex(encoding)) is None, encoding


def test_multiples_of_the_generator():
    assert GROUP.generator.tobytes().hex() == MULTIPLES[1]
    found = GROUP.powers(GROUP.generator[None], scalars(*range(16)))
    assert [bytes(e).hex() for e in found[:, 0]] == MULTIPLES


@pytest.mark.parametrize("encoding", INVALID)
def test_invalid_encodings_are_refused(encoding):
    valid = bytes.fromhex(MULTIPLES[5])
    for place in (0, 1, 8, 10):  # in a full block, alone, and in a short one
        data = [valid] * 11
        data[place] = bytes.fromhex(encoding)
        with pytest.raises(EncryptionError, match=f"test: element {place} is not"):
            GROUP.check_elements(rows(data), what="test", identity=True)
        with pytest.raises(ValueError, match=f"element {place} "):
            GROUP.powers(rows(data), scalars(1))


def test_random_bytes_are_judged_as_the_reference_judges_them():
    data = np.random.default_rng(1).integers(0, 256, (64, 32), np.uint8)
    data[:, 31] &= 127
    data[:, 0] &= 254
    valid = [reference.decode(bytes(e)) is not None for e in data]
    assert 5 < sum(valid) < 40
    for row, expected in zip(data, valid, strict=True):
        assert (native.curve_first_invalid(row[None]) == 1) == expected
    assert native.curve_first_invalid(data) == valid.index(False)


def test_the_identity_is_refused_where_it_must_not_be():
    data = elements(1, 0, 3)
    GROUP.check_elements(data, what="test", identity=True)
    with pytest.raises(EncryptionError, match="element 1 is the identity"):
        GROUP.check_elements(data, what="test", identity=False)


def test_scalars_not_below_the_order_are_refused():
    big = ORDER.to_bytes(32, "little")
    for bad in (big, b"\xff" * 32, (ORDER + 1).to_bytes(32, "little")):
        data = rows([bytes(32), bad])
        with pytest.raises(ValueError, match="order"):
            GROUP.powers(GROUP.generator[None], data)
    GROUP.powers(GROUP.generator[None], rows([(ORDER - 1).to_bytes(32, "little")]))


@pytest.mark.parametrize("columns", [1, 2, 7, 8, 9, 19])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_powers_equal_the_reference(columns, count):
    rng = np.random.default_rng(columns)
    multiples = [int(m) for m in rng.integers(-(2**62), 2**62, columns)]
    multiples[0] = 0
    s = [int.from_bytes(rng.bytes(32), "little") % ORDER for _ in range(count - 1)]
    s.append(EXTREME_SCALARS[columns % len(EXTREME_SCALARS)])
    plus = rng.integers(-1000, 1001, (count, columns))
    plus[0, 0], plus[-1, -1] = 1000, -1000
    found = GROUP.powers(elements(*multiples), scalars(*s), plus=plus, bound=1000, threads=2)
    for i in range(count):
        for j in range(columns):
            expected = element(s[i] * multiples[j] + int(plus[i, j]))
            assert bytes(found[i, j]) == expected, (i, j)


@pytest.mark.parametrize(("points", "count"), [((1, -3, 5), 273), ((7,), 2500)])
def test_powers_of_extreme_scalars_beyond_one_table(points, count):
    """A table serves 256 scalars, or 256 blocks of scalars where there are few points."""
    s = [EXTREME_SCALARS[i % len(EXTREME_SCALARS)] for i in range(count)]
    found = GROUP.powers(elements(*points), scalars(*s), threads=2)
    expected = {v: [element(p * v) for p in points] for v in EXTREME_SCALARS}
    for row, v in zip(found, s, strict=True):
        assert [bytes(e) for e in row] == expected[v]


@pytest.mark.parametrize("bound", [1, 7, 8, 127, 128, 2**31, 2**61])
def test_small_numbers_at_their_bound(bound):
    values = np.array([[bound], [-bound], [0], [bound - 1], [1 - bound]])
    found = GROUP.powers(elements(0), scalars(*[0] * 5), plus=values, bound=bound)
    assert [bytes(e) for e in found[:, 0]] == [element(int(v)) for v in values[:, 0]]
    with pytest.raises(ValueError, match="bound"):
        GROUP.powers(elements(0), scalars(0), plus=np.array([[bound + 1]]), bound=bound)


@pytest.mark.parametrize(("n", "columns"), [(1, 1), (3, 2), (8, 1), (11, 3), (17, 2)])
def test_sums_equal_the_reference(n, columns):
    rng = np.random.default_rng(n)
    multiples = rng.integers(-(2**62), 2**62, (n, columns))
    s = [
        [int.from_bytes(rng.bytes(32), "little") % ORDER for _ in range(columns)] for _ in range(n)
    ]
    plus = rng.integers(-50, 51, n)
    points = elements(*(int(m) for m in multiples.reshape(-1))).reshape(n, columns, 32)
    flat = scalars(*(v for row in s for v in row)).reshape(n, columns, 32)
    found = GROUP.sums(points, flat, plus=plus, bound=50, threads=2)
    for i in range(n):
        total = sum(a * int(b) for a, b in zip(s[i], multiples[i], strict=True)) + int(plus[i])
        assert bytes(found[i]) == element(total)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.integers(0, ORDER - 1), min_size=1, max_size=6),
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=6, max_size=6),
)
def test_combinations_of_scalars(secrets, y):
    y = y[: len(secrets)]
    found = GROUP.combine(scalars(*secrets), np.array([y, [-(2**63)] * len(y)], np.int64))
    expected = [
        sum(a * b for a, b in zip(secrets, y, strict=True)) % ORDER,
        sum(secrets) * -(2**63) % ORDER,
    ]
    assert [int.from_bytes(bytes(v), "little") for v in found] == expected


def test_random_scalars_are_the_stream_modulo_the_order():
    data = InsecureSeededRandom(7).random_bytes(64 * 5)
    found = GROUP.random_scalars(5, rng=InsecureSeededRandom(7))
    for i, scalar in enumerate(found):
        wide = int.from_bytes(data[64 * i : 64 * i + 64], "little")
        assert int.from_bytes(bytes(scalar), "little") == wide % ORDER


def public_products(multiples, wide, small):
    """The logarithms that solve_products must find, modulo the order and centred."""
    w = len(wide[0])
    answers = [
        [
            sum(int(s) * m for s, m in zip(small[k], row[w:], strict=True))
            - sum(s * m for s, m in zip(wide[k], row[:w], strict=True))
            for k in range(len(small))
        ]
        for row in multiples
    ]
    return [[(a + ORDER // 2) % ORDER - ORDER // 2 for a in row] for row in answers]


@pytest.mark.parametrize(
    ("n", "small_columns", "k", "magnitude"),
    [
        (1, 1, 1, 1),
        (1, 3, 1, 100),
        (3, 2, 5, 127),
        (9, 3, 2, 128),
        (8, 1, 70, 9),
        (11, 4, 3, 30000),
    ],
)
def test_public_products_equal_integers(n, small_columns, k, magnitude):
    """Points and wide scalars are chosen so that the large parts cancel."""
    rng = np.random.default_rng(n + k)
    r = [int.from_bytes(rng.bytes(40), "little") % ORDER for _ in range(n)]
    s = [int.from_bytes(rng.bytes(40), "little") % ORDER for _ in range(small_columns)]
    x = rng.integers(-99, 100, (n, small_columns))
    y = rng.integers(-magnitude, magnitude + 1, (k, small_columns))
    y[0], y[-1] = magnitude, -magnitude
    multiples = [
        [r[i]] + [r[i] * s[j] + int(x[i, j]) for j in range(small_columns)] for i in range(n)
    ]
    wide = [[sum(int(a) * b for a, b in zip(row, s, strict=True)) % ORDER] for row in y]
    assert public_products(multiples, wide, y) == (x @ y.T).tolist()
    points = elements(*(m for row in multiples for m in row)).reshape(n, -1, 32)
    sk = scalars(*(row[0] for row in wide)).reshape(k, 1, 32)
    for threads in (1, 3):
        found = GROUP.solve_products(
            points, sk, y, bound=99 * magnitude * small_columns, threads=threads
        )
        np.testing.assert_array_equal(found, x @ y.T)


def test_differences_equal_integers():
    values, factors = [5, -7, 0, 11, 3, 1, 2, 9, -4], [3, -2, 5, 0, -1, 1, 100, -100, 7]
    points = elements(*values)
    taken = elements(*range(9))
    expected = [f * v - i for i, (f, v) in enumerate(zip(factors, values, strict=True))]
    wide = scalars(*factors)
    for chosen in (np.array(factors), wide):
        found = GROUP.solve_differences(points, chosen, taken, bound=1000)
        assert found.tolist() == expected
