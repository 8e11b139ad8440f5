"""Attacks on a model whose last layers are hidden: what does a thief get, split by split?

`audit_model` makes all of them. Names are loaded when they are first used: the attacks need PyTorch
and SciPy, which an installation that only runs models does not have.
"""

from typing import TYPE_CHECKING

from cloister.audit.deferred import deferred
from cloister.audit.model.theft_settings import TheftSettings

if TYPE_CHECKING:
    from cloister.audit.model.theft_audit import audit_model
    from cloister.audit.model.theft_data import audit_data, read_samples
    from cloister.audit.model.theft_report import ModelTheftReport

__all__ = ["ModelTheftReport", "TheftSettings", "audit_data", "audit_model", "read_samples"]

__getattr__ = deferred(
    __name__,
    {
        "ModelTheftReport": "theft_report",
        "audit_data": "theft_data",
        "audit_model": "theft_audit",
        "read_samples": "theft_data",
    },
    needs=("torch", "scipy"),
)
