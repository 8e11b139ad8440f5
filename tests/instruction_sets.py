"""Kernels of a chosen instruction set."""

from contextlib import contextmanager

import cloister.base._native as native
import cloister.published._published_native as published_native


@contextmanager
def forced(isa):
    """Use the kernels of `isa` for a while, those of the published scheme too."""
    before = native.isa()
    try:
        native.force_isa(isa)
        published_native.force_isa(isa)
        yield isa
    finally:
        native.force_isa(before)
        published_native.force_isa(before)
