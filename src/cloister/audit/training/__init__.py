"""Attacks on the function values of encrypted training: what a curious server can compute.

`audit_log` runs all of them on a log. Names are loaded when they are first used: the attacks need
SciPy, which an installation that only runs models does not have.
"""

from typing import TYPE_CHECKING

from cloister.audit.deferred import deferred
from cloister.audit.training.attack_settings import AttackSettings

if TYPE_CHECKING:
    from cloister.audit.training.log_audit import LogAudit, audit_log

__all__ = ["AttackSettings", "LogAudit", "audit_log"]


__getattr__ = deferred(
    __name__, {"LogAudit": "log_audit", "audit_log": "log_audit"}, needs=("scipy",)
)
