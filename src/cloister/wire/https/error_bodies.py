"""Errors of this library as messages: they cross by class; nothing else does."""

from cloister import errors
from cloister.errors import CloisterError, ProtocolError, printable
from cloister.wire.https.bodies import MAX_MESSAGE_CHARS, Body

_ERRORS: dict[str, type[CloisterError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, CloisterError)
}


def error_body(error: CloisterError) -> Body:
    """The message of an error."""
    return Body({"error": type(error).__name__, "message": str(error)[:MAX_MESSAGE_CHARS]})


def error_of(body: Body) -> CloisterError:
    """The error of a message; of a class that is not known: ProtocolError.

    Raises   ProtocolError when it is no such message
    """
    kind = _ERRORS.get(body.text("error"), ProtocolError)
    return kind(printable(body.text("message"), most=MAX_MESSAGE_CHARS))
