"""The caller's end of a session whose trusted side is another machine, which proves itself first.

Nothing leaves but an offer of keys before the machine's evidence was appraised: not the plan, not a
size of it, no input. Then plan and inputs go over the attested channel, and results come back.
"""

import sys
import time
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from cloister.attest.appraisal import Appraisal
from cloister.attest.appraiser import Appraiser
from cloister.attest.attested_client import AttestedClient
from cloister.attest.handshake import Verifier
from cloister.attest.handshake_messages import Direction
from cloister.attest.policy import Policy
from cloister.attest.record_padding import Padding
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.base.reading import parsing
from cloister.base.rng import Csprng
from cloister.errors import InputError, PlanError, ProtocolError, TicketError
from cloister.graph import graph_file
from cloister.graph.batch import batch_axis, part, sample_count
from cloister.graph.graph import Graph
from cloister.plan.claims import Claims
from cloister.plan.plan import Plan
from cloister.plan.runtime_claims import with_runtime
from cloister.tickets.output_release import commitment
from cloister.tickets.receipt import Receipt
from cloister.trusted.metered_session import MeteredResult
from cloister.trusted.packed_result import unpack_result
from cloister.trusted.packed_values import pack
from cloister.trusted.report import Result
from cloister.trusted.runtime_messages import (
    ANSWER_S,
    OPEN,
    PIECE_BYTES,
    PLAN,
    RUN,
    RUN_BYTES,
    TEMPLATE,
    UPLOAD,
)

_GROUP = 64
"""Items of an iterator that are read together; they go out in several calls."""
RETRY_FOR_S = 5.0
FIRST_CALL = 8
"""Inputs of the first call of a request; the next ones double while they are quick."""
QUICK_S = 0.5
CALL_BYTES = 16 << 20
"""Of the inputs of a call, unless one alone has more."""
REATTEST_S = 600.0
_OPERATOR = "is decided by the operator of the trusted machine; leave it out"
_REFUSED: Mapping[str, str] = {
    "workers": _OPERATOR, "lanes": _OPERATOR, "threads": _OPERATOR, "worker_threads": _OPERATOR,
    "batch": _OPERATOR, "timeout_s": _OPERATOR, "engine": _OPERATOR, "counter": _OPERATOR,
    "padding": _OPERATOR,
    "pads": "the trusted machine makes its pads itself; leave it out",
    "makers": "the trusted machine makes its pads itself; leave it out",
    "insecure_one_party": "is about makers of pads; leave it out",
    "insecure_plaintext": "is about makers of pads; leave it out",
    "record_payloads": "messages to workers stay on the trusted machine, and the transcript has "
    "their sizes; leave it out",
    "modules": "the trusted machine has the modules of the bundle that it serves; leave it out",
}  # fmt: skip
"""Arguments of a session that mean nothing where it runs on another machine, and why."""


class RemoteSession:
    """A plan that an appraised machine runs.

    appraisal   of the machine, renewed every REATTEST_S
    manifest    with what the machine's runtime was started
    """

    def __init__(self, plan: Plan, url: str, appraiser: Appraiser, *, rng: Csprng) -> None:
        """Appraise the machine, then send it the plan.

        Raises   AttestationError, ServiceUnavailable, PlanError; and what the machine raises
        """

        def start() -> Verifier:
            return Verifier(appraiser, direction=Direction.CALLEE, padding=Padding.PADME, rng=rng)

        self._client = AttestedClient(
            url, start=start, reattest_s=REATTEST_S, timeout_s=ANSWER_S, retry_for_s=RETRY_FOR_S
        )
        try:
            self.manifest = RuntimeManifest.from_bytes(self._client.channel.manifest)
            self._policy = plan.policy
            self._receipt_key = self._open(plan, url)
        except BaseException:
            self._client.close()
            raise

    @property
    def group(self) -> int:
        """How many items of an iterator are read together."""
        return sys.maxsize if self._whole else _GROUP

    @property
    def appraisal(self) -> Appraisal:
        """The latest appraisal of the machine."""
        return self._client.appraisal

    def run(
        self,
        graph: Graph,
        feeds: Mapping[str, np.ndarray],
        progress: Callable[[int, int], None] | None,
    ) -> list[Result]:
        """The results of a request's inputs, call by call.

        graph   says how a batch is cut

        Raises   what the machine raises, by class; ServiceUnavailable
        """
        total, done = sample_count(graph, feeds), 0
        whole = self._whole or graph.batch is not None or not graph.separable
        most = total if whole else _most(graph, feeds, total)
        size, results = most if whole else min(FIRST_CALL, most), list[Result]()
        while not results or done < total:
            size = min(size, total - done)
            some, began = _cut(graph, feeds, done, size, total), time.monotonic()
            try:
                results.append(self._call(graph, some, size))
            except InputError as error:
                if size == total:
                    raise
                raise type(error)(f"inputs {done} to {done + size - 1}: {error}") from None
            done += size
            if progress is not None and size:
                progress(done, total)
            if time.monotonic() - began < QUICK_S:
                size = min(2 * size, most)
        return results

    def claims(self, claims: Claims) -> Claims:
        """The claims of the plan, with what the operator of the machine learns."""
        return with_runtime(
            claims,
            platform=self.appraisal.evidence.format.value,
            hardware_rooted=self.appraisal.hardware_rooted,
        )

    def close(self) -> None:
        """End the session; the machine forgets the plan."""
        self._client.close()

    def _open(self, plan: Plan, url: str) -> Ed25519PublicKey | None:
        """Open the plan; gives the key that verifies receipts, if a ticket buys the outputs."""
        # What is counted or paid for is asked for at once, or refused at once.
        self._whole = any(module.queries is not None for module in plan.modules)
        if plan.modules and not self.manifest.bundle:
            raise PlanError(
                f"{url}: the plan has a hidden part, and this machine serves no bundle that has "
                "its module; its operator starts it with --bundle"
            )
        if self.manifest.bundle:
            if not plan.modules:
                raise PlanError(
                    f"{url}: this machine runs bundle {self.manifest.bundle} alone; run that one, "
                    "or ask its operator for a machine without --bundle"
                )
        else:
            self._send(PLAN, plan.to_bytes())
            if plan.template is not None:
                self._send(TEMPLATE, graph_file.to_bytes(plan.template))
        key = self._client.call(OPEN, {"digest": plan.digest.hex()}).text("receipt_key")
        if bool(key) != bool(self.manifest.license):
            raise ProtocolError(f"{url}: its manifest and its receipts contradict each other")
        if not key:
            return None
        self._whole = True
        with parsing(f"{url}: its key of receipts is none", kind=ProtocolError):
            return Ed25519PublicKey.from_public_bytes(bytes.fromhex(key))

    def _send(self, what: str, data: bytes) -> None:
        whole = np.frombuffer(data, np.uint8)
        for start in range(0, len(whole), PIECE_BYTES):
            fields = {"file": what, "bytes": len(whole)}
            self._client.call(UPLOAD, fields, (whole[start : start + PIECE_BYTES],))

    def _call(self, graph: Graph, feeds: Mapping[str, np.ndarray], count: int) -> Result:
        data = np.frombuffer(pack(feeds), np.uint8)
        if len(data) > RUN_BYTES:
            raise InputError(
                f"inputs: {len(data)} B have to be sent together, of {RUN_BYTES} at most; give "
                "smaller inputs, or fewer"
            )
        answer = self._client.call(RUN, {"inputs": count}, (data,))
        result = unpack_result(answer.array(0, np.uint8, 1), appraisal=self.appraisal)
        self._require_own(graph, result, count)
        if self._receipt_key is not None:
            self._require_receipt(result, self._receipt_key)
        return result

    def _require_own(self, graph: Graph, result: Result, count: int) -> None:
        """Refuse a result that is not one of this plan and of so many inputs.

        What the machine computed is believed; which input an output belongs to is not left to it.

        Raises   ProtocolError
        """
        report = result.report
        own = (report.policy, report.inputs, sorted(result.outputs))
        wanted = (self._policy, count, sorted(graph.outputs))
        beyond = any(one >= count for one in report.inputs_beyond)
        for name in () if isinstance(result, MeteredResult) else graph.outputs:
            value, axis = result.outputs.get(name), batch_axis(graph, name)
            if isinstance(value, np.ndarray) and axis is not None:
                beyond |= value.ndim <= axis or value.shape[axis] != count
        if own != wanted or beyond:
            raise ProtocolError("the trusted machine sent a result of another plan or other inputs")

    def _require_receipt(self, result: Result, key: Ed25519PublicKey) -> None:
        """Refuse outputs of a ticket without the receipt of these very outputs.

        Raises   TicketError
        """
        if not isinstance(result, MeteredResult):
            raise TicketError("the trusted machine sent outputs without a receipt")
        receipt = Receipt.verify(result.receipt.data, signer=key)
        own = (receipt.license, receipt.bundle_id.hex(), receipt.count, receipt.commitment)
        wanted = (
            self.manifest.license, self.manifest.bundle, result.report.inputs,
            commitment(result.outputs, result.opening),
        )  # fmt: skip
        if own != wanted:
            raise TicketError("the trusted machine sent a receipt that is not of these outputs")


def connected(
    plan: Plan,
    url: str | None,
    appraisal: Appraiser | Policy | str | PathLike[str] | None,
    given: Mapping[str, tuple[Any, Any]],
    *,
    rng: Csprng,
) -> RemoteSession:
    """The session of `Session(plan, trusted=url, appraisal=policy)`.

    given   its other arguments, each with its default

    Raises   PlanError for arguments that do not go together, and see `RemoteSession`
    """
    if url is None:
        raise PlanError("appraisal= is of another machine; give trusted=, its https://HOST:PORT")
    if isinstance(appraisal, str | PathLike):
        appraisal = Policy.load(Path(appraisal))
    if isinstance(appraisal, Policy):
        appraisal = Appraiser(appraisal)
    if not isinstance(appraisal, Appraiser):
        raise PlanError(
            "trusted= needs appraisal=, what that machine has to prove: a policy's file, a Policy, "
            "or an Appraiser with collateral"
        )
    for name, (value, default) in given.items():
        if value is not default and value != default:
            raise PlanError(f"{name}= with trusted=: {_REFUSED[name]}")
    return RemoteSession(plan, url, appraisal, rng=rng)


def _cut(
    graph: Graph, feeds: Mapping[str, np.ndarray], start: int, size: int, total: int
) -> Mapping[str, np.ndarray]:
    """Some of the inputs of a request."""
    if size == total:
        return feeds
    axes = {name: batch_axis(graph, name) for name in feeds}
    return {
        name: array if (axis := axes[name]) is None else part(array, axis, start, start + size)
        for name, array in feeds.items()
    }


def _most(graph: Graph, feeds: Mapping[str, np.ndarray], total: int) -> int:
    """How many inputs one call may have."""
    cut = [feeds[name] for name in feeds if batch_axis(graph, name) is not None]
    nbytes = sum(array.nbytes for array in cut if isinstance(array, np.ndarray))
    return max(1, CALL_BYTES * max(total, 1) // max(1, nbytes))
