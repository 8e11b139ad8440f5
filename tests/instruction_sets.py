"""Kernels of a chosen instruction set."""

from contextlib import contextmanager

import cloister._native as native


@contextmanager
def forced(isa):
    """Use the kernels of `isa` for a while."""
    before = native.isa()
    native.force_isa(isa)
    try:
        yield isa
    finally:
        native.force_isa(before)
