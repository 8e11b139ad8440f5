"""Attacks on a model whose last layers are hidden: what does a thief get, split by split?

`audit_model` makes all of them. Names are loaded when they are first used: the attacks need PyTorch
and SciPy, which an installation that only runs models does not have.
"""

import importlib
from typing import TYPE_CHECKING

from cloister.audit.model.theft_settings import TheftSettings
from cloister.errors import InputError

if TYPE_CHECKING:
    from cloister.audit.model.theft_audit import audit_model
    from cloister.audit.model.theft_data import audit_data, read_samples
    from cloister.audit.model.theft_report import ModelTheftReport

__all__ = ["ModelTheftReport", "TheftSettings", "audit_data", "audit_model", "read_samples"]

_HOMES = {
    "ModelTheftReport": "theft_report",
    "audit_data": "theft_data",
    "audit_model": "theft_audit",
    "read_samples": "theft_data",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = importlib.import_module(f"cloister.audit.model.{_HOMES[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("scipy", "torch"):
            raise
        raise InputError(
            "attacks on a model need PyTorch and SciPy: pip install 'cloister[audit]'"
        ) from error
    return getattr(home, name)
