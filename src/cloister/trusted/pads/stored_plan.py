"""The plan of a pad store, beside its pads on storage that nobody trusts.

A plan decides what is protected. It counts only if it has the digest that the store's key file
names, and which that file's own MAC covers; of another one, nothing is read.
"""

import os
from pathlib import Path

from cloister.base.rng import Csprng
from cloister.errors import PadStoreError, PlanError
from cloister.plan.plan import Plan
from cloister.trusted.pads.pad_ledger import Ledger
from cloister.trusted.pads.store import PadStore

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


def known_plan(folder: Path, *, key_file: Path) -> Plan | None:
    """The plan of a store, or None where there is no store or its plan is missing.

    Raises   PadStoreError when a plan is there that the key file does not vouch for
    """
    refuse_planted(folder, key_file=key_file)
    if not key_file.exists() or not os.path.lexists(folder / PLAN_FILE):
        return None
    return load_plan(folder, key_file=key_file)


def refuse_planted(folder: Path, *, key_file: Path) -> None:
    """Refuse a folder for a new store that somebody has put a plan into.

    Raises   PadStoreError
    """
    if not key_file.exists() and os.path.lexists(folder / PLAN_FILE):
        raise PadStoreError(
            f"{folder / PLAN_FILE}: was there before the store, so no key file vouches for it; "
            "delete it or choose another folder"
        )


def open_or_create(plan: Plan, folder: Path, *, key_file: Path, rng: Csprng) -> PadStore:
    """The store of this plan; a new one where there is no key file yet.

    Raises   PlanError for a plan that needs no pads, PadStoreError as `PadStore.open` and `create`
    """
    if not plan.hidden_nodes:
        raise PlanError(f"policy {plan.policy!r} blinds nothing, so it needs no pads")
    if key_file.exists():
        return PadStore.open(folder, plan_digest=plan.digest, key_file=key_file)
    return PadStore.create(folder, plan_digest=plan.digest, key_file=key_file, rng=rng)
