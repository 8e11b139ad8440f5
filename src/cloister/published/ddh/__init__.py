"""Functional encryption from decisional Diffie-Hellman: the paper's scheme, on a curve.

`inner` (FEIP) and `elements` (FEBO) state what they hide. Keys serve any ciphertext.
"""

from cloister.published.ddh.elements import (
    decrypt_elements,
    encrypt_elements,
    keygen_elements,
)
from cloister.published.ddh.groups import GroupName
from cloister.published.ddh.inner import DdhKeys, decrypt, encrypt, keygen, setup
from cloister.published.ddh.keys import (
    DdhCiphertexts,
    DdhElementCiphertexts,
    DdhElementKey,
    DdhEncryptionKey,
    DdhFunctionKey,
    DdhMasterKey,
)
from cloister.published.ddh.parameters import DdhPublic, Variant

__all__ = [
    "DdhCiphertexts",
    "DdhElementCiphertexts",
    "DdhElementKey",
    "DdhEncryptionKey",
    "DdhFunctionKey",
    "DdhKeys",
    "DdhMasterKey",
    "DdhPublic",
    "GroupName",
    "Variant",
    "decrypt",
    "decrypt_elements",
    "encrypt",
    "encrypt_elements",
    "keygen",
    "keygen_elements",
    "setup",
]
