import contextlib
import struct
import tracemalloc
from dataclasses import replace

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.base.tensor_limits import DTYPES
from cloister.errors import ProtocolError
from cloister.ring.linear import Geometry, LinearMap
from cloister.wire.codec import MAX_TENSORS, PRELUDE, decode, decode_head, encode
from cloister.wire.messages import (
    MAX_FAILURE_CHARS,
    Answer,
    Apply,
    Failure,
    Hello,
    Loaded,
    LoadLinear,
    LoadSegment,
    MakePads,
    TensorSpec,
    Unchecked,
    Welcome,
)

ids = st.integers(0, 2**64 - 1)
tensors = st.lists(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(
            dtype, hnp.array_shapes(min_dims=0, max_dims=8, min_side=0, max_side=3)
        )
    ),
    max_size=4,
).map(tuple)
texts = st.text(max_size=80)


@st.composite
def linear_maps(draw):
    groups = draw(st.integers(1, 2))
    geometry = Geometry(
        in_size=(draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        in_channels=groups * draw(st.integers(1, 3)),
        out_size=(draw(st.integers(1, 9)), draw(st.integers(1, 9))),
        out_channels=groups * draw(st.integers(1, 3)),
        kernel=(draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        pad=(draw(st.integers(-3, 3)), draw(st.integers(-3, 3))),
        groups=groups,
    )
    return LinearMap(geometry, draw(hnp.arrays(np.int16, geometry.weight_shape)))


@st.composite
def blocks(draw):
    count = draw(st.integers(1, 5))
    targets, offsets = (
        tuple(sorted(draw(st.sets(st.integers(0, most), min_size=count, max_size=count))))
        for most in (2**32 - 1, 2**20)
    )
    return MakePads(
        draw(ids), draw(st.binary(min_size=32, max_size=32)), draw(st.integers(0, 2**63 - 2**16)),
        draw(st.integers(1, 500)), targets, offsets, draw(st.integers(offsets[-1] + 1, 2**20 + 2)),
    )  # fmt: skip


messages = st.one_of(
    st.builds(Hello, st.integers(0, 65535)),
    st.builds(Welcome, st.integers(0, 65535), texts, texts),
    st.builds(LoadLinear, ids, linear_maps()),
    st.builds(LoadSegment, ids, st.binary(max_size=40)),
    st.builds(Loaded, ids),
    st.builds(Apply, ids, ids, tensors),
    st.builds(Answer, ids, tensors),
    st.builds(Failure, ids, texts),
    blocks(),
)


def same(a, b):
    """Equal messages; arrays by their bytes, because NaN differs from itself."""
    if type(a) is not type(b):
        return False
    if isinstance(a, LoadLinear):
        return (
            a.target_id == b.target_id
            and a.linear.geometry == b.linear.geometry
            and ((a.linear.weights == b.linear.weights).all())
        )
    if isinstance(a, LoadSegment):
        return (a.target_id, a.model) == (b.target_id, b.model)
    if isinstance(a, Apply | Answer):
        pairs = list(zip(a.tensors, b.tensors, strict=True))
        return (
            a.request_id == b.request_id
            and getattr(a, "target_id", 0) == getattr(b, "target_id", 0)
            and all(TensorSpec.of(x) == TensorSpec.of(y) for x, y in pairs)
            and all(x.tobytes() == y.tobytes() for x, y in pairs)
        )
    return a == b


@given(messages)
def test_round_trip(message):
    assert same(decode(encode(message).to_bytes()), message)


@given(messages, st.data())
def test_truncated_and_trailing_bytes_are_refused(message, data):
    raw = encode(message).to_bytes()
    with pytest.raises(ProtocolError):
        decode(raw[: data.draw(st.integers(0, len(raw) - 1))])
    with pytest.raises(ProtocolError):
        decode(raw + b"\0")


@given(st.binary(max_size=300))
def test_random_bytes_are_refused(raw):
    with pytest.raises(ProtocolError):
        decode(raw)


@settings(max_examples=400)
@given(messages, st.data())
def test_mutations_are_refused_or_harmless(message, data):
    raw = bytearray(encode(message).to_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(raw))
    except ProtocolError:
        return
    # What is accepted has one encoding (a text may lose what cannot be printed).
    if not isinstance(decoded, Failure | Welcome):
        assert encode(decoded).to_bytes() == bytes(raw)


@given(st.binary(max_size=200), st.integers(0, 8), st.integers(0, 9))
def test_random_bodies_under_a_good_prelude_are_refused_or_decoded(body, kind, count):
    raw = PRELUDE.pack(b"CLOW", 1, kind, count, PRELUDE.size + len(body), 0) + body
    with contextlib.suppress(ProtocolError):
        decode(raw)


def answer_head(shape, nbytes, *, code=0, payload=None, count=1):
    sizes = b"".join(struct.pack("<Q", size) for size in shape)
    body = struct.pack("<Q", 1) + struct.pack("<BBHQ", code, len(shape), 0, nbytes) + sizes
    prelude = PRELUDE.pack(
        b"CLOW", 1, 6, count, PRELUDE.size + len(body), nbytes if payload is None else payload
    )
    return prelude + body


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        (answer_head((2**40, 2**40), 2**32 - 1), "shape"),
        (answer_head((2**62, 2**62, 4), 0), "shape"),
        (answer_head((0, 2**63), 0), "shape"),
        (answer_head((2**31,), 2**33), "payload"),
        (answer_head((5,), 16), "16 B stated"),
        (answer_head((5,), 24), "24 B stated"),
        (answer_head((5,), 20, payload=16), "payload length"),
        (answer_head((5,), 20, code=200), "dtype"),
        (answer_head((1,) * 9, 4), "rank"),
        (answer_head((5,), 20, count=MAX_TENSORS + 1), "tensor count"),
        (b"HTTP/1.1 200 OK plus some more text", "magic"),
        (PRELUDE.pack(b"CLOW", 9, 0, 0, 22, 0) + b"\1\0", "version"),
        (PRELUDE.pack(b"CLOW", 1, 99, 0, 22, 0) + b"\1\0", "kind"),
        (PRELUDE.pack(b"CLOW", 1, 0, 0, 2**31, 0) + b"\1\0", "head length"),
        (PRELUDE.pack(b"CLOW", 1, 0, 0, 30, 0) + b"\1\0", "head length"),
        (PRELUDE.pack(b"CLOW", 1, 7, 0, 40, 0) + bytes(8) + b"\xff\xff", "text"),
        (PRELUDE.pack(b"CLOW", 1, 7, 0, 31, 0) + bytes(8) + b"\1\0\xff", "UTF-8"),
    ],
)  # fmt: skip
def test_errors_name_the_field_and_nothing_large_is_allocated(raw, field):
    tracemalloc.start()
    with pytest.raises(ProtocolError, match=field):
        decode_head(raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


GOOD = MakePads(1, bytes(32), 0, 2, (0, 3), (0, 16), 20)


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"rows": 0}, "0 rows"),
        ({"rows": 2**16 + 1}, "rows"),
        ({"words": 0}, "words"),
        ({"words": 2**29 + 1}, "too large"),
        ({"rows": 2**16, "words": 2**64 - 1}, "too large"),
        ({"first_id": 2**63 - 1}, "rows from pad"),
        ({"targets": (3, 0)}, "targets do not increase"),
        ({"targets": (3, 3)}, "targets do not increase"),
        ({"offsets": (16, 0)}, "offsets do not increase"),
        ({"offsets": (0, 20)}, "beyond 20 words"),
        ({"targets": (), "offsets": ()}, "0 targets"),
        ({"targets": tuple(range(4097)), "offsets": tuple(range(4097))}, "4097 targets"),
    ],
)
def test_a_block_that_no_plan_has_is_refused(changed, field):
    assert decode(encode(GOOD).to_bytes()) == GOOD
    with pytest.raises(ProtocolError, match=field):
        decode(encode(replace(GOOD, **changed)).to_bytes())


@pytest.mark.parametrize("changed", [{"targets": (0, 2**32)}, {"seed": None}, {"offsets": (0,)}])
def test_a_block_that_cannot_be_sent_is_not_encoded(changed):
    with pytest.raises(ProtocolError):
        encode(replace(GOOD, **changed))


def test_a_message_does_not_show_its_seed():
    assert "seed" not in repr(replace(GOOD, seed=b"secret" * 5 + b"xx"))


def test_weights_of_another_shape_than_the_geometry_are_refused():
    geometry = Geometry((2, 2), 1, (2, 2), 1)
    good = encode(LoadLinear(1, LinearMap(geometry, np.ones((1, 1, 1, 1), np.int16)))).to_bytes()
    numbers = Geometry((2, 2), 2, (2, 2), 1).to_bytes()
    start = PRELUDE.size + 8
    with pytest.raises(ProtocolError, match="weights"):
        decode(good[:start] + numbers + good[start + len(numbers) :])
    with pytest.raises(ProtocolError, match="at least 1"):
        decode(good[:start] + bytes(len(numbers)) + good[start + len(numbers) :])


def test_the_payload_limit_holds():
    raw = encode(Answer(1, (np.zeros(100, np.uint8),))).to_bytes()
    assert isinstance(decode(raw, max_payload_bytes=100), Answer)
    with pytest.raises(ProtocolError, match="payload"):
        decode(raw, max_payload_bytes=99)


@pytest.mark.parametrize(
    "message",
    [
        Apply(1, 1, (np.zeros(2, np.complex64),)),
        Apply(1, 1, (np.zeros(2, ">u4"),)),
        Apply(1, 1, (np.zeros(2, object),)),
        Apply(1, 1, (np.zeros((1,) * 9, np.uint8),)),
        Apply(1, 1, (np.zeros(1, np.uint8),) * (MAX_TENSORS + 1)),
        Loaded(-1),
        Loaded(1 << 64),
    ],
)
def test_what_cannot_be_sent_is_not_encoded(message):
    with pytest.raises(ProtocolError):
        encode(message)


def test_a_strided_tensor_is_sent_in_c_order():
    tensor = np.arange(24, dtype=np.int32).reshape(2, 3, 4).transpose(2, 0, 1)
    (decoded,) = decode(encode(Answer(1, (tensor,))).to_bytes()).tensors
    assert (decoded == tensor).all()


def test_failure_text_is_cut_and_stripped_of_control_characters():
    failure = decode(encode(Failure(3, "\x1b[31m" + "x\n" * 2000)).to_bytes())
    assert len(failure.message) == MAX_FAILURE_CHARS
    assert failure.message.isprintable()
    assert isinstance(decode(encode(Failure(3, "\U0001f40d" * 900)).to_bytes()), Failure)


def test_unchecked_shows_nothing_by_accident():
    value = Unchecked(np.array([12345]))
    assert "12345" not in f"{value} {value!r}"
    assert value.expose_unchecked()[0] == 12345
    with pytest.raises(AttributeError):
        _ = value.content
    with pytest.raises(TypeError):
        value + value
