"""Calls inside an attested conversation: an operation and its answer, as sealed bodies.

Fields of the caller are a value of their own, so that none of them can pass for an operation's name
or an error.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cloister.errors import CloisterError
from cloister.wire.https.bodies import Body, decode, encode
from cloister.wire.https.error_bodies import error_body, error_of

CHALLENGE, PROVE, CHECK = "reattest-challenge", "reattest-prove", "reattest-check"
"""Operations of every conversation: fresh evidence."""


def encode_call(operation: str, fields: Mapping[str, Any], tensors: Sequence[np.ndarray]) -> bytes:
    """The plaintext of a call."""
    return encode(Body({"operation": operation, "fields": dict(fields)}, tuple(tensors)))


def decode_call(data: bytes) -> tuple[str, Body]:
    """Operation and body of a call.

    Raises   ProtocolError
    """
    found = decode(data)
    return found.text("operation"), Body(found.mapping("fields"), found.tensors)


def encode_answer(body: Body, *, due: bool) -> bytes:
    """The plaintext of an answer; `due`: fresh evidence is asked for before the next call."""
    return encode(Body({"fields": dict(body.fields), "due": due}, body.tensors))


def encode_error(error: CloisterError, *, due: bool) -> bytes:
    """The plaintext of an answer that is an error."""
    return encode(Body({**error_body(error).fields, "due": due}))


def decode_answer(data: bytes) -> tuple[Body | CloisterError, bool]:
    """The answer, or the error that the other side raised; and whether fresh evidence is due.

    Raises   ProtocolError
    """
    found = decode(data)
    due = found.fields.get("due") is True
    if "error" in found.fields:
        return error_of(found), due
    return Body(found.mapping("fields"), found.tensors), due


def as_tensor(data: bytes | bytearray) -> np.ndarray:
    """Bytes as a body's tensor."""
    return np.frombuffer(data, np.uint8)
