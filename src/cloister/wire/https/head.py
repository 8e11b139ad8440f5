"""The head of an HTTP/1.1 request, in the one form that this library's clients send.

Heads come from strangers: a method, a path, fields that are each there once. There are no
continuation lines, no transfer encodings, no other versions.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.errors import ProtocolError
from cloister.wire.https.bodies import CONTENT_TYPE, PREFIX

MAX_HEAD_BYTES = 1 << 14
END = b"\r\n\r\n"
_REQUEST = re.compile(rb"([A-Z]{1,16}) (/[!-~]{0,255}) HTTP/1\.1")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")
_LENGTH = re.compile(r"[0-9]{1,20}")


@dataclass(frozen=True)
class RequestHead:
    """The head of a request; nothing of it is trusted."""

    method: str
    path: str
    fields: Mapping[str, str]

    @property
    def token(self) -> str | None:
        """The bearer token."""
        scheme, _, token = self.fields.get("authorization", "").partition(" ")
        return token if scheme == "Bearer" and token else None

    @property
    def closes(self) -> bool:
        """Whether the client wants no second request on this connection."""
        return self.fields.get("connection", "").lower() == "close"

    def operation(self) -> str:
        """The operation that is asked for.

        Raises   ProtocolError
        """
        if self.method != "POST" or not self.path.startswith(PREFIX):
            raise ProtocolError("only POST requests to /v1/ are answered")
        if self.fields.get("content-type") != CONTENT_TYPE:
            raise ProtocolError(f"the content type must be {CONTENT_TYPE}")
        return self.path[len(PREFIX) :]

    def length(self, most: int) -> int:
        """Bytes of the body that follows.

        Raises   ProtocolError when it is not stated, or more than `most`
        """
        stated = self.fields.get("content-length", "")
        coded = "transfer-encoding" in self.fields
        if coded or not _LENGTH.fullmatch(stated) or int(stated) > most:
            raise ProtocolError(f"a length of the body up to {most} B must be stated")
        return int(stated)


def parse_head(data: bytes) -> RequestHead:
    """The head that ends with an empty line.

    Raises   ProtocolError
    """
    first, *lines = data.removesuffix(END).split(b"\r\n")
    request = _REQUEST.fullmatch(first)
    if request is None or not data.endswith(END):
        raise ProtocolError("only HTTP/1.1 requests are answered")
    fields: dict[str, str] = {}
    for line in lines:
        field = _FIELD.fullmatch(line)
        if field is None:
            raise ProtocolError("a field of the request's head is malformed")
        name = field[1].decode("ascii").lower()
        if name in fields:
            raise ProtocolError(f"field {name} of the request's head is there twice")
        fields[name] = field[2].decode("latin-1").rstrip(" \t")
    return RequestHead(request[1].decode("ascii"), request[2].decode("ascii"), fields)
