"""The process of a client's session: `python -m cloister.trusted.session_process`.

arguments   descriptors: a socket, the plan, the model with free sizes or NO_FILE

It opens the session, then answers packed inputs with packed results until the socket is closed.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cloister.bundle.bundle_keys import BundleKey
from cloister.bundle.sealed_bundle import SealedBundle
from cloister.errors import BundleError, InputError
from cloister.graph import graph_file
from cloister.plan.plan import Plan
from cloister.trusted.clips import OnClip
from cloister.trusted.engines.sandbox import hide_memory
from cloister.trusted.hosted_session import (
    DONE,
    NO_FILE,
    REFUSED,
    BundleKeys,
    HostSettings,
    refusal,
)
from cloister.trusted.packed_result import pack_result
from cloister.trusted.packed_values import unpack
from cloister.trusted.query_counter import QueryCounter
from cloister.trusted.runtime_messages import RESULT_BYTES
from cloister.trusted.sealed_memory import mapped
from cloister.trusted.session import Session
from cloister.wire.process_end import end_with


def main(arguments: Sequence[str]) -> int:
    """Serve one session until its other end is closed."""
    control, plan, template = map(int, arguments)
    hide_memory()  # the processes of other clients belong to the same user
    end_with([control])
    with Connection(control) as channel:
        try:
            session = _opened(channel, plan, template)
        except Exception as error:  # noqa: BLE001  (of libraries, on a plan that a client chose)
            _answer(channel, REFUSED, refusal(error))
            return 0
        _answer(channel, DONE, b"")
        while True:
            try:
                asked = channel.recv_bytes()
            except EOFError:
                return 0
            try:
                answer = _bounded(pack_result(session.run(unpack(asked))))
            except Exception as error:  # noqa: BLE001  (as above)
                _answer(channel, REFUSED, refusal(error))
            else:
                _answer(channel, DONE, answer)
            del asked


def _bounded(result: bytes) -> bytes:
    if len(result) > RESULT_BYTES:
        raise InputError(
            f"the result has {len(result)} B, of {RESULT_BYTES} that the trusted machine gives at "
            "once; run fewer inputs at a time"
        )
    return result


def _answer(channel: Connection, status: bytes, answer: bytes) -> None:
    channel.send_bytes(status)
    channel.send_bytes(answer)


def _opened(channel: Connection, plan: int, template: int) -> Session:
    told = unpack(channel.recv_bytes())
    settings = HostSettings(**{**told["settings"], "workers": tuple(told["settings"]["workers"])})
    made = Plan.from_bytes(mapped(plan))
    if template != NO_FILE:
        made = replace(made, template=graph_file.from_bytes(mapped(template)))
    session = Session(
        made,
        workers=list(settings.workers) or None,
        threads=settings.threads,
        worker_threads=settings.worker_threads,
        batch=settings.batch,
        lanes=settings.lanes,
        timeout_s=settings.timeout_s,
        on_clip=OnClip.IGNORE,  # the client judges the counts of its whole request
        **_hidden_end(made, told["bundle"]),
    )
    return session.__enter__()


def _hidden_end(plan: Plan, told: dict[str, Any] | None) -> dict[str, Any]:
    """The arguments of a session whose end is hidden: the module of a bundle, opened here."""
    if told is None:
        return {}
    counter = told.pop("counter")
    secrets = {name: told.pop(name).tobytes() for name in ("bundle_id", "key", "vendor")}
    keys = BundleKeys(Path(told.pop("path")), **secrets, **told)
    key = BundleKey(keys.bundle_id, keys.key)
    vendor = Ed25519PublicKey.from_public_bytes(keys.vendor)
    found, module = SealedBundle.open(keys.path, key, vendor=vendor)
    if found.digest != plan.digest:
        raise BundleError(f"{keys.path}: holds another plan than when the service started")
    return {
        "modules": {plan.modules[0].node: module},
        "engine": keys.engine,
        "counter": None if counter is None else QueryCounter.open(Path(counter)),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
