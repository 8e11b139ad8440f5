"""Attacks on the function values of encrypted training: what a curious server can compute.

`audit_log` runs all of them on a log. Names are loaded when they are first used: the attacks need
SciPy, which an installation that only runs models does not have.
"""

import importlib
from typing import TYPE_CHECKING

from cloister.audit.training.attack_settings import AttackSettings
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.audit.training.log_audit import LogAudit, audit_log

__all__ = ["AttackSettings", "LogAudit", "audit_log"]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module("cloister.audit.training.log_audit"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "scipy":
            raise
        raise InputError(
            "the attacks need SciPy; install it with: pip install 'cloister[audit]'"
        ) from error
