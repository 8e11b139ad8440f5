"""A machine that proves itself to callers and then runs their plans, or one bundle, for them.

Each caller's conversation has at most one session, in a process of its own (hosted_session.py).
What a caller sends - a plan, the model with its free sizes, inputs - is parsed in that process
alone. Callers are strangers: their number, the memory of their plans and sessions, and the time of
their calls are bounded, and whoever reads slowly holds up himself.
"""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from cloister.attest.attested_conversation import MOST_AT_ONCE, Operation
from cloister.attest.attested_service import CONNECTIONS, AttestedService
from cloister.attest.attester import Attester
from cloister.attest.channel import AttestedChannel
from cloister.attest.handshake import Prover
from cloister.attest.handshake_messages import Direction
from cloister.attest.runtime_manifest import RuntimeManifest
from cloister.attest.session_table import SessionLimits
from cloister.base.rng import Csprng
from cloister.errors import PlanError, ProtocolError
from cloister.plan.plan import Plan
from cloister.tickets.ticket_meter import TicketMeter
from cloister.trusted.hosted_session import BundleKeys, HostedSession, HostSettings
from cloister.trusted.metered_session import bought_result
from cloister.trusted.packed_result import pack_result, unpack_result
from cloister.trusted.runtime_messages import (
    OPEN,
    PIECE_BYTES,
    PLAN,
    RUN,
    RUN_BYTES,
    TEMPLATE,
    UPLOAD,
)
from cloister.trusted.sealed_memory import MemoryAllowance, SealedMemory, SharedFiles
from cloister.wire.https.bodies import Body

_MORE_THREADS = 16
STOP_S = 5.0
"""How long calls in flight have when the service stops."""
_BODY_BYTES = 1 << 16
"""Of a call without a tensor, and of what stands around one."""


@dataclass(frozen=True)
class RuntimeLimits:
    """Bounds of a service.

    sessions      of all callers; each may take `HostSettings.memory_bytes`
    plan_bytes    of one plan, and of one model with free sizes
    plans_bytes   of all of them together
    idle_s        a session that is not used so long ends
    """

    sessions: int = 8
    plan_bytes: int = 4 << 30
    plans_bytes: int = 8 << 30
    idle_s: float = 900.0


@dataclass(frozen=True)
class ServedBundle:
    """The one bundle that a service runs: its plan, and what opens its hidden end.

    meter   of the ticket that buys its outputs; all callers spend from it
    """

    plan: Plan
    keys: BundleKeys
    meter: TicketMeter | None = None


class RuntimeService:
    """Serves in background threads until `close`; `url` says where."""

    def __init__(
        self,
        listen: str,
        *,
        folder: Path,
        attester: Attester,
        manifest: RuntimeManifest,
        settings: HostSettings,
        limits: RuntimeLimits | None = None,
        bundle: ServedBundle | None = None,
        rng: Csprng,
    ) -> None:
        """Bind and start.

        folder     has the certificate and the key of the transport, which protect nothing
        attester   proves this machine; asked once for each handshake
        bundle     what is run; None: the plans of callers

        Raises   InputError when the address cannot be used, AttestationError without an interface
        """
        self._settings, self._bundle, self._rng = settings, bundle, rng
        self._limits = limits or RuntimeLimits()
        self._allowance = MemoryAllowance(self._limits.plans_bytes)
        self._files = SharedFiles()
        self._callers: dict[AttestedChannel, _Caller] = {}
        self._lock = threading.Lock()
        self._plan = None if bundle is None else self._kept(bundle.plan.to_bytes())
        data = manifest.to_bytes()
        self._service = AttestedService(
            listen,
            folder=folder,
            start=lambda: Prover(attester, data, direction=Direction.CALLEE, rng=rng),
            operations=self._operations,
            closed=self._left,
            limits=SessionLimits(sessions=self._limits.sessions, idle_s=self._limits.idle_s),
            # Runs keep their threads; handshakes and uploads of others have threads besides. Each
            # conversation has a share of the bytes in flight, and strangers have one.
            server_limits=replace(
                CONNECTIONS,
                threads=MOST_AT_ONCE * self._limits.sessions + _MORE_THREADS,
                per_share=self._limits.sessions + 1,
            ),
            max_call_bytes=RUN_BYTES + _BODY_BYTES,
        )
        self.url = self._service.url

    def close(self) -> None:
        """Answer what is in flight and takes STOP_S at most, then end all sessions."""
        late = threading.Timer(STOP_S, self._interrupt)
        late.start()
        self._service.close()
        late.cancel()
        if self._plan is not None:
            self._files.release(self._plan)
            self._plan = None

    def _kept(self, data: bytes) -> SealedMemory:
        file = SealedMemory(len(data), self._allowance)
        file.append(memoryview(data))
        return self._files.shared(file)

    def _operations(self, channel: AttestedChannel) -> Mapping[str, Operation]:
        caller = _Caller(self._settings, self._limits, self._allowance, self._files)
        with self._lock:
            self._callers[channel] = caller
        opened = Operation(_BODY_BYTES, caller.open)
        found = {RUN: Operation(RUN_BYTES + _BODY_BYTES, caller.run)}
        if self._bundle is None or self._plan is None:
            return found | {
                UPLOAD: Operation(PIECE_BYTES + _BODY_BYTES, caller.upload), OPEN: opened,
            }  # fmt: skip
        caller.offer(self._plan, self._bundle, rng=self._rng)
        return found | {OPEN: opened}

    def _interrupt(self) -> None:
        """End the processes of all sessions: a plan may compute as long as a call may take."""
        with self._lock:
            callers = list(self._callers.values())
        for caller in callers:
            caller.interrupt()

    def _left(self, channel: AttestedChannel) -> None:
        with self._lock:
            caller = self._callers.pop(channel, None)
        if caller is not None:
            caller.close()


class _Caller:
    """What one conversation has: the files that it sent, and its session. Not thread-safe."""

    def __init__(
        self,
        settings: HostSettings,
        limits: RuntimeLimits,
        allowance: MemoryAllowance,
        files: SharedFiles,
    ) -> None:
        self._settings, self._limits = settings, limits
        self._allowance, self._all = allowance, files
        self._coming: dict[str, SealedMemory] = {}
        self._files: dict[str, SealedMemory] = {}
        self._keys: BundleKeys | None = None
        self._meter: TicketMeter | None = None
        self._rng: Csprng | None = None
        self._session: HostedSession | None = None

    def offer(self, plan: SealedMemory, bundle: ServedBundle, *, rng: Csprng) -> None:
        """The service's own plan is the only one that can be opened."""
        self._files[PLAN], self._keys = self._all.shared(plan), bundle.keys
        self._meter, self._rng = bundle.meter, rng

    def upload(self, body: Body) -> Body:
        """The next piece of a file; its first one says how long the file is."""
        name, nbytes, piece = body.text("file"), body.number("bytes"), body.array(0, np.uint8, 1)
        if name not in (PLAN, TEMPLATE) or name in self._files:
            raise ProtocolError("upload: takes one plan, and one model with its free sizes")
        if not 0 < nbytes <= self._limits.plan_bytes:
            raise PlanError(
                f"{name}: has {nbytes} B, and the trusted machine takes at most "
                f"{self._limits.plan_bytes}; ask its operator for more (--plan-gib)"
            )
        file = self._coming.get(name)
        if file is None:
            file = self._coming[name] = SealedMemory(nbytes, self._allowance)
        file.append(piece.data)
        if file.complete:
            self._files[name] = self._all.shared(self._coming.pop(name))
        return Body()

    def open(self, body: Body) -> Body:
        """Open the session of the plan with this digest."""
        plan, digest = self._files.get(PLAN), body.text("digest")
        if plan is None or self._coming:
            raise ProtocolError("open: the plan has not come whole")
        if plan.digest.hex() != digest:
            if self._keys is None:
                raise ProtocolError("open: the plan that came has another digest")
            raise PlanError(
                f"the trusted machine runs the plan {plan.digest.hex()[:16]} of its bundle alone, "
                f"not {digest[:16]}; run that bundle"
            )
        if self._session is not None:
            raise ProtocolError("open: a conversation has one session")
        template = self._files.get(TEMPLATE)
        # Here already while it opens: what the service has to interrupt may be that.
        self._session = HostedSession(plan, template, self._settings, bundle=self._keys)
        try:
            self._session.open()
        except BaseException:
            self._session = None
            raise
        key = b"" if self._meter is None else self._meter.receipt_key
        return Body({"receipt_key": key.hex()})

    def run(self, body: Body) -> Body:
        """The packed result of packed inputs, which are not read here.

        Where a ticket buys the outputs, they are spent before any of them is released.
        """
        if self._session is None:
            raise ProtocolError("run: the session is not open")
        if self._meter is not None:
            # What the caller says spares a run that could not be paid for, and decides nothing.
            self._meter.require(body.number("inputs"))
        found = np.frombuffer(self._session.run(body.array(0, np.uint8, 1).data), np.uint8)
        if self._meter is not None and self._rng is not None:
            result = unpack_result(found, appraisal=None)
            found = np.frombuffer(
                pack_result(bought_result(result, self._meter, rng=self._rng)), np.uint8
            )
        return Body({}, (found,))

    def interrupt(self) -> None:
        """End the session's process, from any thread; a call that waits for it fails."""
        session = self._session
        if session is not None:
            session.close()

    def close(self) -> None:
        """End the session and forget the files."""
        if self._session is not None:
            self._session.close()
        for coming in self._coming.values():
            coming.close()
        for file in self._files.values():
            self._all.release(file)
        self._coming, self._files = {}, {}
