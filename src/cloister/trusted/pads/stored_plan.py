"""The plan of a pad store, beside its pads on storage that nobody trusts.

A plan decides what is protected. It counts only if it has the digest that the store's key file
names, and which that file's own MAC covers; of another one, nothing is read.
"""

import os
from pathlib import Path

from cloister.errors import PadStoreError, PlanError
from cloister.plan.plan import Plan
from cloister.trusted.pads.pad_ledger import Ledger

PLAN_FILE = "store.plan"


def save_plan(plan: Plan, folder: Path, *, key_file: Path) -> None:
    """Write a store's plan, in the place of any that is there.

    Raises   PadStoreError when the store is of another plan
    """
    if Ledger.open(key_file).plan_digest != plan.digest:
        raise PadStoreError(f"key file {key_file}: is of another plan, so this one is not stored")
    plan.save(folder / PLAN_FILE)


def load_plan(folder: Path, *, key_file: Path) -> Plan:
    """The plan that was saved in this store.

    Raises   PadStoreError when the key file does not vouch for it, InputError when there is none
    """
    path = folder / PLAN_FILE
    digest = Ledger.open(key_file).plan_digest
    try:
        return Plan.load(path, digest=digest)
    except PlanError:
        raise PadStoreError(
            f"{path}: was changed, or is another store's: key file {key_file} does not vouch for "
            "it; run `cloister pads make` again with --policy and --calibration as at first, which "
            "replaces it"
        ) from None


def has_plan(folder: Path) -> bool:
    """Whether something lies where a store's plan does."""
    return os.path.lexists(folder / PLAN_FILE)


def refuse_plan(folder: Path) -> None:
    """Refuse a folder for a new store that somebody has put a plan into.

    Raises   PadStoreError
    """
    if has_plan(folder):
        raise PadStoreError(
            f"{folder / PLAN_FILE}: was there before the store, so no key file vouches for it; "
            "delete it or choose another --store"
        )
