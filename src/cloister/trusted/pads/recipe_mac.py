"""The recipe of a store's plan, beside its pads on storage that nobody trusts.

A recipe names a policy, and so decides what is protected. It counts only with the MAC of the
store's key file, which binds it to that store and to its plan.
"""

import hashlib
import hmac
import os
from pathlib import Path

from cloister.base.hkdf import derive
from cloister.errors import PadStoreError
from cloister.plan.recipe import Recipe, from_document, read_document
from cloister.trusted.pads.pad_ledger import Ledger

RECIPE_FILE = "calibration.json"
_PURPOSE = b"cloister pad recipe v1"


def save_recipe(recipe: Recipe, folder: Path, *, key_file: Path) -> None:
    """Write a store's recipe, in the place of any that is there.

    The caller has made the plan of this recipe and opened the store with that plan's digest.
    """
    recipe.save(folder / RECIPE_FILE, mac=_mac(recipe, key_file).hex())


def load_recipe(folder: Path, *, key_file: Path) -> Recipe:
    """The recipe that was saved in this store.

    Raises   PadStoreError when the key file does not vouch for it, InputError when there is none
    """
    path = folder / RECIPE_FILE
    document = read_document(path)
    recipe, mac = from_document(document, path), document.get("mac")
    if not isinstance(mac, str) or not hmac.compare_digest(
        mac.encode(errors="replace"), _mac(recipe, key_file).hex().encode()
    ):
        raise PadStoreError(
            f"{path}: was changed, or is another store's: key file {key_file} does not vouch for "
            "it; run `cloister pads make` again with --policy and --calibration as at first, which "
            "replaces it"
        )
    return recipe


def has_recipe(folder: Path) -> bool:
    """Whether something lies where a store's recipe does."""
    return os.path.lexists(folder / RECIPE_FILE)


def refuse_recipe(folder: Path) -> None:
    """Refuse a folder for a new store that somebody has put a recipe into.

    Raises   PadStoreError
    """
    if has_recipe(folder):
        raise PadStoreError(
            f"{folder / RECIPE_FILE}: was there before the store, so no key file vouches for it; "
            "delete it or choose another --store"
        )


def _mac(recipe: Recipe, key_file: Path) -> bytes:
    ledger = Ledger.open(key_file)
    key = derive(ledger.store_key, info=_PURPOSE + ledger.store_id + ledger.plan_digest)
    return hmac.digest(key, recipe.canonical_bytes, hashlib.sha256)
