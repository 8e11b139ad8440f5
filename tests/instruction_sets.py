"""Kernels of a chosen instruction set."""

from contextlib import contextmanager

from cloister import _native, _published_native


@contextmanager
def forced(isa):
    """Use the kernels of `isa` for a while, those of the published scheme too."""
    before = _native.isa()
    try:
        _native.force_isa(isa)
        _published_native.force_isa(isa)
        yield isa
    finally:
        _native.force_isa(before)
        _published_native.force_isa(before)
