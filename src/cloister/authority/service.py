"""One authority over HTTPS: which role may call what, and messages as calls."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from cloister.authority import functions
from cloister.authority.agreement import Agreement
from cloister.authority.authority import Authority, Issued
from cloister.authority.identity import CERTIFICATE_FILE, PRIVATE_KEY_FILE
from cloister.authority.ledger import BusyError
from cloister.authority.records import read_terms
from cloister.authority.tokens import Caller, identify
from cloister.errors import FunctionError, ProtocolError, ShapeError
from cloister.fe.keyservice import DatasetInfo, Receiver
from cloister.field.linear import Geometry, LinearMap
from cloister.wire.bodies import Body
from cloister.wire.https_server import HttpsServer, Job, Pending

MAX_REQUEST_BYTES = 1 << 28
QUICK_ELEMENTS = 1 << 16
"""Products and elements of a key up to which the event loop may issue it itself."""

Operation = Callable[[Authority, Caller, Body], Job]


def serve(folder: Path, authority: Authority, *, listen: str) -> HttpsServer:
    """Serve in the background until the result is closed.

    Raises   InputError when the address cannot be used
    """

    def handle(operation: str, token: str | None, body: Body) -> Job:
        caller = identify(authority.database, token)
        found = OPERATIONS.get(operation)
        if found is None:
            raise ProtocolError("the authority knows no such operation; is it of another version?")
        roles, function = found
        if caller.role not in roles:
            raise FunctionError(
                f"a token of role {caller.role} may not ask for {operation}; "
                f"use one of role {' or '.join(roles)}"
            )
        caller.check(body.text("dataset"))
        return function(authority, caller, body)

    return HttpsServer(
        listen,
        handle,
        certificate=folder / CERTIFICATE_FILE,
        private_key=folder / PRIVATE_KEY_FILE,
        max_body_bytes=MAX_REQUEST_BYTES,
    )


def _later(work: Callable[[Authority, Body], Body]) -> Operation:
    """An operation that only its rights and its data set need to be known for."""
    return lambda authority, _, body: Job(lambda: work(authority, body))


def _describe(authority: Authority, body: Body) -> Body:
    return Body({"info": authority.describe(body.text("dataset")).to_json().decode()})


def _forward(authority: Authority, caller: Caller, body: Body) -> Job:
    linear, ids = _linear(body), body.array(0, np.int64, 1)
    name, receiver = body.text("dataset"), _receiver(caller, body)
    return _issuing(
        partial(authority.issue_forward, name, ids, linear, receiver=receiver),
        elements=functions.elements(linear.geometry, len(ids)),
    )


def _gradient(authority: Authority, caller: Caller, body: Body) -> Job:
    geometry, ids = _geometry(body), body.array(0, np.int64, 1)
    name, receiver = body.text("dataset"), _receiver(caller, body)
    delta = body.array(1, np.int16, 4)
    return Job(
        lambda: _pending(authority.issue_gradient(name, ids, geometry, delta, receiver=receiver))
    )


def _labels(authority: Authority, caller: Caller, body: Body) -> Job:
    name, receiver = body.text("dataset"), _receiver(caller, body)
    ids = body.array(0, np.int64, 1)
    return _issuing(
        partial(authority.issue_labels, name, ids, receiver=receiver),
        elements=len(ids) * authority.describe(name).classes,
    )


def _issuing(issue: Callable[..., Issued], *, elements: int) -> Job:
    def attempt() -> Pending | None:
        try:
            return _pending(issue(at_once=True))
        except BusyError:
            return None

    return Job(lambda: _pending(issue()), attempt=attempt if elements <= QUICK_ELEMENTS else None)


def _pending(issued: Issued) -> Pending:
    return Pending(Body({}, (issued.term,)), issued.ticket.durable)


def _summary(authority: Authority, body: Body) -> Body:
    return Body({"summary": asdict(authority.summary(body.text("dataset")))})


def _parts(authority: Authority, body: Body) -> Body:
    parts = authority.parts(body.text("dataset"))
    return Body({"parts": {part.part: asdict(part) for part in parts}})


def _find(authority: Authority, body: Body) -> Body:
    known = authority.find(body.text("dataset"))
    if known is None:
        return Body()
    info, terms = known.agreement.info, known.agreement.terms
    key = np.frombuffer(known.label_key, np.uint8)
    return Body({"info": info.to_json().decode(), "terms": asdict(terms)}, (key,))


def _register(authority: Authority, body: Body) -> Body:
    made = None
    if "info" in body.fields:
        info = DatasetInfo.from_json(body.text("info").encode())
        made = Agreement(info, read_terms(body.mapping("terms")))
    first = authority.register_part(
        body.text("dataset"),
        body.text("part"),
        body.number("samples"),
        body.text("sha256"),
        agreement=body.text("agreement"),
        sealed_keys=body.array(0, np.uint8, 1).tobytes(),
        made=made,
    )
    return Body({"first": first})


SERVERS = ("server", "trusted")
EVERYONE = ("server", "trusted", "client")

OPERATIONS: dict[str, tuple[tuple[str, ...], Operation]] = {
    "describe": (EVERYONE, _later(_describe)),
    "summary": (EVERYONE, _later(_summary)),
    "parts": (EVERYONE, _later(_parts)),
    "forward": (SERVERS, _forward),
    "gradient": (SERVERS, _gradient),
    "labels": (SERVERS, _labels),
    # The label permutation is the clients' secret.
    "find": (("client",), _later(_find)),
    "register": (("client",), _later(_register)),
}


def _receiver(caller: Caller, body: Body) -> Receiver:
    wanted = body.text("receiver")
    if wanted not in SERVERS:
        raise ProtocolError("message: field 'receiver' must be server or trusted")
    if wanted == "trusted" and caller.role != "trusted":
        raise FunctionError(
            "a server's token may not ask as the trusted runtime; use a token of role trusted"
        )
    return cast(Receiver, wanted)


def _geometry(body: Body) -> Geometry:
    numbers = body.numbers("geometry")
    if any(abs(number) >= 1 << 31 for number in numbers):
        raise ProtocolError("message: a number of the geometry is out of range")
    return Geometry.from_tuple(numbers)


def _linear(body: Body) -> LinearMap:
    geometry, weights = _geometry(body), body.array(1, np.int16, 4)
    if weights.shape != geometry.weight_shape:
        raise ShapeError(f"weights must be {geometry.weight_shape}, got {weights.shape}")
    return LinearMap(geometry, weights)
