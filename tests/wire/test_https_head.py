import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import ProtocolError
from cloister.wire.https.bodies import CONTENT_TYPE
from cloister.wire.https.head import parse_head

GOOD = (
    b"POST /v1/forward HTTP/1.1\r\nHost: a:1\r\nContent-Type: application/octet-stream\r\n"
    b"Authorization: Bearer clo_x\r\nContent-Length: 12 \r\n\r\n"
)


def test_a_head_says_who_asks_for_what():
    head = parse_head(GOOD)
    assert (head.operation(), head.token, head.length(12)) == ("forward", "clo_x", 12)
    assert head.fields["content-type"] == CONTENT_TYPE
    assert not head.closes
    assert parse_head(GOOD.replace(b"Host: a:1", b"Connection: close")).closes
    with pytest.raises(ProtocolError, match="up to 11 B"):
        head.length(11)


@pytest.mark.parametrize(
    "change",
    [
        (b"POST", b"post"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"HTTP/1.1", b"HTTP/1.1 "),
        (b"/v1/forward", b"/" + b"a" * 300),
        (b"/v1/forward", b"https://a/v1/forward"),
        (b"Host: a:1", b"Host : a:1"),
        (b"Host: a:1", b"Host: a\x00"),
        (b"Host: a:1", b"Host: a\r\n folded"),
        (b"Host: a:1", b"Host: a\nX: b"),
        (b"Host: a:1", b"Content-Length: 13"),
        (b"Host: a:1", b"content-length: 12"),
        (b"Host: a:1", b": a"),
    ],
)
def test_other_heads_are_refused(change):
    assert change[0] in GOOD
    with pytest.raises(ProtocolError):
        parse_head(GOOD.replace(*change))


@pytest.mark.parametrize("length", ["", "-1", "+5", "5 5", "0x5", "1" * 21, "٣"])
def test_a_length_has_one_form(length):
    head = parse_head(GOOD.replace(b"12 ", length.encode("utf-8")))
    with pytest.raises(ProtocolError, match="length of the body"):
        head.length(1 << 40)


def test_a_coded_body_has_no_length():
    head = parse_head(GOOD.replace(b"Host: a:1", b"Transfer-Encoding: chunked"))
    with pytest.raises(ProtocolError, match="length of the body"):
        head.length(100)


@given(st.binary(max_size=200) | st.binary(max_size=60).map(lambda part: GOOD[:40] + part))
def test_whatever_strangers_send_is_a_head_or_refused(data):
    try:
        head = parse_head(data + b"\r\n\r\n")
        head.operation()
        assert head.length(100) <= 100
    except ProtocolError:
        pass
