"""Kernels of a chosen instruction set."""

from contextlib import contextmanager

from cloister import _native


@contextmanager
def forced(isa):
    """Use the kernels of `isa` for a while."""
    before = _native.isa()
    _native.force_isa(isa)
    try:
        yield isa
    finally:
        _native.force_isa(before)
