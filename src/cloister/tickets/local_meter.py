"""The key of a meter that runs without a key broker, where the content key is at hand.

Whoever has the content key can make receipts and ledgers of his own, and can open the bundle. So
such a meter counts for a vendor on his own machine, and for tests.
"""

from cloister.base.hkdf import derive
from cloister.tickets.ticket import Ticket

_PURPOSE = b"cloister local meter v1"


def local_meter_key(content_key: bytes, ticket: Ticket) -> bytes:
    """The key that a content key gives the meter of a ticket.

    Secret   content_key, the result
    """
    return derive(content_key, info=_PURPOSE + ticket.digest)
