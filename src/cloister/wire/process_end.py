"""A process that ends with those that it serves, whatever it computes."""

import os
import select
import threading
from collections.abc import Mapping, Sequence

CLOSING_S = 1.0
"""Sockets that this process closes itself make no event; they are looked at so often."""


def end_with(descriptors: Sequence[int]) -> None:
    """End this process once all these sockets are closed, at either end.

    A thread waits for that: the one that answers messages may be in a model that never ends.
    """
    # Unlike poll, epoll keeps no socket open that is closed meanwhile.
    hang_ups = select.epoll()
    for descriptor in descriptors:
        hang_ups.register(descriptor, select.EPOLLHUP | select.EPOLLONESHOT)
    open_ones = {descriptor: os.fstat(descriptor).st_ino for descriptor in descriptors}
    threading.Thread(target=_wait, args=(hang_ups, open_ones), name="end", daemon=True).start()


def _wait(hang_ups: select.epoll, sockets: Mapping[int, int]) -> None:
    gone: set[int] = set()
    while any(one not in gone and _is_open(one, sockets[one]) for one in sockets):
        gone |= {one for one, _ in hang_ups.poll(CLOSING_S if gone else None)}
    os._exit(0)


def _is_open(descriptor: int, inode: int) -> bool:
    try:
        return os.fstat(descriptor).st_ino == inode
    except OSError:
        return False
