"""Which process this is, also where numbers of processes repeat: a namespace begins at 1 again."""

import os

_forks = [0]


def _count_fork() -> None:
    _forks[0] += 1


os.register_at_fork(after_in_child=_count_fork)


def this_process() -> tuple[int, int]:
    """Its number, and how many forks lie between it and the one that loaded this module."""
    return os.getpid(), _forks[0]
