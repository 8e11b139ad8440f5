"""One authority over HTTPS: which role may call what, and messages as calls."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from cloister.authority import functions
from cloister.authority.agreement import Agreement
from cloister.authority.authority import MASKS_AT_ONCE, Authority, Issued
from cloister.authority.key_service import Receiver
from cloister.authority.ledger import BusyError
from cloister.authority.records import read_terms
from cloister.authority.tokens import Caller, identify
from cloister.base.identity import CERTIFICATE_FILE, PRIVATE_KEY_FILE
from cloister.data.info import DatasetInfo
from cloister.errors import FunctionError, ProtocolError, ShapeError
from cloister.ring.bounds import MAX_BODY_BYTES, MAX_IDS_BYTES, check_count, check_size
from cloister.ring.linear import Geometry, LinearMap
from cloister.wire.https.admission import Limits
from cloister.wire.https.bodies import Body
from cloister.wire.https.connection import Job, Pending, Principal, Route
from cloister.wire.https.server import HttpsServer

QUICK_ELEMENTS = 1 << 16
"""Products and elements of a key up to which the event loop may issue it itself."""
COPIES = 2
"""An array of a key is there once as it is made, and once more as it is sent."""
NAME_BYTES = 1 << 12
"""Of a request that names a data set and no more."""
REGISTER_BYTES = 1 << 20
"""Of a part's sealed keys, and of a data set's terms: a character of notes takes up to 12 B."""

Operation = Callable[[Authority, Caller, Body], Job]


def serve(
    folder: Path, authority: Authority, *, listen: str, limits: Limits | None = None
) -> HttpsServer:
    """Serve in the background until the result is closed.

    Raises   InputError when the address cannot be used
    """

    def admit(token: str | None) -> Principal:
        caller = identify(authority.database, token)
        return Principal(caller.token_id, partial(_route, authority, caller))

    return HttpsServer(
        listen,
        admit,
        certificate=folder / CERTIFICATE_FILE,
        private_key=folder / PRIVATE_KEY_FILE,
        limits=limits,
    )


def _route(authority: Authority, caller: Caller, operation: str) -> Route:
    found = OPERATIONS.get(operation)
    if found is None:
        raise ProtocolError("the authority knows no such operation; is it of another version?")
    roles, max_bytes, function = found
    if caller.role not in roles:
        raise FunctionError(
            f"a token of role {caller.role} may not ask for {operation}; "
            f"use one of role {' or '.join(roles)}"
        )

    def handle(body: Body) -> Job:
        name = body.text("dataset")
        caller.check(name)
        # Requests for one data set wait for each other: they are a lane.
        return replace(function(authority, caller, body), lane=name)

    return Route(max_bytes, handle)


def _later(work: Callable[[Authority, Body], Body]) -> Operation:
    """An operation that only its rights and its data set need to be known for."""
    return lambda authority, _, body: Job(lambda: work(authority, body))


def _describe(authority: Authority, body: Body) -> Body:
    return Body({"info": authority.describe(body.text("dataset")).to_json().decode()})


def _forward(authority: Authority, caller: Caller, body: Body) -> Job:
    linear, ids = _linear(body), body.array(0, np.int64, 1)
    name, receiver = body.text("dataset"), _receiver(caller, body)
    check_size(authority.describe(name), linear.geometry, len(ids))
    answer = len(ids) * linear.geometry.out_elements
    return _issuing(
        partial(authority.issue_forward, name, ids, linear, receiver=receiver),
        elements=functions.elements(linear.geometry, len(ids)),
        nbytes=COPIES * (4 * answer + linear.weights.nbytes) + 4 * MASKS_AT_ONCE,
    )


def _gradient(authority: Authority, caller: Caller, body: Body) -> Job:
    geometry, ids = Geometry.from_fields(body.mapping("geometry")), body.array(0, np.int64, 1)
    name, receiver = body.text("dataset"), _receiver(caller, body)
    delta = body.array(1, np.int16, 4)
    check_size(authority.describe(name), geometry, len(ids))
    answer = math.prod(geometry.weight_shape)
    return Job(
        lambda: _pending(authority.issue_gradient(name, ids, geometry, delta, receiver=receiver)),
        nbytes=COPIES * (4 * answer + delta.nbytes) + 4 * MASKS_AT_ONCE,
    )


def _labels(authority: Authority, caller: Caller, body: Body) -> Job:
    name, receiver = body.text("dataset"), _receiver(caller, body)
    ids = body.array(0, np.int64, 1)
    described = authority.describe(name)
    check_count(described, len(ids))
    elements = len(ids) * described.classes
    return _issuing(
        partial(authority.issue_labels, name, ids, receiver=receiver),
        elements=elements,
        nbytes=COPIES * 4 * elements,
    )


def _issuing(issue: Callable[..., Issued], *, elements: int, nbytes: int) -> Job:
    def attempt() -> Pending | None:
        try:
            return _pending(issue(at_once=True))
        except BusyError:
            return None

    quick = elements <= QUICK_ELEMENTS
    return Job(lambda: _pending(issue()), attempt=attempt if quick else None, nbytes=nbytes)


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

OPERATIONS: dict[str, tuple[tuple[str, ...], int, Operation]] = {
    "describe": (EVERYONE, NAME_BYTES, _later(_describe)),
    "summary": (EVERYONE, NAME_BYTES, _later(_summary)),
    "parts": (EVERYONE, NAME_BYTES, _later(_parts)),
    "forward": (SERVERS, MAX_BODY_BYTES, _forward),
    "gradient": (SERVERS, MAX_BODY_BYTES, _gradient),
    "labels": (SERVERS, MAX_IDS_BYTES, _labels),
    # The label permutation is the clients' secret.
    "find": (("client",), NAME_BYTES, _later(_find)),
    "register": (("client",), REGISTER_BYTES, _later(_register)),
}
"""Who may ask for it, with how large a body, and what is done."""


def _receiver(caller: Caller, body: Body) -> Receiver:
    wanted = body.text("receiver")
    if wanted not in SERVERS:
        raise ProtocolError("message: field 'receiver' must be server or trusted")
    if wanted == "trusted" and caller.role != "trusted":
        raise FunctionError(
            "a server's token may not ask as the trusted runtime; use a token of role trusted"
        )
    return cast(Receiver, wanted)


def _linear(body: Body) -> LinearMap:
    geometry, weights = Geometry.from_fields(body.mapping("geometry")), body.array(1, np.int16, 4)
    if weights.shape != geometry.weight_shape:
        raise ShapeError(f"weights must be {geometry.weight_shape}, got {weights.shape}")
    return LinearMap(geometry, weights)
