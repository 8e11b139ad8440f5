"""The resources that a server gives to its callers and to strangers: connections, shares, log
lines.

A stranger is a connection on which no valid token was shown yet. Strangers have places of their
own, and a new one takes that of the oldest: half-open connections lock no client out. Callers with
a token take bytes of bodies, memory and threads in shares, of which no single owner gets all.
"""

import asyncio
import contextlib
import ipaddress
import logging
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass
from typing import Protocol

RESERVED_DESCRIPTORS = 64
"""Files, databases and listening sockets of the process."""
LOG_LINES_PER_MINUTE = 20

_log = logging.getLogger("cloister.https")


class BusyError(Exception):
    """There is no room for a request now; asking again later may find some."""


@dataclass(frozen=True)
class ServerLimits:
    """Bounds of a server.

    connections   of callers, at most; `per_caller` of them of one caller
    strangers     connections without a token; `per_peer` of them from one address
    head_s        from the connection to a whole request with a token
    idle_s        between two requests of a caller
    body_s        for a body, besides its bytes at `bytes_per_s`; the same for an answer
    wait_s        for a share of bytes, memory or threads
    body_bytes    of all requests in flight; `memory_bytes` for the work on them
    per_share     of these two no caller gets more than this part
    """

    connections: int = 384
    per_caller: int = 96
    strangers: int = 128
    per_peer: int = 64
    head_s: float = 10.0
    idle_s: float = 300.0
    body_s: float = 30.0
    bytes_per_s: int = 1 << 20
    wait_s: float = 30.0
    body_bytes: int = 1 << 29
    memory_bytes: int = 1 << 31
    per_share: int = 2
    threads: int = 32

    def within(self, descriptors: int) -> "ServerLimits":
        """The same, or fewer connections where the process may open fewer files."""
        room = max(16, descriptors - RESERVED_DESCRIPTORS)
        if self.connections + self.strangers <= room:
            return self
        strangers = max(4, min(self.strangers, room // 4))
        connections = min(self.connections, room - strangers)
        return ServerLimits(
            **vars(self)
            | {
                "connections": connections,
                "per_caller": max(1, min(self.per_caller, connections // 4)),
                "strangers": strangers,
                "per_peer": max(1, min(self.per_peer, strangers // 4)),
            }
        )


def descriptors() -> int:
    """Files that this process may have open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else soft


class Guest(Protocol):
    """A connection, as far as its place is concerned."""

    @property
    def idle(self) -> bool:
        """Whether it is between two requests."""
        ...

    def drop(self) -> None:
        """Close it now; it leaves by `Crowd.left`."""
        ...


class Crowd:
    """All connections of a server, the oldest first."""

    def __init__(self, limits: ServerLimits) -> None:
        self._limits = limits
        self._strangers: dict[Guest, str] = {}
        self._callers: dict[Guest, Hashable] = {}

    def __len__(self) -> int:
        return len(self._strangers) + len(self._callers)

    def arrived(self, guest: Guest, address: str) -> None:
        """A stranger more; the oldest of its peer, or of all, leaves when there are too many."""
        peer = peer_of(address)
        same = [other for other, of in self._strangers.items() if of == peer]
        if len(same) >= self._limits.per_peer:
            self._drop(same[0])
        elif len(self._strangers) >= self._limits.strangers:
            self.shed()
        self._strangers[guest] = peer

    def shed(self) -> bool:
        """Close the oldest stranger's connection; tells whether there was one."""
        oldest = next(iter(self._strangers), None)
        if oldest is not None:
            self._drop(oldest)
        return oldest is not None

    def known(self, guest: Guest, caller: Hashable) -> None:
        """A stranger has shown a token; the oldest idle connection leaves for it.

        Raises   BusyError when none is idle
        """
        if self._callers.get(guest) == caller:
            return
        self._strangers.pop(guest, None)
        self._callers.pop(guest, None)
        own = [other for other, of in self._callers.items() if of == caller]
        many = len(own) >= self._limits.per_caller
        if many or len(self._callers) >= self._limits.connections:
            idle = next((other for other in (own if many else self._callers) if other.idle), None)
            if idle is None:
                raise BusyError
            self._drop(idle)
        self._callers[guest] = caller

    def left(self, guest: Guest) -> None:
        """A connection is closed."""
        self._strangers.pop(guest, None)
        self._callers.pop(guest, None)

    def _drop(self, guest: Guest) -> None:
        self.left(guest)
        guest.drop()


class Shares:
    """A number of something that requests take while they need it, no owner more than a share."""

    def __init__(self, total: int, share: int, *, wait_s: float) -> None:
        self._free, self._share, self._wait_s = total, share, wait_s
        self._held: Counter[Hashable] = Counter()
        self._waiting: list[asyncio.Future[None]] = []

    @contextlib.asynccontextmanager
    async def taken(self, owner: Hashable, amount: int) -> AsyncIterator[None]:
        """Wait until there is as much, and hold it.

        Raises   BusyError when that takes too long
        """
        # What needs more than a share of its own still comes to its turn, alone.
        amount = min(amount, self._share)
        try:
            async with asyncio.timeout(self._wait_s):
                while self._free < amount or self._held[owner] + amount > self._share:
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiting.append(waiter)
                    await waiter
        except TimeoutError:
            raise BusyError from None
        self._free -= amount
        self._held[owner] += amount
        try:
            yield
        finally:
            self._free += amount
            self._held[owner] -= amount
            if not self._held[owner]:
                del self._held[owner]
            waiting, self._waiting = self._waiting, []
            for waiter in waiting:
                if not waiter.done():
                    waiter.set_result(None)


class QuietLog:
    """One line for a fault, and a bounded number of lines, which callers cannot raise."""

    def __init__(self) -> None:
        self._since, self._lines, self._left_out = time.monotonic(), 0, 0

    def line(self, message: str) -> None:
        """Log it, or count it."""
        now = time.monotonic()
        if now - self._since >= 60:
            if self._left_out:
                _log.warning("%d lines were left out", self._left_out)
            self._since, self._lines, self._left_out = now, 0, 0
        if self._lines >= LOG_LINES_PER_MINUTE:
            self._left_out += 1
            return
        self._lines += 1
        _log.warning("%s", message)


def peer_of(address: str) -> str:
    """Who is behind an address: an IPv6 host has a whole /64."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
