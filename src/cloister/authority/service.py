"""One authority over HTTPS: which role may call what, and messages as calls."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from cloister.authority import functions
from cloister.authority.authority import Authority
from cloister.authority.key_service import Receiver
from cloister.authority.ledger import NotAtOnceError
from cloister.authority.registration import Registration
from cloister.authority.requests import Kind, read_request
from cloister.authority.tokens import Caller, identify
from cloister.authority.unblinding import PADS_AT_ONCE
from cloister.base.identity import CERTIFICATE_FILE, PRIVATE_KEY_FILE
from cloister.data.id_spans import IdSpans
from cloister.errors import FunctionError, ProtocolError
from cloister.ring.bounds import MAX_BODY_BYTES, MAX_IDS_BYTES, MAX_SPANS_BYTES
from cloister.wire.https.admission import ServerLimits
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
    folder: Path, authority: Authority, *, listen: str, limits: ServerLimits | None = None
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
            f"a token of role {caller.role} may not ask for {_IN_WORDS.get(operation, operation)}; "
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


def _key(kind: Kind) -> Operation:
    """An operation that is a request for an unblinding term."""

    def ask(authority: Authority, caller: Caller, body: Body) -> Job:
        request, receiver = read_request(kind, body), _receiver(caller, body)
        info, samples = authority.describe(request.dataset), len(request.ids)
        request.check(info)
        answer = math.prod(info.classes if size is None else size for size in request.answer_shape)
        work = pads = answer + request.operand.size
        if request.geometry is not None:
            work, pads = functions.elements(request.geometry, samples), PADS_AT_ONCE

        def issue(*, at_once: bool = False) -> Pending:
            issued = authority.issue(request, receiver, at_once=at_once)
            return Pending(Body({}, (issued.term,)), issued.commit.durable)

        def attempt() -> Pending | None:
            try:
                return issue(at_once=True)
            except NotAtOnceError:
                return None

        # A gradient has a function of each sample, each with a price to be worked out.
        quick = kind != "gradient" and work <= QUICK_ELEMENTS
        nbytes = COPIES * (4 * answer + request.operand.nbytes) + 4 * pads
        return Job(issue, attempt=attempt if quick else None, nbytes=nbytes)

    return ask


def _summary(authority: Authority, body: Body) -> Body:
    return Body({"summary": asdict(authority.summary(body.text("dataset")))})


def _parts(authority: Authority, body: Body) -> Body:
    parts = authority.parts(body.text("dataset"))
    return Body({"parts": {part.part: asdict(part) for part in parts}})


def _answer_key(authority: Authority, body: Body) -> Body:
    return Body({}, (np.frombuffer(authority.answer_key(body.text("dataset")), np.uint8),))


def _find(authority: Authority, body: Body) -> Body:
    known = authority.find(body.text("dataset"))
    if known is None:
        return Body()
    info, terms = known.agreement.info, known.agreement.terms
    key = np.frombuffer(known.label_key, np.uint8)
    return Body({"info": info.to_json().decode(), "terms": asdict(terms)}, (key,))


def _withdrawn(authority: Authority, body: Body) -> Body:
    return Body({}, (authority.withdrawn(body.text("dataset")).bounds,))


def _register(authority: Authority, caller: Caller, body: Body) -> Job:
    offered = Registration.read(body)
    return Job(lambda: Body({"first": authority.register(offered, token_id=caller.token_id)}))


def _withdraw(authority: Authority, caller: Caller, body: Body) -> Job:
    dataset, ids = body.text("dataset"), IdSpans(body.array(0, np.int64, 1))
    return Job(lambda: Body({"fresh": authority.withdraw(dataset, ids, token_id=caller.token_id)}))


SERVERS = ("server", "trusted")
EVERYONE = ("server", "trusted", "client")

OPERATIONS: dict[str, tuple[tuple[str, ...], int, Operation]] = {
    "describe": (EVERYONE, NAME_BYTES, _later(_describe)),
    "summary": (EVERYONE, NAME_BYTES, _later(_summary)),
    "parts": (EVERYONE, NAME_BYTES, _later(_parts)),
    "answer_key": (EVERYONE, NAME_BYTES, _later(_answer_key)),
    "withdrawn": (EVERYONE, NAME_BYTES, _later(_withdrawn)),
    "forward": (SERVERS, MAX_BODY_BYTES, _key("forward")),
    "gradient": (SERVERS, MAX_BODY_BYTES, _key("gradient")),
    "labels": (SERVERS, MAX_IDS_BYTES, _key("labels")),
    "evaluation": (SERVERS, MAX_BODY_BYTES, _key("evaluation")),
    # The label permutation is the clients' secret.
    "find": (("client",), NAME_BYTES, _later(_find)),
    "register": (("client",), REGISTER_BYTES, _register),
    "withdraw": (("client",), MAX_SPANS_BYTES, _withdraw),
}
"""Who may ask for it, with how large a body, and what is done."""
_IN_WORDS = {"find": "a data set's names and ranges", "register": "new samples"}
"""Operations whose names say little to the holder of a token."""


def _receiver(caller: Caller, body: Body) -> Receiver:
    wanted = body.text("receiver")
    if wanted not in SERVERS:
        raise ProtocolError("message: field 'receiver' must be server or trusted")
    if wanted == "trusted" and caller.role != "trusted":
        raise FunctionError(
            "a server's token may not ask as the trusted runtime; use a token of role trusted"
        )
    return cast(Receiver, wanted)
