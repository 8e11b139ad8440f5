"""The plan of a pad store, sealed beside its pads on storage that is not trusted.

A plan decides what is protected. It counts only under the seal of the store's key, which binds it
to that store and to the plan that the key file names; the store reads no other plan. The storage
learns the size of the plan only: the weights of nodes that stay inside are secret.
"""

import hashlib
import os
from pathlib import Path

from cloister.base import files
from cloister.base.aead import open_sealed, seal
from cloister.base.hkdf import derive
from cloister.base.reading import open_regular, parsing
from cloister.base.rng import Csprng
from cloister.errors import PadStoreError, PlanError, VerificationError
from cloister.plan.plan import Plan
from cloister.trusted.pads.pad_layout import PadLayout
from cloister.trusted.pads.pad_ledger import PadLedger
from cloister.trusted.pads.store import PadStore

PLAN_FILE = "plan.sealed"
MAX_BYTES = 2**31 - 1
_PURPOSE = b"cloister stored plan v1"


def save_plan(plan: Plan, folder: Path, *, key_file: Path, rng: Csprng) -> None:
    """Write a store's plan, in the place of any that is there.

    Raises   PadStoreError when the store is of another plan
    """
    ledger = PadLedger.open(key_file)
    data = plan.to_bytes()
    if hashlib.sha256(data).digest() != ledger.plan_digest or len(data) > MAX_BYTES:
        raise PadStoreError(f"key file {key_file}: is of another plan, or the plan is too large")
    sealed = seal(_key(ledger), data, aad=ledger.plan_digest, rng=rng)
    files.replace(folder / PLAN_FILE, sealed, private=False)


def load_plan(folder: Path, *, key_file: Path) -> Plan:
    """The plan that was saved in this store.

    Raises   PadStoreError when the key file does not vouch for it, InputError when there is none
    """
    path = folder / PLAN_FILE
    ledger = PadLedger.open(key_file)
    with parsing(f"{path}: cannot be read"), open_regular(path) as file:
        sealed = file.read(MAX_BYTES)
    try:
        return Plan.from_bytes(open_sealed(_key(ledger), sealed, aad=ledger.plan_digest))
    except VerificationError:
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
    """Refuse a folder for a new store that contains a plan already.

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
    return PadStore.create(
        folder,
        plan_digest=plan.digest,
        layout=PadLayout.of(plan),
        sealed=not plan.pads_checked,
        key_file=key_file,
        rng=rng,
    )


def _key(ledger: PadLedger) -> bytes:
    return derive(ledger.store_key, info=_PURPOSE + ledger.store_id + ledger.plan_digest)
