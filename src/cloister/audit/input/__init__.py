"""Attacks on what workers see of inputs: in a transcript of inference, and at a model's splits.

`audit_splits` attacks every split. Its names are loaded when they are first used: these attacks
need PyTorch and SciPy, which an installation that only runs models does not have.
"""

from typing import TYPE_CHECKING

from cloister.audit.deferred import deferred
from cloister.audit.input.split_settings import SplitSettings

if TYPE_CHECKING:
    from cloister.audit.input.split_audit import SplitAudit, attack_splits, audit_splits
    from cloister.audit.input.split_images import SplitImages, read_split_images
    from cloister.audit.input.split_page import split_sections

__all__ = [
    "SplitAudit",
    "SplitImages",
    "SplitSettings",
    "attack_splits",
    "audit_splits",
    "read_split_images",
    "split_sections",
]

__getattr__ = deferred(
    __name__,
    {
        "SplitAudit": "split_audit",
        "SplitImages": "split_images",
        "attack_splits": "split_audit",
        "audit_splits": "split_audit",
        "read_split_images": "split_images",
        "split_sections": "split_page",
    },
    needs=("torch", "scipy"),
)
