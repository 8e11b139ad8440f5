"""A monotonic counter that the vendor's broker keeps, for one meter of one licence."""

from pathlib import Path

from cloister.base import files
from cloister.base.rng import Csprng
from cloister.broker.broker import ADVANCE_BYTES, METER_BYTES
from cloister.broker.broker_client import BrokerClient
from cloister.bundle.bundle_header import DIGEST_BYTES
from cloister.errors import InputError
from cloister.tickets.ticket import CounterKind, Ticket

ID_FILE = "meter.id"
"""Of a meter's folder: the meter's id and the digest of its ticket, in hexadecimal digits."""
_ID_FILE_BYTES = METER_BYTES + DIGEST_BYTES


class LeaseCounter:
    """See MonotonicCounter. Nothing can be released while the broker cannot be reached."""

    kind = CounterKind.LEASE

    def __init__(self, client: BrokerClient) -> None:
        self._client = client

    @property
    def identity(self) -> bytes:
        """See MonotonicCounter: SHA-256 of the broker's certificate."""
        return self._client.broker

    def read(self) -> int:
        """See MonotonicCounter.

        Raises   ReleaseError, TicketError as the broker refuses; BrokerUnavailable
        """
        return self._client.call("counter_read", {}).number("count")

    def advance(self, before: int, to: int) -> None:
        """See MonotonicCounter; it moves in one step.

        The call has a name of its own, so that it can be made again when its answer was lost.

        Raises   CounterError when it is not at `before`, and as `read`
        """
        name = self._client.rng.random_bytes(ADVANCE_BYTES)
        self._client.call("counter_advance", {"before": before, "to": to, "name": name.hex()})


def meter_id(folder: Path, ticket: Ticket, *, rng: Csprng) -> bytes:
    """The id of a ticket's meter, which is in a folder; a new one where there is none.

    The folder of another ticket is refused before the broker is asked: the broker would count it as
    a meter of this ticket, which may have few.

    Raises   InputError
    """
    path = folder / ID_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            made = rng.random_bytes(METER_BYTES) + ticket.digest
            files.create(path, made.hex().encode(), private=True)
        found = bytes.fromhex(files.read_private(path, most=4 * _ID_FILE_BYTES).decode())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        found = b""
    if len(found) != _ID_FILE_BYTES:
        raise InputError(f"{path}: is no id of a meter; restore the folder from its newest copy")
    meter, digest = found[:METER_BYTES], found[METER_BYTES:]
    if digest != ticket.digest:
        raise InputError(
            f"{folder}: is the meter of ticket {digest.hex()[:16]}, and ticket {ticket.license} is "
            f"{ticket.digest.hex()[:16]}; give each ticket a folder of its own"
        )
    return meter
