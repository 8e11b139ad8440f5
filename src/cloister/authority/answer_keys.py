"""The key pair of a data set's clients, to which a server seals its predictions.

It follows from the label key, which every client has and the server never learns. The authority
tells the public half to everyone. Its fingerprint names the clients: a data set that is deleted and
made anew under its name has another label key, and so other numbers for the same classes.
"""

import hashlib

from cloister.base import hkdf, sealing
from cloister.base.sealing import KeyPair


def answer_keys(label_key: bytes) -> KeyPair:
    """The key pair of all clients of a data set.

    Secret   label_key, and the private half
    """
    return KeyPair(hkdf.derive(label_key, info=b"cloister answers", length=sealing.SEED_BYTES))


def clients_fingerprint(public: bytes) -> str:
    """What tells the clients of a data set from those of another one of its name."""
    return hashlib.sha256(b"cloister clients\0" + public).hexdigest()
