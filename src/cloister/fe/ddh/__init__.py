"""Functional encryption from decisional Diffie-Hellman: the paper's scheme, on a curve.

`inner` (FEIP) and `elements` (FEBO) state what they hide. Keys serve any ciphertext.
"""

from cloister.fe.ddh.elements import decrypt_elements, encrypt_elements, keygen_elements
from cloister.fe.ddh.groups import GroupName
from cloister.fe.ddh.inner import DdhKeys, decrypt, encrypt, keygen, setup
from cloister.fe.ddh.keys import (
    Ciphertexts,
    ElementCiphertexts,
    ElementKey,
    EncryptionKey,
    FunctionKey,
    MasterKey,
)
from cloister.fe.ddh.parameters import Public, Variant

__all__ = [
    "Ciphertexts",
    "DdhKeys",
    "ElementCiphertexts",
    "ElementKey",
    "EncryptionKey",
    "FunctionKey",
    "GroupName",
    "MasterKey",
    "Public",
    "Variant",
    "decrypt",
    "decrypt_elements",
    "encrypt",
    "encrypt_elements",
    "keygen",
    "keygen_elements",
    "setup",
]
